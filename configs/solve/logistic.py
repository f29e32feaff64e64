"""Logistic regression on a kernel."""

from typing import Literal

from pydantic import Field

from ntkpipe.configs.solve.base import IterativeSolve


class LogisticSolve(IterativeSolve):
    """Logistic regression by Newton steps: the sum of losses plus ridge / 2 times a squared norm is smallest.

    Predictions K(x, samples) alpha are logits. The ridge must be positive; ``ridge_scale`` works as for other solvers. The
    tolerance is for the gradient's norm, as a share of what it is for zero coefficients.
    """

    kind: Literal["logistic"] = "logistic"
    loss: Literal["softmax", "sigmoid"] = "softmax"
    """``softmax`` for classes that exclude each other, a column each; ``sigmoid`` for columns of yes and no of their own,
    such as one column for two classes, or one for every label that a sample may have."""
    penalty: Literal["rkhs", "coefficients"] = "rkhs"
    """``rkhs``: the norm of the functions, tr(alpha^T K alpha); ``coefficients``: of the coefficients, tr(alpha^T alpha),
    which is a linear model on the rows of the kernel matrix."""
    steps: int = Field(100, ge=1)
    """The largest number of Newton steps."""
    inner_steps: int = Field(200, ge=1)
    """The largest number of conjugate gradient steps within a Newton step; each takes one pass over the matrix for the
    penalty ``rkhs``, and two for ``coefficients``."""
