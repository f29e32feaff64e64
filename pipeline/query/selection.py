"""From what a user writes, between brackets or as text, to positions in a split."""

import re
from threading import Lock
from typing import Any, final

import numpy as np

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
    raise ConfigError(f"{_shown(text)} selects no samples; write 0:10, 3, 1,5,7, id:NAME or id:NAME,id:OTHER.")


def is_single(index: Index) -> bool:
    """Return whether an index names one sample, so that its axis is dropped."""
    return isinstance(index, int | str | np.integer)


def _shown(text: str) -> str:
    return repr(text if len(text) <= MAX_SHOWN else f"{text[:MAX_SHOWN]}...")


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
        if isinstance(index, slice):
            return np.arange(len(self.names))[index]
        if isinstance(index, np.ndarray) and index.dtype.kind in "iu" and index.ndim == 1:
            return self._checked(index.astype(np.int64))
        items: list[Any] = [index] if is_single(index) else list(index)  # type: ignore[arg-type]
        if items and all(isinstance(item, bool | np.bool_) for item in items):
            if len(items) != len(self.names):
                raise ConfigError(
                    f"a mask of {len(items)} values cannot select from {len(self.names)} samples of {self._split!r}."
                )
            return np.flatnonzero(np.array(items, dtype=bool))
        return np.array([self._position(item) for item in items], dtype=np.int64)

    def find(self, name: str) -> int | None:
        """Return the position of a sample id, None if it is not in the split."""
        if not self._positions:
            with self._lock:
                if not self._positions:
                    self._positions = {text: position for position, text in enumerate(self.names)}
        return self._positions.get(name)

    def _checked(self, positions: Positions) -> Positions:
        outside = (positions < -len(self.names)) | (positions >= len(self.names))
        if outside.any():
            self._position(int(positions[outside][0]))
        return np.where(positions < 0, positions + len(self.names), positions)

    def _position(self, item: Any) -> int:
        num = len(self.names)
        if isinstance(item, str):
            found = self.find(item)
            if found is None:
                raise NotFoundError(
                    f"split {self._split!r} has no sample {_shown(item)}. Its {num} ids run from {self.names[0]!r} to "
                    f"{self.names[-1]!r}."
                )
            return found
        if not isinstance(item, int | np.integer):
            raise ConfigError(f"{item!r} is neither a position nor a sample id.")
        if not -num <= item < num:
            raise NotFoundError(f"position {item} is outside split {self._split!r} with {num} samples.")
        return int(item) % num
