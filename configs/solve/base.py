"""What every solver is asked."""

from typing import ClassVar, Literal, Self

from pydantic import Field, model_validator

from ntkpipe.configs.base import Section
from ntkpipe.configs.kernels.base import NAME_PATTERN


class EarlyStopping(Section):
    """Ends an iterative solve when it gets worse on samples that are held out, and returns the best coefficients."""

    split: str
    """The samples that are held out; must have labels. The loss is the share of wrong classes for one-hot targets, and
    the mean square of the errors for real ones, of every target as a share of its own mean square."""
    patience: int = Field(2, ge=1)
    """Steps without a smaller loss after which the solve ends."""


class SolveBase(Section):
    """What every solver is asked: (K + ridge I) alpha = y on the training split."""

    needs: ClassVar[Literal["kernel", "features", "tiles"]] = "kernel"
    """What the solver works on: any kernel matrix, only features whose Gram matrix it is, or only stored tiles."""

    in_parts: ClassVar[bool] = False
    """Whether the work of a step is a sum over parts, which several workers may share."""

    name: str = Field(pattern=NAME_PATTERN)
    """Under which name the solution is stored."""
    kernel: str
    """The kernel's name."""
    ridge: float = Field(1e-3, ge=0)
    """The lambda of K + lambda I."""
    ridge_scale: Literal["absolute", "mean-diagonal"] = "absolute"
    """``mean-diagonal`` multiplies the ridge by tr(K)/N, which makes it independent of the kernel's scale."""
    targets: Literal["one-hot", "values"] = "one-hot"
    """``one-hot`` classes, answered by argmax; ``values`` uses the labels as real targets."""
    class_weight: Literal["equal", "balanced"] = "equal"
    """``balanced`` weights the squared error of a sample by N / (classes times samples of its class)."""

    @model_validator(mode="after")
    def _only_classes_are_balanced(self) -> Self:
        if self.class_weight == "balanced" and self.targets != "one-hot":
            raise ValueError("class_weight: balanced needs one-hot targets")
        if self.class_weight == "balanced" and self.needs == "tiles":
            raise ValueError("class_weight: balanced would need a factor of another matrix; use cholesky or pcg")
        return self


class IterativeSolve(SolveBase):
    """What every solver that takes steps is asked besides."""

    tolerance: float = Field(1e-4, gt=0)
    """Stop once the true relative residual of every target is below this."""
    seed: int = Field(0, ge=0)
    """Of all random choices."""
    early_stopping: EarlyStopping | None = None
    """By default a solve ends when it has converged or spent its budget."""
