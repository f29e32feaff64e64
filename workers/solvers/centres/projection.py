"""Solving K_PP theta = h for the centres: exactly, or by epochs of EigenPro 2 that need no P x P memory."""

from abc import ABC, abstractmethod
from dataclasses import dataclass, replace
from typing import Self, final

import torch

from ntkpipe.configs.solve.centres import CentreDescentSolve
from ntkpipe.configs.solve.descent import EigenProSolve
from ntkpipe.workers.operators.algebra import SubsampledOperator
from ntkpipe.workers.operators.base import AbstractOperator
from ntkpipe.workers.solvers.centres.factors import cholesky, jitter_ladder
from ntkpipe.workers.solvers.descent.eigenpro2 import EigenProSolver
from ntkpipe.workers.solvers.system import make_system


@final
@dataclass(frozen=True, slots=True)
class PreparedProjection:
    """What a projection needs to know of K_PP, as tensors that can be stored; empty what it does without."""

    factor_PP: torch.Tensor
    """The lower factor of K_PP + jitter I."""
    jitter: float
    points_S: torch.Tensor
    """Nystrom points of EigenPro 2, as numbers of centres."""
    directions_SQ: torch.Tensor
    damping_Q: torch.Tensor

    @classmethod
    def nothing(cls) -> Self:
        """Return what is known of a matrix that cannot be projected with."""
        empty = torch.zeros(0, dtype=torch.float64)
        return cls(empty, 0.0, empty.long(), empty, empty)


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
        prepared: Its preconditioner.
    """

    exact = False

    def __init__(self, operator: AbstractOperator, config: EigenProSolve, prepared: PreparedProjection) -> None:
        self._operator, self._config, self._prepared = operator, config, prepared

    def project(self, values_PT: torch.Tensor) -> torch.Tensor:
        """Descend."""
        solver, system, found = (
            EigenProSolver(self._config),
            make_system(self._operator, values_PT, 0.0),
            self._prepared,
        )
        state = solver.prepared(system, found.points_S, found.directions_SQ, found.damping_Q)
        for _ in range(self._config.epochs):
            state = solver.epoch(system, state)
        return state.alpha_NT

    def product(self, vectors_PT: torch.Tensor) -> torch.Tensor:
        """Multiply."""
        return self._operator.matmat(vectors_PT)


def prepare_projection(
    config: CentreDescentSolve, operator: AbstractOperator, centres_P: torch.Tensor
) -> PreparedProjection | None:
    """Factorise K_PP, O(P^3 / 3), or set EigenPro 2 up for it; None if it is indefinite beyond rounding."""
    nothing = PreparedProjection.nothing()
    if config.projection == "eigenpro2":
        centres = SubsampledOperator(operator, centres_P)
        zeros_P1 = torch.zeros(len(centres_P), 1, dtype=torch.float64)
        state = EigenProSolver(_inner(config)).init(make_system(centres, zeros_P1, 0.0))
        if state.status is not None:
            return None
        return PreparedProjection(nothing.factor_PP, 0.0, state.subsample_S, state.directions_SQ, state.damping_Q)
    matrix_PP = operator.submatrix(centres_P)
    for jitter in jitter_ladder(matrix_PP, operator.dtype):
        factor_PP = cholesky(matrix_PP, jitter)
        if factor_PP is not None:
            return replace(nothing, factor_PP=factor_PP, jitter=jitter)
    return None


def make_projection(
    config: CentreDescentSolve, operator: AbstractOperator, centres_P: torch.Tensor, prepared: PreparedProjection
) -> AbstractProjection:
    """Return the projection of a configuration, given what was prepared for it."""
    if config.projection == "eigenpro2":
        return EigenProProjection(SubsampledOperator(operator, centres_P), _inner(config), prepared)
    return CholeskyProjection(prepared.factor_PP, prepared.jitter)


def _inner(config: CentreDescentSolve) -> EigenProSolve:
    return EigenProSolve(
        name="projection",
        kernel=config.kernel,
        ridge=0.0,
        epochs=config.projection_epochs,
        tolerance=config.tolerance,
        subsample=config.subsample,
        top=config.top,
        momentum=False,
        seed=config.seed,
    )
