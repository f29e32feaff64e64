"""Logistic regression on a kernel by Newton steps whose systems are solved by products."""

from dataclasses import dataclass, replace
from typing import ClassVar, final

import torch

from ntkpipe.configs.errors import ConfigError
from ntkpipe.configs.solve.logistic import LogisticSolve
from ntkpipe.workers.solvers.base import AbstractSolver, Evidence, SolverState, Status
from ntkpipe.workers.solvers.glm.losses import LOSSES
from ntkpipe.workers.solvers.glm.newton import direction, negative, step_length
from ntkpipe.workers.solvers.glm.objective import Objective
from ntkpipe.workers.solvers.system import System

PATIENCE = 10
"""Newton steps in a row that do not make the gradient smaller by a tenth, after which rounding has won."""


@dataclass(frozen=True, slots=True, kw_only=True)
class LogisticState(SolverState):
    """Coefficients, their logits, and the gradient."""

    constants: ClassVar[frozenset[str]] = frozenset({"scales_T"})

    logits_NT: torch.Tensor
    """K alpha, float64."""
    gradient_NT: torch.Tensor
    image_NT: torch.Tensor
    """The gradient's coefficients, and M times them."""
    scales_T: torch.Tensor
    """Squared norms of the gradient for coefficients of zero."""
    best: float
    """The smallest relative gradient so far, worst target."""
    steps_since_best: int = 0
    """Since it last became smaller by a tenth."""


@final
class LogisticSolver(AbstractSolver[LogisticState]):
    """Minimises sum_i w_i loss(y_i, f_i) + ridge / 2 tr(alpha^T M alpha), f = K alpha, M = K or I.

    One step is a Newton step: conjugate gradients in the inner product of the penalty, cut off where the quadratic model
    is no better than the gradient deserves, then a line search on the logits. O(N^2 T) FLOPs per product, memory O(N T).
    Residuals are norms of the gradient in the penalty's own norm, as a share of those for zero coefficients. By strong
    convexity the distance from the solution, in that norm, is at most the gradient's norm over the ridge.
    ``indefinite`` means that a function had a negative norm, which the penalty of coefficients cannot meet; the answer is
    then zero.
    """

    method = "logistic"
    equation = "logistic"
    state_type = LogisticState
    linear = False

    def __init__(self, config: LogisticSolve) -> None:
        self._config = config
        self._loss = LOSSES[config.loss]

    def init(self, system: System) -> LogisticState:
        """Take the gradient at the start: two products, and two more unless the start is zero."""
        if not system.ridge > 0:
            raise ConfigError(
                f"logistic regression needs a positive ridge, found {system.ridge:g}: without one, the coefficients of classes "
                "that can be told apart grow without end."
            )
        self._loss.check(system.rhs_NT)
        objective, zeros_NT = self._objective(system), torch.zeros_like(system.rhs_NT)
        gradient_NT = objective.gradient(zeros_NT, zeros_NT)
        image_NT = objective.metric(gradient_NT)
        squares_T = (gradient_NT * image_NT).sum(dim=0)
        indefinite = negative(objective, gradient_NT, objective.sums(gradient_NT * image_NT), _bound(objective))
        scales_T = squares_T.abs() if indefinite else squares_T
        state = LogisticState(
            alpha_NT=zeros_NT,
            status="indefinite" if indefinite else None,
            logits_NT=zeros_NT,
            gradient_NT=gradient_NT,
            image_NT=image_NT,
            scales_T=scales_T.where(scales_T > 0, 1.0),
            best=1.0,
        )
        if system.start_NT is None or indefinite:
            return self._judged(state)
        logits_NT = system.operator.matmat(system.start_NT)
        # As for linear systems, a start that is worse than zero is none.
        helps = objective.value(system.start_NT, logits_NT) <= objective.value(zeros_NT, zeros_NT)
        return self._judged(
            _at(objective, state, system.start_NT.where(helps, 0.0), logits_NT.where(helps, 0.0)),
        )

    def step(self, system: System, state: LogisticState) -> LogisticState:
        """Take a Newton step, and recompute the logits before calling it the last one."""
        objective = self._objective(system)
        found_NT = direction(
            objective,
            self._loss.probabilities(state.logits_NT),
            state.gradient_NT,
            state.image_NT,
            objective.sums(state.scales_T.unsqueeze(0)),
            self._config.inner_steps,
            _bound(objective),
        )
        state = replace(state, steps=state.steps + 1)
        if found_NT is None:
            return replace(state, alpha_NT=torch.zeros_like(state.alpha_NT), status="indefinite")
        change_NT = system.operator.matmat(found_NT)
        slope = objective.sums(state.gradient_NT * (change_NT if objective.functions else found_NT))
        length = step_length(objective, state.alpha_NT, state.logits_NT, slope, found_NT, change_NT)
        if not length.any():
            return replace(state, status="stagnated")
        alpha_NT = state.alpha_NT + length * found_NT
        state = self._judged(_at(objective, state, alpha_NT, state.logits_NT + length * change_NT))
        if state.status != "converged":
            return state
        # Logits that were added up drift from K alpha.
        return self._judged(_at(objective, replace(state, status=None), alpha_NT, system.operator.matmat(alpha_NT)))

    def extras(self, state: LogisticState) -> dict[str, torch.Tensor]:
        """Nothing: probabilities are a function of the predictions."""
        return {}

    def certify(self, system: System, state: LogisticState) -> Evidence:
        """Recompute logits and gradient; two passes over the matrix."""
        logits_NT = system.operator.matmat(state.alpha_NT)
        return Evidence(_relative(_at(self._objective(system), state, state.alpha_NT, logits_NT)), logits_NT)

    def _objective(self, system: System) -> Objective:
        weights_N1 = torch.ones(system.size, 1, dtype=torch.float64)
        return Objective(
            operator=system.operator,
            targets_NT=system.rhs_NT,
            weights_N1=weights_N1 if system.weights_N is None else system.weights_N.unsqueeze(1),
            ridge=system.ridge,
            loss=self._loss,
            functions=self._config.penalty == "rkhs",
            precision=system.precision(self._config.tolerance),
        )

    def _judged(self, state: LogisticState) -> LogisticState:
        """Return a state with what is known of its gradient: whether to go on."""
        if state.status is not None:
            return state
        worst = float(_relative(state).max())
        if worst < 0.9 * state.best:
            state = replace(state, best=worst, steps_since_best=0)
        else:
            state = replace(state, steps_since_best=state.steps_since_best + 1)
        status: Status | None = None
        if worst <= self._config.tolerance:
            status = "converged"
        elif state.steps >= self._config.steps:
            status = "budget"
        elif state.steps_since_best > PATIENCE:
            status = "stagnated"
        return replace(state, status=status)


def _at(objective: Objective, state: LogisticState, alpha_NT: torch.Tensor, logits_NT: torch.Tensor) -> LogisticState:
    """Return the state of some coefficients; one product."""
    gradient_NT = objective.gradient(alpha_NT, logits_NT)
    return replace(
        state,
        alpha_NT=alpha_NT,
        logits_NT=logits_NT,
        gradient_NT=gradient_NT,
        image_NT=objective.metric(gradient_NT),
    )


def _relative(state: LogisticState) -> torch.Tensor:
    """Return the (T,) relative norms of the gradient; a negative square counts like a positive one."""
    return ((state.gradient_NT * state.image_NT).sum(dim=0).abs() / state.scales_T).sqrt()


def _bound(objective: Objective) -> float:
    return float(objective.operator.diagonal().double().abs().max()) if objective.functions else 1.0
