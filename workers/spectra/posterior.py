"""Gaussian process posteriors: mean and variance, exactly or in a subspace.

With A = K + noise I, the mean at new samples is k A^-1 y and the variance k(x, x) - k A^-1 k^T, where k are kernels
with the samples. Replacing A^-1 by Q (Q^T A Q)^-1 Q^T for any orthonormal Q makes k A^-1 k^T smaller, so that variances
in a subspace are upper bounds of the exact ones (Pleiss et al.: "Constant-time predictive distributions for Gaussian
processes", ICML 2018, for Lanczos vectors).
"""

import math
from dataclasses import dataclass
from typing import Literal, final

import numpy as np
import torch

from ntkpipe.configs.errors import ConfigError, NumericalError
from ntkpipe.workers.operators.base import AbstractOperator
from ntkpipe.workers.operators.checks import check_finite
from ntkpipe.workers.solvers.arrays import Matrix, as_columns, as_tensor
from ntkpipe.workers.solvers.certificate import residual
from ntkpipe.workers.solvers.scaling import Scaling
from ntkpipe.workers.spectra.kernels import as_operator
from ntkpipe.workers.spectra.subspaces import BLOCK, gaussian, orthonormal

EXACT_LIMIT = 20_000
"""Up to this N a factorisation is quick enough."""


@final
@dataclass(frozen=True, slots=True)
class Posterior:
    """A Gaussian process given targets with independent noise."""

    alpha_NT: torch.Tensor
    """Coefficients of the mean, float64."""
    residuals_T: torch.Tensor
    """||y - (K + noise I) alpha|| / ||y||, recomputed: how much of the targets the mean does not account for."""
    noise: float
    """Variance of the noise."""
    method: str
    """``exact``, ``lanczos`` or ``nystrom``."""
    basis_NQ: torch.Tensor | None
    """Q, float64; None where the factor is that of K + noise I itself."""
    factor_QQ: torch.Tensor
    """Triangular factor of Q^T (K + noise I) Q, or of K + noise I."""
    log_evidence_T: torch.Tensor | None
    """log p(y) of every target; None in a subspace."""

    def mean(self, kernel_MN: Matrix) -> torch.Tensor:
        """Return the (M, T) means at new samples from their kernels with the samples, float64."""
        return self._checked(kernel_MN) @ self.alpha_NT

    def variance(self, kernel_MN: Matrix, diagonal_M: Matrix, *, noisy: bool = False) -> torch.Tensor:
        """Return the (M,) variances at new samples, the same for all targets, float64 and at least 0.

        O(M N^2) exactly, O(M N Q) in a subspace, where they are upper bounds.

        Args:
            kernel_MN: Kernels with the samples.
            diagonal_M: Kernels of the new samples with themselves.
            noisy: Of targets instead of the function: noise is added.
        """
        kernel = self._checked(kernel_MN)
        prior_M = as_tensor("diagonal_M", diagonal_M).double()
        if prior_M.shape != (len(kernel),):
            raise ConfigError(f"expected diagonal_M of shape ({len(kernel)},), found {tuple(prior_M.shape)}.")
        explained_M = self._whitened(kernel).square().sum(dim=0)
        # Rounding of a difference of equal numbers may have either sign.
        return (prior_M - explained_M).clamp_min(0.0) + (self.noise if noisy else 0.0)

    def covariance(self, kernel_MN: Matrix, kernel_MM: Matrix) -> torch.Tensor:
        """Return the (M, M) covariance between new samples, float64, from their kernels with the samples and each other."""
        whitened_QM = self._whitened(self._checked(kernel_MN))
        prior_MM = as_tensor("kernel_MM", kernel_MM).double()
        if prior_MM.shape != (whitened_QM.shape[1],) * 2:
            raise ConfigError(f"expected kernel_MM of side {whitened_QM.shape[1]}, found {tuple(prior_MM.shape)}.")
        return prior_MM - whitened_QM.T @ whitened_QM

    def _whitened(self, kernel_MN: torch.Tensor) -> torch.Tensor:
        """Return L^-1 Q^T k^T, whose squared column norms are what the samples explain of the variance."""
        rotated_QM = kernel_MN.T if self.basis_NQ is None else self.basis_NQ.T @ kernel_MN.T
        whitened_QM: torch.Tensor = torch.linalg.solve_triangular(self.factor_QQ, rotated_QM, upper=False)
        return whitened_QM

    def _checked(self, kernel_MN: Matrix) -> torch.Tensor:
        kernel = as_tensor("kernel_MN", kernel_MN).double()
        if kernel.dim() != 2 or kernel.shape[1] != len(self.alpha_NT):
            raise ConfigError(f"expected kernel_MN of shape (M, {len(self.alpha_NT)}), found {tuple(kernel.shape)}.")
        return kernel


