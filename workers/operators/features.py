"""Inner products of features."""

from typing import final

import torch

from ntkpipe.configs.errors import ConfigError
from ntkpipe.workers.operators.base import AbstractOperator
from ntkpipe.workers.operators.checks import check_finite
from ntkpipe.workers.operators.dense import BLOCK_ROWS


@final
class FeatureOperator(AbstractOperator):
    """The Gram matrix Phi Phi^T of (N, K) features in float64, which products never form.

    Raises:
        ConfigError: The features are not a matrix, or empty.
        NumericalError: They hold NaN or infinity; says where.
    """

    def __init__(self, features_NK: torch.Tensor) -> None:
        if features_NK.dim() != 2 or not features_NK.numel():
            raise ConfigError(f"expected features of shape (N, K), found {tuple(features_NK.shape)}.")
        check_finite("the feature matrix", features_NK)
        self._features_NK = features_NK.double()
        self.size = len(features_NK)
        self.dtype = torch.float64
        self.block_rows = min(BLOCK_ROWS, self.size)

    def matmat(self, vectors_NT: torch.Tensor) -> torch.Tensor:
        """Multiply twice: O(N K T)."""
        product_NT = self._features_NK @ (self._features_NK.T @ vectors_NT.double())
        return product_NT.to(vectors_NT.dtype)

    def diagonal(self) -> torch.Tensor:
        """Return squared norms."""
        return self._features_NK.square().sum(dim=1)

    def rows(self, start: int, stop: int) -> torch.Tensor:
        """Form some rows."""
        return self._features_NK[start:stop] @ self._features_NK.T
