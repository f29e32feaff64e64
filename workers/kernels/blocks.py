"""Blocks of kernel matrices from factors or from features, and their normalisation."""

from collections.abc import Sequence

import torch

from ntkpipe.workers.jacobians.factors import AbstractFactor

Factors = dict[str, AbstractFactor]


def exact_components(rows: Sequence[Factors], columns: Factors) -> dict[str, torch.Tensor]:
    """Return {parameter name: (N, B)} Gram matrices between batches of rows and one batch of columns."""
    return {name: torch.cat([row[name].gram(columns[name]) for row in rows]) for name in columns}


def cosine_normalised(
    block_NM: torch.Tensor, row_diagonal_N: torch.Tensor, column_diagonal_M: torch.Tensor
) -> torch.Tensor:
    """Return K(x, x') / sqrt(K(x, x) K(x', x')), computed in float64; 0 where a sample has no gradient at all."""
    scale = torch.outer(row_diagonal_N.double(), column_diagonal_M.double()).sqrt_()
    normalised = block_NM.double() / scale
    return torch.where(scale > 0, normalised, 0.0).to(block_NM.dtype)
