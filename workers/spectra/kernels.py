"""What callers may pass as a kernel."""

from ntkpipe.workers.operators.base import AbstractOperator
from ntkpipe.workers.operators.dense import DenseOperator
from ntkpipe.workers.operators.features import FeatureOperator
from ntkpipe.workers.solvers.arrays import Matrix, as_tensor


def as_operator(kernel: Matrix | AbstractOperator) -> AbstractOperator:
    """Return an operator, the operator of an (N, N) kernel matrix, or that of the Gram matrix of (N, K) features.

    Raises:
        ConfigError: It is no matrix of real numbers, or empty.
        NumericalError: It holds NaN or infinity, or is square and not symmetric.
    """
    if isinstance(kernel, AbstractOperator):
        return kernel
    matrix = as_tensor("kernel", kernel)
    square = matrix.dim() == 2 and matrix.shape[0] == matrix.shape[1]
    return DenseOperator(matrix) if square else FeatureOperator(matrix)
