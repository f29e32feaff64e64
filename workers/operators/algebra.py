"""Matrices made of other matrices: sums, multiples, congruences, sub-matrices and Kronecker products.

None of them reads more than what it is made of, and a product with a composed matrix has the parts of its operands.
"""

from dataclasses import replace
from typing import final

import torch

from ntkpipe.configs.errors import ConfigError
from ntkpipe.workers.operators.base import AbstractOperator, Tags
from ntkpipe.workers.operators.rectangle import AbstractRectangle


@final
class SumOperator(AbstractOperator):
    """K + L.

    Raises:
        ConfigError: The two have different sizes.
    """

    def __init__(self, left: AbstractOperator, right: AbstractOperator) -> None:
        if left.size != right.size:
            raise ConfigError(f"cannot add a kernel of {right.size} samples to one of {left.size}.")
        self._left, self._right = left, right
        self.size = left.size
        self.dtype = torch.promote_types(left.dtype, right.dtype)
        self.block_rows = min(left.block_rows, right.block_rows)
        self.num_parts = left.num_parts + right.num_parts
        tags = (left.tags, right.tags)
        self.tags = Tags(
            positive_semidefinite=all(tag.positive_semidefinite for tag in tags),
            entry_bytes=sum(tag.entry_bytes for tag in tags),
            entry_flops=1 + sum(tag.entry_flops for tag in tags),
            halved_products=all(tag.halved_products for tag in tags),
        )

    def partial(self, vectors_NT: torch.Tensor, part: int) -> torch.Tensor:
        """Return a summand of one of the two."""
        if part < self._left.num_parts:
            return self._left.partial(vectors_NT, part)
        return self._right.partial(vectors_NT, part - self._left.num_parts)

    def diagonal(self) -> torch.Tensor:
        """Add the diagonals."""
        return self._left.diagonal() + self._right.diagonal()

    def rows(self, start: int, stop: int) -> torch.Tensor:
        """Add rows."""
        return self._left.rows(start, stop) + self._right.rows(start, stop)

    def entries(self, rows_R: torch.Tensor, columns_S: torch.Tensor) -> torch.Tensor:
        """Add entries."""
        return self._left.entries(rows_R, columns_S) + self._right.entries(rows_R, columns_S)


@final
class ScaledOperator(AbstractOperator):
    """c K for a number c, or D K D for a diagonal matrix D given as (N,) factors.

    Raises:
        ConfigError: The factors are not (N,) finite numbers.
    """

    def __init__(self, operator: AbstractOperator, scale: float | torch.Tensor) -> None:
        self._operator = operator
        self._factors_N1: torch.Tensor | None = None
        self._scale = 1.0
        if isinstance(scale, torch.Tensor):
            if scale.shape != (operator.size,) or not torch.isfinite(scale).all():
                raise ConfigError(
                    f"expected ({operator.size},) finite factors, found {tuple(scale.shape)} of which "
                    f"{int((~torch.isfinite(scale)).sum())} are not finite."
                )
            self._factors_N1 = scale.double().unsqueeze(1)
        else:
            self._scale = float(scale)
        self.size = operator.size
        self.dtype = operator.dtype
        self.block_rows = operator.block_rows
        self.num_parts = operator.num_parts
        definite = operator.tags.positive_semidefinite and self._scale >= 0
        features = None
        if self._factors_N1 is not None and operator.tags.features is not None:
            features = ScaledRectangle(operator.tags.features, self._factors_N1)
        self.tags = replace(operator.tags, positive_semidefinite=definite, features=features)

    def partial(self, vectors_NT: torch.Tensor, part: int) -> torch.Tensor:
        """Scale the vectors before, and the summand after."""
        if self._factors_N1 is None:
            return self._operator.partial(vectors_NT, part) * self._scale
        factors_N1 = self._factors_N1.to(vectors_NT.dtype)
        return factors_N1 * self._operator.partial(factors_N1 * vectors_NT, part)

    def diagonal(self) -> torch.Tensor:
        """Scale the diagonal."""
        diagonal_N = self._operator.diagonal()
        if self._factors_N1 is None:
            return diagonal_N * self._scale
        return (diagonal_N.double() * self._factors_N1.squeeze(1).square()).to(self.dtype)

    def rows(self, start: int, stop: int) -> torch.Tensor:
        """Scale rows."""
        rows_MN = self._operator.rows(start, stop)
        if self._factors_N1 is None:
            return rows_MN * self._scale
        factors_N1 = self._factors_N1.to(self.dtype)
        return factors_N1[start:stop] * rows_MN * factors_N1.T

    def entries(self, rows_R: torch.Tensor, columns_S: torch.Tensor) -> torch.Tensor:
        """Scale entries."""
        entries_RS = self._operator.entries(rows_R, columns_S)
        if self._factors_N1 is None:
            return entries_RS * self._scale
        factors_N1 = self._factors_N1.to(self.dtype)
        return factors_N1[rows_R] * entries_RS * factors_N1[columns_S].T


