"""From what a user asks to the system that a solver sees, and back.

For solvers of linear systems, targets are scaled by powers of two, and sample weights and warm starts are turned into
another system of the same kind, so that no solver has to know of them.
"""

import math
from dataclasses import dataclass, replace
from typing import Self, final

import torch

from ntkpipe.configs.errors import ConfigError, NumericalError
from ntkpipe.workers.operators.algebra import ScaledOperator
from ntkpipe.workers.operators.base import AbstractOperator
from ntkpipe.workers.operators.checks import check_finite
from ntkpipe.workers.operators.metered import MeteredOperator
from ntkpipe.workers.solvers.solution import Solution
from ntkpipe.workers.solvers.system import System, make_system

LINEAR = frozenset({"weights"})
"""Extras, (..., T), that a solver finds in the units of its right-hand sides; those of a correction are dropped."""

COEFFICIENTS = frozenset({"path_alpha"})
"""Extras, (..., N, T), that are coefficients like alpha."""


@final
@dataclass(frozen=True, slots=True)
class Scaling:
    """What was done to a system, and how it is undone."""

    system: System
    """What the solver sees."""
    metered: MeteredOperator
    """K, and what was read of it beside the solve."""
    exponents_T: torch.Tensor
    """Targets were divided by two to these powers."""
    roots_N1: torch.Tensor | None
    """Square roots of the sample weights."""
    start_NT: torch.Tensor | None
    """Coefficients that the solution is a correction of."""
    start_fitted_NT: torch.Tensor | None
    """What they predict."""

    @classmethod
    def of(
        cls,
        operator: AbstractOperator,
        rhs_NT: torch.Tensor,
        ridge: float,
        *,
        weights_N: torch.Tensor | None = None,
        start_NT: torch.Tensor | None = None,
    ) -> Self:
        """Check what is asked and turn it into a system; one pass over the matrix if there is a start.

        With weights W = S^2, (K + ridge W^-1) alpha = y is (S K S + ridge I) beta = S y, alpha = S beta; a sample of
        weight 0 has the coefficient 0. Residuals of a correction are relative to the targets, not to what is left. A
        target whose start leaves a larger residual than zero does is started from zero.

        Raises:
            ConfigError: Shapes or ranges are wrong.
            NumericalError: Targets or start hold NaN or infinity.
        """
        _check(operator, rhs_NT, ridge)
        metered, rhs_NT, left_NT = MeteredOperator(operator), rhs_NT.double(), None
        roots_N1 = None if weights_N is None else checked_weights(weights_N, operator.size).sqrt().unsqueeze(1)
        weighted = operator if roots_N1 is None else ScaledOperator(operator, roots_N1.squeeze(1))
        weighted_NT = rhs_NT if roots_N1 is None else roots_N1 * rhs_NT
        exponents_T = torch.frexp(weighted_NT.abs().amax(dim=0)).exponent
        weighted_NT = torch.ldexp(weighted_NT, -exponents_T)
        norms_T: torch.Tensor = torch.linalg.vector_norm(weighted_NT, dim=0)
        start_fitted_NT = None
        if start_NT is not None:
            _check_start(start_NT, rhs_NT, weights_N)
            start_fitted_NT = metered.matmat(start_NT)
            own_NT, errors_NT = start_NT, rhs_NT - start_fitted_NT
            if roots_N1 is not None:
                own_NT = (start_NT / roots_N1).where(roots_N1 > 0, 0.0)
                errors_NT = roots_N1 * errors_NT
            left_NT = torch.ldexp(errors_NT - ridge * own_NT, -exponents_T)
            helps_T = torch.linalg.vector_norm(left_NT, dim=0) <= norms_T
            left_NT = left_NT.where(helps_T, weighted_NT)
            start_NT, start_fitted_NT = start_NT.where(helps_T, 0.0), start_fitted_NT.where(helps_T, 0.0)
        system = make_system(weighted, weighted_NT if left_NT is None else left_NT, ridge, norms_T=norms_T)
        return cls(system, metered, exponents_T, roots_N1, start_NT, start_fitted_NT)

    @classmethod
    def none(
        cls,
        operator: AbstractOperator,
        rhs_NT: torch.Tensor,
        ridge: float,
        *,
        weights_N: torch.Tensor | None = None,
        start_NT: torch.Tensor | None = None,
    ) -> Self:
        """Check what is asked and leave it as it is, for a solver that is not linear.

        Raises:
            ConfigError: Shapes or ranges are wrong.
            NumericalError: Targets or start hold NaN or infinity.
        """
        _check(operator, rhs_NT, ridge)
        weights_N = None if weights_N is None else checked_weights(weights_N, operator.size)
        if start_NT is not None:
            _check_start(start_NT, rhs_NT, weights_N)
        system = replace(make_system(operator, rhs_NT, ridge), weights_N=weights_N, start_NT=start_NT)
        exponents_T = torch.zeros(rhs_NT.shape[1], dtype=torch.int32)
        return cls(system, MeteredOperator(operator), exponents_T, None, None, None)

    def alpha(self, solved_NT: torch.Tensor) -> torch.Tensor:
        """Return the coefficients that the solver's stand for."""
        alpha_NT: torch.Tensor = torch.ldexp(solved_NT.double(), self.exponents_T)
        if self.roots_N1 is not None:
            alpha_NT = self.roots_N1 * alpha_NT
        return alpha_NT if self.start_NT is None else alpha_NT + self.start_NT

    def undo(self, solution: Solution) -> Solution:
        """Return the solution of what was asked; one more pass if there are samples of weight 0.

        Residuals stay those of the system that was solved, which weighs them.

        Raises:
            NumericalError: Coefficients overflow in the units of the targets.
        """
        alpha_NT = self.alpha(solution.alpha)
        if not torch.isfinite(alpha_NT).all():
            raise NumericalError(
                "coefficients exceed the largest number in float64, although the targets do not. Divide the targets by a "
                "constant."
            )
        if self.roots_N1 is not None and not bool((self.roots_N1 > 0).all()):
            # What samples of weight 0 are predicted is not in the weighted system.
            fitted_NT = self.metered.matmat(alpha_NT)
        else:
            fitted_NT = torch.ldexp(solution.fitted, self.exponents_T)
            if self.roots_N1 is not None:
                fitted_NT = fitted_NT / self.roots_N1
            if self.start_fitted_NT is not None:
                fitted_NT = fitted_NT + self.start_fitted_NT
        certificate = replace(
            solution.certificate,
            passes=solution.certificate.passes + self.metered.passes,
            bytes_read=solution.certificate.bytes_read + self.metered.bytes_read,
        )
        # Those of a correction say nothing about what was asked.
        kept = {name: value for name, value in solution.extras.items() if self.start_NT is None or name not in LINEAR}
        extras = {
            name: torch.ldexp(value, self.exponents_T) if name in LINEAR else value for name, value in kept.items()
        }
        extras |= {name: self.alpha(extras[name]) for name in COEFFICIENTS & extras.keys()}
        return replace(solution, alpha=alpha_NT, fitted=fitted_NT, certificate=certificate, extras=extras)


