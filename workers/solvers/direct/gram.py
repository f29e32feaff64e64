"""Ridge regression through the Gram matrix of features: one streaming pass, one factorisation, true residuals.

With features Phi, (N, K), the kernel is Phi Phi^T. On the primal side, N > K, the weights w solve
(Phi^T Phi + ridge I) w = Phi^T y and the coefficients are alpha = (y - Phi w) / ridge, so that K alpha = Phi w. On the
dual side, N <= K, alpha solves (Phi Phi^T + ridge I) alpha = y itself.
"""

import math
from dataclasses import replace
from typing import final

import torch

from ntkpipe.configs.errors import ConfigError
from ntkpipe.configs.solve.direct import GramSolve
from ntkpipe.workers.operators.base import AbstractOperator
from ntkpipe.workers.solvers.base import AbstractPartitionedSolver, Evidence
from ntkpipe.workers.solvers.certificate import ridge_evidence
from ntkpipe.workers.solvers.direct import ridge_path, streaming
from ntkpipe.workers.solvers.direct.cholesky import extreme_eigenvalues
from ntkpipe.workers.solvers.direct.factor import Factor
from ntkpipe.workers.solvers.direct.gram_state import (
    GramState,
    again_in_double,
    features_of,
    is_dual,
    is_least_squares,
    path_of,
    ridge_of,
    with_path,
)
from ntkpipe.workers.solvers.direct.refinement import refined, refined_dual, unexplained
from ntkpipe.workers.solvers.system import System

COARSEST_SINGLE = 1e-7
"""A path whose smallest ridge plus smallest eigenvalue is below this share of the largest eigenvalue is not left to
float32 products."""

SMALLEST_SHIFT = 1e-12
"""What is factorised has at least this share of the mean eigenvalue on its diagonal beyond the Gram matrix."""