@final
class ScaledRectangle(AbstractRectangle):
    """D Phi for a diagonal matrix D given as (M, 1) factors in float64, and a rectangle Phi."""

    def __init__(self, rectangle: AbstractRectangle, factors_M1: torch.Tensor) -> None:
        self._rectangle, self._factors_M1 = rectangle, factors_M1
        self.shape = rectangle.shape
        self.dtype = rectangle.dtype
        self.block_rows = rectangle.block_rows
        self.entry_bytes = rectangle.entry_bytes

    def rows(self, start: int, stop: int) -> torch.Tensor:
        """Scale rows."""
        return (self._factors_M1[start:stop] * self._rectangle.rows(start, stop)).to(self.dtype)


@final
class ShiftedOperator(AbstractOperator):
    """K + shift I."""

    def __init__(self, operator: AbstractOperator, shift: float) -> None:
        self._operator, self._shift = operator, shift
        self.size = operator.size
        self.dtype = operator.dtype
        self.block_rows = operator.block_rows
        self.num_parts = operator.num_parts
        definite = operator.tags.positive_semidefinite and shift >= 0
        self.tags = replace(operator.tags, positive_semidefinite=definite, features=None)

    def partial(self, vectors_NT: torch.Tensor, part: int) -> torch.Tensor:
        """Add the shift to the first summand."""
        product_NT = self._operator.partial(vectors_NT, part)
        return product_NT + self._shift * vectors_NT if part == 0 else product_NT

    def diagonal(self) -> torch.Tensor:
        """Add the shift."""
        return self._operator.diagonal() + self._shift

    def rows(self, start: int, stop: int) -> torch.Tensor:
        """Add the shift where a row meets the diagonal."""
        rows_MN = self._operator.rows(start, stop).clone()
        rows_MN[:, start:stop].diagonal().add_(self._shift)
        return rows_MN

    def entries(self, rows_R: torch.Tensor, columns_S: torch.Tensor) -> torch.Tensor:
        """Add the shift where the two positions are equal."""
        entries_RS = self._operator.entries(rows_R, columns_S)
        return entries_RS + self._shift * (rows_R.unsqueeze(1) == columns_S).to(entries_RS.dtype)


