"""EigenPro 2 with a nugget ridge: preconditioned stochastic gradient descent over stored rows.

Ma, Belkin: "Kernel machines that adapt to GPUs for effective large batch training" (MLSys 2019). The leading
eigendirections of the kernel, estimated on a subsample, are flattened, which raises the batch size up to which larger
batches converge faster. A ridge needs no other algorithm: K + ridge I is the matrix of the kernel with a nugget, so
that diagonal entries grow by the ridge and eigenvalues of K / N by ridge / N.

One thing differs from the published algorithm: step and batch size do not come from bounds for random batches, but
from the largest eigenvalue and the diagonal of the preconditioned matrices of the batches themselves. Stored rows are
often sorted by class, and for a batch of similar rows the bounds do not hold.

Momentum is that of AxlePro (Zhang, Pandit, AISTATS 2025), after every batch and for all coefficients, see
:mod:`~ntkpipe.workers.solvers.descent.momentum`. Two things differ besides the steps: it grows over the first epochs,
and starts anew after an epoch that met far larger residuals than the one before. A sub-matrix that is singular to
working precision has no smallest eigenvalue to tune it to, so that it is descended on without.
"""

import math
from dataclasses import dataclass, replace
from typing import ClassVar, final

import numpy as np
import torch

from ntkpipe.configs.solve.descent import EigenProSolve
from ntkpipe.workers.solvers.base import AbstractSolver, Evidence, SolverState, Status
from ntkpipe.workers.solvers.certificate import ridge_evidence, worst_residual
from ntkpipe.workers.solvers.descent.flattening import damping, is_indefinite, leading_pairs, smallest_eigenvalue
from ntkpipe.workers.solvers.descent.momentum import Motion, Pace
from ntkpipe.workers.solvers.descent.window import Window, critical_batch, descend
from ntkpipe.workers.solvers.system import System

FIRST_BATCH_ROWS = 64
"""Until the critical batch size has been measured."""

DIVERGENCE = 10.0
"""An epoch whose residual exceeds the best one this many times is undone, and the step is halved."""

RESTART = 2.0
"""An epoch that met a residual that exceeds the last one this many times ends momentum, which then grows anew. Residuals
met on the way vary by themselves: measured, ending it whenever they grow loses most of the gain on duplicate rows."""

MIN_STEP_SCALE = 2.0**-10


@dataclass(frozen=True, slots=True, kw_only=True)
class EigenProState(SolverState):
    """Coefficients, preconditioner, batch size and step size, and where in an epoch the solver is."""

    constants: ClassVar[frozenset[str]] = frozenset({"subsample_S", "directions_SQ", "damping_Q"})

    subsample_S: torch.Tensor
    """Positions of the Nystrom points, ascending."""
    directions_SQ: torch.Tensor
    """e_i: leading eigenvectors of their kernel matrix K_s, float64."""
    damping_Q: torch.Tensor
    """How much of each of them is held back, float64."""
    batch_rows: int
    """The critical batch size as last measured, at most a block of rows."""
    step_scale: float
    """Halved whenever an epoch is undone."""
    best_NT: torch.Tensor
    """Coefficients after the epoch with the smallest residual."""
    best_residual: float
    """That residual as met on the way, worst target; 1.0 for the zero start."""
    moving_NT: torch.Tensor
    """Coefficients within an epoch, at which gradients are taken; ``alpha_NT`` are those at its beginning."""
    squares_T: torch.Tensor
    """Squared residuals as met in the epoch so far, float64."""
    blocks_done: int = 0
    """Blocks of rows of the epoch that are behind."""
    velocity_NT: torch.Tensor | None = None
    """d, by which gradients are taken ahead of the coefficients that were found; None without momentum."""
    convexity: float = 0.0
    """The smallest eigenvalue of K + ridge I as the Nystrom points see it; 0.0 without momentum."""
    glided: int = 0
    """Epochs since the velocity was zero."""
    last_residual: float = math.inf
    """As met in the last epoch, worst target; infinite before the first one and after one that was undone."""


