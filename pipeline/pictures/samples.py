"""Samples as people look at them: loaded from their source when the first one is asked for, and checked."""

import math
from dataclasses import dataclass, field
from threading import Lock
from typing import TYPE_CHECKING, Final, Literal, final

import numpy as np

from ntkpipe.configs.errors import NtkPipeError, StorageError
from ntkpipe.pipeline.pictures.images import as_pixels, brightness, draw_image
from ntkpipe.pipeline.pictures.workshop import Building, Workshop
from ntkpipe.pipeline.query.run import Run
from ntkpipe.storage.features import FEATURES_STAGE
from ntkpipe.storage.grid import shard_at
from ntkpipe.storage.ledger import Ledger
from ntkpipe.storage.stores.base import AbstractStore

if TYPE_CHECKING:
    from ntkpipe.workers.sources.showing import ShownSplit

MAX_BYTES: Final = 2**30
MAX_TEXT: Final = 20_000
"""Characters of a text that are shown."""
RANGE_SAMPLES: Final = 256
"""From which the brightness of images is taken."""
RETRY_SECONDS: Final = 30.0
"""After which a source that could not be loaded is tried again."""


@dataclass(frozen=True, slots=True)
class Shown:
    """A sample as it can be shown."""

    kind: Literal["image", "text", "none"]
    text: str | None = None
    """Of a text."""
    why: str | None = None
    """There is nothing to be shown."""
    png: bytes | None = None
    """Of an image."""


@final
@dataclass(frozen=True, slots=True)
class _Split:
    """A split that was loaded, or why it was not."""

    source: "ShownSplit | None" = None
    why: str | None = None
    range: tuple[float, float] = (0.0, 1.0)
    digests: dict[int, bool] = field(default_factory=dict)
    """By shard, whether its inputs are those of the run."""
    lock: Lock = field(default_factory=Lock)

    @property
    def nbytes(self) -> int:
        return 0 if self.source is None else self.source.num_bytes

    @property
    def stale_after(self) -> float:
        return RETRY_SECONDS if self.source is None else math.inf


@final
class SampleShelf:
    """The sources of the runs that samples were asked of, loaded in the background. Thread safe.

    Args:
        trust_code: Whether code and files that a run names are run and opened.
        max_bytes: Of inputs that stay in memory; those of the split that was loaded last always do.
        wait_seconds: For which who asks waits for a source that is not loaded.
    """

    def __init__(self, *, trust_code: bool = False, max_bytes: int = MAX_BYTES, wait_seconds: float = 0.5) -> None:
        self._trust_code = trust_code
        self._max_bytes = max_bytes
        self._loader = Workshop(max_bytes, wait_seconds=wait_seconds)

    def show(self, run: Run, store: AbstractStore, split: str, position: int) -> Shown | Building:
        """Return a sample, or that its source is being loaded; what cannot be shown says why, and raises nothing.

        Args:
            run: Whose sample it is.
            store: Of the run.
            split: Of the run.
            position: In the split.
        """
        found = self._loader.ask((run.url, run.manifest.run_id, split), lambda _: self._loaded(run, split))
        if isinstance(found, Building):
            return found
        if found.source is None:
            return Shown("none", why=found.why)
        # Not every source can be read by several threads.
        with found.lock:
            try:
                problem = self._problem(found, found.source, run, store, split, position)
                return Shown("none", why=problem) if problem else _shown(found, found.source, position)
            except NtkPipeError as error:
                return Shown("none", why=self._told(error))

    def close(self) -> None:
        """Give up what is being loaded."""
        self._loader.close()

    def _loaded(self, run: Run, split: str) -> _Split:
        try:
            return self._opened(run, split)
        except NtkPipeError as error:
            return _Split(why=self._told(error))

    def _opened(self, run: Run, split: str) -> _Split:
        # Loads torch, which a service that is never asked for a sample does without.
        from ntkpipe.workers.sources.showing import ShownSplit, mistrust

        config = run.config.data.splits[split]
        reason = None if self._trust_code else mistrust(config, run.url, self._max_bytes)
        if reason is not None:
            return _Split(why=reason)
        source = ShownSplit(split, config)
        if list(source.ids) != run.ids(split):
            return _Split(why="the samples at hand are not those of the run: their ids differ.")
        return _Split(source, range=_range(source))

    def _problem(
        self, found: _Split, source: "ShownSplit", run: Run, store: AbstractStore, split: str, position: int
    ) -> str | None:
        """Return why a sample is not shown: the inputs of its shard are not those that the run was computed from."""
        from ntkpipe.pipeline.identity import inputs_of  # loads torch

        geometry = run.manifest.geometry
        index = position // geometry.shard_rows
        if index not in found.digests:
            shard = shard_at(split, index, len(source.ids), geometry.shard_rows)
            try:
                expected = inputs_of(Ledger(store).receipt(FEATURES_STAGE, shard.task).made_from)
            except StorageError:
                return "the sample's shard has not been computed yet, so that nobody can tell whether this is it."
            if expected is None and not self._trust_code:
                return "the run was made by an earlier version, which does not tell from which inputs."
            found.digests[index] = expected in (None, source.digest(shard.start, shard.stop))
        return None if found.digests[index] else "the samples at hand are not those of the run: their inputs differ."

    def _told(self, error: NtkPipeError) -> str:
        """Return what is said of an error: without trust nothing of what lies on this machine."""
        return error.message if self._trust_code else "the samples cannot be loaded here."


def _shown(found: _Split, source: "ShownSplit", position: int) -> Shown:
    text = source.text(position)
    if text is not None:
        return Shown("text", text=text if len(text) <= MAX_TEXT else text[:MAX_TEXT] + " ...")
    values = source.inputs([position])[0]
    pixels = as_pixels(values)
    if pixels is None:
        shape = " x ".join(map(str, values.shape)) or "one number"
        return Shown("none", why=f"the input ({shape}, {values.dtype}) is neither an image nor a text.")
    return Shown("image", png=draw_image(pixels, *found.range))


def _range(source: "ShownSplit") -> tuple[float, float]:
    num = len(source.ids)
    chosen = np.unique(np.linspace(0, num - 1, min(num, RANGE_SAMPLES)).astype(int)).tolist()
    values = source.inputs(chosen)
    return brightness(values) if values.dtype.kind in "fiub" else (0.0, 1.0)
