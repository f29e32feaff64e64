"""How good coefficients are on samples that no solver sees."""

from dataclasses import dataclass
from typing import final

import torch

from ntkpipe.configs.errors import ConfigError
from ntkpipe.workers.operators.checks import check_finite
from ntkpipe.workers.operators.rectangle import AbstractMap, DenseRectangle
from ntkpipe.workers.solvers.arrays import Matrix, as_columns, as_tensor


@final
@dataclass(frozen=True, slots=True)
class Validation:
    """Samples that are held out: a solve ends when it gets worse on them, with the coefficients that did best."""

    kernel: AbstractMap | Matrix
    """(V, N) between them and the samples of the system."""
    targets: Matrix
    """(V,) or (V, T)."""
    classes: bool = True
    """Whether the largest target of a sample is its class, so that the loss is the share of wrong classes; else it is the
    mean square of the errors, those of every target as a share of that target's mean square."""
    patience: int = 2
    """Steps without a smaller loss after which the solve ends."""
    outputs: int = 1
    """C where the kernel is of (sample, output) pairs, outputs fastest: it has V C rows, and a system of one column."""

    def prepared(self, num_samples: int, num_targets: int) -> "HeldOut":
        """Return what is computed with, once for all steps.

        Raises:
            ConfigError: Shapes are wrong, patience is below 1, or one column cannot tell classes apart.
            NumericalError: Kernel or targets hold NaN or infinity.
        """
        name, targets_VT = "the held-out kernel", as_columns("the held-out targets", self.targets)
        kernel = self.kernel if isinstance(self.kernel, AbstractMap) else as_tensor(name, self.kernel)
        shapes = tuple(kernel.shape), tuple(targets_VT.shape)
        num_held_out = len(targets_VT) if targets_VT.dim() else 0
        num_rows, num_targets = num_held_out * self.outputs, num_targets * self.outputs
        if shapes != ((num_rows, num_samples), (num_held_out, num_targets)) or not num_held_out:
            rows = "V" if self.outputs == 1 else f"{self.outputs} V"
            raise ConfigError(
                f"held-out samples have a kernel of shape {shapes[0]} and targets of shape {shapes[1]}; expected "
                f"({rows}, {num_samples}) and (V, {num_targets}) with V >= 1."
            )
        if self.classes and num_targets == 1:
            raise ConfigError("held-out classes need a column per class; pass classes=False for real targets.")
        if self.patience < 1:
            raise ConfigError(f"patience must be at least 1, found {self.patience}.")
        check_finite("the held-out targets", targets_VT)
        if not isinstance(kernel, AbstractMap):
            kernel = DenseRectangle(kernel, what=name)
        return HeldOut(kernel, targets_VT, self.classes)


@final
@dataclass(frozen=True, slots=True)
class HeldOut:
    """A :class:`Validation` that has been checked."""

    kernel: AbstractMap
    """(V, N), or (V C, N C)."""
    targets_VT: torch.Tensor
    """float64."""
    classes: bool
    """As there."""

    def loss(self, alpha_NT: torch.Tensor) -> float:
        """Return the loss of coefficients; one pass over the kernel."""
        predictions_VT = self.kernel.matmat(alpha_NT.double()).reshape(self.targets_VT.shape)
        if self.classes:
            return prediction_loss(predictions_VT, self.targets_VT, classes=True)
        # Targets come in units of their own, of which squares may underflow.
        exponents_T = -torch.frexp(self.targets_VT.abs().amax(dim=0)).exponent
        scaled_VT, errors_VT = (
            torch.ldexp(values_VT, exponents_T) for values_VT in (self.targets_VT, predictions_VT - self.targets_VT)
        )
        means_T = scaled_VT.square().mean(dim=0)
        return float((errors_VT.square().mean(dim=0) / means_T.where(means_T > 0, 1.0)).mean())


def prediction_loss(predictions_VT: torch.Tensor, targets_VT: torch.Tensor, *, classes: bool) -> float:
    """Return the share of wrong classes of one-hot targets, or the mean square error of real ones, in their units."""
    if classes:
        return float((predictions_VT.argmax(dim=1) != targets_VT.argmax(dim=1)).double().mean())
    return float((predictions_VT - targets_VT).square().mean())
