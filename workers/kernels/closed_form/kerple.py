"""Conditionally positive kernels of the distance between positions."""

from typing import final

import torch

from ntkpipe.configs.kernels.distances import KerpleConfig
from ntkpipe.workers.kernels.closed_form.base import AbstractClosedForm
from ntkpipe.workers.kernels.closed_form.distances import Distances
from ntkpipe.workers.kernels.closed_form.samples import as_vectors, vector_pair
from ntkpipe.workers.kernels.closed_form.tiling import fill


@final
class KerpleKernel(AbstractClosedForm):
    """A logarithm or a power of a distance, negated; see :class:`ntkpipe.configs.kernels.distances.KerpleConfig`.

    Positive on vectors whose entries sum to zero only. Samples of any shape are taken as vectors, numbers as positions
    on a line. O(N M d) time, O(N M) memory, which is the result, and O((N + M) d).
    """

    def __init__(self, config: KerpleConfig) -> None:
        self._config = config

    def block(self, x: torch.Tensor, x2: torch.Tensor | None = None) -> torch.Tensor:
        """Return the kernel between positions.

        Raises:
            ConfigError: The two sets have different numbers of coordinates, or one is not finite.
        """
        rows_NX, columns_MX = vector_pair(x, x2)
        distances = Distances(rows_NX, columns_MX)
        config = self._config

        def entries(rows: slice, columns: slice) -> torch.Tensor:
            powers_RC = distances.squared(rows, columns).pow_(config.exponent / 2)
            if config.variant == "log":
                powers_RC = powers_RC.mul_(config.rate).log1p_()
            return powers_RC.mul_(-config.scale).add_(config.shift)

        return fill(len(rows_NX), None if columns_MX is None else len(columns_MX), entries, self.diagonal(x))

    def diagonal(self, x: torch.Tensor) -> torch.Tensor:
        """Return the shift for every position."""
        return torch.full((len(as_vectors(x)),), self._config.shift, dtype=torch.float64, device=x.device)
