"""The kernel matrices of a run as operators, whether they are stored or computed when they are needed."""

from collections.abc import Callable
from typing import final

import numpy as np
import torch

from ntkpipe.configs.kernels.names import CLOSED_FORMS
from ntkpipe.storage.arrays import Array
from ntkpipe.storage.features import SampleReader
from ntkpipe.storage.matrices import MatrixReader
from ntkpipe.storage.records import Geometry
from ntkpipe.workers.kernels.closed_form.rectangle import FormulaRectangle
from ntkpipe.workers.kernels.formulas import formula_operator
from ntkpipe.workers.operators.base import AbstractOperator
from ntkpipe.workers.operators.blocked import BlockedOperator
from ntkpipe.workers.operators.features import FeatureOperator
from ntkpipe.workers.operators.rectangle import AbstractMap, FeatureProduct
from ntkpipe.workers.operators.stored import StoredFeatures, StoredRectangle
from ntkpipe.workers.run_kernels import RunKernels
from ntkpipe.workers.solvers.prediction import CACHE_BYTES
from ntkpipe.workers.sources.model import DTYPES

FEATURE_BLOCK_ROWS = 4096
"""Large enough for products to run at full speed."""


@final
class RunOperators:
    """From a reference to an operator: a pair of splits that is not stored is computed from features or a formula.

    Args:
        geometry: Of the run.
        samples: Reads features and diagonals.
        matrices: Reads stored kernels.
        kernels: Makes formulas.
        inputs: Returns the inputs of all samples of a split, float64.
    """

    def __init__(
        self,
        geometry: Geometry,
        samples: SampleReader,
        matrices: MatrixReader,
        kernels: RunKernels,
        inputs: Callable[[str], torch.Tensor],
    ) -> None:
        self._geometry = geometry
        self._samples = samples
        self._matrices = matrices
        self._kernels = kernels
        self._inputs = inputs
        self._dtype = DTYPES[geometry.dtype]

    def operator(self, reference: str, split: str, *, of_features: bool = False) -> AbstractOperator:
        """Return the kernel between a split and itself.

        Args:
            reference: NAME, or NAME@MEMBER.
            split: Of the samples.
            of_features: Take its features although it is stored.
        """
        if (split, split) in self._geometry.pairs and not of_features:
            return BlockedOperator(self._matrices.matrix(reference, split, split, cache_bytes=CACHE_BYTES))
        kernel, _ = self._geometry.matrix(reference)
        if kernel.kind in CLOSED_FORMS:
            formula = self._kernels.closed_form(kernel.name)
            return formula_operator(formula, self._inputs(split), self._geometry.block_rows, self._dtype)
        return FeatureOperator(self.features(reference, split))

    def between(self, reference: str, row_split: str, column_split: str) -> AbstractMap:
        """Return the kernel between two splits."""
        if (row_split, column_split) in self._geometry.pairs:
            return StoredRectangle(self._matrices.matrix(reference, row_split, column_split, cache_bytes=0))
        kernel, _ = self._geometry.matrix(reference)
        if kernel.kind in CLOSED_FORMS:
            formula = self._kernels.closed_form(kernel.name)
            rows, columns = self._inputs(row_split), self._inputs(column_split)
            return FormulaRectangle(formula, rows, columns, self._geometry.block_rows)
        columns_NK = self.features(reference, column_split, signed=True)
        return FeatureProduct(self.features(reference, row_split), columns_NK)

    def features(self, reference: str, split: str, *, signed: bool = False) -> StoredFeatures:
        """Return the features whose inner products are a kernel: of all groups, divided by the norms of a cosine.

        Args:
            reference: NAME, or NAME@MEMBER.
            split: Of the samples.
            signed: Negate those that count negatively, which one side of an inner product has to.
        """
        kernel, member = self._geometry.matrix(reference)
        assert kernel.feature_dim is not None, "the plan refuses what has no features"
        groups: list[int | None] = list(range(len(kernel.groups))) or [None]

        def read(start: int, stop: int) -> Array:
            parts = [
                self._samples.features(kernel.name, split, start, stop, member=member, group=group) for group in groups
            ]
            values = parts[0] if len(parts) == 1 else np.concatenate(parts, axis=1)
            if signed and kernel.num_negative:
                num_positive = values.shape[1] - kernel.num_negative
                values = np.concatenate([values[:, :num_positive], -values[:, num_positive:]], axis=1)
            if not kernel.cosine:
                return values
            diagonal_M = self._samples.diagonal(kernel.name, split, start, stop, member=member).astype(np.float64)
            roots_M = np.sqrt(diagonal_M)
            inverse_M = np.divide(1.0, roots_M, out=np.zeros_like(roots_M), where=roots_M > 0)
            scaled: Array = (values * inverse_M[:, np.newaxis]).astype(values.dtype)
            return scaled

        shape = (self._geometry.splits[split].num_samples, kernel.feature_dim * len(groups))
        rows = feature_rows(self._geometry.shard_rows)
        return StoredFeatures(read, shape, self._dtype, block_rows=rows, cache_bytes=CACHE_BYTES)


def feature_rows(shard_rows: int) -> int:
    """Return how many rows of features are read at a time: whole shards."""
    return shard_rows * max(1, FEATURE_BLOCK_ROWS // shard_rows)
