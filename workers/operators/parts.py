"""In how many parts sums are computed: functions of sizes only, which need no torch and can be told beforehand."""

from itertools import pairwise
from typing import Final

MAX_PARTS: Final = 32
"""Of a product; each is some blocks of rows."""

MAX_PASS_PARTS: Final = 16
"""Of a pass for a Gram matrix; each part's sum is as large as that, and as dear to add up as some hundred rows."""

DUAL_ROWS: Final = 4096
"""Rows of a part of the Gram matrix of samples, for each of which all features before it are read again."""


def triangle_parts(num_blocks: int) -> list[range]:
    """Cut the rows of a triangle of tiles into ranges with about the same number of tiles."""
    num_parts = row_parts(num_blocks)
    cuts = [round(num_blocks * (index / num_parts) ** 0.5) for index in range(num_parts + 1)]
    return [range(start, stop) for start, stop in pairwise(cuts) if stop > start]


def row_parts(num_blocks: int) -> int:
    """Return in how many parts a sum over blocks of rows is computed."""
    return min(MAX_PARTS, num_blocks)


def pass_parts(num_blocks: int) -> int:
    """Return in how many parts a pass over blocks of features adds up their Gram matrix."""
    return -(-num_blocks // -(-num_blocks // MAX_PASS_PARTS))