@final
class EigenProSolver(AbstractSolver[EigenProState]):
    """``steps`` counts epochs: every row once, in whole blocks of rows in random order; one block is taken at a time.

    O(N^2 T + N s q) FLOPs per epoch, with twice the N^2 T for momentum; memory O(N T + s^2 + block of rows).
    Deterministic given the seed. Products are float32 where the operator is and the tolerance allows it, else float64.
    ``diverged`` means that no step was short enough or nothing better than zero was found; ``indefinite`` that the
    subsample proves K + ridge I to have a negative eigenvalue, or K + ridge I to be zero, and the answer is zero.
    """

    method = "eigenpro2"
    equation = "ridge"
    state_type = EigenProState

    def __init__(self, config: EigenProSolve) -> None:
        self._epochs = config.epochs
        self._tolerance = config.tolerance
        self._subsample = config.subsample
        self._top = config.top
        self._momentum = config.momentum
        self._seed = config.seed

    def init(self, system: System) -> EigenProState:
        """Draw the Nystrom points and take the eigenpairs of their kernel matrix: up to one pass, O(s^3 / 3 + s^2 q)."""
        operator, ridge = system.operator, system.ridge
        random = self._random(0)
        subsample_S = torch.from_numpy(np.sort(random.permutation(operator.size)[: self._subsample]))
        matrix_SS = operator.submatrix(subsample_S)
        # One more than are flattened: the first one that is not gives the level.
        eigenvalues_Q, vectors_SQ = leading_pairs(matrix_SS, min(self._top + 1, len(subsample_S)), random)
        bound = float(operator.diagonal().double().max()) + ridge
        largest = float(eigenvalues_Q[0]) + ridge
        # By interlacing, K + ridge I has an eigenvalue at least as negative as the subsample's.
        indefinite = bound <= 0 or is_indefinite(matrix_SS, ridge, largest)
        damping_Q = (
            eigenvalues_Q[:0]
            if indefinite
            else damping(
                eigenvalues_Q,
                num_points=len(subsample_S),
                ridge=ridge,
                size=operator.size,
                bound=bound,
                batch_rows=operator.block_rows,
            )
        )
        directions_SQ = vectors_SQ[:, : len(damping_Q)].contiguous()
        state = self.prepared(system, subsample_S, directions_SQ, damping_Q)
        if self._momentum and not indefinite:
            convexity = smallest_eigenvalue(matrix_SS, ridge, largest, random)
            if convexity > 0:
                state = replace(state, velocity_NT=torch.zeros_like(system.rhs_NT), convexity=convexity)
        return replace(
            state,
            status="indefinite" if indefinite else None,
            largest=float(eigenvalues_Q[0]) * operator.size / len(subsample_S) + ridge,
            smallest=ridge if ridge > 0 else math.nan,
        )

    def prepared(
        self, system: System, subsample_S: torch.Tensor, directions_SQ: torch.Tensor, damping_Q: torch.Tensor
    ) -> EigenProState:
        """Return the zero start, without momentum, for a preconditioner that any right-hand sides may share."""
        zeros_NT = torch.zeros_like(system.rhs_NT)
        return EigenProState(
            alpha_NT=zeros_NT,
            status=None,
            subsample_S=subsample_S,
            directions_SQ=directions_SQ,
            damping_Q=damping_Q,
            batch_rows=min(FIRST_BATCH_ROWS, system.operator.block_rows),
            step_scale=1.0,
            best_NT=zeros_NT,
            best_residual=1.0,
            moving_NT=zeros_NT,
            squares_T=torch.zeros_like(system.norms_T),
        )

    def step(self, system: System, state: EigenProState) -> EigenProState:
        """Descend on the next block of rows; after the last one, or where the residual has grown too far, judge."""
        state = self._descend(system, state)
        seen = float((state.squares_T.sqrt() / system.norms_T).max())
        allowed = DIVERGENCE * max(state.best_residual, self._tolerance)
        if seen <= allowed and state.blocks_done < _num_blocks(system):
            return state
        return self._judge(system, state, seen, seen <= allowed)

    def epoch(self, system: System, state: EigenProState) -> EigenProState:
        """Run an epoch that nobody judges; for solvers that use this one for what need not be solved."""
        for _ in range(_num_blocks(system)):
            state = self._descend(system, state)
        return replace(state, alpha_NT=_reached(state), steps=state.steps + 1, glided=state.glided + 1, blocks_done=0)

    def extras(self, state: EigenProState) -> dict[str, torch.Tensor]:
        """Nothing."""
        return {}

    def certify(self, system: System, state: EigenProState) -> Evidence:
        """Recompute the residual."""
        return ridge_evidence(system, state.alpha_NT)

    def _judge(self, system: System, state: EigenProState, seen: float, sound: bool) -> EigenProState:
        """End an epoch; recompute the true residual when it is expected to be small, and after the last epoch."""
        # The residuals met on the way are older than the result; what the epoch gained is expected to repeat itself.
        expected = seen * min(1.0, seen / state.best_residual) if state.best_residual else seen
        found_NT, best_NT, best_residual, step_scale = _reached(state), state.best_NT, state.best_residual, 1.0
        slows = not sound or seen > RESTART * state.last_residual
        if not sound:
            found_NT, expected, seen, step_scale = best_NT, math.inf, math.inf, 0.5
        elif seen <= best_residual:
            best_NT, best_residual = found_NT, seen
        if slows:
            state = replace(state, velocity_NT=None if state.velocity_NT is None else torch.zeros_like(found_NT))
        state = replace(
            state,
            alpha_NT=found_NT,
            moving_NT=found_NT if slows else state.moving_NT,
            glided=0 if slows else state.glided + 1,
            last_residual=seen,
            best_NT=best_NT,
            best_residual=best_residual,
            step_scale=state.step_scale * step_scale,
            steps=state.steps + 1,
            squares_T=torch.zeros_like(state.squares_T),
            blocks_done=0,
        )
        last = state.steps >= self._epochs or state.step_scale < MIN_STEP_SCALE
        if expected > self._tolerance and not last:
            return state
        true = worst_residual(system, state.alpha_NT)
        if true <= self._tolerance:
            return replace(state, status="converged")
        return _give_up(system, state, true) if last else state

    def _descend(self, system: System, state: EigenProState) -> EigenProState:
        """Take the gradient steps of one block of rows; the rows are read once."""
        index = int(self._random(1 + state.steps).permutation(_num_blocks(system))[state.blocks_done])
        random = self._random(1 + state.steps, 1 + index)
        start = index * system.operator.block_rows
        stop = min(start + system.operator.block_rows, system.size)
        window, motion = self._read(system, state, start, stop)
        order_M = torch.from_numpy(random.permutation(stop - start))
        batches = order_M.chunk(-(-len(order_M) // state.batch_rows))
        found = descend(window, batches, state.step_scale, random, motion)
        directions_SQ = state.directions_SQ.to(found.back_QT.dtype)
        moved_NT, velocity_NT = state.moving_NT.clone(), state.velocity_NT
        if velocity_NT is not None and motion is not None:
            moved_NT.add_(velocity_NT, alpha=motion.travelled)
            velocity_NT = motion.kept * velocity_NT
            velocity_NT[start:stop] += motion.changes_MT
            velocity_NT[state.subsample_S] += (directions_SQ @ motion.back_QT).double()
        moved_NT[start:stop] += found.changes_MT
        moved_NT[state.subsample_S] += (directions_SQ @ found.back_QT).double()
        return replace(
            state,
            moving_NT=moved_NT,
            velocity_NT=velocity_NT,
            squares_T=state.squares_T + found.gradients_MT.double().square().sum(dim=0),
            batch_rows=critical_batch(state.batch_rows, found.top, found.width, len(order_M)),
            blocks_done=state.blocks_done + 1,
        )

    def _read(self, system: System, state: EigenProState, start: int, stop: int) -> tuple[Window, Motion | None]:
        """Return the window of some rows, and the velocity there if there is momentum."""
        operator, ridge, subsample_S = system.operator, system.ridge, state.subsample_S
        dtype = system.precision(self._tolerance)
        rows_MN = operator.rows(start, stop).to(dtype)
        directions_SQ = state.directions_SQ.to(dtype)
        kernel_MM = rows_MN[:, start:stop].clone()
        kernel_MM.diagonal().add_(ridge)
        features_MQ = rows_MN.index_select(1, subsample_S) @ directions_SQ
        responses_MQ = features_MQ.clone()
        here_S = (subsample_S >= start) & (subsample_S < stop)
        responses_MQ[subsample_S[here_S] - start] += ridge * directions_SQ[here_S]
        # There is no velocity before the second epoch.
        velocity_NT = state.velocity_NT if state.glided else None
        parts = [state.moving_NT] if velocity_NT is None else [state.moving_NT, velocity_NT]
        vectors_NX = torch.cat(parts, dim=1).to(dtype)
        # Measured: a few wide rows times a matrix take half the time of a matrix times a few tall columns.
        products_MX = (vectors_NX.T @ rows_MN.T).T + ridge * vectors_NX[start:stop]
        fitted = products_MX.chunk(len(parts), dim=1)
        window = Window(
            kernel_MM,
            features_MQ,
            responses_MQ,
            fitted[0],
            system.rhs_NT[start:stop].to(dtype),
            state.damping_Q.to(dtype).unsqueeze(1),
        )
        if velocity_NT is None:
            return window, None
        pace = Pace(system.size, state.convexity, state.glided)
        return window, Motion(pace, fitted[1], len(state.damping_Q))

    def _random(self, *stream: int) -> np.random.Generator:
        """Return the random numbers of the subsample (0), of an epoch or of one of its blocks, whatever came before."""
        return np.random.default_rng([self._seed, *stream])


def _num_blocks(system: System) -> int:
    return -(-system.size // system.operator.block_rows)


def _reached(state: EigenProState) -> torch.Tensor:
    """Return the coefficients that the last batch found; with momentum the next one looks ahead of them."""
    return state.moving_NT if state.velocity_NT is None else state.moving_NT - state.velocity_NT


def _give_up(system: System, state: EigenProState, true: float) -> EigenProState:
    """Return the better one of the last and the best coefficients; zero if neither is better than zero."""
    best = true if torch.equal(state.best_NT, state.alpha_NT) else worst_residual(system, state.best_NT)
    alpha_NT, true = (state.alpha_NT, true) if true <= best else (state.best_NT, best)
    status: Status = "diverged" if state.step_scale < MIN_STEP_SCALE else "budget"
    if not true < 1:
        alpha_NT, status = torch.zeros_like(system.rhs_NT), "diverged"
    return replace(state, alpha_NT=alpha_NT, status=status)
