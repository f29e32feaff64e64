"""Distances and angles between vectors without cancellation."""

from typing import final

import torch

GATHER_ENTRIES = 2**20
"""Coordinates that are gathered at a time where pairs are subtracted one by one: 8 MiB."""

NEAR = 2.0**-12
"""Below this share of the two squared norms, products of matrices lose more than 12 of 53 bits of a squared distance.
Such pairs are subtracted coordinate by coordinate."""

NARROW = 8
"""Up to so many coordinates, subtracting is as cheap as multiplying."""

CROWDED = 8
"""If more than one pair in so many is near, subtracting all pairs of a strip is cheaper than gathering some."""


def unit_rows(vectors_NX: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Return vectors divided by their lengths, and the lengths (N,); zero vectors stay zero.

    Squares are taken of vectors whose largest coordinate is 1, so that none underflows or overflows.
    """
    largest_N1 = vectors_NX.abs().amax(1, keepdim=True)
    scaled_NX = vectors_NX / largest_N1.where(largest_N1 > 0, 1.0)
    norms_N1 = scaled_NX.norm(dim=1, keepdim=True)
    return scaled_NX / norms_N1.where(norms_N1 > 0, 1.0), (norms_N1 * largest_N1).squeeze(1)


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
