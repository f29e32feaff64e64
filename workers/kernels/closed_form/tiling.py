"""Matrices of pairs of samples, part by part: strips of rows, or tiles of a bounded number of pairs."""

from collections.abc import Callable, Iterator

import torch

STRIP_ENTRIES = 2**16
"""Of a strip of the matrix, 512 KiB in float64: a formula's dozen temporaries stay in the processor's cache."""


def fill(
    num_rows: int,
    num_columns: int | None,
    entries: Callable[[slice, slice], torch.Tensor],
    diagonal_N: torch.Tensor,
) -> torch.Tensor:
    """Return the (N, M) matrix whose parts a function computes, in strips of about ``STRIP_ENTRIES``.

    Args:
        num_rows: N.
        num_columns: M, or None for a symmetric matrix of N columns, of which one triangle is computed and mirrored.
        entries: Returns the part between some rows and some columns.
        diagonal_N: Of a symmetric matrix, which takes its diagonal from here; otherwise it only says where to compute.
    """
    symmetric = num_columns is None
    num_columns = num_rows if num_columns is None else num_columns
    block_NM = diagonal_N.new_empty(num_rows, num_columns)
    step = max(1, STRIP_ENTRIES // max(1, num_columns))
    for start in range(0, num_rows, step):
        rows = slice(start, min(start + step, num_rows))
        if not symmetric:
            block_NM[rows] = entries(rows, slice(0, num_columns))
            continue
        block_NM[rows, : rows.stop] = entries(rows, slice(0, rows.stop))
        block_NM[:start, rows] = block_NM[rows, :start].T
        corner = block_NM[rows, rows]
        block_NM[rows, rows] = corner.tril() + corner.tril(-1).T
    if symmetric:
        block_NM.diagonal().copy_(diagonal_N)
    return block_NM


def tiles(num_rows: int, num_columns: int | None, num_pairs: int) -> Iterator[tuple[slice, slice]]:
    """Yield rows and columns of tiles of at most ``num_pairs`` pairs that cover an (N, M) matrix.

    Args:
        num_rows: N.
        num_columns: M, or None for a symmetric matrix: only tiles that reach above the diagonal are then yielded, to
            which :func:`mirrored` adds the others.
        num_pairs: At least 1.
    """
    symmetric = num_columns is None
    num_columns = num_rows if num_columns is None else num_columns
    # Of square tiles the fewest lie below the diagonal in part.
    width = max(1, min(num_columns, int(num_pairs**0.5) if symmetric else num_pairs))
    height = max(1, num_pairs // width)
    for row in range(0, num_rows, height):
        for column in range(0, num_columns, width):
            if not symmetric or column + width > row:
                yield slice(row, row + height), slice(column, column + width)


def mirrored(block_NN: torch.Tensor) -> torch.Tensor:
    """Return the symmetric matrix of an upper triangle; entries below it may be anything."""
    upper_NN = block_NN.triu()
    return upper_NN + upper_NN.triu(1).T
