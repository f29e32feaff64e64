"""EigenPro 3 and 4: preconditioned stochastic gradient descent for models on centres.

Abedsoltan, Belkin, Pandit: "Toward large kernel models" (ICML 2023); Abedsoltan, Ma, Pandit, Belkin: "Fast training of
large kernel models with delayed projections" (NeurIPS 2025). A gradient step makes every sample of a batch a temporary
centre; projecting it in the kernel's norm, theta = K_PP^-1 K_P,batch c, brings the model back to its centres.
EigenPro 3 does so after every batch, EigenPro 4 after many.

Three things differ from the published algorithms. Nystrom points are chosen among the centres, so that eigendirections
need no projection and flattening them commutes with it: steps vanish only where the normal equations hold, whereas
points among the samples make the limit depend on the preconditioner as soon as targets are noisy. A ridge is a step
towards zero with the same preconditioner, one share per batch. Step and batch size are measured, as in EigenPro 2.
"""

import math
from dataclasses import replace
from typing import final

import numpy as np
import torch

from ntkpipe.configs.solve.centres import EigenPro3Solve, EigenPro4Solve
from ntkpipe.workers.solvers.base import AbstractSolver, Evidence, Status
from ntkpipe.workers.solvers.centres.moving import (
    CentreEigenProState,
    Directions,
    grown,
    projected,
    settled,
    started,
)
from ntkpipe.workers.solvers.centres.normal import NormalEquations, Points, drawn_centres, spread
from ntkpipe.workers.solvers.centres.projection import (
    AbstractProjection,
    PreparedProjection,
    make_projection,
    prepare_projection,
)
from ntkpipe.workers.solvers.descent.flattening import damping, is_indefinite, leading_pairs
from ntkpipe.workers.solvers.descent.window import Window, critical_batch, descend
from ntkpipe.workers.solvers.system import System

DIVERGENCE = 10.0
"""An epoch whose residual at the samples exceeds the best one this many times is undone, and the step is halved."""

MIN_STEP_SCALE = 2.0**-10

GAIN = 0.99
"""An epoch is idle if the residual at the samples does not fall to this share of the best one, and that of the normal
equations does not fall at all."""

IDLE_EPOCHS = 2
"""Steps are half as long after so many idle epochs, a third after twice as many, and so on."""


