"""From what a user writes, between brackets or as text, to positions in a split."""

import re
from collections.abc import Callable, Iterable, Mapping
from collections.abc import Set as AbstractSet
from threading import Lock
from typing import Any, final

import numpy as np
import numpy.typing as npt

from ntkpipe.configs.errors import ConfigError, NotFoundError
from ntkpipe.pipeline.query.names import Index, Positions

_SLICE = re.compile(r"(-?[0-9]+)?:(-?[0-9]+)?(?::(-?[0-9]+))?")
_NUMBER = re.compile(r"\s*[+-]?[0-9]+\s*")

MAX_SHOWN = 200
"""Characters of a sample id, or of a text, that a message repeats."""

MAX_DIGITS = 18
"""Of a number in a text: of more, no position has."""


def parse_selection(text: str) -> slice | list[int] | list[str]:
    """Turn ``0:10``, ``3``, ``1,5,7``, ``id:NAME`` or ``id:NAME,id:OTHER`` into an index.

    Raises:
        ConfigError: The text is none of these.
    """
    match = _SLICE.fullmatch(text)
    if match and all(len(part or "") <= MAX_DIGITS for part in match.groups()):
        start, stop, step = (int(part) if part else None for part in match.groups())
        if step == 0:
            raise ConfigError(f"{text!r} has a step of 0.")
        return slice(start, stop, step)
    parts = text.split(",")
    if all(part.startswith("id:") for part in parts):
        return [part.removeprefix("id:") for part in parts]
    if all(len(part) <= MAX_DIGITS and _NUMBER.fullmatch(part) for part in parts):
        return [int(part) for part in parts]
    raise ConfigError(f"{_shown(repr(text))} selects no samples; write 0:10, 3, 1,5,7, id:NAME or id:NAME,id:OTHER.")


def is_single(index: Index) -> bool:
    """Return whether an index names one sample, so that its axis is dropped."""
    return isinstance(index, int | str | np.integer)


def _shown(text: str) -> str:
    return text if len(text) <= MAX_SHOWN else f"{text[:MAX_SHOWN]}..."


def positions_of(index: Index, num: int, what: str, find: Callable[[str], int | None] = lambda name: None) -> Positions:
    """Turn any index into positions.

    Args:
        index: A position, a name, a slice of positions, several of either, or a mask.
        num: How many there are to choose from.
        what: They are, such as ``samples of split 'train'``.
        find: Returns the position of a name, None if there is none.

    Raises:
        NotFoundError: A position or name does not exist.
        ConfigError: The index is of no known form.
    """
    if isinstance(index, slice):
        try:
            return np.arange(num)[index]
        except (TypeError, ValueError) as error:
            raise ConfigError(f"{index} is no slice of positions ({error}); write such as 0:10.") from None
    if isinstance(index, np.ndarray) and index.ndim == 1 and index.dtype.kind in "iub":
        return _chosen(index, num, what) if index.dtype.kind == "b" else _inside(index, num, what)
    items = _items(index, what)
    if items and all(isinstance(item, bool | np.bool_) for item in items):
        return _chosen(np.array(items, dtype=bool), num, what)
    return np.array([_position(item, num, what, find) for item in items], dtype=np.int64)


def _items(index: Any, what: str) -> list[Any]:
    if is_single(index):
        return [index]
    if isinstance(index, np.ndarray) and index.ndim != 1:
        raise ConfigError(f"an array of shape {index.shape} cannot select from {what}; expected one axis.")
    # Bytes are no positions, keys of a mapping no names, and sets have no order.
    if isinstance(index, bytes | bytearray | memoryview | Mapping | AbstractSet) or not isinstance(index, Iterable):
        raise ConfigError(
            f"{_shown(repr(index))} cannot select from {what}; expected a position, a name, a slice, a list of either or a mask."
        )
    return list(index)


def _chosen(mask: npt.NDArray[np.bool_], num: int, what: str) -> Positions:
    if len(mask) != num:
        raise ConfigError(f"a mask of {len(mask)} values cannot select from {num} {what}.")
    return np.flatnonzero(mask)


def _inside(positions: npt.NDArray[np.integer], num: int, what: str) -> Positions:
    """Return positions counted from the beginning; they are compared before they are converted, which could wrap."""
    outside = positions >= num
    if positions.dtype.kind == "i":
        outside |= positions < -num
    if outside.any():
        raise _outside(positions[outside][0], num, what)
    found = positions.astype(np.int64)
    return np.where(found < 0, found + num, found)


def _position(item: Any, num: int, what: str, find: Callable[[str], int | None]) -> int:
    if isinstance(item, str):
        found = find(item)
        if found is None:
            raise NotFoundError(f"{_shown(repr(item))} is none of the {num} {what}.")
        return found
    if isinstance(item, bool | np.bool_) or not isinstance(item, int | np.integer):
        raise ConfigError(f"{_shown(repr(item))} is neither a position nor a name among the {num} {what}.")
    if not -num <= item < num:
        raise _outside(item, num, what)
    return int(item) % num


def _outside(item: Any, num: int, what: str) -> NotFoundError:
    return NotFoundError(f"position {_shown(str(item))} is outside of the {num} {what}.")


def rows_of_samples(samples: Positions, width: int) -> Positions:
    """Return the rows of a matrix that belong to samples: C for each of them for a kernel of (sample, output) pairs."""
    return samples if width == 1 else (samples[:, np.newaxis] * width + np.arange(width)).ravel()


@final
class Ids:
    """The ids of a split. Thread safe.

    Attributes:
        names: In order.
    """

    def __init__(self, split: str, names: list[str]) -> None:
        self.names = names
        self._split = split
        self._positions: dict[str, int] = {}
        self._lock = Lock()

    def positions(self, index: Index) -> Positions:
        """Turn any index into positions.

        Raises:
            NotFoundError: A sample id or position does not exist.
            ConfigError: The index is of no known form.
        """
        return positions_of(index, len(self.names), f"samples of split {self._split!r}", self._known)

    def find(self, name: str) -> int | None:
        """Return the position of a sample id, None if it is not in the split."""
        if not self._positions:
            with self._lock:
                if not self._positions:
                    self._positions = {text: position for position, text in enumerate(self.names)}
        return self._positions.get(name)

    def _known(self, name: str) -> int:
        found = self.find(name)
        if found is None:
            raise NotFoundError(
                f"split {self._split!r} has no sample {_shown(repr(name))}. Its {len(self.names)} ids run from "
                f"{self.names[0]!r} to {self.names[-1]!r}."
            )
        return found
