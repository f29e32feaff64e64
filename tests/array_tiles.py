"""Tiles without storage."""

from collections import Counter

import numpy as np


class ArrayTiles:
    """Tiles of an array; counts what is read, and hands out no tile above the diagonal."""

    def __init__(self, matrix, block_rows, *, writeable=True):
        self._matrix = matrix
        self._writeable = writeable
        self.block_rows = block_rows
        self.dtype = matrix.dtype
        self.size = len(matrix)
        self.reads = Counter()

    def tile(self, row, column):
        assert row >= column
        self.reads[row, column] += 1
        step = self.block_rows
        values = self._matrix[row * step : (row + 1) * step, column * step : (column + 1) * step].copy()
        values.flags.writeable = self._writeable
        return values

    def diagonal(self):
        return np.diagonal(self._matrix)

    def read(self, rows, columns):
        return self._matrix[np.ix_(rows, columns)]
