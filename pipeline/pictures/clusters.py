"""Samples that a kernel finds alike, side by side.

Nystrom's method: with C = K(x, Z) for landmarks Z and W = K(Z, Z) = U diag(l) U^T, the rows of C U l^(-1/2) are
coordinates whose inner products approximate K (C. Williams and M. Seeger, 2001). Of the leading ones, centred and divided
by their norms, k-means with a fixed seed makes clusters. Landmarks lie in a few blocks, so that few columns of tiles are
read; they are of the training split, also for other splits, which fall to the clusters of the training samples.

Of C a block of rows is in memory at a time, and at first those of the landmarks.
"""

import warnings
from collections.abc import Iterator
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
ROUNDED_DIGITS: Final = 9
"""Of coordinates: samples that differ in later ones only are equal, and those that differ so from the mean are no direction."""
SEED: Final = 0
STARTS: Final = 4
ITERATIONS: Final = 30
FIT_SAMPLES: Final = 20_000
"""Of which the clusters are found; all samples are then given to the nearest one."""
MAX_CLUSTERS: Final = 1024
GIVEN_AT_ONCE: Final = 4096
"""Samples that are compared with all clusters side by side."""


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

    def order(self, embedded_NR: Doubles) -> Order:
        """Return the order of samples: by cluster, the closest to its centre first; ties by position.

        Args:
            embedded_NR: (N, R) their coordinates, as of :func:`embedded`.
        """
        clusters, closeness = np.empty(len(embedded_NR), np.intp), np.empty(len(embedded_NR))
        for start in range(0, len(embedded_NR), GIVEN_AT_ONCE):
            at = slice(start, start + GIVEN_AT_ONCE)
            similarity = _from_means(embedded_NR[at], self.means_R) @ self.centres_KR.T
            clusters[at], closeness[at] = similarity.argmax(axis=1), similarity.max(axis=1)
        positions = np.lexsort((-closeness, clusters))
        found, starts = np.unique(clusters[positions], return_index=True)
        stops = [*starts[1:], len(positions)]
        groups = (
            Group(f"cluster {cluster + 1}", int(start), int(stop))
            for cluster, start, stop in zip(found, starts, stops, strict=True)
        )
        return Order(positions, tuple(groups))


def embed(matrix: AbstractMatrix, num_clusters: int, advance: Advance) -> tuple[Embedding, Doubles]:
    """Find clusters of the training samples; return them, and the (N, R) coordinates of the samples.

    Memory is O(N R), and the columns of the landmarks in as many blocks of rows as they lie in, in double precision.

    Args:
        matrix: Of the training split with itself, symmetric.
        num_clusters: K; fewer are found where there are not so many different samples.
        advance: Called after every tile.

    Raises:
        ChunkNotReadyError: One of the blocks that are read is not committed yet.
        NumericalError: The kernel tells no samples apart.
    """
    landmarks_Z = landmarks(matrix.size, matrix.block_rows)
    known = _columns_of_landmarks(matrix, landmarks_Z, advance)
    inside = ((block, inside) for block, _, inside in _by_block(landmarks_Z, matrix.block_rows))
    eigenvalues, vectors = np.linalg.eigh(np.concatenate([known[block][rows] for block, rows in inside]))
    kept = np.flatnonzero(eigenvalues > RELATIVE_RANK * max(eigenvalues[-1], 0))[-NUM_COORDINATES:]
    if not len(kept):
        raise NumericalError(
            "the kernel has no positive eigenvalue at the landmarks, so there are no clusters to order by."
        )
    vectors = vectors[:, kept]
    # A sign that does not depend on the library: the largest component of every eigenvector is positive.
    vectors *= np.sign(vectors[np.abs(vectors).argmax(axis=0), np.arange(len(kept))])
    coordinates_ZR = vectors / np.sqrt(eigenvalues[kept])
    embedded_NR = _embedded(matrix, landmarks_Z, coordinates_ZR, known, advance)
    means_R = embedded_NR.mean(axis=0)
    fitted = np.linspace(0, matrix.size - 1, min(matrix.size, FIT_SAMPLES)).astype(int)
    chosen = _from_means(embedded_NR[fitted], means_R)
    num_different = len(np.unique(chosen.round(ROUNDED_DIGITS), axis=0))
    centres_KR = _centres(chosen, min(num_clusters, MAX_CLUSTERS, num_different))
    return Embedding(landmarks_Z, coordinates_ZR, means_R, _neighbouring(centres_KR)), embedded_NR


