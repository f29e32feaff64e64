"""A closed form between two sets of samples."""

from typing import final

import torch

from ntkpipe.workers.kernels.closed_form.base import AbstractClosedForm
from ntkpipe.workers.operators.checks import check_finite
from ntkpipe.workers.operators.rectangle import AbstractRectangle

BLOCK_ENTRIES = 2**25
"""Of the rows that are computed at a time: 256 MiB."""


@final
class FormulaRectangle(AbstractRectangle):
    """The (M, N) float64 kernel between two sets of samples, computed whenever it is read, and never kept.

    Args:
        kernel: The formula.
        rows: (M, ...) samples as it wants them.
        columns: (N, ...) samples.
        block_rows: Rows to compute together at the most.
    """

    def __init__(self, kernel: AbstractClosedForm, rows: torch.Tensor, columns: torch.Tensor, block_rows: int) -> None:
        self._kernel, self._rows, self._columns = kernel, rows, columns
        self.shape = (len(rows), len(columns))
        self.dtype = torch.float64
        self.block_rows = max(1, min(block_rows, len(rows), BLOCK_ENTRIES // len(columns)))
        self.entry_bytes = 0.0

    def rows(self, start: int, stop: int) -> torch.Tensor:
        """Compute rows."""
        rows_MN = self._kernel.block(self._rows[start:stop], self._columns).cpu()
        check_finite("the kernel matrix", rows_MN, row=start)
        return rows_MN