@final
class CentreEigenProSolver(AbstractSolver[CentreEigenProState]):
    """``steps`` counts epochs: every sample once, in blocks of rows in random order; one block is taken at a time.

    O(N P T + N s q) FLOPs per epoch beside the projections, of O(P^2 T) each. Memory O((N + P) T + s^2 + P q) and a
    block of rows with P columns, 8 P^2 bytes for an exact projection, and at most ``delay`` blocks of temporary centres.
    With noisy targets steps of constant length only come near the solution, so they shrink with the epochs that
    gained nothing; ``converged`` is said only of a true residual, and ``budget`` is the usual end. A target for which the
    model then minimises no better than zero does has coefficients of zero.
    """

    equation = "centres"
    state_type = CentreEigenProState

    def __init__(self, config: EigenPro3Solve | EigenPro4Solve, points: Points | None = None) -> None:
        """Draw the centres from the samples unless points are given."""
        self.method = config.kind
        self._config = config
        self._points = points

    def init(self, system: System) -> CentreEigenProState:
        """Draw centres and Nystrom points, take the eigenpairs, and prepare the projection."""
        points = self._points or Points(drawn_centres(self._config, system.size))
        operator, centres_P = system.operator, points.centres_P
        equations = self._equations(system, centres_P)
        random = self._random(1)
        nystrom_S = torch.from_numpy(np.sort(random.permutation(len(centres_P))[: self._config.subsample]))
        nystrom_at_S = centres_P[nystrom_S]
        matrix_SS = operator.submatrix(nystrom_at_S)
        # One more than are flattened: the first one that is not gives the level.
        values_Q, vectors_SQ = leading_pairs(matrix_SS, min(self._config.top + 1, len(nystrom_S)), random)
        bound = float(operator.diagonal().double().max()) + system.ridge / equations.num_samples
        indefinite = bound <= 0 or is_indefinite(matrix_SS, 0.0, float(values_Q[0]))
        prepared = None if indefinite else prepare_projection(self._config, operator, centres_P)
        damping_Q = values_Q[:0]
        if prepared is not None:
            damping_Q = damping(
                values_Q,
                num_points=len(nystrom_S),
                ridge=system.ridge,
                size=equations.num_samples,
                bound=bound,
                batch_rows=operator.block_rows,
            )
        directions_SQ = vectors_SQ[:, : len(damping_Q)].contiguous()
        products_PQ = operator.entries(centres_P, nystrom_at_S).double() @ directions_SQ
        return started(
            system,
            prepared,
            centres_P,
            Directions(nystrom_S, directions_SQ, values_Q[: len(damping_Q)], damping_Q, products_PQ),
        )

    def step(self, system: System, state: CentreEigenProState) -> CentreEigenProState:
        """Descend on the next block of samples; after the last one, or where the residual has grown too far, judge."""
        blocks = self._equations(system, state.centres_P).sample_blocks()
        index = int(self._random(2 + state.steps).permutation(len(blocks))[state.blocks_done])
        prepared = PreparedProjection(
            state.factor_PP,
            state.projection_jitter,
            state.inner_points_S,
            state.inner_directions_SQ,
            state.inner_damping_Q,
        )
        projection = make_projection(self._config, system.operator, state.centres_P, prepared)
        state = self._descend(system, state, blocks[index], index, projection)
        seen = float((state.squares_T.sqrt() / system.norms_T).max())
        sound = seen <= DIVERGENCE * max(state.best_residual, self._config.tolerance)
        if sound and state.blocks_done < len(blocks):
            return state
        return self._judge(system, state, projection, seen if sound else math.inf)

    def extras(self, state: CentreEigenProState) -> dict[str, torch.Tensor]:
        """Return the positions of the centres and the jitter of the projection."""
        jitter = torch.tensor(state.projection_jitter, dtype=torch.float64)
        return {"centres": state.centres_P, "projection-jitter": jitter}

    def certify(self, system: System, state: CentreEigenProState) -> Evidence:
        """Recompute the residual of the normal equations."""
        return self._equations(system, state.centres_P).evidence(state.alpha_NT[state.centres_P])

    def _descend(
        self,
        system: System,
        state: CentreEigenProState,
        rows_R: torch.Tensor,
        index: int,
        projection: AbstractProjection,
    ) -> CentreEigenProState:
        """Take the gradient steps of one block of samples; their kernel with the centres is read once."""
        operator, config = system.operator, self._config
        dtype = system.precision(config.tolerance)
        random = self._random(2 + state.steps, 1 + index)
        rows_R = rows_R[torch.from_numpy(random.permutation(len(rows_R)))]
        kernel_RP = operator.entries(rows_R, state.centres_P).to(dtype)
        kernel_RR = operator.entries(rows_R, rows_R).to(dtype)
        batches = torch.arange(len(rows_R)).chunk(-(-len(rows_R) // state.batch_rows))
        at_once = isinstance(config, EigenPro3Solve)
        tops = widths = 0.0
        step_scale = state.step_scale / (1 + state.idle_epochs / IDLE_EPOCHS)
        for group in [[batch] for batch in batches] if at_once else [batches]:
            span = slice(int(group[0][0]), int(group[-1][-1]) + 1)
            window = self._window(system, state, rows_R[span], kernel_RP[span], kernel_RR[span, span])
            found = descend(window, [batch - span.start for batch in group], step_scale, random)
            tops, widths = tops + found.top, widths + found.width
            state = grown(state, rows_R[span], kernel_RP[span], window, found)
            if at_once:
                state = projected(state, projection)
        batch_rows = critical_batch(state.batch_rows, tops, widths, len(rows_R))
        state = replace(
            state,
            batch_rows=batch_rows,
            blocks_done=state.blocks_done + 1,
            blocks_pending=state.blocks_pending + 1,
        )
        return (
            projected(state, projection)
            if state.blocks_pending >= self._delay(len(state.centres_P), operator.block_rows)
            else state
        )

    def _window(
        self,
        system: System,
        state: CentreEigenProState,
        rows_G: torch.Tensor,
        kernel_GP: torch.Tensor,
        kernel_GG: torch.Tensor,
    ) -> Window:
        dtype = kernel_GP.dtype
        features_GQ = kernel_GP.index_select(1, state.nystrom_S) @ state.directions_SQ.to(dtype)
        pending_W = state.pending_W
        kernel_GW = system.operator.entries(rows_G, pending_W).to(dtype) if len(pending_W) else kernel_GP[:, :0]
        return Window(
            kernel_GG,
            features_GQ,
            features_GQ,
            state.fitted(kernel_GP, kernel_GW, features_GQ),
            system.rhs_NT[rows_G].to(dtype),
            state.damping_Q.to(dtype).unsqueeze(1),
            decay=system.ridge / self._equations(system, state.centres_P).num_samples,
            products_QT=state.inner_QT.to(dtype),
            eigenvalues_Q1=state.eigenvalues_Q.to(dtype).unsqueeze(1),
        )

    def _judge(
        self, system: System, state: CentreEigenProState, projection: AbstractProjection, seen: float
    ) -> CentreEigenProState:
        """End an epoch; recompute the true residual when it seems to be small, and after the last epoch."""
        equations, tolerance = self._equations(system, state.centres_P), self._config.tolerance
        sound = math.isfinite(seen)
        state = projected(state, projection) if sound else settled(state, state.best_PT)
        estimate = self._estimate(system, state, projection) if sound else math.inf
        gained = sound and (seen < GAIN * state.best_residual or estimate < state.estimate)
        best = sound and seen <= state.best_residual
        zeros_PT = torch.zeros_like(state.met_PT)
        state = replace(
            state,
            alpha_NT=spread(state.solved_PT, state.centres_P, system.size),
            steps=state.steps + 1,
            met_PT=zeros_PT,
            targets_PT=state.targets_PT if math.isfinite(min(estimate, state.estimate)) else zeros_PT,
            squares_T=torch.zeros_like(state.squares_T),
            best_PT=state.solved_PT if best else state.best_PT,
            best_residual=seen if best else state.best_residual,
            step_scale=state.step_scale if sound else state.step_scale / 2,
            estimate=min(estimate, state.estimate),
            idle_epochs=state.idle_epochs + (not gained),
            blocks_done=0,
        )
        last = state.steps >= self._config.epochs or state.step_scale < MIN_STEP_SCALE
        if estimate > tolerance and not last:
            return state
        evidence = equations.evidence(state.solved_PT)
        if float(evidence.residuals_T.max()) <= tolerance:
            return replace(state, status="converged")
        if not last:
            return replace(state, step_scale=state.step_scale / 2)
        status: Status = "budget" if sound else "diverged"
        helps_T = equations.gains(state.solved_PT, evidence.fitted_NT) >= 0
        alpha_NT = spread(state.solved_PT.where(helps_T, 0.0), state.centres_P, system.size)
        status = "stagnated" if sound and state.step_scale < MIN_STEP_SCALE else status
        return replace(state, alpha_NT=alpha_NT, status=status)

    def _estimate(self, system: System, state: CentreEigenProState, projection: AbstractProjection) -> float:
        """Return the residual of the normal equations, from what samples were predicted when they were met."""
        gradient_PT = state.met_PT
        if system.ridge > 0:
            gradient_PT = gradient_PT + system.ridge * projection.product(state.solved_PT)
        norms_T: torch.Tensor = torch.linalg.vector_norm(gradient_PT, dim=0)
        return float((norms_T / self._equations(system, state.centres_P).norms(state.targets_PT)).max())

    def _delay(self, num_centres: int, block_rows: int) -> int:
        """Return after how many blocks of rows the model is projected."""
        if isinstance(self._config, EigenPro4Solve) and self._config.delay is not None:
            return self._config.delay
        return max(1, num_centres // block_rows)

    def _equations(self, system: System, centres_P: torch.Tensor) -> NormalEquations:
        return NormalEquations(system, centres_P, self._points.samples_N if self._points is not None else None)

    def _random(self, *stream: int) -> np.random.Generator:
        """Return the random numbers of the set-up (1), of an epoch or of one of its blocks, whatever came before."""
        return np.random.default_rng([self._config.seed, *stream])
