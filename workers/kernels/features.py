"""Features, exact diagonals and activations of a batch: what is stored per sample."""

from dataclasses import dataclass

import torch

from ntkpipe.configs.errors import CoverageError
from ntkpipe.workers.jacobians.engine import BatchJacobian
from ntkpipe.workers.jacobians.factors import AbstractFactor, slice_width
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


def batch_features(
    definition: KernelDefinition, jacobian: BatchJacobian, projection: AbstractProjection | None, *, layerwise: bool
) -> SampleFeatures:
    """Compute a kernel's features and diagonal for a batch.

    Activations are their own features. Jacobians are projected, parameter by parameter, when there is a projection;
    the inner products of the results estimate the kernel, or its components when layerwise.
    """
    if definition.functional is None:
        features_BK = penultimate(jacobian)
        norms_B = features_BK.square().sum(dim=1)
        return SampleFeatures(features_BK, norms_B, torch.zeros_like(norms_B, dtype=torch.bool))
    factors = jacobian.factors[definition.functional]
    diagonal_B = sum_in_order([factor.squared_norms() for factor in factors.values()])
    underflow_B = _underflow(factors, diagonal_B)
    if projection is None:
        return SampleFeatures(None, diagonal_B, underflow_B)
    if layerwise:
        parts = [_project({name: factor}, projection) for name, factor in factors.items()]
        return SampleFeatures(torch.stack(parts), diagonal_B, underflow_B)
    return SampleFeatures(_project(factors, projection), diagonal_B, underflow_B)


def _underflow(factors: dict[str, AbstractFactor], diagonal_B: torch.Tensor) -> torch.Tensor:
    """Return which samples have a gradient whose squared norm falls below the normal range of the precision.

    A norm of exactly zero is either that of a sample without any gradient, which is fine, or an underflow; only then
    are the gradients themselves looked at.
    """
    limits = torch.finfo(diagonal_B.dtype)
    suspicious_B = diagonal_B < limits.tiny / limits.eps
    if not suspicious_B.any():
        return suspicious_B
    any_B = torch.zeros_like(suspicious_B)
    for factor in factors.values():
        for vector in range(factor.num_vectors):
            for _, gradients_BP in factor.slices(vector, slice_width(factor.num_samples)):
                any_B |= gradients_BP.any(dim=1)
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


def sum_in_order(parts: list[torch.Tensor]) -> torch.Tensor:
    """Add tensors from first to last, so that the rounding never depends on anything else."""
    total = parts[0].clone()
    for part in parts[1:]:
        total += part
    return total


def _project(factors: dict[str, AbstractFactor], projection: AbstractProjection) -> torch.Tensor:
    features_BK: torch.Tensor | None = None
    for name, factor in factors.items():
        # Batches of similar size share a width, so that the map's cached slices serve all of them.
        width = slice_width(max(64, 1 << (factor.num_samples - 1).bit_length()))
        for vector in range(factor.num_vectors):
            for offset, gradients_BP in factor.slices(vector, width):
                if features_BK is None:
                    features_BK = gradients_BP.new_zeros(factor.num_samples, projection.dim)
                projection.accumulate(features_BK, gradients_BP, parameter=name, output=vector, offset=offset)
    assert features_BK is not None
    return features_BK.mul_(projection.scale)
