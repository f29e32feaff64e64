"""Deep kernel machines: networks of infinite width whose Gram matrices are learned, layer by layer."""

from functools import cached_property
from typing import final

import numpy as np
import torch

from ntkpipe.configs.errors import ConfigError
from ntkpipe.configs.kernels.structured import DeepKernelMachineConfig
from ntkpipe.workers.kernels.closed_form.base import AbstractClosedForm
from ntkpipe.workers.kernels.closed_form.files import read_array
from ntkpipe.workers.kernels.closed_form.gram_layers import GramLayer, LayerState, cross, fit_gram_layers, propagate
from ntkpipe.workers.kernels.closed_form.samples import as_doubles
from ntkpipe.workers.kernels.closed_form.tiling import mirrored


@final
class DeepKernelMachineKernel(AbstractClosedForm):
    """The kernel of :class:`ntkpipe.configs.kernels.structured.DeepKernelMachineConfig`.

    The layers are fitted when the first entry is asked for, and kept: O(steps depth P^3) time, O(depth P^2) memory. The
    fit happens on the CPU wherever the samples are, and nothing in it is random: on machines of one kind, all workers
    find the same bits. A block takes O(depth (N + M) P^2 + depth N M P). With steps = 0, or nu -> infinity, and up to
    the jitter, the kernel is the NNGP kernel of a bias-free ReLU network with ``depth`` hidden layers.
    """

    def __init__(self, config: DeepKernelMachineConfig) -> None:
        self._config = config
        self._placed: tuple[torch.Tensor, list[GramLayer]] | None = None

    def block(self, x: torch.Tensor, x2: torch.Tensor | None = None) -> torch.Tensor:
        """Return the last layer's Gram matrix between samples, (N, ...) and (M, ...), shaped like the inducing inputs.

        Raises:
            ConfigError: The samples, or the files, do not have the right shapes.
            NumericalError: The fit failed.
        """
        inducing, layers = self._fitted_on(x.device)
        flat_NX = self._flat(x, inducing)
        flat_MX = flat_NX if x2 is None else self._flat(x2, inducing)
        gram_NM = flat_NX @ flat_MX.T / flat_NX.shape[1]
        state = _inputs(flat_NX, inducing)
        other = state if x2 is None else _inputs(flat_MX, inducing)
        for layer in layers:
            after, white_PN = propagate(layer, state)
            other_after, white_PM = (after, white_PN) if x2 is None else propagate(layer, other)
            gram_NM = cross(layer, gram_NM, state, other, white_PN, white_PM)
            state, other = after, other_after
        if x2 is not None:
            return gram_NM
        gram_NM.diagonal().copy_(state.variance_N)
        return mirrored(gram_NM)

    def diagonal(self, x: torch.Tensor) -> torch.Tensor:
        """Return the last layer's variances, O(depth N P^2)."""
        inducing, layers = self._fitted_on(x.device)
        state = _inputs(self._flat(x, inducing), inducing)
        for layer in layers:
            state, _ = propagate(layer, state)
        return state.variance_N

    @cached_property
    def fitted(self) -> tuple[torch.Tensor, list[GramLayer]]:
        """The inducing inputs and the layers, fitted once.

        Raises:
            ConfigError: A file does not hold what it should.
            NumericalError: The fit failed.
        """
        config = self._config
        inducing = torch.from_numpy(read_array(config.inducing).astype(np.float64))
        targets_PT = _read_targets(config.labels)
        if inducing.dim() < 2 or len(inducing) != len(targets_PT) or inducing.numel() == 0:
            raise ConfigError(
                f"{config.inducing} must hold inducing inputs (P, ...), at least one, and {config.labels} as many labels; "
                f"found {tuple(inducing.shape)} and {len(targets_PT)}."
            )
        flat = inducing.flatten(1)
        layers = fit_gram_layers(
            flat @ flat.T / flat.shape[1],
            targets_PT,
            depth=config.depth,
            nu=config.nu,
            noise=config.noise,
            jitter=config.jitter,
            normalisation=config.normalisation,
            steps=config.steps,
            tolerance=config.tolerance,
        )
        return inducing, layers

    def _fitted_on(self, device: torch.device) -> tuple[torch.Tensor, list[GramLayer]]:
        if self._placed is None or self._placed[0].device != device:
            inducing, layers = self.fitted
            self._placed = inducing.to(device), [layer.to(device) for layer in layers]
        return self._placed

    def _flat(self, x: torch.Tensor, inducing: torch.Tensor) -> torch.Tensor:
        if x.shape[1:] != inducing.shape[1:]:
            raise ConfigError(
                f"samples have the shape {tuple(x.shape[1:])}, but {self._config.inducing} holds inducing inputs of shape "
                f"{tuple(inducing.shape[1:])}; both must be the same."
            )
        return as_doubles(x).flatten(1)


def _inputs(flat: torch.Tensor, inducing: torch.Tensor) -> LayerState:
    """Return samples before the first layer, where Gram matrices are mean products over the inputs' dimensions."""
    num_dims = flat.shape[1]
    return LayerState(flat.square().sum(1) / num_dims, flat @ inducing.flatten(1).T / num_dims)


def _read_targets(location: str) -> torch.Tensor:
    """Return (P, T) targets: integer classes one-hot, anything else as it is."""
    labels = read_array(location)
    if labels.ndim == 1 and labels.dtype.kind in "biu":
        if labels.size and labels.astype(np.int64).min() < 0:
            raise ConfigError(f"{location} holds class {labels.min()}; classes count from 0, real targets are floats.")
        return torch.from_numpy(np.eye(1 + int(labels.max(initial=0)))[labels.astype(np.int64)])
    if labels.ndim not in (1, 2):
        raise ConfigError(f"{location} must hold labels (P,) or (P, T), found shape {labels.shape}.")
    return torch.from_numpy(labels.astype(np.float64).reshape(len(labels), -1))
