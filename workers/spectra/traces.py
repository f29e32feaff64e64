"""Traces of functions of an operator, and log-determinants.

Stochastic Lanczos quadrature: for a random vector z with independent signs, E z^T f(K) z = tr f(K), and a Lanczos
iteration started at z integrates f against the spectrum that z sees (Ubaru, Chen, Saad: "Fast estimation of tr(f(A))
via stochastic Lanczos quadrature", SIAM J. Matrix Anal. 2017).
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, final

import numpy as np
import torch

from ntkpipe.configs.errors import ConfigError, NumericalError
from ntkpipe.workers.operators.base import AbstractOperator, ordered_sum
from ntkpipe.workers.solvers.arrays import Matrix
from ntkpipe.workers.solvers.direct.streaming import mirrored, num_row_parts, primal_part
from ntkpipe.workers.spectra.kernels import as_operator

EXACT_LIMIT = 20_000
"""Up to this N a factorisation is quick enough."""

NEW = 1e-12
"""A Lanczos vector shorter than this share of the largest one so far is rounding: the vectors before span all there is."""


@final
@dataclass(frozen=True, slots=True)
class Estimate:
    """A number, and how far it may be from the truth."""

    value: float
    standard_error: float
    """Of the mean over probes; 0.0 for an exact value, NaN for a single probe."""
    truncation: float
    """By how much the last quarter of the Lanczos steps changed the value; 0.0 for an exact value. The error that more
    probes do not remove is about that large or smaller."""


def trace_of(
    kernel: Matrix | AbstractOperator,
    function: Callable[[torch.Tensor], torch.Tensor],
    *,
    num_probes: int = 30,
    num_steps: int = 50,
    seed: int = 0,
) -> Estimate:
    """Return an estimate of tr f(K), the sum of f over the eigenvalues of K.

    A product with (N, probes) vectors per step; memory O(N probes steps).

    Args:
        kernel: (N, N) matrix, an operator, or (N, K) features whose Gram matrix is meant.
        function: f, of float64 tensors, entry by entry. It is asked at Ritz values, which lie within the spectrum up to
            rounding, so that it should be defined a little below zero if K is singular.
        num_probes: Random vectors. The standard error falls with their square root.
        num_steps: Lanczos steps, at most N. A function that is smooth on the spectrum needs few.
        seed: Of the probes.

    Raises:
        ConfigError: An argument is out of range.
        NumericalError: f is not finite at a Ritz value.
    """
    operator = as_operator(kernel)
    if num_probes < 1 or num_steps < 1:
        raise ConfigError(f"expected num_probes and num_steps of at least 1, found {num_probes} and {num_steps}.")
    signs_NP = np.random.default_rng([seed, 0]).integers(0, 2, (operator.size, num_probes)) * 2.0 - 1.0
    tridiagonal_PLL = _tridiagonal(operator, torch.from_numpy(signs_NP), min(num_steps, operator.size))
    values_P = _quadrature(tridiagonal_PLL, function) * operator.size
    steps = tridiagonal_PLL.shape[1]
    fewer = max(1, steps - -(-steps // 4))
    before_P = _quadrature(tridiagonal_PLL[:, :fewer, :fewer], function) * operator.size
    error = float(values_P.std()) / math.sqrt(num_probes) if num_probes > 1 else math.nan
    return Estimate(float(values_P.mean()), error, abs(float((values_P - before_P).mean())))


def log_determinant(
    kernel: Matrix | AbstractOperator,
    ridge: float = 0.0,
    *,
    method: Literal["auto", "exact", "lanczos"] = "auto",
    num_probes: int = 30,
    num_steps: int = 50,
    seed: int = 0,
) -> Estimate:
    """Return log det(K + ridge I).

    Args:
        kernel: (N, N) matrix, an operator, or (N, K) features whose Gram matrix is meant.
        ridge: At least 0.
        method: ``exact`` factorises K + ridge I, or the (K, K) Gram matrix of fewer features than samples, for which
            log det(Phi Phi^T + ridge I) = (N - K) log ridge + log det(Phi^T Phi + ridge I); one pass. ``lanczos``
            estimates. ``auto`` is exact where the smaller side is at most 20 000.
        num_probes: See :func:`trace_of`.
        num_steps: See :func:`trace_of`; the number that is needed grows with the root of the condition number.
        seed: Of the probes.

    Raises:
        ConfigError: An argument is out of range.
        NumericalError: K + ridge I is not positive definite.
    """
    operator = as_operator(kernel)
    if not (math.isfinite(ridge) and ridge >= 0):
        raise ConfigError(f"expected a finite ridge of at least 0, found {ridge:g}.")
    if method not in ("auto", "exact", "lanczos"):
        raise ConfigError(f"expected method auto, exact or lanczos, found {method!r}.")
    features = operator.tags.features
    primal = features is not None and features.shape[1] < operator.size and ridge > 0
    side = features.shape[1] if primal and features is not None else operator.size
    if method == "lanczos" or (method == "auto" and side > EXACT_LIMIT):
        return trace_of(
            operator, lambda values: (values + ridge).log(), num_probes=num_probes, num_steps=num_steps, seed=seed
        )
    if primal and features is not None:
        none_NT = torch.zeros(operator.size, 0, dtype=torch.float64)
        parts = range(num_row_parts(features))
        gram_KK = mirrored(ordered_sum(primal_part(features, none_NT, part, torch.float64) for part in parts))
        rest = (operator.size - side) * math.log(ridge)
        return Estimate(rest + _log_determinant(gram_KK, ridge), 0.0, 0.0)
    return Estimate(_log_determinant(operator.dense().to(torch.float64, copy=True), ridge), 0.0, 0.0)


def _log_determinant(matrix_NN: torch.Tensor, ridge: float) -> float:
    """Factorise; the matrix is overwritten."""
    matrix_NN.diagonal().add_(ridge)
    factor_NN, failed = torch.linalg.cholesky_ex(matrix_NN)
    if int(failed) or not torch.isfinite(factor_NN.diagonal()).all():
        raise NumericalError(
            f"K + ridge I is not positive definite with ridge {ridge:g}, so that its log-determinant is not a real "
            "number. Choose a larger ridge."
        )
    return 2 * float(factor_NN.diagonal().log().sum())


def _tridiagonal(operator: AbstractOperator, starts_NP: torch.Tensor, num_steps: int) -> torch.Tensor:
    """Return the (P, L, L) tridiagonal matrices of P Lanczos iterations that run side by side, fully orthogonalised."""
    vectors_NP = starts_NP / torch.linalg.vector_norm(starts_NP, dim=0)
    basis = [vectors_NP]
    tridiagonal_PLL = torch.zeros(starts_NP.shape[1], num_steps, num_steps, dtype=torch.float64)
    largest_P = torch.zeros(starts_NP.shape[1], dtype=torch.float64)
    live_P = torch.ones_like(largest_P, dtype=torch.bool)
    for step in range(num_steps):
        products_NP = operator.matmat(vectors_NP)
        quotients_P = (vectors_NP * products_NP).sum(dim=0)
        # An iteration that has ended goes on with zero vectors; its first quotient lies within the spectrum.
        tridiagonal_PLL[:, step, step] = quotients_P.where(live_P, tridiagonal_PLL[:, 0, 0])
        if step + 1 == num_steps:
            break
        for _ in range(2):
            for earlier_NP in basis:
                products_NP = products_NP - earlier_NP * (earlier_NP * products_NP).sum(dim=0)
        norms_P = torch.linalg.vector_norm(products_NP, dim=0)
        largest_P = torch.maximum(largest_P, torch.maximum(norms_P, quotients_P.abs()))
        live_P = live_P & (norms_P > NEW * largest_P)
        norms_P = norms_P.where(live_P, 0.0)
        vectors_NP = (products_NP / norms_P).where(live_P, 0.0)
        tridiagonal_PLL[:, step, step + 1] = tridiagonal_PLL[:, step + 1, step] = norms_P
        basis.append(vectors_NP)
    return tridiagonal_PLL


def _quadrature(tridiagonal_PLL: torch.Tensor, function: Callable[[torch.Tensor], torch.Tensor]) -> torch.Tensor:
    """Return the (P,) values e_1^T f(T) e_1."""
    nodes_PL, vectors_PLL = torch.linalg.eigh(tridiagonal_PLL)
    values_PL = function(nodes_PL)
    if not torch.isfinite(values_PL).all():
        worst = float(nodes_PL[~torch.isfinite(values_PL)][0])
        raise NumericalError(
            f"the function is not finite at {worst:g}, which is an eigenvalue of K up to rounding. Add a ridge, or use "
            "a function that is defined there."
        )
    integrals_P: torch.Tensor = (vectors_PLL[:, 0, :].square() * values_PL).sum(dim=1)
    return integrals_P
