"""Matrices in memory that are read tile by tile, some of them not committed, for tests of pictures."""

import threading
from collections import Counter

import numpy as np

from ntkpipe.configs.errors import ChunkNotReadyError
from ntkpipe.storage.matrix import AbstractMatrix
from ntkpipe.storage.picking import picked


class ArrayMatrix(AbstractMatrix):
    """Tiles of an array; counts what is read."""

    def __init__(self, values, block_rows, *, symmetric=False, missing=(), before=None):
        self.values = np.asarray(values)
        self.shape = self.values.shape
        self.block_rows = block_rows
        self.symmetric = symmetric
        self.dtype = self.values.dtype
        self.reads = Counter()
        self._missing = frozenset(missing)
        self._before = before or (lambda: None)
        self._lock = threading.Lock()

    @property
    def num_leaves(self):
        return 1

    def tile(self, row, column):
        assert row >= column or not self.symmetric
        self._before()
        with self._lock:
            self.reads[row, column] += 1
        if (row, column) in self._missing:
            raise ChunkNotReadyError(f"tile {row}, {column} is not committed yet")
        return self.values[self.span(row), self.span(column, axis=1)].copy()

    def part(self, row, column, rows, columns, scratch):
        return picked(self.tile(row, column), rows, columns)

    def task(self, row, column):
        return f"{row}-{column}"

    def missing(self, tasks):
        absent = {f"{row}-{column}" for row, column in self._missing}
        if self.symmetric:
            absent |= {f"{column}-{row}" for row, column in self._missing}
        return [task for task in tasks if task in absent]

    def holds(self, row, column):
        return True

    def version(self, row, column):
        return f"{row}-{column}"

    @property
    def known(self):
        """The entries, NaN for those of missing tiles."""
        found = self.values.astype(np.float64)
        for row, column in self._missing:
            found[self.span(row), self.span(column, axis=1)] = np.nan
            if self.symmetric:
                found[self.span(column), self.span(row, axis=1)] = np.nan
        return found


def symmetric_values(size, seed=0):
    """Return a symmetric matrix whose entries all differ."""
    values = np.random.default_rng(seed).standard_normal((size, size)).astype(np.float32)
    return np.tril(values) + np.tril(values, -1).T


def pixel_means(values, rows, columns, entries):
    """Return the means of the entries that are there behind every pixel, in double precision, by definition."""
    drawn = values[np.ix_(rows, columns)]
    padding = [(0, -size % entries) for size in drawn.shape]
    squares = np.pad(drawn, padding, constant_values=np.nan)
    squares = squares.reshape(squares.shape[0] // entries, entries, squares.shape[1] // entries, entries)
    there = np.isfinite(squares)
    counts = there.sum(axis=(1, 3))
    sums = np.where(there, squares, 0).sum(axis=(1, 3))
    return np.divide(sums, counts, out=np.full(sums.shape, np.nan), where=counts > 0)
