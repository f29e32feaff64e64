"""The document of a solution, and the stage in which solutions are found."""

from typing import Final, Literal

from pydantic import Field

from ntkpipe.storage.documents import Record

SOLVE_STAGE: Final = "solve"


def committed_as(stage: str, task: str) -> tuple[str, str]:
    """Return stage and id of the task whose receipt stands for a task.

    Steps of a shared solve, and parts of them, leave none of their own and belong to the solution.
    """
    return stage, task.partition("/")[0] if stage == SOLVE_STAGE else task


class SolutionRecord(Record):
    """How a solution was found and how well it solves its system."""

    schema_version: Literal[1] = 1
    name: str
    kernel: str
    method: str
    status: str
    ridge: float
    jitter: float
    equation: str = "ridge"
    """What the residuals are residuals of."""
    residuals: tuple[float, ...]
    """True relative residual of each target."""
    backward_errors: tuple[float, ...] = ()
    """How far the nearest system is that is solved exactly, for each target."""
    flags: tuple[str, ...] = ()
    """What a user should know, such as ``jittered``."""
    chosen: str = ""
    """Why this solver, where the choice was left to ntkpipe."""
    stats: dict[str, float]
    """Steps, passes over the matrix, bytes read, condition number; what is not known is left out."""
    classes: bool = False
    """Whether the targets are one-hot classes."""
    losses: dict[str, float] = Field(default_factory=dict)
    """By split with labels: the share of wrong classes, or the mean square error of real targets."""
    extras: tuple[str, ...] = ()
    """What else is stored beside it, such as a ridge path."""
