"""What is asked of ntkpipe, through its public functions only, and how right the answers are."""

from dataclasses import dataclass
from typing import Literal

import torch
from torch import nn

import ntkpipe


@dataclass(frozen=True, slots=True)
class Job:
    """One thing a user asks for."""

    kernel: Literal["trntk", "pntk"]
    """The kernel; ``trntk`` differentiates every output, ``pntk`` their sum."""
    dim: int | None
    """K for features, None for the exact kernel matrix."""

    @property
    def name(self) -> str:
        """How the report calls it."""
        kernel = {"trntk": "trNTK", "pntk": "pNTK"}[self.kernel]
        return f"exact {kernel}" if self.dim is None else f"proj-{kernel}, K = {self.dim}"

    def run(self, model: nn.Module, inputs: torch.Tensor) -> torch.Tensor:
        """Return the (N, N) kernel, or (N, K) features."""
        if self.dim is None:
            return exact_kernel(self.kernel, model, inputs)
        projection = ntkpipe.Projection(kind="auto", dim=self.dim, seed=0)
        return ntkpipe.features(model, inputs, kernel=self.kernel, projection=projection)


def jobs(dim: int) -> tuple[Job, ...]:
    """Return the jobs of every workload; the exact kernel first, as later steps are compared with it."""
    return Job("trntk", None), Job("trntk", dim), Job("pntk", dim)


def exact_kernel(kernel: Literal["trntk", "pntk"], model: nn.Module, inputs: torch.Tensor) -> torch.Tensor:
    """Return the exact (N, N) kernel."""
    found = ntkpipe.kernel_matrix(model, inputs, kernel=kernel)
    assert isinstance(found, torch.Tensor)
    return found


@dataclass(frozen=True, slots=True)
class ErrorSummary:
    """Differences between estimated and exact kernel entries, in units of cosines."""

    rms: float
    """Root of the mean square."""
    largest: float
    """The largest absolute difference."""
    predicted_rms: float
    """What a dense random projection would have on average: sqrt((1 + cosine²) / K)."""


@dataclass(frozen=True, slots=True)
class KernelError:
    """The error of an estimated kernel."""

    off_diagonal: ErrorSummary
    """Over pairs of different samples."""
    diagonal: ErrorSummary
    """Over samples with themselves, where the prediction is sqrt(2 / K)."""


def kernel_error(features_NK: torch.Tensor, exact_NN: torch.Tensor) -> KernelError:
    """Compare the Gram matrix of features with the exact kernel; both are divided by the exact norms."""
    exact_NN = exact_NN.double()
    norms_N = exact_NN.diagonal().sqrt()
    features_NK = features_NK.double() / norms_N[:, None]
    cosines_NN = exact_NN / (norms_N[:, None] * norms_N)
    difference_NN = features_NK @ features_NK.T - cosines_NN
    variance_NN = (1 + cosines_NN.square()) / features_NK.shape[1]
    pairs = ~torch.eye(len(exact_NN), dtype=torch.bool, device=exact_NN.device)
    summaries = [
        ErrorSummary(
            rms=float(difference_NN[mask].square().mean().sqrt()),
            largest=float(difference_NN[mask].abs().max()),
            predicted_rms=float(variance_NN[mask].mean().sqrt()),
        )
        for mask in (pairs, ~pairs)
    ]
    return KernelError(*summaries)