@final
class SubsampledOperator(AbstractOperator):
    """The sub-matrix of some positions, in their order; a product reads blocks of its rows, one part each.

    Raises:
        ConfigError: Positions are not int64 numbers within the matrix, or there are none.
    """

    def __init__(self, operator: AbstractOperator, positions_S: torch.Tensor) -> None:
        inside = positions_S.dim() == 1 and len(positions_S) > 0 and positions_S.dtype == torch.int64
        if not inside or int(positions_S.min()) < 0 or int(positions_S.max()) >= operator.size:
            raise ConfigError(f"expected int64 positions from 0 to {operator.size - 1}, found {positions_S}.")
        self._operator, self._positions_S = operator, positions_S
        self.size = len(positions_S)
        self.dtype = operator.dtype
        self.block_rows = min(operator.block_rows, self.size)
        self.num_parts = -(-self.size // self.block_rows)
        self.tags = replace(operator.tags, features=None, halved_products=False)

    def partial(self, vectors_NT: torch.Tensor, part: int) -> torch.Tensor:
        """Multiply some rows."""
        start = part * self.block_rows
        stop = min(start + self.block_rows, self.size)
        product_NT = torch.zeros_like(vectors_NT)
        product_NT[start:stop] = self.rows(start, stop).to(vectors_NT.dtype) @ vectors_NT
        return product_NT

    def diagonal(self) -> torch.Tensor:
        """Pick from the diagonal."""
        return self._operator.diagonal()[self._positions_S]

    def rows(self, start: int, stop: int) -> torch.Tensor:
        """Pick rows and columns."""
        return self._operator.entries(self._positions_S[start:stop], self._positions_S)

    def entries(self, rows_R: torch.Tensor, columns_S: torch.Tensor) -> torch.Tensor:
        """Pick entries."""
        return self._operator.entries(self._positions_S[rows_R], self._positions_S[columns_S])


@final
class OutputsOperator(AbstractOperator):
    """The Kronecker product of K with a matrix between outputs, outputs fastest: entry (n C + c, m C + d) is K_nm A_cd.

    Args:
        operator: K.
        outputs_CC: A, symmetric; None means the identity of ``num_outputs``.
        num_outputs: C.

    Raises:
        ConfigError: The matrix between outputs is not square, symmetric and finite.
    """

    def __init__(
        self, operator: AbstractOperator, outputs_CC: torch.Tensor | None = None, *, num_outputs: int | None = None
    ) -> None:
        if outputs_CC is None:
            if num_outputs is None or num_outputs < 1:
                raise ConfigError(f"expected outputs_CC, or num_outputs of at least 1; found {num_outputs}.")
            outputs_CC = torch.eye(num_outputs, dtype=torch.float64)
        square = outputs_CC.dim() == 2 and outputs_CC.shape[0] == outputs_CC.shape[1] and len(outputs_CC) > 0
        if not square or not torch.isfinite(outputs_CC).all() or not torch.equal(outputs_CC, outputs_CC.T):
            raise ConfigError(f"the matrix between outputs must be square, symmetric and finite; found {outputs_CC}.")
        self._operator, self._outputs_CC = operator, outputs_CC.double()
        self._num_outputs = len(outputs_CC)
        self.size = operator.size * self._num_outputs
        self.dtype = operator.dtype
        self.block_rows = operator.block_rows * self._num_outputs
        self.num_parts = operator.num_parts
        definite = operator.tags.positive_semidefinite and bool((torch.linalg.eigvalsh(self._outputs_CC) >= 0).all())
        self.tags = replace(
            operator.tags,
            positive_semidefinite=definite,
            features=None,
            entry_bytes=operator.tags.entry_bytes / self._num_outputs**2,
        )

    def partial(self, vectors_NT: torch.Tensor, part: int) -> torch.Tensor:
        """Mix outputs, then samples: O(N^2 C T + N C^2 T) instead of O(N^2 C^2 T)."""
        num_targets = vectors_NT.shape[1]
        split = vectors_NT.reshape(self._operator.size, self._num_outputs, num_targets)
        mixed = torch.einsum("cd,ndt->nct", self._outputs_CC.to(vectors_NT.dtype), split)
        product = self._operator.partial(mixed.reshape(self._operator.size, -1), part)
        return product.reshape(self.size, num_targets)

    def diagonal(self) -> torch.Tensor:
        """Return the Kronecker product of the diagonals."""
        return torch.kron(self._operator.diagonal().double(), self._outputs_CC.diagonal()).to(self.dtype)

    def rows(self, start: int, stop: int) -> torch.Tensor:
        """Form rows from those of the samples that they are of."""
        first, last = start // self._num_outputs, -(-stop // self._num_outputs)
        rows_MN = torch.kron(self._operator.rows(first, last).contiguous(), self._outputs_CC.to(self.dtype))
        return rows_MN[start - first * self._num_outputs : stop - first * self._num_outputs]

    def entries(self, rows_R: torch.Tensor, columns_S: torch.Tensor) -> torch.Tensor:
        """Multiply entries of the two."""
        num = self._num_outputs
        outputs = self._outputs_CC.to(self.dtype)[(rows_R % num).unsqueeze(1), columns_S % num]
        return self._operator.entries(rows_R // num, columns_S // num) * outputs
