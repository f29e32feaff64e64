"""The solver seam: set up once, step until done, certify.

A state is a frozen dataclass of tensors, numbers and texts, so that it can be stored between steps and taken up again
(:mod:`ntkpipe.workers.solvers.snapshot`): a killed solve goes on from it and ends with the same bits.
"""

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import ClassVar, Generic, TypeVar, final

import torch

from ntkpipe.workers.operators.base import AbstractOperator, ordered_sum
from ntkpipe.workers.solvers.system import System

Status = str
"""``converged``, ``budget``, ``stagnated``, ``indefinite``, ``diverged`` or ``stopped-early``."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SolverState:
    """Where a solver is; solvers extend it with what they need to go on."""

    constants: ClassVar[frozenset[str]] = frozenset()
    """Fields that no step changes, which are stored once."""

    alpha_NT: torch.Tensor
    """Coefficients so far, float64."""
    status: Status | None
    """None while there is more to do."""
    steps: int = 0
    """Steps taken."""
    jitter: float = 0.0
    """What was added to the diagonal beyond the ridge."""
    residual: float = math.nan
    """The largest relative residual of a target as the solver believes, for predictions; never certified."""
    ridge: float = math.nan
    """The ridge that the solver chose in place of the system's; NaN while it chose none."""
    largest: float = math.nan
    """An estimate of the largest eigenvalue of K + ridge I; NaN while there is none."""
    smallest: float = math.nan
    """An estimate of its smallest eigenvalue; NaN while there is none."""


@dataclass(frozen=True, slots=True)
class Evidence:
    """How well coefficients fulfil a solver's equation, recomputed from the operator."""

    residuals_T: torch.Tensor
    """Relative residuals, float64."""
    fitted_NT: torch.Tensor
    """K alpha, float64."""


State = TypeVar("State", bound=SolverState)


class AbstractSolver(ABC, Generic[State]):
    """Solves for several right-hand sides at once. Deterministic: equal systems and options give equal bits.

    Attributes:
        method: The solver's name.
        equation: What its residual is the residual of, see :class:`ntkpipe.workers.solvers.certificate.Certificate`.
        state_type: The class of its states.
        linear: Whether coefficients are a linear function of the right-hand sides. Such a solver never sees units,
            weights or starts; another one gets them as they are, with the system.
    """

    method: str
    equation: str
    state_type: type[State]
    linear: bool = True

    @abstractmethod
    def init(self, system: System) -> State:
        """Set up: factorise, sketch or precondition.

        Raises:
            ConfigError: The solver does not fit the system.
            NumericalError: The matrix cannot be worked with at all.
        """

    @abstractmethod
    def step(self, system: System, state: State) -> State:
        """Take one step, after which the state may be stored."""

    @abstractmethod
    def extras(self, state: State) -> dict[str, torch.Tensor]:
        """Return what else was found, by name; often nothing."""

    @abstractmethod
    def certify(self, system: System, state: State) -> Evidence:
        """Recompute the residual from the operator in float64; one pass over the matrix."""


class AbstractPartitionedSolver(AbstractSolver[State]):
    """A solver whose step is a sum over independent parts, which other processes may compute, and something cheap.

    Sums run from the first part to the last wherever the parts were computed, so that every bit is the same.
    """

    @abstractmethod
    def num_parts(self, operator: AbstractOperator) -> int:
        """Return how many parts a step has."""

    @abstractmethod
    def partial(self, system: System, state: State, part: int) -> torch.Tensor:
        """Return one summand; it may be overwritten."""

    @abstractmethod
    def absorb(self, system: System, state: State, total: torch.Tensor) -> State:
        """Finish the step, given the sum over all parts."""

    @final
    def step(self, system: System, state: State) -> State:
        """Compute all parts here."""
        parts = range(self.num_parts(system.operator))
        return self.absorb(system, state, ordered_sum(self.partial(system, state, part) for part in parts))
