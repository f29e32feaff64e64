"""What workers that share a solve do side by side, round by round, and what is left to one of them. Needs no torch."""

from dataclasses import dataclass
from typing import final

from ntkpipe.configs.solve.base import SolveBase
from ntkpipe.configs.solve.centres import FalkonSolve
from ntkpipe.configs.solve.direct import GramSolve
from ntkpipe.configs.solve.krylov import PCGSolve
from ntkpipe.storage.grid import num_chunks
from ntkpipe.workers.operators.parts import DUAL_ROWS, pass_parts, row_parts, triangle_parts
from ntkpipe.workers.solvers.prediction import (
    Machine,
    Prediction,
    Problem,
    centre_sums,
    gram_passes,
    gram_sums,
    kernel_passes,
    pcg_passes,
    pcg_problem,
)

NUMBER_BYTES = 8
"""Of a number of a solver's state; they are float64."""


@final
@dataclass(frozen=True, slots=True)
class Rounds:
    """A shared solve: rounds of parts, each followed by the rest of a step, which waits for all of them."""

    num_steps: int
    """How many rounds; the set-up comes before them, the certificate after them."""
    num_parts: int
    """Of a round; no more workers than that have anything to do. Taken as equal."""
    part_bytes: int
    """Of what a part leaves for the step that adds all of them up, on average."""
    state_bytes: int
    """Of what a step leaves for the parts of the next one, on average."""


def rounds(solve: SolveBase, problem: Problem, block_rows: int) -> Rounds | None:
    """Return how a solve is shared; None if it is not, or has one part only.

    Args:
        solve: Of what kind it is.
        problem: Sizes.
        block_rows: Of a tile, or of what is read of features at a time.
    """
    num_blocks, size, num_targets = num_chunks(problem.size, block_rows), problem.size, problem.num_targets
    of_features = problem.num_features is not None and not problem.tiles
    num_steps = shared_steps(solve, problem)
    match solve:
        case PCGSolve() if not of_features:
            columns = size * num_targets * (1 + len(solve.ridges))
            # Coefficients, directions, residuals and the best coefficients so far.
            found = Rounds(
                num_steps, len(triangle_parts(num_blocks)), problem.itemsize * columns, 4 * NUMBER_BYTES * columns
            )
        case FalkonSolve():
            of_centres = min(solve.centres, size) * num_targets
            state = NUMBER_BYTES * (size * num_targets + 4 * of_centres)
            found = Rounds(num_steps, row_parts(num_blocks), NUMBER_BYTES * of_centres, state)
        case GramSolve() if problem.num_features is not None and size <= problem.num_features:
            summand = NUMBER_BYTES * size**2
            found = Rounds(num_steps, num_chunks(size, DUAL_ROWS), summand, NUMBER_BYTES * size * num_targets)
        case GramSolve() if problem.num_features is not None:
            # The first pass adds up the Gram matrix, those after it need its factor and add up vectors.
            side, later = problem.num_features, num_steps - 1
            summands = side * (side + num_targets) + later * (side + size) * num_targets
            state = later * side**2 + num_steps * size * num_targets
            found = Rounds(
                num_steps,
                pass_parts(num_blocks),
                NUMBER_BYTES * summands // num_steps,
                NUMBER_BYTES * state // num_steps,
            )
        case _:
            return None
    return found if found.num_parts > 1 and num_steps else None


def shared_steps(solve: SolveBase, problem: Problem) -> int:
    """Return how many of the passes of a solve workers share; the last of what is predicted is that of the certificate."""
    match solve:
        case PCGSolve():
            return pcg_passes(solve, problem) - 1
        case FalkonSolve():
            return solve.iterations - 1
        case GramSolve() if problem.num_features is not None and problem.size <= problem.num_features:
            return 1
        case GramSolve():
            return gram_passes(solve) - 1
    return 0


def shared_cost(solve: SolveBase, problem: Problem, machine: Machine) -> Prediction:
    """Return the part of a prediction that belongs to the rounds of a shared solve."""
    num = shared_steps(solve, problem)
    match solve:
        case PCGSolve():
            return kernel_passes(solve.kind, num, pcg_problem(solve, problem), machine)
        case FalkonSolve():
            return centre_sums(solve, num, problem, machine)
        case GramSolve():
            return gram_sums(num, problem, machine)
    return Prediction("")
