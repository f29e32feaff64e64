"""What estimators share: solving with their parameters, and predicting."""

import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal, final

import numpy as np
import torch
from sklearn.exceptions import ConvergenceWarning
from sklearn.utils import check_random_state

from ntkpipe.configs.errors import ConfigError
from ntkpipe.configs.solve.union import SECTIONS
from ntkpipe.workers.estimators.kernels import PRECOMPUTED, Array, Kernel, fitted_kernel, predictions
from ntkpipe.workers.solvers.solution import Solution
from ntkpipe.workers.solvers.solve import RidgeScale, solve

Loss = Literal["squared", "logistic"]


@final
@dataclass(frozen=True, slots=True)
class Settings:
    """The parameters of an estimator."""

    kernel: Kernel
    """See :func:`fitted_kernel`."""
    kernel_options: Mapping[str, Any] | None
    """Of the kernel."""
    ridge: float
    """The lambda."""
    ridge_scale: RidgeScale
    """Its unit."""
    method: str
    """Of :func:`ntkpipe.solve`."""
    solver_options: Mapping[str, Any] | None
    """Of the method."""
    random_state: Any
    """The seed of the method, or what draws it."""

    @property
    def precomputed(self) -> bool:
        """Whether samples are rows of a kernel matrix."""
        return isinstance(self.kernel, str) and self.kernel == PRECOMPUTED

    def solution(self, x: Array, targets: Array, weights: Array | None, **options: Any) -> Solution:
        """Solve, and warn of a solution that did not converge.

        Raises:
            ConfigError: A parameter is not valid.
            NumericalError: The kernel matrix is not symmetric, or not finite.
        """
        if self.precomputed and x.shape[0] != x.shape[1]:
            raise ConfigError(f"a precomputed kernel must be a square matrix, found shape {x.shape}.")
        options |= dict(self.solver_options or {})
        section = SECTIONS.get(self.method)
        if section is not None and "seed" in section.model_fields:
            options = {"seed": _seed(self.random_state)} | options
        solution = solve(
            fitted_kernel(self.kernel, self.kernel_options or {}, x),
            targets,
            method=self.method,
            ridge=self.ridge,
            ridge_scale=self.ridge_scale,
            sample_weights=weights,
            **options,
        )
        if not solution.converged:
            warnings.warn(
                f"{solution.method} ended as {solution.status!r} with a relative residual of "
                f"{float(solution.residuals.max()):.1e}. A larger ridge makes the system easier; solver_options may allow "
                "more steps; solution_ holds the evidence.",
                ConvergenceWarning,
                stacklevel=3,
            )
        return solution

    def predictions(self, x: Array, fitted_x: Array | None, alpha_NT: torch.Tensor) -> Array:
        """Return the (M, T) predictions of samples."""
        return predictions(self.kernel, self.kernel_options or {}, x, fitted_x, alpha_NT)


def settings_of(estimator: Any) -> Settings:
    """Return the parameters that both estimators have."""
    return Settings(**{name: getattr(estimator, name) for name in Settings.__slots__})


def method_for(loss: Loss, method: str) -> str:
    """Return the method for a loss.

    Raises:
        ConfigError: There is no such loss, or the method solves for another one.
    """
    if loss not in ("squared", "logistic"):
        raise ConfigError(f"loss must be 'squared' or 'logistic', found {loss!r}.")
    if loss == "logistic" and method == "auto":
        return "logistic"
    if (loss == "logistic") != (method == "logistic"):
        raise ConfigError(f"method {method!r} does not solve for loss {loss!r}; use method='auto'.")
    return method


def _seed(random_state: Any) -> int:
    """Return an integer as it is; draw one otherwise."""
    if isinstance(random_state, int | np.integer):
        return int(random_state)
    return int(check_random_state(random_state).randint(2**31 - 1))
