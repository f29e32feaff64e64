"""From what a user asks to the system that a solver sees, and back.

Targets are scaled by powers of two, sample weights and warm starts are turned into another system of the same kind, so
that no solver has to know of them.
"""

import math
from dataclasses import dataclass, replace
from typing import Self, final

import torch

from ntkpipe.configs.errors import ConfigError
from ntkpipe.workers.operators.algebra import ScaledOperator
from ntkpipe.workers.operators.base import AbstractOperator
from ntkpipe.workers.operators.checks import check_finite
from ntkpipe.workers.solvers.solution import Solution
from ntkpipe.workers.solvers.system import System, make_system


@final
@dataclass(frozen=True, slots=True)
class Scaling:
    """What was done to a system, and how it is undone."""

    system: System
    """What the solver sees."""
    operator: AbstractOperator
    """K."""
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
        """Check what is asked and turn it into a system.

        With weights W = S^2, (K + ridge W^-1) alpha = y is (S K S + ridge I) beta = S y, alpha = S beta; a sample of
        weight 0 has the coefficient 0. Residuals of a correction are relative to the targets, not to what is left.

        Raises:
            ConfigError: Shapes or ranges are wrong.
            NumericalError: Targets or start hold NaN or infinity.
        """
        _check(operator, rhs_NT, ridge)
        plain = operator
        rhs_NT = rhs_NT.double()
        exponents_T = torch.frexp(rhs_NT.abs().amax(dim=0)).exponent
        roots_N1 = None if weights_N is None else _roots(weights_N, operator.size)
        start_fitted_NT, left_NT = None, rhs_NT
        if start_NT is not None:
            if start_NT.shape != rhs_NT.shape:
                raise ConfigError(
                    f"warm_start has shape {tuple(start_NT.shape)}; expected that of the targets, {tuple(rhs_NT.shape)}."
                )
            check_finite("warm_start", start_NT)
            if roots_N1 is not None and bool(start_NT[roots_N1.squeeze(1) == 0].any()):
                raise ConfigError("warm_start has coefficients for samples of weight 0; they must be 0.")
            start_fitted_NT = operator.matmat(start_NT)
            inverse_N1 = 1.0 if roots_N1 is None else roots_N1.square().reciprocal().where(roots_N1 > 0, 0.0)
            left_NT = rhs_NT - start_fitted_NT - ridge * inverse_N1 * start_NT
        if roots_N1 is not None:
            operator = ScaledOperator(operator, roots_N1.squeeze(1))
            rhs_NT, left_NT = roots_N1 * rhs_NT, roots_N1 * left_NT
        norms_T: torch.Tensor = torch.linalg.vector_norm(torch.ldexp(rhs_NT, -exponents_T), dim=0)
        system = make_system(operator, torch.ldexp(left_NT, -exponents_T), ridge, norms_T=norms_T)
        return cls(system, plain, exponents_T, roots_N1, start_NT, start_fitted_NT)

    def alpha(self, solved_NT: torch.Tensor) -> torch.Tensor:
        """Return the coefficients that the solver's stand for."""
        alpha_NT: torch.Tensor = torch.ldexp(solved_NT.double(), self.exponents_T)
        if self.roots_N1 is not None:
            alpha_NT = self.roots_N1 * alpha_NT
        return alpha_NT if self.start_NT is None else alpha_NT + self.start_NT

    def undo(self, solution: Solution) -> Solution:
        """Return the solution of what was asked; the certificate stays that of the system that was solved."""
        alpha_NT = self.alpha(solution.alpha)
        if self.roots_N1 is not None:
            # What samples of weight 0 are predicted is not in the weighted system.
            return replace(solution, alpha=alpha_NT, fitted=self.operator.matmat(alpha_NT))
        fitted_NT: torch.Tensor = torch.ldexp(solution.fitted, self.exponents_T)
        if self.start_fitted_NT is not None:
            fitted_NT = fitted_NT + self.start_fitted_NT
        return replace(solution, alpha=alpha_NT, fitted=fitted_NT)


def _check(operator: AbstractOperator, rhs_NT: torch.Tensor, ridge: float) -> None:
    if rhs_NT.dim() != 2 or len(rhs_NT) != operator.size or not rhs_NT.shape[1]:
        raise ConfigError(
            f"the kernel has {operator.size} samples, but the targets have shape {tuple(rhs_NT.shape)}; expected "
            f"({operator.size}, T) with T >= 1."
        )
    if not (math.isfinite(ridge) and ridge >= 0):
        raise ConfigError(f"expected a finite ridge of at least 0, found {ridge:g}.")
    check_finite("y", rhs_NT)


def _roots(weights_N: torch.Tensor, size: int) -> torch.Tensor:
    valid = weights_N.shape == (size,) and bool(torch.isfinite(weights_N).all() and (weights_N >= 0).all())
    if not valid or not bool((weights_N > 0).any()):
        raise ConfigError(
            f"sample_weights must be ({size},) finite numbers of at least 0, not all of them 0; found shape "
            f"{tuple(weights_N.shape)}, from {float(weights_N.min()):g} to {float(weights_N.max()):g}."
        )
    return weights_N.double().sqrt().unsqueeze(1)
