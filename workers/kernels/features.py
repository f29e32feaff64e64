"""Features, exact diagonals and activations of a batch: what is stored per sample."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from ntkpipe.configs.errors import CoverageError
from ntkpipe.workers.jacobians.engine import BatchJacobian, Factors
from ntkpipe.workers.jacobians.factors.base import slice_width
from ntkpipe.workers.kernels.blocks import sum_in_order
from ntkpipe.workers.kernels.definitions import KernelDefinition
from ntkpipe.workers.projections.base import AbstractProjection


@dataclass(frozen=True, slots=True)
class SampleFeatures:
    """What one kernel keeps of a batch."""

    features: torch.Tensor | None
    """(B, K), or (G, B, K) when layerwise; None for an exact kernel."""
    diagonal_B: torch.Tensor
    """Exact K(x, x) before any normalisation."""
    underflow_B: torch.Tensor
    """Whether a gradient is not zero, but its squared norm is too small to be trusted."""

    def plus(self, other: "SampleFeatures") -> "SampleFeatures":
        """Add what another pass over the same batch gives, with other output vectors."""
        features = None
        if self.features is not None and other.features is not None:
            features = self.features + other.features
        diagonal_B = self.diagonal_B + other.diagonal_B
        # Neither part is suspicious where the sum is not.
        underflow_B = _suspicious(diagonal_B) & (self.underflow_B | other.underflow_B)
        return SampleFeatures(features, diagonal_B, underflow_B)


def joined(batches: Sequence[SampleFeatures]) -> SampleFeatures:
    """Return what is kept of several batches, one after the other."""
    features = [batch.features for batch in batches if batch.features is not None]
    return SampleFeatures(
        torch.cat(features, dim=-2) if features else None,
        torch.cat([batch.diagonal_B for batch in batches]),
        torch.cat([batch.underflow_B for batch in batches]),
    )


def batch_features(
    definition: KernelDefinition, jacobian: BatchJacobian, projection: AbstractProjection | None, *, layerwise: bool
) -> SampleFeatures:
    """Compute a kernel's features and diagonal for a batch.

    Activations are their own features. Jacobians are projected when there is a projection, each parameter by itself
    when layerwise; the inner products of the results estimate the kernel, or its components.
    """
    if definition.functional is None:
        features_BK = penultimate(jacobian)
        norms_B = features_BK.square().sum(dim=1)
        return SampleFeatures(features_BK, norms_B, torch.zeros_like(norms_B, dtype=torch.bool))
    factors = jacobian.factors[definition.functional]
    features = None
    if projection is not None and layerwise:
        features = torch.stack([projection.project({name: factor}) for name, factor in factors.items()])
    elif projection is not None:
        features = projection.project(factors)
    # After the projection, which finds some of the norms on its way.
    diagonal_B = sum_in_order(factor.squared_norms() for factor in factors.values())
    return SampleFeatures(features, diagonal_B, _underflow(factors, diagonal_B))


def _suspicious(diagonal_B: torch.Tensor) -> torch.Tensor:
    """Return which norms are below the normal range of the precision."""
    limits = torch.finfo(diagonal_B.dtype)
    return diagonal_B < limits.tiny / limits.eps


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


def penultimate(jacobian: BatchJacobian) -> torch.Tensor:
    """Return the (B, D) input of the final Linear layer.

    Raises:
        CoverageError: The model does not end in a Linear layer.
    """
    if jacobian.penultimate_BD is None:
        raise CoverageError(
            "kernel 'ck' is the inner product of the inputs of a final Linear layer, but the model's output is not the "
            "output of its last Linear layer. Remove what follows that layer, or leave 'ck' out."
        )
    return jacobian.penultimate_BD
