"""Scale mixtures: what a Gaussian process becomes when its scale is not known but inferred, for any kernel matrix."""

import math
from dataclasses import dataclass

import torch

from ntkpipe.configs.errors import ConfigError, NumericalError


@dataclass(frozen=True, slots=True)
class ScaleMixturePosterior:
    """A Student-t distribution for every test sample and target, and how well the prior explained the training data."""

    degrees: float
    """2a + N, the degrees of freedom of every predictive distribution."""
    mean: torch.Tensor
    """(M, T) where the distributions are centred, in units of the targets: the prediction of the Gaussian process."""
    scale: torch.Tensor
    """(M, T) scale parameters, in units of the targets: quantiles are mean + scale x those of the standard t distribution."""
    log_evidence: torch.Tensor
    """(T,) natural logarithms of the densities of the columns of training targets."""


def scale_mixture_posterior(
    kernel_NN: torch.Tensor,
    test_kernel_MN: torch.Tensor,
    test_diagonal_M: torch.Tensor,
    targets_NT: torch.Tensor,
    *,
    shape: float,
    rate: float,
    jitter: float,
) -> ScaleMixturePosterior:
    """Condition a Gaussian process of covariance s (K + jitter I) whose scale s is inverse-gamma(a, b) distributed.

    Each column y of the targets has a scale of its own. With C = K + jitter I and q = y' C^-1 y, the column is
    t_{2a}(0, (b/a) C) distributed,

        log p(y) = lgamma(a + N/2) - lgamma(a) - N/2 log(2 pi b) - 1/2 log det C - (a + N/2) log(1 + q / (2b)),

    and a further target given it is Student-t with 2a + N degrees of freedom, mean k' C^-1 y, and squared scale
    (b + q/2) / (a + N/2) x (k_** - k' C^-1 k). For a = b -> infinity this is the Gaussian process of scale 1. It is the
    limit of wide networks whose last layer shares a random variance (Lee, Yun, Nam, Yang, Lee, 2022); the conditional
    is that of Shah, Wilson, Ghahramani, 2014. Time O(N^3 + N^2 (M + T)), memory O(N^2 + N M).

    Args:
        kernel_NN: Of the training samples, positive semi-definite; only its lower triangle is read.
        test_kernel_MN: Between test and training samples.
        test_diagonal_M: k_**; with the jitter added, the distributions are of noisy targets instead of values.
        targets_NT: Training targets, or (N,) for a single column. N may be 0: the result is the prior.
        shape: a, positive.
        rate: b, positive.
        jitter: Added to the diagonal of K, not negative: the ratio of the noise's variance to the scale s.

    Raises:
        ConfigError: Shapes do not match, or a parameter is out of its range.
        NumericalError: K + jitter I is not positive definite.
    """
    targets_NT = targets_NT.double().reshape(len(targets_NT), -1) if targets_NT.dim() == 1 else targets_NT.double()
    _check(kernel_NN, test_kernel_MN, test_diagonal_M, targets_NT)
    if not (shape > 0 and rate > 0 and jitter >= 0 and math.isfinite(shape + rate + jitter)):
        raise ConfigError(f"shape = {shape} and rate = {rate} must be positive, and jitter = {jitter} not negative.")
    num = len(targets_NT)
    factor_NN = _cholesky(kernel_NN.double() + jitter * torch.eye(num, dtype=torch.float64, device=kernel_NN.device))
    white_NT = torch.linalg.solve_triangular(factor_NN, targets_NT, upper=False)
    white_NM = torch.linalg.solve_triangular(factor_NN, test_kernel_MN.double().T, upper=False)
    quadratic_T = white_NT.square().sum(0)
    # Rounding can take the variance of a training sample without noise below zero.
    variance_M = (test_diagonal_M.double() - white_NM.square().sum(0)).clamp_min(0)
    scale_T = (rate + quadratic_T / 2) / (shape + num / 2)
    log_evidence_T = (
        math.lgamma(shape + num / 2)
        - math.lgamma(shape)
        - num / 2 * math.log(2 * math.pi * rate)
        - float(factor_NN.diagonal().log().sum())
        - (shape + num / 2) * torch.log1p(quadratic_T / (2 * rate))
    )
    scale_MT = (variance_M[:, None] * scale_T).sqrt()
    return ScaleMixturePosterior(2 * shape + num, white_NM.T @ white_NT, scale_MT, log_evidence_T)


def _check(
    kernel_NN: torch.Tensor, test_kernel_MN: torch.Tensor, test_diagonal_M: torch.Tensor, targets_NT: torch.Tensor
) -> None:
    num, num_test = len(targets_NT), len(test_diagonal_M)
    found = (tuple(kernel_NN.shape), tuple(test_kernel_MN.shape), test_diagonal_M.dim(), targets_NT.dim())
    if found != ((num, num), (num_test, num), 1, 2):
        raise ConfigError(
            f"{num} training targets and a diagonal of {num_test} test samples need matrices ({num}, {num}) and "
            f"({num_test}, {num}); found {found[0]} and {found[1]}, targets {tuple(targets_NT.shape)} and a diagonal "
            f"{tuple(test_diagonal_M.shape)}."
        )


def _cholesky(matrix_NN: torch.Tensor) -> torch.Tensor:
    factor_NN: torch.Tensor
    factor_NN, info = torch.linalg.cholesky_ex(matrix_NN)
    if int(info) or not torch.isfinite(factor_NN).all():
        raise NumericalError(
            f"a kernel matrix of {len(matrix_NN)} samples is not positive definite with the given jitter; give a larger "
            "one, about 1e-6 of the mean diagonal, or remove duplicates."
        )
    return factor_NN
