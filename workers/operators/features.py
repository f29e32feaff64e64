"""Inner products of features."""

from typing import final

import torch

from ntkpipe.workers.operators.base import AbstractOperator, Tags
from ntkpipe.workers.operators.rectangle import AbstractRectangle, DenseRectangle


@final
class FeatureOperator(AbstractOperator):
    """The Gram matrix Phi Phi^T of (N, K) features in float64, which products never form.

    Features that are not a tensor are read again for every product, twice.

    Raises:
        ConfigError: The features are not a matrix, or empty.
        NumericalError: They hold NaN or infinity; says where.
    """

    def __init__(self, features_NK: torch.Tensor | AbstractRectangle) -> None:
        if isinstance(features_NK, torch.Tensor):
            # Float32 is kept: blocks are converted as they are used, to the same bits and in half the memory.
            kept = features_NK.dtype == torch.float32
            features_NK = DenseRectangle(features_NK if kept else features_NK.double())
        self._features = features_NK
        self._diagonal_N: torch.Tensor | None = None
        self.size = features_NK.shape[0]
        self.dtype = torch.float64
        self.block_rows = features_NK.block_rows
        self.num_parts = 1
        share = features_NK.shape[1] / self.size
        self.tags = Tags(
            positive_semidefinite=True,
            entry_bytes=2 * share * features_NK.entry_bytes,
            entry_flops=2.0 * features_NK.shape[1],
            features=features_NK,
        )

    def partial(self, vectors_NT: torch.Tensor, part: int) -> torch.Tensor:
        """Multiply twice: O(N K T)."""
        product_NT = self._features.matmat(self._features.transposed_matmat(vectors_NT.double()))
        return product_NT.to(vectors_NT.dtype)

    def diagonal(self) -> torch.Tensor:
        """Return squared norms; features are read for them once, and N numbers are kept."""
        if self._diagonal_N is None:
            self._diagonal_N = torch.cat([block.double().square().sum(dim=1) for _, block in self._features.blocks()])
        return self._diagonal_N

    def rows(self, start: int, stop: int) -> torch.Tensor:
        """Form some rows."""
        left_MK = self._features.rows(start, stop).double()
        return torch.cat([left_MK @ block.double().T for _, block in self._features.blocks()], dim=1)

    def entries(self, rows_R: torch.Tensor, columns_S: torch.Tensor) -> torch.Tensor:
        """Form some inner products; reads the blocks of rows that the positions lie in."""
        left_RK = self._picked(rows_R)
        right_SK = left_RK if rows_R is columns_S else self._picked(columns_S)
        return left_RK @ right_SK.T

    def _picked(self, positions_S: torch.Tensor) -> torch.Tensor:
        picked_SK = torch.empty(len(positions_S), self._features.shape[1], dtype=torch.float64)
        step = self._features.block_rows
        for block in torch.unique(positions_S // step).tolist():
            at_S = positions_S // step == block
            stop = min((block + 1) * step, self.size)
            picked_SK[at_S] = self._features.rows(block * step, stop)[positions_S[at_S] - block * step].double()
        return picked_SK
