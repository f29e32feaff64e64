"""Features, exact diagonals and activations of a batch: what is stored per sample."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch

from ntkpipe.workers.jacobians.engine import BatchJacobian, Factors
from ntkpipe.workers.jacobians.factors.base import slice_width
from ntkpipe.workers.jacobians.factors.entrywise import EntrywiseFactor, inner_products
from ntkpipe.workers.kernels.blocks import sum_in_order
from ntkpipe.workers.kernels.views import View
from ntkpipe.workers.projections.base import AbstractProjection


@dataclass(frozen=True, slots=True)
class SampleFeatures:
    """What one kernel keeps of a batch."""

    features: torch.Tensor | None
    """(B, K), or (G, B, K) when layerwise; None for an exact kernel."""
    diagonal: torch.Tensor
    """Exact K(x, x) before any normalisation, (B,); (B, C) for (sample, output) pairs."""
    underflow_B: torch.Tensor
    """Whether a gradient is not zero, but its squared norm is too small to be trusted."""

    def plus(self, other: "SampleFeatures") -> "SampleFeatures":
        """Add what another pass over the same batch gives, with other output vectors."""
        features = None
        if self.features is not None and other.features is not None:
            features = self.features + other.features
        diagonal = self.diagonal + other.diagonal
        # Neither part is suspicious where the sum is not.
        underflow_B = _suspicious(diagonal) & (self.underflow_B | other.underflow_B)
        return SampleFeatures(features, diagonal, underflow_B)


def joined(batches: Sequence[SampleFeatures]) -> SampleFeatures:
    """Return what is kept of several batches, one after the other."""
    features = [batch.features for batch in batches if batch.features is not None]
    return SampleFeatures(
        torch.cat(features, dim=-2) if features else None,
        torch.cat([batch.diagonal for batch in batches]),
        torch.cat([batch.underflow_B for batch in batches]),
    )


def batch_features(
    view: View,
    jacobian: BatchJacobian,
    projection: AbstractProjection | None,
    *,
    weights: Mapping[str, float] | None = None,
    layerwise: bool = False,
) -> SampleFeatures:
    """Compute a kernel's features and diagonal for a batch.

    Penultimate activations and outputs are their own features. Everything else is projected when there is a projection,
    each parameter by itself when layerwise; the inner products of the results estimate the kernel, or its components.

    Args:
        view: What the kernel looks at.
        jacobian: Of the batch.
        projection: None for an exact kernel.
        weights: Of the parameters that the kernel is made of; None takes all with weight 1.
        layerwise: Whether components are wanted.
    """
    base = view.base(jacobian)
    if weights is not None:
        base = {name: base[name] for name in weights}
    if view.definition.is_own_feature:
        ((values_B1D,),) = (factor.tensors()[1] for factor in base.values())
        norms_B = values_B1D.square().sum(dim=(1, 2))
        return SampleFeatures(values_B1D.squeeze(1), norms_B, torch.zeros_like(norms_B, dtype=torch.bool))
    factors = view.of(base, "rows")
    features = None
    if projection is not None:
        scaled = _weighted(factors, weights)
        if layerwise:
            features = torch.stack([projection.project({name: factor}) for name, factor in scaled.items()])
        else:
            features = projection.project(scaled)
    # After the projection, which finds some of the norms on its way.
    diagonal_B = _diagonal(view, base, factors, weights)
    underflow_B = _underflow(factors, diagonal_B)
    if view.definition.per_output:
        num = jacobian.outputs_BC.shape[0]
        return SampleFeatures(features, diagonal_B.view(num, -1), underflow_B.view(num, -1).any(dim=1))
    return SampleFeatures(features, diagonal_B, underflow_B)


def _weighted(factors: Factors, weights: Mapping[str, float] | None) -> Factors:
    """Return factors whose inner products are weighted components; those of weight 1 as they are."""
    if weights is None:
        return factors
    return {name: f if weights[name] == 1 else f.scaled(weights[name] ** 0.5) for name, f in factors.items()}


def _diagonal(view: View, base: Factors, rows: Factors, weights: Mapping[str, float] | None) -> torch.Tensor:
    columns = rows if view.symmetric else view.of(base, "columns")
    parts = []
    for name, factor in rows.items():
        other = columns[name]
        if isinstance(factor, EntrywiseFactor) and isinstance(other, EntrywiseFactor) and not view.symmetric:
            part_B = inner_products(factor, other)
        else:
            part_B = factor.squared_norms()
        weight = 1.0 if weights is None else weights[name]
        parts.append(part_B if weight == 1 else part_B * weight)
    return sum_in_order(parts)


def _suspicious(diagonal: torch.Tensor) -> torch.Tensor:
    """Return which samples have a norm below the normal range of the precision, (B,)."""
    limits = torch.finfo(diagonal.dtype)
    small = diagonal < limits.tiny / limits.eps
    return small if small.dim() == 1 else small.any(dim=1)


def _underflow(factors: Factors, diagonal_B: torch.Tensor) -> torch.Tensor:
    """Return which samples have a gradient whose squared norm falls below the normal range of the precision.

    A norm of exactly zero is either that of a sample without any gradient, which is fine, or an underflow; only then
    are the gradients themselves looked at.
    """
    suspicious_B = _suspicious(diagonal_B)
    if not suspicious_B.any():
        return suspicious_B
    any_B = torch.zeros_like(suspicious_B)
    for factor in factors.values():
        for _, gradients_BW in factor.slices(slice_width(factor.num_samples)):
            any_B |= gradients_BW.any(dim=1)
    return suspicious_B & any_B
