"""The solver of spectral filters."""

from dataclasses import dataclass, replace
from typing import final

import torch

from ntkpipe.configs.errors import ConfigError
from ntkpipe.configs.solve.spectral import FilterSolve
from ntkpipe.workers.solvers.base import AbstractSolver, Evidence, SolverState, Status
from ntkpipe.workers.solvers.spectral.filters import response
from ntkpipe.workers.solvers.system import System
from ntkpipe.workers.spectra.eigenpairs import eigenpairs

INDEFINITE = 1e-6
"""An eigenvalue below minus this share of the largest one is no rounding error."""


@dataclass(frozen=True, slots=True, kw_only=True)
class FilterState(SolverState):
    """What the coefficients should predict, and the eigenvalues they were made from."""

    expected_NT: torch.Tensor
    """V l h(l) V^T y."""
    defects_T: torch.Tensor
    """How far V is from orthonormal on the targets, relative: ||(V^T V - I) V^T y|| / ||y||."""
    values_Q: torch.Tensor
    """Eigenvalues, descending."""
    degrees_of_freedom: float
    """The sum of l h(l)."""


@final
class FilterSolver(AbstractSolver[FilterState]):
    """Decomposes the kernel matrix, or finds its q largest eigenpairs, and filters the targets.

    A full decomposition takes about 9 N^3 FLOPs and 24 N^2 bytes. With ``num_directions`` q, the other eigenvalues are
    taken as zero: alpha = V h(l) V^T y + h(0) (y - V V^T y), with h(0) = 0 for ``cutoff``.

    The certificate's equation is ``filter``: its residual is ||K alpha - V l h(l) V^T y|| / ||y||, recomputed from the
    operator, plus how far the eigenvectors are from orthonormal on the targets. With q directions it includes what the
    eigenvalues that were taken as zero would have predicted, so that too few of them show as ``stagnated``. A cutoff
    whose threshold lies below the smallest eigenvalue that was computed ends as ``budget``. A matrix with an eigenvalue
    below -1e-6 of the largest one is ``indefinite``, and the answer zero; smaller negative ones are taken as zero. The
    answer is zero, too, where the residual would exceed 1.

    Extras: ``eigenvalues`` (Q,) and ``degrees_of_freedom``, a single number.
    """

    method = "filter"
    equation = "filter"
    state_type = FilterState

    def __init__(self, config: FilterSolve) -> None:
        self._config = config

    def init(self, system: System) -> FilterState:
        """Start from zero.

        Raises:
            ConfigError: There is a warm start.
        """
        if system.corrects:
            raise ConfigError("filter answers the whole targets and cannot start from warm_start; leave it out.")
        zeros_NT = torch.zeros_like(system.rhs_NT)
        return FilterState(
            alpha_NT=zeros_NT,
            status=None,
            expected_NT=zeros_NT,
            defects_T=zeros_NT.new_zeros(zeros_NT.shape[1]),
            values_Q=zeros_NT.new_zeros(0),
            degrees_of_freedom=0.0,
        )

    def step(self, system: System, state: FilterState) -> FilterState:
        """Decompose, filter, and check the predictions."""
        config, size = self._config, system.size
        num = None if config.num_directions is None else min(config.num_directions, size)
        pairs = eigenpairs(
            system.operator,
            num,
            method="full" if num is None else "auto",
            tolerance=config.tolerance / 10,
            seed=config.seed,
        )
        values_Q = pairs.values_Q
        state = replace(state, steps=1, values_Q=values_Q)
        if float(values_Q[-1]) < -INDEFINITE * float(values_Q.abs().max()):
            return replace(state, status="indefinite")
        state = self._filtered(system, state, values_Q.clamp_min(0.0), pairs.vectors_NQ)
        residual = float(self.certify(system, state).residuals_T.max())
        status: Status = "converged" if residual <= config.tolerance else "stagnated"
        cut = config.filter == "cutoff" and config.threshold is not None and len(values_Q) < size
        if cut and float(values_Q[-1]) > (config.threshold or 0.0) * float(values_Q[0]):
            status = "budget"
        if not residual <= 1:
            # Zero predicts better than coefficients that are not what they should be at all.
            state = replace(state, alpha_NT=torch.zeros_like(state.alpha_NT))
            residual = float(self.certify(system, state).residuals_T.max())
        return replace(state, status=status, residual=residual)

    def extras(self, state: FilterState) -> dict[str, torch.Tensor]:
        """Eigenvalues and degrees of freedom."""
        number = torch.tensor(state.degrees_of_freedom, dtype=torch.float64)
        return {"eigenvalues": state.values_Q, "degrees_of_freedom": number}

    def certify(self, system: System, state: FilterState) -> Evidence:
        """Compare K alpha with what it should be; one pass."""
        fitted_NT = system.operator.matmat(state.alpha_NT)
        if state.status == "indefinite":
            return Evidence(system.relative(system.rhs_NT), fitted_NT)
        return Evidence(system.relative(fitted_NT - state.expected_NT) + state.defects_T, fitted_NT)

    def _filtered(
        self, system: System, state: FilterState, values_Q: torch.Tensor, vectors_NQ: torch.Tensor
    ) -> FilterState:
        """Return the coefficients that eigenpairs give, and what they should predict."""
        size, largest = system.size, float(values_Q[0])
        zero_1 = values_Q.new_zeros(1)
        filtered = response(self._config, torch.cat([values_Q, zero_1]), system.ridge, largest, size)
        response_Q, rest = filtered[:-1], float(filtered[-1])
        projected_QT = vectors_NQ.T @ system.rhs_NT
        learned_Q = values_Q * response_Q
        alpha_NT = vectors_NQ @ (response_Q.unsqueeze(1) * projected_QT)
        if len(values_Q) < size and rest:
            alpha_NT += rest * (system.rhs_NT - vectors_NQ @ projected_QT)
        return replace(
            state,
            alpha_NT=alpha_NT,
            expected_NT=vectors_NQ @ (learned_Q.unsqueeze(1) * projected_QT),
            defects_T=system.relative(vectors_NQ.T @ (vectors_NQ @ projected_QT) - projected_QT),
            degrees_of_freedom=float(learned_Q.sum()),
            largest=largest + system.ridge,
            smallest=(float(values_Q[-1]) if len(values_Q) == size else 0.0) + system.ridge,
        )
