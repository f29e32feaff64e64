"""What pictures read of a run: matrices tile by tile, and how much that will be, known before anything is read."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Final

import numpy as np

from ntkpipe.configs.errors import ConfigError, TooLargeError
from ntkpipe.pipeline.pictures.clusters import landmarks
from ntkpipe.pipeline.pictures.comparison import spans
from ntkpipe.pipeline.pictures.orders import OrderName
from ntkpipe.pipeline.query.names import MatrixName, Positions
from ntkpipe.pipeline.query.run import Run
from ntkpipe.pipeline.query.stored import StoredRunReader
from ntkpipe.storage.matrix import AbstractMatrix

_NONE: Final[Positions] = np.empty(0, np.int64)


@dataclass(frozen=True, slots=True)
class Need:
    """Entries of a matrix that have to be read."""

    name: MatrixName
    rows: Positions
    columns: Positions


def matrix_of(run: Run, name: MatrixName, *, cached: bool = False) -> AbstractMatrix:
    """Return a matrix, to be read tile by tile.

    Args:
        run: That has it.
        name: Of the matrix.
        cached: Whether decoded tiles are held, as a pass over all of them should not do.

    Raises:
        ConfigError: The run is not read from its own storage.
    """
    for split in (name.rows, name.columns):
        run.ids(split)  # there are as many samples as the manifest says, before memory is taken for each
    return _reader(run).matrix(name, cached=cached)


def needs_of_overview(run: Run, name: MatrixName, order: OrderName) -> list[Need]:
    """Return what the picture of a matrix in some order is made of."""
    width = run.shape_of(name.kernel)[0].width
    needs = [Need(name, *(np.arange(len(run.ids(split)) * width) for split in (name.rows, name.columns)))]
    # For every split the clusters of the training samples are found anew.
    for split in dict.fromkeys((name.rows, name.columns)):
        needs += needs_of_order(run, name, split, order)
    return needs


def needs_of_order(run: Run, name: MatrixName, split: str, order: OrderName) -> list[Need]:
    """Return what the order of a split's samples is made of: for clusters, columns of a matrix; for others, nothing."""
    if order != "cluster":
        return []
    train = run.train_split
    at = landmarks(len(run.ids(train)), run.manifest.geometry.block_rows)
    return [
        Need(replace(name, rows=rows, columns=train), np.arange(len(run.ids(rows))), at)
        for rows in dict.fromkeys((train, split))
    ]


def needs_of_comparison(one: Run, first: MatrixName, other: Run, second: MatrixName) -> tuple[list[Need], list[Need]]:
    """Return what the comparison of two matrices is made of, of each."""
    blocks = [run.manifest.geometry.block_rows for run in (one, other)]
    at = np.concatenate(spans(len(one.ids(first.rows)), max(blocks)))
    # Blocks that do not divide the larger ones are in two of them, so that a tile is read up to four times.
    times = [1 if max(blocks) % block_rows == 0 else 4 for block_rows in blocks]
    return [Need(first, at, at)] * times[0], [Need(second, at, at)] * times[1]


def num_bytes(run: Run, needs: Sequence[Need]) -> int:
    """Return how many bytes the chunks have that must be read for matrices of one kernel.

    A pass for means that several of the matrices need counts once.
    """
    reader = _reader(run)
    passes = [reader.num_bytes(need.name, _NONE, _NONE) for need in needs]
    entries = sum(reader.num_bytes(need.name, need.rows, need.columns) for need in needs) - sum(passes)
    return entries + max(passes, default=0)


def check_cost(asked: int, limit: int) -> None:
    """Refuse what would read too much.

    Raises:
        TooLargeError: With what may be read, and what would be.
    """
    if asked > limit:
        raise TooLargeError(
            f"for this picture {asked:,} bytes would have to be read; expected at most {limit:,}. Ask for entries instead, or "
            "serve with a larger --picture-read-bytes.",
            limit=limit,
            asked=asked,
        )


def _reader(run: Run) -> StoredRunReader:
    if not isinstance(run.reader, StoredRunReader):
        raise ConfigError(f"{run.url} is asked through a service; ask that for pictures.")
    return run.reader
