"""Counting what a solver reads."""

from collections.abc import Callable
from dataclasses import replace
from typing import final

import torch

from ntkpipe.workers.operators.base import AbstractOperator
from ntkpipe.workers.operators.rectangle import AbstractRectangle


@final
class MeteredOperator(AbstractOperator):
    """Another operator, and how much of it was read.

    Attributes:
        passes: How often the whole matrix was read; reading a symmetric half in a product counts as a pass, and reading
            all features of a Gram matrix, of whose products it takes two, as half a pass.
        bytes_read: From storage.
    """

    def __init__(self, operator: AbstractOperator, *, passes: float = 0.0, bytes_read: float = 0.0) -> None:
        self._operator = operator
        self.passes, self.bytes_read = passes, bytes_read
        self.size = operator.size
        self.dtype = operator.dtype
        self.block_rows = operator.block_rows
        self.num_parts = operator.num_parts
        features = operator.tags.features
        self.tags = replace(operator.tags, features=features and MeteredRectangle(features, self._count_features))

    def partial(self, vectors_NT: torch.Tensor, part: int) -> torch.Tensor:
        """Count a share of a pass."""
        self._count(self.size**2 / self.num_parts, 0.5 if self.tags.halved_products else 1.0)
        return self._operator.partial(vectors_NT, part)

    def diagonal(self) -> torch.Tensor:
        """Not counted: it is stored on its own, a small share of the matrix, or one reading of features for all times."""
        return self._operator.diagonal()

    def rows(self, start: int, stop: int) -> torch.Tensor:
        """Count rows."""
        self._count((stop - start) * self.size)
        return self._operator.rows(start, stop)

    def entries(self, rows_R: torch.Tensor, columns_S: torch.Tensor) -> torch.Tensor:
        """Count entries; storage is read in tiles, so that scattered positions may read more than that."""
        self._count(len(rows_R) * len(columns_S))
        return self._operator.entries(rows_R, columns_S)

    def _count(self, num_entries: float, share: float = 1.0) -> None:
        self.passes += num_entries / self.size**2
        self.bytes_read += num_entries * share * self.tags.entry_bytes

    def _count_features(self, share: float, bytes_read: float) -> None:
        self.passes += share / 2
        self.bytes_read += bytes_read


@final
class MeteredRectangle(AbstractRectangle):
    """Another rectangle, whose readings are told as a share of it and in bytes."""

    def __init__(self, rectangle: AbstractRectangle, count: Callable[[float, float], None]) -> None:
        self._rectangle, self._count = rectangle, count
        self.shape = rectangle.shape
        self.dtype = rectangle.dtype
        self.block_rows = rectangle.block_rows
        self.entry_bytes = rectangle.entry_bytes

    def rows(self, start: int, stop: int) -> torch.Tensor:
        """Count rows."""
        share = (stop - start) / self.shape[0]
        self._count(share, share * self.shape[0] * self.shape[1] * self.entry_bytes)
        return self._rectangle.rows(start, stop)