def checked_weights(weights_N: torch.Tensor, size: int) -> torch.Tensor:
    """Return sample weights in float64.

    Raises:
        ConfigError: They are not (N,) finite numbers of at least 0, or all of them are 0.
    """
    if weights_N.shape != (size,):
        raise ConfigError(f"sample_weights must have shape ({size},), found {tuple(weights_N.shape)}.")
    if not bool(torch.isfinite(weights_N).all() and (weights_N >= 0).all() and (weights_N > 0).any()):
        raise ConfigError(
            "sample_weights must be finite numbers of at least 0, not all of them 0; found "
            f"{float(weights_N.min()):g} to {float(weights_N.max()):g}."
        )
    return weights_N.double()


def _check(operator: AbstractOperator, rhs_NT: torch.Tensor, ridge: float) -> None:
    if rhs_NT.dim() != 2 or len(rhs_NT) != operator.size or not rhs_NT.shape[1]:
        raise ConfigError(
            f"the kernel has {operator.size} samples, but the targets have shape {tuple(rhs_NT.shape)}; expected "
            f"({operator.size}, T) with T >= 1."
        )
    if not (math.isfinite(ridge) and ridge >= 0):
        raise ConfigError(f"expected a finite ridge of at least 0, found {ridge:g}.")
    check_finite("y", rhs_NT)


def _check_start(start_NT: torch.Tensor, rhs_NT: torch.Tensor, weights_N: torch.Tensor | None) -> None:
    if start_NT.shape != rhs_NT.shape:
        raise ConfigError(
            f"warm_start has shape {tuple(start_NT.shape)}; expected that of the targets, {tuple(rhs_NT.shape)}."
        )
    check_finite("warm_start", start_NT)
    if weights_N is not None and bool(start_NT[weights_N == 0].any()):
        raise ConfigError("warm_start has coefficients for samples of weight 0; they must be 0.")
