"""Single samples of a run for people to look at, as NumPy arrays or texts.

What a run's configuration names may come from anybody. Code is only run for looking if it is part of ntkpipe, and only
plain files are opened, unless whoever looks says that the run is trusted. In any case nothing is shown but the inputs that
the run was computed from: their digest must be the one in the run's receipts, so that a run cannot be made to show other
files of the machine.
"""

import os
from typing import Final, final
from urllib.parse import urlsplit

import numpy as np
import numpy.typing as npt

from ntkpipe.configs.sources import ArrayData, SplitData
from ntkpipe.storage.assets import PACKAGE_SCHEME
from ntkpipe.workers.sources.data import SplitSource, input_digest

Array = npt.NDArray[np.generic]

KNOWN_TARGETS: Final = frozenset({"ntkpipe.workers.examples.digits:load", "ntkpipe.workers.examples.mnist:load"})
"""Callables that may be called with any options."""

OWN_PACKAGE: Final = f"{PACKAGE_SCHEME}ntkpipe."


def mistrust(config: SplitData, run_url: str, max_bytes: int) -> str | None:
    """Return why a split is not read unless its run is trusted; None where nothing speaks against it.

    Args:
        config: Of the split.
        run_url: Where the run lives; files in the same bucket or on the same host are as good as the run itself.
        max_bytes: Of a file.
    """
    if not isinstance(config, ArrayData):
        if config.target in KNOWN_TARGETS:
            return None
        return (
            f"the samples come from code that the run names ({config.target}), and that is not run just for looking. If you "
            "trust who made the run, start the service with --trust-code."
        )
    for location in (config.inputs, config.labels, config.ids):
        if location is not None and not _is_plain(location, run_url, max_bytes):
            return (
                "the samples lie in files that are not here, are too large, or belong to another place than the run. If you "
                "trust who made the run, start the service with --trust-code."
            )
    return None


@final
class ShownSplit:
    """The samples of a split. Loads what the split's configuration names; memory is that of its inputs.

    Attributes:
        ids: (N,) of the samples.
        num_bytes: Of inputs that are in memory.

    Raises:
        ConfigError: They cannot be loaded.
    """

    def __init__(self, name: str, config: SplitData) -> None:
        self._source = SplitSource(name, config)
        self.ids = self._source.ids
        self.num_bytes = self._source.num_bytes

    def inputs(self, positions: list[int]) -> Array:
        """Return the inputs of some samples, (B, ...)."""
        found: Array = self._source.raw(positions).numpy()
        return found

    def text(self, position: int) -> str | None:
        """Return what is shown instead of an input, None where the input itself is."""
        return None if self._source.texts is None else self._source.texts[position]

    def digest(self, start: int, stop: int) -> str:
        """Return the digest of the inputs of a range, as receipts of features tasks tell it."""
        return input_digest(self._source.raw(range(start, stop)))


def _is_plain(location: str, run_url: str, max_bytes: int) -> bool:
    """Return whether a file can be read without running code, without end, and without asking another host."""
    if location.startswith(PACKAGE_SCHEME):
        return location.startswith(OWN_PACKAGE)
    parts = urlsplit(location)
    if "::" in location:
        return False
    if "://" in location and parts.scheme != "file":
        home = urlsplit(run_url)
        return bool(parts.netloc) and (parts.scheme, parts.netloc) == (home.scheme, home.netloc)
    path = parts.path if "://" in location else location
    return os.path.isfile(path) and os.path.getsize(path) <= max_bytes