def posterior(
    kernel: Matrix | AbstractOperator,
    y: Matrix,
    noise: float,
    *,
    method: Literal["auto", "exact", "lanczos", "nystrom"] = "auto",
    rank: int = 200,
    alpha: Matrix | None = None,
    seed: int = 0,
) -> Posterior:
    """Return the posterior of a Gaussian process with a kernel as its covariance.

    Args:
        kernel: (N, N) matrix, an operator, or (N, K) features whose Gram matrix is meant.
        y: (N,) or (N, T) targets.
        noise: Variance of the targets' noise, above 0.
        method: ``exact`` factorises, N^3 / 3 FLOPs and 16 N^2 bytes. ``lanczos`` works in the block Krylov subspace of
            the targets and random vectors, rank / 16 passes or fewer; ``nystrom`` in the span of random columns, about
            one pass. ``auto`` is exact up to N = 20 000, else ``lanczos``.
        rank: Dimension of the subspace, at most N.
        alpha: Coefficients of the mean, if a solver has found them; in a subspace they are better than what it has.
        seed: Of all random choices.

    Raises:
        ConfigError: An argument is out of range.
        NumericalError: The kernel or the targets hold NaN or infinity, or K + noise I is not positive definite.
    """
    operator, rhs_NT = as_operator(kernel), as_columns("y", y)
    size = operator.size
    if not (math.isfinite(noise) and noise > 0) or rank < 1:
        raise ConfigError(f"expected a finite noise above 0 and rank >= 1, found {noise:g} and {rank}.")
    if method not in ("auto", "exact", "lanczos", "nystrom"):
        raise ConfigError(f"expected method auto, exact, lanczos or nystrom, found {method!r}.")
    if method == "auto":
        method = "exact" if size <= EXACT_LIMIT else "lanczos"
    scaling = Scaling.of(operator, rhs_NT, noise)
    system, basis_NQ, evidence_T = scaling.system, None, None
    if method == "exact":
        factor_QQ = _factor(operator.dense().to(torch.float64, copy=True), noise)
        found_NT = torch.cholesky_solve(rhs_NT, factor_QQ)
        fit_T = (rhs_NT * found_NT).sum(dim=0)
        evidence_T = -0.5 * (fit_T + size * math.log(2 * math.pi)) - factor_QQ.diagonal().log().sum()
    else:
        random = np.random.default_rng([seed, 0])
        subspace = _krylov if method == "lanczos" else _columns
        # Targets come in units of their own, in which norms may underflow.
        basis_NQ, products_NQ = subspace(operator, system.rhs_NT, min(rank, size), random)
        projected_QQ = basis_NQ.T @ products_NQ
        factor_QQ = _factor((projected_QQ + projected_QQ.T) / 2, noise)
        found_NT = basis_NQ @ torch.cholesky_solve(basis_NQ.T @ rhs_NT, factor_QQ)
    alpha_NT = found_NT if alpha is None else as_columns("alpha", alpha)
    if alpha_NT.shape != rhs_NT.shape:
        raise ConfigError(f"expected alpha of shape {tuple(rhs_NT.shape)}, found {tuple(alpha_NT.shape)}.")
    check_finite("alpha", alpha_NT)
    residuals_T = system.relative(residual(system, torch.ldexp(alpha_NT, -scaling.exponents_T)))
    return Posterior(alpha_NT, residuals_T, noise, method, basis_NQ, factor_QQ, evidence_T)


def _factor(matrix_QQ: torch.Tensor, noise: float) -> torch.Tensor:
    matrix_QQ.diagonal().add_(noise)
    factor_QQ: torch.Tensor
    factor_QQ, failed = torch.linalg.cholesky_ex(matrix_QQ)
    if int(failed) or not torch.isfinite(factor_QQ.diagonal()).all():
        raise NumericalError(
            f"K + noise I is not positive definite with noise {noise:g}. Choose a larger noise, or check the kernel."
        )
    return factor_QQ


def _krylov(
    operator: AbstractOperator, rhs_NT: torch.Tensor, rank: int, random: np.random.Generator
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return an orthonormal basis of a block Krylov subspace of the targets and random vectors, and its products."""
    size = operator.size
    fresh_NB = torch.cat([rhs_NT, gaussian(size, max(1, BLOCK - rhs_NT.shape[1]), random)], dim=1)
    basis_NQ = products_NQ = torch.zeros(size, 0, dtype=torch.float64)
    while basis_NQ.shape[1] < rank:
        added_NB = orthonormal(fresh_NB, basis_NQ)[:, : rank - basis_NQ.shape[1]]
        if not added_NB.shape[1]:  # An invariant subspace: A^-1 y and all the random vectors lie in it.
            break
        fresh_NB = operator.matmat(added_NB)
        basis_NQ = torch.cat([basis_NQ, added_NB], dim=1)
        products_NQ = torch.cat([products_NQ, fresh_NB], dim=1)
    return basis_NQ, products_NQ


def _columns(
    operator: AbstractOperator, rhs_NT: torch.Tensor, rank: int, random: np.random.Generator
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return an orthonormal basis of random columns of the matrix, and its products."""
    positions_S = torch.from_numpy(np.sort(random.permutation(operator.size)[:rank]))
    columns_NS = operator.columns(positions_S).double()
    basis_NQ = orthonormal(columns_NS, columns_NS[:, :0])
    return basis_NQ, operator.matmat(basis_NQ)
