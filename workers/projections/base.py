"""The projection seam: a fixed random linear map from the gradient of one parameter to K features."""

from abc import ABC, abstractmethod

import torch


class AbstractProjection(ABC):
    """A random map whose every entry is a function of (version, seed, parameter name, output, row, column).

    The map of a kernel is one matrix on all (output, parameter) coordinates, so that summing the contributions of
    all parameters and outputs estimates the trace kernel in K numbers. It is applied without its scale: sums of
    signed gradients, one multiplication by ``scale`` at the end.

    Attributes:
        dim: K, the number of features.
        scale: The factor that makes the features' inner product an unbiased estimate.
    """

    dim: int
    scale: float

    @abstractmethod
    def accumulate(
        self, features_BK: torch.Tensor, gradients_BP: torch.Tensor, *, parameter: str, output: int, offset: int = 0
    ) -> None:
        """Add the unscaled projection of ``gradients_BP`` to ``features_BK`` in place.

        Args:
            features_BK: Shape (B, K), same dtype and device as the gradients.
            gradients_BP: Shape (B, p): gradients with respect to coordinates ``offset`` to ``offset + p`` of a
                parameter, flattened in C order.
            parameter: The parameter's qualified name; part of the key of the random bits.
            output: Index of the output vector whose gradient this is; part of the key.
            offset: First coordinate, so that a large parameter can be projected in slices.
        """

    @abstractmethod
    def matrix(self, *, parameter: str, output: int, start: int, stop: int) -> torch.Tensor:
        """Return the unscaled map of coordinates ``start`` to ``stop`` as a dense (stop - start, K) float64 tensor.

        For tests and tiny models; memory is O(P K).
        """

    @abstractmethod
    def fingerprint(self) -> str:
        """Return a short text that is equal for two maps exactly if they are the same map."""
