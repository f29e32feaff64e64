"""Kernels of infinitely wide convolutional networks on images."""

from typing import final

import torch

from ntkpipe.configs.errors import ConfigError
from ntkpipe.configs.kernels.structured import ConvolutionalConfig
from ntkpipe.workers.kernels.closed_form.base import AbstractClosedForm
from ntkpipe.workers.kernels.closed_form.duals.covariances import relu_duals
from ntkpipe.workers.kernels.closed_form.samples import as_doubles
from ntkpipe.workers.kernels.closed_form.tiling import mirrored, tiles

BATCH_BYTES = 2**20
"""Of one tensor of pixel pairs. About eight of them exist at a time, and are read from a processor's cache many times."""


@final
class ConvolutionalKernel(AbstractClosedForm):
    """The kernel of :class:`ntkpipe.configs.kernels.structured.ConvolutionalConfig`.

    Covariances are tensors over (pairs of images, pixels of one, pixels of the other); with the head ``flatten`` equal
    pixels of both suffice, because sums over common offsets only ever meet equal pixels again. Pairs of images are
    worked on in batches of ``BATCH_BYTES``, or of one pair where that is more: 8 P^2 Q^2 bytes with the head ``gap``.
    Variances of all pixels in all layers are computed once per image, by the operations that covariances go through:
    an image and its copy have a correlation of exactly 1 everywhere. Time is O(N M depth P Q (channels + filter_size)),
    times P Q for ``gap``. Images of zeros have the kernel 0 with every image.
    """

    def __init__(self, config: ConvolutionalConfig) -> None:
        self._config = config
        self._reach = config.filter_size // 2

    def block(self, x: torch.Tensor, x2: torch.Tensor | None = None) -> torch.Tensor:
        """Return the kernel between images, (N, channels, P, Q) and (M, channels, P, Q).

        Raises:
            ConfigError: The samples are not images of one shape.
        """
        x, other = _images(x, x2)
        variances, other_variances = self._variances(x), None if x2 is None else self._variances(other)
        block_NM = x.new_zeros(len(x), len(other))
        for rows, columns in tiles(len(x), None if x2 is None else len(other), self._pairs_per_batch(x)):
            inner = [layer[rows, None] for layer in variances]
            outer = [layer[None, columns] for layer in other_variances or variances]
            block_NM[rows, columns] = self._values(x[rows, None], other[None, columns], inner, outer)
        return mirrored(block_NM) if x2 is None else block_NM

    def diagonal(self, x: torch.Tensor) -> torch.Tensor:
        """Return every image's kernel with itself, in batches of bounded size."""
        x, _ = _images(x, None)
        variances = self._variances(x)
        size = self._pairs_per_batch(x)
        values = [x.new_zeros(0)]
        for start in range(0, len(x), size):
            layers = [layer[start : start + size] for layer in variances]
            values.append(self._values(x[start : start + size], x[start : start + size], layers, layers))
        return torch.cat(values)

    def _values(
        self, x: torch.Tensor, x2: torch.Tensor, inner: list[torch.Tensor], outer: list[torch.Tensor]
    ) -> torch.Tensor:
        """Return the kernel of pairs of images (..., channels, P, Q), given their (..., P, Q) variances by layer."""
        crossed = self._config.head == "gap"
        covariance = self._patch_sums(_inner_products(x, x2, crossed))
        tangent = covariance
        for layer in range(self._config.depth):
            a, c = inner[layer], outer[layer]
            if crossed:
                a, c = a[..., :, :, None, None], c[..., None, None, :, :]
            covariance, derivative = relu_duals(a, covariance, c)
            covariance /= self._config.filter_size**2
            if self._config.output == "ntk":
                tangent = derivative.div_(self._config.filter_size**2).mul_(tangent).add_(covariance)
            if layer < self._config.depth - 1:
                covariance = self._patch_sums(covariance)
                tangent = self._patch_sums(tangent) if self._config.output == "ntk" else covariance
        last = tangent if self._config.output == "ntk" else covariance
        return last.mean((-4, -3, -2, -1)) if crossed else last.sum((-2, -1))

    def _variances(self, x: torch.Tensor) -> list[torch.Tensor]:
        """Return the (N, P, Q) variances that go into every layer's dual."""
        variance = _patch_sums(_inner_products(x, x, False), self._reach, ((-2,), (-1,)))
        found = [variance]
        for _ in range(self._config.depth - 1):
            variance = relu_duals(variance, variance, variance)[0] / self._config.filter_size**2
            variance = _patch_sums(variance, self._reach, ((-2,), (-1,)))
            found.append(variance)
        return found

    def _patch_sums(self, covariance: torch.Tensor) -> torch.Tensor:
        dims = ((-4, -2), (-3, -1)) if self._config.head == "gap" else ((-2,), (-1,))
        return _patch_sums(covariance, self._reach, dims)

    def _pairs_per_batch(self, x: torch.Tensor) -> int:
        num_pixels = x.shape[-2] * x.shape[-1]
        pair_bytes = 8 * max(1, num_pixels**2 if self._config.head == "gap" else num_pixels)
        return max(1, BATCH_BYTES // pair_bytes)


def _inner_products(x: torch.Tensor, x2: torch.Tensor, crossed: bool) -> torch.Tensor:
    """Return sum over channels x_p x'_p', at equal pixels or for all pairs; added up channel by channel.

    A matrix product would add in an order of its own, and an image's covariance with its copy miss its variance by a
    rounding error.
    """
    total = None
    for channel in range(x.shape[-3]):
        one, two = x[..., channel, :, :], x2[..., channel, :, :]
        product = one[..., :, :, None, None] * two[..., None, None, :, :] if crossed else one * two
        total = product if total is None else total.add_(product)
    assert total is not None, "images without channels are refused"
    return total


def _patch_sums(covariance: torch.Tensor, reach: int, directions: tuple[tuple[int, ...], ...]) -> torch.Tensor:
    """Return [M]: sums over offsets up to ``reach``, common to all dimensions of a direction; zero outside the image."""
    for dims in directions:
        length, total = covariance.shape[dims[0]], covariance.clone()
        for offset in range(1, min(reach, length - 1) + 1):
            _ahead(total, dims, 0, length - offset).add_(_ahead(covariance, dims, offset, length - offset))
            _ahead(total, dims, offset, length - offset).add_(_ahead(covariance, dims, 0, length - offset))
        covariance = total
    return covariance


def _ahead(covariance: torch.Tensor, dims: tuple[int, ...], start: int, length: int) -> torch.Tensor:
    for dim in dims:
        covariance = covariance.narrow(dim, start, length)
    return covariance


def _images(x: torch.Tensor, x2: torch.Tensor | None) -> tuple[torch.Tensor, torch.Tensor]:
    """Return both sets of images, the second of which may be the first, in float64.

    Raises:
        ConfigError: They are no images of one shape, or have pixels that are not finite.
    """
    if x.dim() != 4 or 0 in x.shape[1:]:
        raise ConfigError(
            f"kind 'cntk' takes images (channels, height, width), found samples of shape {tuple(x.shape[1:])}; "
            "reshape the inputs, grey images to (1, height, width)."
        )
    if x2 is not None and x2.shape[1:] != x.shape[1:]:
        raise ConfigError(f"images must have one shape, found {tuple(x.shape[1:])} and {tuple(x2.shape[1:])}.")
    images = as_doubles(x)
    return images, images if x2 is None else as_doubles(x2)