def embedded(matrix: AbstractMatrix, embedding: Embedding, advance: Advance) -> Doubles:
    """Return the (N, R) coordinates of samples of another split; each tile that has landmarks is read once.

    Args:
        matrix: Between their split and the training split.
        embedding: Of the training samples.
        advance: Called after every tile.

    Raises:
        ChunkNotReadyError: One of the blocks that are read is not committed yet.
    """
    return _embedded(matrix, embedding.landmarks_Z, embedding.coordinates_ZR, {}, advance)


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


def _embedded(
    matrix: AbstractMatrix,
    landmarks_Z: Positions,
    coordinates_ZR: Doubles,
    known: dict[int, Doubles],
    advance: Advance,
) -> Doubles:
    """Return the (N, R) coordinates of the rows of a matrix, of some of whose blocks the columns are known."""
    embedded_NR = np.empty((matrix.shape[0], coordinates_ZR.shape[1]))
    for row in range(num_chunks(matrix.shape[0], matrix.block_rows)):
        span = matrix.span(row)
        columns = known.get(row)
        if columns is None:
            columns = np.empty((span.stop - span.start, len(landmarks_Z)))
            for block, at, inside in _by_block(landmarks_Z, matrix.block_rows):
                columns[:, at] = matrix.any_tile(row, block)[:, inside]
                advance()
        embedded_NR[span] = columns @ coordinates_ZR
    return embedded_NR


def _columns_of_landmarks(matrix: AbstractMatrix, landmarks_Z: Positions, advance: Advance) -> dict[int, Doubles]:
    """Return (block_rows, Z) columns of the blocks of rows that landmarks lie in; of two mirrored tiles one is read."""
    groups = list(_by_block(landmarks_Z, matrix.block_rows))
    spans = {block: matrix.span(block) for block, _, _ in groups}
    found = {block: np.empty((span.stop - span.start, len(landmarks_Z))) for block, span in spans.items()}
    for index, (row, at_rows, inside_rows) in enumerate(groups):
        for column, at, inside in groups[: index + 1]:
            tile = matrix.tile(row, column)
            found[row][:, at] = tile[:, inside]
            if column != row:
                found[column][:, at_rows] = tile[inside_rows].T
            advance()
    return found


def _by_block(landmarks_Z: Positions, block_rows: int) -> Iterator[tuple[int, slice, Positions]]:
    """Yield blocks that have landmarks, in order: which of them, and where in the block they are."""
    blocks = landmarks_Z // block_rows
    for block in np.unique(blocks):
        at = np.flatnonzero(blocks == block)
        yield int(block), slice(int(at[0]), int(at[-1]) + 1), landmarks_Z[at] % block_rows


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


def _from_means(embedded_NR: Doubles, means_R: Doubles) -> Doubles:
    """Return the directions in which coordinates lie from the means; zero where the difference is nothing but rounding."""
    least = 10.0**-ROUNDED_DIGITS * np.linalg.norm(embedded_NR, axis=1, keepdims=True)
    return _directions(embedded_NR - means_R, least)


def _directions(values_NR: Doubles, least: Doubles | float = 0.0) -> Doubles:
    norms = np.linalg.norm(values_NR, axis=1, keepdims=True)
    found: Doubles = np.divide(values_NR, norms, out=np.zeros_like(values_NR), where=norms > least)
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
