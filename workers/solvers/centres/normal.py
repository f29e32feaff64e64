"""What models on centres solve: normal equations, of which only K between samples and centres is ever read.

Positions in one operator say what is a sample and what is a centre, so that centres may be samples or other points.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import final

import numpy as np
import torch

from ntkpipe.configs.errors import ConfigError
from ntkpipe.configs.solve.centres import CentreSolve
from ntkpipe.workers.operators.base import AbstractOperator
from ntkpipe.workers.operators.parts import row_parts
from ntkpipe.workers.solvers.base import Evidence
from ntkpipe.workers.solvers.system import System


@final
@dataclass(frozen=True, slots=True)
class Points:
    """Which positions of an operator are centres, and which are samples."""

    centres_P: torch.Tensor
    """Distinct int64 positions."""
    samples_N: torch.Tensor | None = None
    """Distinct int64 positions; None for all of them."""


def drawn_centres(config: CentreSolve, size: int) -> torch.Tensor:
    """Return P of all positions, ascending, drawn with the seed.

    Raises:
        ConfigError: There are fewer positions than that.
    """
    if config.centres > size:
        raise ConfigError(f"centres = {config.centres} exceeds the {size} samples; ask for at most {size}.")
    return torch.from_numpy(np.sort(np.random.default_rng([config.seed, 0]).permutation(size)[: config.centres]))


@final
class NormalEquations:
    """K_PN (K_NP a - y) + ridge K_PP a = 0 for the centres P and the samples N of a system.

    What is at positions that are neither is never read, and y there is ignored. Memory is O(N) and a block of rows with
    P columns.
    """

    def __init__(self, system: System, centres_P: torch.Tensor, samples_N: torch.Tensor | None) -> None:
        self._operator, self._rhs_NT, self._ridge = system.operator, system.rhs_NT, system.ridge
        self._norms_T = system.norms_T
        self._centres_P = centres_P
        self._is_sample = torch.ones(system.size, dtype=torch.bool)
        if samples_N is not None:
            self._is_sample.fill_(False)[samples_N] = True
        self._index = torch.full((system.size,), -1, dtype=torch.int64)
        self._index[centres_P] = torch.arange(len(centres_P))
        self.num_samples = int(self._is_sample.sum())

    def sample_blocks(self) -> list[torch.Tensor]:
        """Return the positions of samples, by blocks of rows of the operator; none of them is empty."""
        return [samples_R for samples_R in self._blocks(self._is_sample) if len(samples_R)]

    def summand(self, vectors_PT: torch.Tensor, part: int, dtype: torch.dtype, *, targets: bool) -> torch.Tensor:
        """Return a part of the (P, T) sum K_PN K_NP v + ridge K_PP v, minus K_PN y if asked; float64.

        Every row is read once: rows at centres give K_PP v.
        """
        total_PT = torch.zeros_like(vectors_PT, dtype=torch.float64)
        for rows_R in self._part(part):
            kernel_RP = self._operator.entries(rows_R, self._centres_P).to(dtype)
            fitted_RT = kernel_RP @ vectors_PT.to(dtype)
            total_PT += self._pulled(kernel_RP, rows_R, fitted_RT, targets=targets)
        return total_PT

    def evidence(self, solved_PT: torch.Tensor) -> Evidence:
        """Recompute in float64 how well coefficients fulfil the equations; one pass over K between samples and centres.

        Residuals are relative to the norms of K_PN y; after a warm start, to those of what is left, enlarged as much
        as the targets were larger.
        """
        num_targets = solved_PT.shape[1]
        sums_PU = torch.zeros(len(solved_PT), 2 * num_targets, dtype=torch.float64)
        fitted_NT = torch.zeros_like(self._rhs_NT)
        for part in range(num_parts(self._operator)):
            for rows_R in self._part(part):
                kernel_RP = self._operator.entries(rows_R, self._centres_P).double()
                fitted_RT = kernel_RP @ solved_PT
                fitted_NT[rows_R] = fitted_RT
                sums_PU[:, :num_targets] += self._pulled(kernel_RP, rows_R, fitted_RT, targets=True)
                sums_PU[:, num_targets:] += kernel_RP.T @ (self._rhs_NT[rows_R] * self._mask(rows_R))
        residual_PT, pulled_PT = sums_PU.chunk(2, dim=1)
        norms_T: torch.Tensor = torch.linalg.vector_norm(residual_PT, dim=0)
        return Evidence(norms_T / self.norms(pulled_PT), fitted_NT)

    def gains(self, solved_PT: torch.Tensor, fitted_NT: torch.Tensor) -> torch.Tensor:
        """Return by how much coefficients lower sum_n (f_n - y_n)^2 + ridge a^T K_PP a against zero, (T,), given f."""
        mask_N1, centred_PT = self._mask(slice(None)), fitted_NT[self._centres_P]
        squares_T = (mask_N1 * (2 * self._rhs_NT - fitted_NT) * fitted_NT).sum(dim=0)
        return squares_T - self._ridge * (solved_PT * centred_PT).sum(dim=0)

    def norms(self, pulled_PT: torch.Tensor) -> torch.Tensor:
        """Return what residuals are relative to, given K_PN y."""
        norms_T: torch.Tensor = torch.linalg.vector_norm(pulled_PT, dim=0)
        left_T: torch.Tensor = torch.linalg.vector_norm(self._rhs_NT * self._mask(slice(None)), dim=0)
        norms_T = norms_T * (self._norms_T / left_T.where(left_T > 0, 1.0))
        return norms_T.where(norms_T > 0, 1.0)

    def _pulled(
        self, kernel_RP: torch.Tensor, rows_R: torch.Tensor, fitted_RT: torch.Tensor, *, targets: bool
    ) -> torch.Tensor:
        gradient_RT = fitted_RT - self._rhs_NT[rows_R].to(fitted_RT.dtype) if targets else fitted_RT
        pulled_PT = (kernel_RP.T @ (gradient_RT * self._mask(rows_R).to(fitted_RT.dtype))).double()
        at_R = self._index[rows_R]
        pulled_PT[at_R[at_R >= 0]] += self._ridge * fitted_RT[at_R >= 0].double()
        return pulled_PT

    def _mask(self, rows: torch.Tensor | slice) -> torch.Tensor:
        return self._is_sample[rows].double().unsqueeze(1)

    def _part(self, part: int) -> Iterator[torch.Tensor]:
        blocks = self._blocks(self._is_sample | (self._index >= 0))
        first, last = (len(blocks) * edge // num_parts(self._operator) for edge in (part, part + 1))
        return (rows_R for rows_R in blocks[first:last] if len(rows_R))

    def _blocks(self, needed: torch.Tensor) -> list[torch.Tensor]:
        step = self._operator.block_rows
        starts = range(0, len(needed), step)
        return [start + needed[start : start + step].nonzero().squeeze(1) for start in starts]


def num_parts(operator: AbstractOperator) -> int:
    """Return in how many parts sums over rows are computed."""
    return row_parts(-(-operator.size // operator.block_rows))


def spread(solved_PT: torch.Tensor, centres_P: torch.Tensor, size: int) -> torch.Tensor:
    """Return the (N, T) coefficients of all positions: zero except at the centres."""
    alpha_NT = solved_PT.new_zeros(size, solved_PT.shape[1], dtype=torch.float64)
    alpha_NT[centres_P] = solved_PT.double()
    return alpha_NT
