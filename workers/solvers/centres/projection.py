"""Solving K_PP theta = h for the centres: exactly, or by epochs of EigenPro 2 that need no P x P memory."""

from abc import ABC, abstractmethod
from typing import final

import torch

from ntkpipe.configs.solve.descent import EigenProSolve
from ntkpipe.workers.operators.base import AbstractOperator
from ntkpipe.workers.solvers.descent.eigenpro2 import EigenProSolver
from ntkpipe.workers.solvers.system import make_system


class AbstractProjection(ABC):
    """A linear map that stands for K_PP^-1.

    Attributes:
        exact: Whether it is K_PP^-1 to rounding.
    """

    exact: bool

    @abstractmethod
    def project(self, values_PT: torch.Tensor) -> torch.Tensor:
        """Return theta for h, float64."""

    @abstractmethod
    def product(self, vectors_PT: torch.Tensor) -> torch.Tensor:
        """Return K_PP v, float64."""


@final
class CholeskyProjection(AbstractProjection):
    """Two triangular solves, O(P^2 T), with the lower factor of K_PP + jitter I; 8 P^2 bytes."""

    def __init__(self, factor_PP: torch.Tensor, jitter: float) -> None:
        self._factor_PP, self._jitter = factor_PP, jitter
        self.exact = jitter == 0

    def project(self, values_PT: torch.Tensor) -> torch.Tensor:
        """Solve."""
        return torch.cholesky_solve(values_PT, self._factor_PP)

    def product(self, vectors_PT: torch.Tensor) -> torch.Tensor:
        """Multiply the factors, and take the jitter back."""
        return self._factor_PP @ (self._factor_PP.T @ vectors_PT) - self._jitter * vectors_PT


@final
class EigenProProjection(AbstractProjection):
    """Some epochs of EigenPro 2 from zero, always with the same random numbers.

    Args:
        operator: K_PP; read once per epoch, and computed anew where it is a formula.
        config: Of EigenPro 2; the number of epochs is that of a projection.
        prepared: What :meth:`prepare` returned.
    """

    exact = False

    def __init__(
        self,
        operator: AbstractOperator,
        config: EigenProSolve,
        prepared: tuple[torch.Tensor, torch.Tensor, torch.Tensor],
    ) -> None:
        self._operator, self._config, self._prepared = operator, config, prepared

    @staticmethod
    def prepare(
        operator: AbstractOperator, config: EigenProSolve
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor] | None:
        """Return Nystrom points, directions and damping; None if the matrix is indefinite."""
        nothing_P1 = torch.zeros(operator.size, 1, dtype=torch.float64)
        state = EigenProSolver(config).init(make_system(operator, nothing_P1, 0.0))
        return None if state.status else (state.subsample_S, state.directions_SQ, state.damping_Q)

    def project(self, values_PT: torch.Tensor) -> torch.Tensor:
        """Descend."""
        solver, system = EigenProSolver(self._config), make_system(self._operator, values_PT, 0.0)
        state = solver.prepared(system, *self._prepared)
        for _ in range(self._config.epochs):
            state = solver.epoch(system, state)
        return state.alpha_NT

    def product(self, vectors_PT: torch.Tensor) -> torch.Tensor:
        """Multiply."""
        return self._operator.matmat(vectors_PT)
