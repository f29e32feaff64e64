"""Samples that a kernel finds alike, side by side.

Nystrom's method: with C = K(x, Z) for landmarks Z and W = K(Z, Z) = U diag(l) U^T, the rows of C U l^(-1/2) are
coordinates whose inner products approximate K (C. Williams and M. Seeger, 2001). Of the leading ones, centred and divided
by their norms, k-means with a fixed seed makes clusters. Landmarks lie in a few blocks, so that few columns of tiles are
read; they are of the training split, also for other splits, which fall to the clusters of the training samples.
"""

import warnings
from dataclasses import dataclass
from typing import Final

import numpy as np
from scipy.cluster.vq import kmeans2

from ntkpipe.configs.errors import NumericalError
from ntkpipe.pipeline.pictures.orders import Group, Order
from ntkpipe.pipeline.pictures.reduction import Advance
from ntkpipe.pipeline.query.names import Doubles, Positions
from ntkpipe.storage.grid import num_chunks
from ntkpipe.storage.matrix import AbstractMatrix

NUM_BLOCKS: Final = 8
"""Columns of tiles that are read."""
NUM_LANDMARKS: Final = 512
NUM_COORDINATES: Final = 16
RELATIVE_RANK: Final = 1e-6
"""Eigenvalues of W below this share of the largest are rounding."""
SEED: Final = 0
STARTS: Final = 4
ITERATIONS: Final = 30
FIT_SAMPLES: Final = 20_000
"""Of which the clusters are found; all samples are then given to the nearest one."""


@dataclass(frozen=True, slots=True)
class Embedding:
    """How kernel values to the landmarks become coordinates on a sphere, and where the clusters are."""

    landmarks_Z: Positions
    """(Z,) positions in the training split."""
    coordinates_ZR: Doubles
    """(Z, R) U l^(-1/2)."""
    means_R: Doubles
    """(R,) of the training samples' coordinates."""
    centres_KR: Doubles
    """(K, R) directions of the clusters, similar ones next to each other."""

    def order(self, columns_NZ: Doubles) -> Order:
        """Return the order of samples: by cluster, the closest to its centre first; ties by position.

        Args:
            columns_NZ: (N, Z) their kernel values to the landmarks.
        """
        directions = _directions(columns_NZ @ self.coordinates_ZR - self.means_R)
        similarity = directions @ self.centres_KR.T
        clusters = similarity.argmax(axis=1)
        closeness = similarity[np.arange(len(clusters)), clusters]
        positions = np.lexsort((-closeness, clusters))
        found, starts = np.unique(clusters[positions], return_index=True)
        stops = [*starts[1:], len(positions)]
        groups = (
            Group(f"cluster {cluster + 1}", int(start), int(stop))
            for cluster, start, stop in zip(found, starts, stops, strict=True)
        )
        return Order(positions, tuple(groups))


def embed(matrix: AbstractMatrix, num_clusters: int, advance: Advance) -> tuple[Embedding, Doubles]:
    """Find clusters of the training samples; return them, and the (N, Z) kernel values to the landmarks.

    Memory is O(N landmarks), in double precision.

    Args:
        matrix: Of the training split with itself, symmetric.
        num_clusters: K; fewer are found where there are not so many different samples.
        advance: Called after every tile.

    Raises:
        ChunkNotReadyError: One of the blocks that are read is not committed yet.
        NumericalError: The kernel tells no samples apart.
    """
    landmarks_Z = landmarks(matrix.size, matrix.block_rows)
    columns_NZ = read_columns(matrix, landmarks_Z, advance)
    eigenvalues, vectors = np.linalg.eigh(columns_NZ[landmarks_Z])
    kept = np.flatnonzero(eigenvalues > RELATIVE_RANK * max(eigenvalues[-1], 0))[-NUM_COORDINATES:]
    if not len(kept):
        raise NumericalError(
            "the kernel has no positive eigenvalue at the landmarks, so there are no clusters to order by."
        )
    vectors = vectors[:, kept]
    # A sign that does not depend on the library: the largest component of every eigenvector is positive.
    vectors *= np.sign(vectors[np.abs(vectors).argmax(axis=0), np.arange(len(kept))])
    coordinates_ZR = vectors / np.sqrt(eigenvalues[kept])
    embedded_NR = columns_NZ @ coordinates_ZR
    means_R = embedded_NR.mean(axis=0)
    directions = _directions(embedded_NR - means_R)
    chosen = directions[np.linspace(0, len(directions) - 1, min(len(directions), FIT_SAMPLES)).astype(int)]
    centres_KR = _centres(chosen, min(num_clusters, len(np.unique(chosen, axis=0))))
    return Embedding(landmarks_Z, coordinates_ZR, means_R, _neighbouring(centres_KR)), columns_NZ


