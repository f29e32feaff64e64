"""Vectors, the distances and angles between them without cancellation, and matrices filled strip by strip."""

import math
from collections.abc import Callable
from typing import final

import torch

from ntkpipe.configs.errors import ConfigError

STRIP_ENTRIES = 2**16
"""Of a strip of the matrix, 512 KiB in float64: a formula's dozen temporaries stay in the processor's cache."""

GATHER_ENTRIES = 2**20
"""Coordinates that are gathered at a time where pairs are subtracted one by one: 8 MiB."""

NEAR = 2.0**-12
"""Below this share of the two squared norms, products of matrices lose more than 12 of 53 bits of a squared distance.
Such pairs are subtracted coordinate by coordinate."""

NARROW = 8
"""Up to so many coordinates, subtracting is as cheap as multiplying."""

CROWDED = 8
"""If more than one pair in so many is near, subtracting all pairs of a strip is cheaper than gathering some."""


def as_vectors(x: torch.Tensor) -> torch.Tensor:
    """Return samples as (N, d) vectors in float64; all axes but the first are flattened, numbers become vectors of one.

    Raises:
        ConfigError: There are no coordinates, or one is not finite.
    """
    width = math.prod(x.shape[1:])
    if x.ndim == 0 or width == 0:
        raise ConfigError(f"samples of shape {tuple(x.shape)} have no coordinates; expected one row per sample.")
    vectors_NX = x.to(torch.float64).reshape(len(x), width)
    if not torch.isfinite(vectors_NX).all():
        row = int((~torch.isfinite(vectors_NX)).any(1).nonzero()[0])
        raise ConfigError(f"sample {row} has coordinates that are not finite; remove it, or replace them.")
    return vectors_NX


def vector_pair(x: torch.Tensor, x2: torch.Tensor | None) -> tuple[torch.Tensor, torch.Tensor | None]:
    """Return both sets of samples as vectors of one length; None stays None.

    Raises:
        ConfigError: There are no coordinates, the two sets have different ones, or one is not finite.
    """
    rows_NX = as_vectors(x)
    if x2 is None:
        return rows_NX, None
    columns_MX = as_vectors(x2)
    if rows_NX.shape[1] != columns_MX.shape[1]:
        raise ConfigError(
            f"samples have {rows_NX.shape[1]} and {columns_MX.shape[1]} coordinates; a kernel takes equally long vectors."
        )
    return rows_NX, columns_MX


def unit_rows(vectors_NX: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Return vectors divided by their lengths, and the lengths (N,); zero vectors stay zero.

    Squares are taken of vectors whose largest coordinate is 1, so that none underflows or overflows.
    """
    largest_N1 = vectors_NX.abs().amax(1, keepdim=True)
    scaled_NX = vectors_NX / largest_N1.where(largest_N1 > 0, 1.0)
    norms_N1 = scaled_NX.norm(dim=1, keepdim=True)
    return scaled_NX / norms_N1.where(norms_N1 > 0, 1.0), (norms_N1 * largest_N1).squeeze(1)


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


@final
class Distances:
    """Squared Euclidean distances between rows and columns, whose relative error is about 1e-12 however close they are.

    Distances are expanded into products around the common mean of all vectors. Pairs that are close compared with their
    distances from the mean are subtracted instead, so that equal vectors are at distance zero exactly.
    """

    def __init__(self, rows_NX: torch.Tensor, columns_MX: torch.Tensor | None) -> None:
        columns_MX = rows_NX if columns_MX is None else columns_MX
        self._rows_NX, self._columns_MX = rows_NX, columns_MX
        count = max(1, len(rows_NX) + len(columns_MX))
        # Dividing first: the sum of huge coordinates would overflow.
        centre_X = (rows_NX / count).sum(0) + (columns_MX / count).sum(0)
        self._centred_NX, self._centred_MX = rows_NX - centre_X, columns_MX - centre_X
        self._squares_N = self._centred_NX.square().sum(1)
        self._squares_M = self._centred_MX.square().sum(1)

    def squared(self, rows: slice, columns: slice) -> torch.Tensor:
        """Return |x - y|^2 for some rows and columns, (R, C); O(R C) memory beside ``GATHER_ENTRIES``."""
        rows_RX, columns_CX = self._rows_NX[rows], self._columns_MX[columns]
        if rows_RX.shape[1] <= NARROW:
            return _subtracted(rows_RX, columns_CX)
        squares_RC = self._squares_N[rows].unsqueeze(1) + self._squares_M[columns]
        found_RC = torch.addmm(squares_RC, self._centred_NX[rows], self._centred_MX[columns].T, alpha=-2)
        return replace_near(found_RC, found_RC <= NEAR * squares_RC, rows_RX, columns_CX)


@final
class Angles:
    """Angles between rows and columns in [0, pi], to about 1e-14 also between nearly parallel or opposite vectors.

    The angle of unit vectors is 2 arctan(|u - v| / |u + v|) (Kahan); the arc cosine of their product would lose half of
    the digits at both ends. A zero vector is at a right angle to all vectors and to itself.
    """

    def __init__(self, rows_NX: torch.Tensor, columns_MX: torch.Tensor | None) -> None:
        columns_MX = rows_NX if columns_MX is None else columns_MX
        self._rows_NX, self.lengths_N = unit_rows(rows_NX)
        self._columns_MX, self.lengths_M = unit_rows(columns_MX)
        self._distances = Distances(self._rows_NX, self._columns_MX)

    def angles(self, rows: slice, columns: slice) -> torch.Tensor:
        """Return the angles of some rows and columns, (R, C)."""
        rows_RX, columns_CX = self._rows_NX[rows], self._columns_MX[columns]
        differences_RC = self._distances.squared(rows, columns)
        sums_RC = 4 - differences_RC
        sums_RC = replace_near(sums_RC, sums_RC <= 4 * NEAR, rows_RX, -columns_CX)
        angles_RC = torch.atan2(differences_RC.sqrt_(), sums_RC.sqrt_()).mul_(2)
        zero_RC = (self.lengths_N[rows] == 0).unsqueeze(1) | (self.lengths_M[columns] == 0)
        return angles_RC.masked_fill_(zero_RC, torch.pi / 2)


def replace_near(
    squared_RC: torch.Tensor, near_RC: torch.Tensor, rows_RX: torch.Tensor, columns_CX: torch.Tensor
) -> torch.Tensor:
    """Return squared distances of which those of some pairs are computed anew, by subtraction."""
    num_near = int(near_RC.sum())
    if num_near == 0:
        return squared_RC
    if num_near * CROWDED > near_RC.numel():
        return torch.where(near_RC, _subtracted(rows_RX, columns_CX), squared_RC)
    row_P, column_P = near_RC.nonzero(as_tuple=True)
    step = max(1, GATHER_ENTRIES // rows_RX.shape[1])
    for first in range(0, num_near, step):
        pair = row_P[first : first + step], column_P[first : first + step]
        squared_RC[pair] = (rows_RX[pair[0]] - columns_CX[pair[1]]).square_().sum(1)
    return squared_RC


def _subtracted(rows_RX: torch.Tensor, columns_CX: torch.Tensor) -> torch.Tensor:
    return torch.cdist(rows_RX, columns_CX, compute_mode="donot_use_mm_for_euclid_dist").square_()
