"""The solver seam: set up once, step until done, certify.

A state is a frozen dataclass of tensors and numbers, so that it can be stored between steps and taken up again.
"""

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Generic, TypeVar

import torch

from ntkpipe.workers.operators.base import AbstractOperator
from ntkpipe.workers.solvers.solution import Status


@dataclass(frozen=True, slots=True)
class SolverState:
    """Where a solver is; solvers extend it with what they need to go on."""

    alpha_NT: torch.Tensor
    """Coefficients so far, float64."""
    status: Status | None
    """None while there is more to do."""
    steps: int
    """Steps taken."""
    passes: float
    """How often the whole matrix has been read."""
    jitter: float
    """What was added to the diagonal beyond the ridge."""


State = TypeVar("State", bound=SolverState)


class AbstractSolver(ABC, Generic[State]):
    """Solves (K + ridge I) alpha = y for several right-hand sides at once.

    Attributes:
        method: The solver's name.
    """

    method: str

    @abstractmethod
    def init(self, operator: AbstractOperator, rhs_NT: torch.Tensor, ridge: float) -> State:
        """Set up: factorise, sketch or precondition.

        Raises:
            NumericalError: The matrix cannot be worked with at all.
        """

    @abstractmethod
    def step(self, operator: AbstractOperator, rhs_NT: torch.Tensor, ridge: float, state: State) -> State:
        """Take one step, which is a natural point to store the state."""