def landmarks(num_samples: int, block_rows: int) -> Positions:
    """Return evenly spaced samples of evenly spaced blocks."""
    blocks = num_chunks(num_samples, block_rows)
    chosen = np.unique(np.linspace(0, blocks - 1, min(blocks, NUM_BLOCKS)).round().astype(int))
    per_block = num_chunks(NUM_LANDMARKS, len(chosen))
    parts = []
    for block in chosen:
        start, stop = block * block_rows, min((block + 1) * block_rows, num_samples)
        parts.append(np.unique(np.linspace(start, stop - 1, min(per_block, stop - start)).round().astype(np.int64)))
    return np.concatenate(parts)


def read_columns(matrix: AbstractMatrix, landmarks_Z: Positions, advance: Advance) -> Doubles:
    """Return the (N, Z) columns of a matrix, in double precision; each tile that they touch is read once."""
    columns_NZ = np.empty((matrix.shape[0], len(landmarks_Z)))
    blocks = landmarks_Z // matrix.block_rows
    for block in np.unique(blocks):
        at = np.flatnonzero(blocks == block)
        inside = landmarks_Z[at] % matrix.block_rows
        for row in range(num_chunks(matrix.shape[0], matrix.block_rows)):
            tile = matrix.any_tile(row, int(block))
            columns_NZ[matrix.span(row), at[0] : at[-1] + 1] = tile[:, inside]
            advance()
    return columns_NZ


def num_column_tiles(matrix: AbstractMatrix) -> int:
    """Return how many tiles :func:`embed` reads of a matrix."""
    blocks = num_chunks(matrix.shape[0], matrix.block_rows)
    return blocks * min(num_chunks(matrix.shape[1], matrix.block_rows), NUM_BLOCKS)


def _centres(directions_NR: Doubles, num_clusters: int) -> Doubles:
    """Return the (K, R) directions of clusters: of several starts the one whose samples are closest to their centres."""
    best, closeness = directions_NR[:1], -np.inf
    for start in range(STARTS):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)  # of clusters that stay empty, which have no samples below
            found, _ = kmeans2(directions_NR, num_clusters, iter=ITERATIONS, minit="++", rng=SEED + start)
        centres_KR = _directions(found)
        total = float((directions_NR @ centres_KR.T).max(axis=1).sum())
        if total > closeness:
            best, closeness = centres_KR, total
    return best


def _directions(values_NR: Doubles) -> Doubles:
    norms = np.linalg.norm(values_NR, axis=1, keepdims=True)
    found: Doubles = np.divide(values_NR, norms, out=np.zeros_like(values_NR), where=norms > 0)
    return found


def _neighbouring(centres_KR: Doubles) -> Doubles:
    """Return centres one after the other: from the one that is most unlike the others always on to the nearest."""
    similarity = centres_KR @ centres_KR.T
    order = [int(similarity.sum(axis=1).argmin())]
    left = [index for index in range(len(centres_KR)) if index != order[0]]
    while left:
        nearest = max(left, key=lambda index: similarity[order[-1], index])
        order.append(nearest)
        left.remove(nearest)
    return centres_KR[order]
