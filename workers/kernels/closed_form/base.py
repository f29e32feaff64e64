"""The closed-form seam: a kernel that is a formula of two samples."""

from abc import ABC, abstractmethod

import torch


class AbstractClosedForm(ABC):
    """A symmetric kernel that needs neither a model nor labels.

    Entries depend on their two samples only, so that any block equals the same part of the whole matrix up to rounding.
    Formulas are evaluated in float64 whatever precision the samples came in: square roots at coinciding points, and
    arc cosines near 1, lose half of the digits.
    """

    @abstractmethod
    def block(self, x: torch.Tensor, x2: torch.Tensor | None = None) -> torch.Tensor:
        """Return the kernel between all pairs of samples; memory is O(N M) and what the class says.

        Args:
            x: (N, ...) samples of any real type, on any device; integers are taken as numbers, or as indices where samples
                are that.
            x2: (M, ...) samples; None means ``x``, whose matrix is symmetric to the last bit and has an exact diagonal.

        Returns:
            (N, M) in float64, on the device of the samples.

        Raises:
            ConfigError: The samples do not have the shape that the kernel is defined for, or are not finite.
        """

    @abstractmethod
    def diagonal(self, x: torch.Tensor) -> torch.Tensor:
        """Return K(x, x) of every sample, (N,) in float64, in time linear in N."""