@final
class GramSolver(AbstractPartitionedSolver[GramState]):
    """One pass for the Gram matrix, one for exact leave-one-out errors if they are asked for, then refinement.

    N K^2 FLOPs for the Gram matrix, half of a matrix product, and K^3 / 3 for a Cholesky factorisation, or about 9 K^3
    for an eigendecomposition if there is a path; 2 N K^2 for leave-one-out errors of the whole path. Memory O(K^2 + N T),
    and N R numbers for leverages at R ridges. The dual side needs N instead of K, N^2 K FLOPs, and reads the features
    (p + 1) / 2 times where N / 4096 parts make p.

    Refinements are passes that compute the true residual of the coefficients in float64: r = Phi (w - Phi^T alpha),
    whose norm is bounded through the factor. A Gram matrix of float32 products whose refinements do not halve the
    residual is computed again in float64. Where the ridge is below 1e-12 tr(G) / S, the factorised matrix has that
    much on its diagonal, which is reported as jitter and which refinement tries to remove.

    A ridge of zero means least squares of minimum norm, alpha = Phi (G^+)^2 Phi^T y, with eigenvalues below
    max(N, K) 2.2e-16 of the largest one taken as zero; always in float64. The certificate's equation is then
    ``least-squares`` and its residual the part of y - K alpha that the features could still explain, over ||y||.

    ``stagnated`` means that refinement stopped helping above the tolerance, ``budget`` that there were not enough. If the
    residual is then larger than that of zero, as it may be for a ridge below precision, the coefficients are zero; primal
    weights are still those of the factorisation.

    Extras: ``weights`` (K, T); for a path ``path_ridges``, ``path_dof``, ``path_train_mse``, ``path_gcv`` and
    ``path_loo``, all (R,), errors as shares of the targets' mean squares averaged over targets; ``leverages`` (N,),
    with which the prediction for a sample that is left out is y_i - ridge alpha_i / (1 - leverage_i).
    """

    method = "gram"
    state_type = GramState

    def __init__(self, config: GramSolve) -> None:
        self._config = config
        self.equation = "least-squares" if config.ridge == 0 and config.select == "none" else "ridge"
        self._leave_one_out = config.leave_one_out or config.select == "loo"

    def init(self, system: System) -> GramState:
        """Look at the shape.

        Raises:
            ConfigError: The kernel does not come from features, or a path is asked for from a warm start.
        """
        features = features_of(system.operator)
        if system.corrects and (self._config.ridges or self._leave_one_out):
            raise ConfigError(
                "a ridge path or leave-one-out errors cannot start from warm_start: they are of the whole targets. "
                "Leave warm_start out; a Gram solve does not get faster by it."
            )
        empty, none = system.rhs_NT.new_zeros(0), system.rhs_NT.new_zeros(0, 0)
        single = self._config.precision == "auto" and features.dtype == torch.float32
        return GramState(
            alpha_NT=torch.zeros_like(system.rhs_NT),
            status=None,
            single=single and not is_least_squares(self._config, system),
            factor_SS=none,
            inverse_S=empty,
            projected_ST=none,
            values_S=empty,
            weights_KT=none,
            duals_KT=none,
            ridges_R=empty,
            dof_R=empty,
            train_RT=none,
            loo_RT=none,
            leverages_N=empty,
        )

    def num_parts(self, operator: AbstractOperator) -> int:
        """Return how many groups of rows there are, at most 16 on the primal side."""
        features = features_of(operator)
        return streaming.num_dual_parts(features) if is_dual(features) else streaming.num_row_parts(features)

    def partial(self, system: System, state: GramState, part: int) -> torch.Tensor:
        """Return what a group of rows adds to the pass that comes next."""
        features, dtype = features_of(system.operator), torch.float32 if state.single else torch.float64
        if is_dual(features):
            return streaming.dual_part(features, part, dtype)
        if state.phase == "refine":
            return streaming.refinement_part(
                features, system.rhs_NT, state.weights_KT, state.duals_KT, ridge_of(system, state), part
            )
        if state.phase == "gram":
            return streaming.primal_part(features, system.rhs_NT, part, dtype)
        return ridge_path.leave_one_out_part(
            features,
            part,
            state.factor_SS,
            state.values_S,
            state.projected_ST,
            system.rhs_NT,
            system.norms_T,
            state.ridges_R,
            dtype,
        )

    def absorb(self, system: System, state: GramState, total: torch.Tensor) -> GramState:
        """Factorise, choose a ridge, or refine."""
        state = replace(state, steps=state.steps + 1)
        if state.phase == "gram":
            return self._factorise(system, state, total)
        if state.phase == "refine":
            return refined(self._config, system, state, total)
        shape = (len(state.ridges_R), system.rhs_NT.shape[1])
        train_RT, loo_RT, leverages_NR = ridge_path.split_leave_one_out(total, *shape)
        return self._choose(system, replace(state, train_RT=train_RT.clone(), loo_RT=loo_RT.clone()), leverages_NR)

    def extras(self, state: GramState) -> dict[str, torch.Tensor]:
        """Weights, path and leverages, see the class."""
        found = {"weights": state.weights_KT} if state.weights_KT.numel() else {}
        if self._config.ridges:
            path, shown = path_of(state), slice(len(self._config.ridges))
            found |= {
                "path_ridges": path.ridges_R[shown],
                "path_dof": path.dof_R[shown],
                "path_train_mse": path.train_RT[shown].mean(dim=1),
                "path_gcv": path.gcv_RT[shown].mean(dim=1),
            }
            if not path.loo_RT.isnan().any():
                found["path_loo"] = path.loo_RT[shown].mean(dim=1)
        return found | ({"leverages": state.leverages_N} if state.leverages_N.numel() else {})

    def certify(self, system: System, state: GramState) -> Evidence:
        """Recompute the residual from the operator, or what is left to explain where there is no ridge."""
        if not is_least_squares(self._config, system):
            return ridge_evidence(system, state.alpha_NT)
        fitted_NT = system.operator.matmat(state.alpha_NT)
        return Evidence(unexplained(system, state, system.rhs_NT - fitted_NT), fitted_NT)

    def _factorise(self, system: System, state: GramState, total: torch.Tensor) -> GramState:
        """Turn the sum of all parts into a triangular factor, or into eigenpairs where there is more to know."""
        features = features_of(system.operator)
        side, dual = min(features.shape), is_dual(features)
        gram_SS, rhs_ST = (
            streaming.mirrored(total[:, :side].clone()),
            system.rhs_NT if dual else total[:, side:].clone(),
        )
        if not math.isfinite(float(gram_SS.sum())):
            return again_in_double(state, "products of the features overflow")
        simple = not (self._config.ridges or self._leave_one_out or is_least_squares(self._config, system))
        if simple:
            shift = _shift(system.ridge, float(gram_SS.diagonal().mean()))
            factor_SS, failed = torch.linalg.cholesky_ex(gram_SS + shift * torch.eye(side, dtype=torch.float64))
            if not int(failed):
                largest, smallest = extreme_eigenvalues(factor_SS)
                state = replace(state, factor_SS=factor_SS.contiguous(), largest=largest, jitter=shift - system.ridge)
                state = replace(state, smallest=smallest if side == system.size else system.ridge)
                return self._solve(system, state, Factor(factor_SS, state.inverse_S).solve(rhs_ST))
            if state.single:
                return again_in_double(state)
        values_S, vectors_SS = torch.linalg.eigh(gram_SS)
        # A state that is stored comes back in this order, in which products have the same bits.
        vectors_SS = vectors_SS.contiguous()
        values_S.clamp_min_(0.0)
        ridges_R = self._ridges(system, float(values_S.sum()))
        if state.single and len(ridges_R) and values_S[0] + ridges_R.min() < COARSEST_SINGLE * values_S[-1]:
            return again_in_double(state)
        projected_ST = vectors_SS.T @ rhs_ST
        state = replace(state, factor_SS=vectors_SS, values_S=values_S, projected_ST=projected_ST)
        if dual:
            path, leverages_NR = ridge_path.dual_path(values_S, vectors_SS, system.rhs_NT, system.norms_T, ridges_R)
            return self._choose(system, with_path(state, path), leverages_NR)
        path = ridge_path.primal_path(values_S, projected_ST, system.rhs_NT, system.norms_T, ridges_R)
        state = with_path(state, path)
        if self._leave_one_out:
            return replace(state, phase="leave-one-out")
        return self._choose(system, state, system.rhs_NT.new_zeros(system.size, 0))

    def _ridges(self, system: System, trace: float) -> torch.Tensor:
        """Return the path in the units of the matrix, and behind it the ridge itself where none is selected."""
        scale = 1.0
        if self._config.ridge_scale == "mean-diagonal":
            # The same multiple as that of the ridge, which is a weighted mean where samples have weights.
            scale = system.ridge / self._config.ridge if self._config.ridge else trace / system.size
        own = [system.ridge] if self._config.select == "none" and system.ridge > 0 else []
        return torch.tensor([*(scale * ridge for ridge in self._config.ridges), *own], dtype=torch.float64)

    def _choose(self, system: System, state: GramState, leverages_NR: torch.Tensor) -> GramState:
        """Settle on a ridge and solve with it."""
        ridge, index, values_S = system.ridge, -1, state.values_S
        if self._config.select != "none":
            index = path_of(state).selected(self._config.select)
            ridge = float(state.ridges_R[index])
            state = replace(state, ridge=ridge)
        if self._leave_one_out:
            state = replace(state, leverages_N=leverages_NR[:, index].clone())
        if is_least_squares(self._config, system):
            cut = max(features_of(system.operator).shape) * torch.finfo(torch.float64).eps * float(values_S[-1])
            inverse_S = values_S.reciprocal().where(values_S > cut, 0.0)
            kept = float(values_S[inverse_S > 0].min()) if bool(inverse_S.any()) else math.nan
            state = replace(state, inverse_S=inverse_S, largest=float(values_S[-1]), smallest=kept)
        else:
            shift = _shift(ridge, float(values_S.mean()))
            least = float(values_S[0]) if len(values_S) == system.size else 0.0
            state = replace(state, inverse_S=(values_S + shift).reciprocal(), jitter=shift - ridge)
            state = replace(state, largest=float(values_S[-1]) + ridge, smallest=least + ridge)
        return self._solve(system, state, Factor(state.factor_SS, state.inverse_S).from_rotated(state.projected_ST))

    def _solve(self, system: System, state: GramState, solved_ST: torch.Tensor) -> GramState:
        """Take what the factor gives; the dual side is refined here, the primal side by passes."""
        if is_dual(features_of(system.operator)):
            return refined_dual(self._config, system, state, solved_ST)
        duals_KT = solved_ST[:, :0]
        if is_least_squares(self._config, system):
            duals_KT = Factor(state.factor_SS, state.inverse_S).solve(solved_ST)
        return replace(state, phase="refine", weights_KT=solved_ST, duals_KT=duals_KT)


def _shift(ridge: float, mean: float) -> float:
    return max(ridge, SMALLEST_SHIFT * mean)
