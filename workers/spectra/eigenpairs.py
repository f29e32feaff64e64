"""Eigenpairs of an operator, with residuals that were recomputed."""

from dataclasses import dataclass
from typing import Literal, final, get_args

import numpy as np
import torch

from ntkpipe.configs.errors import ConfigError
from ntkpipe.workers.operators.base import AbstractOperator
from ntkpipe.workers.operators.metered import MeteredOperator
from ntkpipe.workers.solvers.arrays import Matrix
from ntkpipe.workers.spectra.kernels import as_operator
from ntkpipe.workers.spectra.subspaces import ITERATIONS, nystrom, randomised

Method = Literal["auto", "full", "lanczos", "lobpcg", "randomised", "nystrom"]

FULL_LIMIT = 2000
"""Up to this N all eigenpairs are as cheap as some of them."""

FULL_SHARE = 0.2
"""Above this share of all eigenpairs, a full decomposition is cheaper and surer."""


@final
@dataclass(frozen=True, slots=True)
class Eigenpairs:
    """The largest eigenvalues of a symmetric matrix, and their vectors."""

    values_Q: torch.Tensor
    """Descending, float64; Rayleigh quotients v^T K v."""
    vectors_NQ: torch.Tensor
    """Orthonormal columns, float64."""
    residuals_Q: torch.Tensor
    """||K v - value v||, recomputed: an eigenvalue of K is at most this far from the value."""
    method: str
    """How they were found."""
    passes: float
    """How often the whole matrix was read, for the residuals too."""
    tolerance: float
    """Residuals as a share of the largest eigenvalue, at which pairs count as converged."""

    @property
    def converged_Q(self) -> torch.Tensor:
        """Which pairs meet the tolerance. A larger eigenvalue that no pair stands for is not excluded by it."""
        largest = self.values_Q.abs().max() if len(self.values_Q) else 0.0
        return self.residuals_Q <= self.tolerance * largest


def eigenpairs(
    kernel: Matrix | AbstractOperator,
    num: int | None = None,
    *,
    method: Method = "auto",
    tolerance: float = 1e-8,
    max_passes: int = 200,
    num_columns: int | None = None,
    seed: int = 0,
) -> Eigenpairs:
    """Return the largest eigenvalues of a kernel matrix, with their vectors and true residuals.

    Args:
        kernel: (N, N) matrix, an operator, or (N, K) features whose Gram matrix is meant.
        num: How many pairs, at most N; all if not given.
        method: ``full`` decomposes the dense matrix, 9 N^3 FLOPs and 24 N^2 bytes; ``lanczos`` and ``lobpcg`` go on
            until the tolerance is met; ``randomised`` takes three passes and ``nystrom`` reads ``num_columns`` columns,
            whatever the residuals are then. ``auto`` is ``full`` up to N = 2000 and for more than a fifth of all pairs,
            else ``lanczos``.
        tolerance: Residuals as a share of the largest eigenvalue.
        max_passes: After which iterations end, converged or not.
        num_columns: Of ``nystrom``, at least ``num``; twice as many and 50 if not given.
        seed: Of all random choices.

    Returns:
        At most ``num`` pairs: a Nystrom approximation has no more than the rank of the columns.

    Raises:
        ConfigError: An argument is out of range.
        NumericalError: The matrix holds NaN or infinity, or is not symmetric.
    """
    operator = MeteredOperator(as_operator(kernel))
    size = operator.size
    num = size if num is None else num
    num_columns = min(size, 2 * num + 50) if num_columns is None else num_columns
    _check(size, num, num_columns, method, tolerance, max_passes)
    if method == "auto":
        method = "full" if size <= FULL_LIMIT or num > FULL_SHARE * size else "lanczos"
    random = np.random.default_rng([seed, 0])
    if method == "full":
        vectors_NQ = torch.linalg.eigh(operator.dense().double())[1].flip(1)[:, :num].contiguous()
    elif method == "randomised":
        vectors_NQ = randomised(operator, num, random)
    elif method == "nystrom":
        vectors_NQ = nystrom(operator, num, num_columns, random)
    else:
        vectors_NQ = ITERATIONS[method](operator, num, tolerance, max_passes, random)
    products_NQ = operator.matmat(vectors_NQ)
    values_Q = (vectors_NQ * products_NQ).sum(dim=0)
    residuals_Q = torch.linalg.vector_norm(products_NQ - vectors_NQ * values_Q, dim=0)
    order_Q = values_Q.argsort(descending=True, stable=True)
    return Eigenpairs(
        values_Q[order_Q], vectors_NQ[:, order_Q], residuals_Q[order_Q], method, operator.passes, tolerance
    )


def _check(size: int, num: int, num_columns: int, method: str, tolerance: float, max_passes: int) -> None:
    if method not in get_args(Method):
        raise ConfigError(f"expected a method out of {', '.join(get_args(Method))}, found {method!r}.")
    if not 1 <= num <= size:
        raise ConfigError(f"a kernel of {size} samples has 1 to {size} eigenpairs, found num={num}.")
    if not num <= num_columns <= size:
        raise ConfigError(f"expected num_columns from num={num} to N={size}, found {num_columns}.")
    if not tolerance > 0 or max_passes < 1:
        raise ConfigError(f"expected tolerance > 0 and max_passes >= 1, found {tolerance:g} and {max_passes}.")
