"""From what a service sends to neighbors; whatever is sent, nothing else than numbers comes of it."""

import numpy as np

from ntkpipe.pipeline.query.names import Nearest


def nearest_of(lists: list[list[tuple[int, float]]]) -> Nearest:
    """Return neighbors of samples that have them in different numbers."""
    shape = (len(lists), max(map(len, lists), default=0))
    positions, values = np.full(shape, -1, dtype=np.int64), np.full(shape, np.nan)
    for row, pairs in enumerate(lists):
        for column, (position, value) in enumerate(pairs):
            positions[row, column], values[row, column] = position, np.nan if value is None else value
    return Nearest(positions, values)


def pairs_of(found: Nearest) -> list[list[tuple[int, float]]]:
    """Return the neighbors of each sample, without the places that stand for none."""
    return [
        [(int(position), float(value)) for position, value in zip(*row, strict=True) if position >= 0]
        for row in zip(found.positions, found.values, strict=True)
    ]
