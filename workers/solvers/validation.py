"""How good coefficients are on samples that no solver sees."""

from dataclasses import dataclass
from typing import final

import torch

from ntkpipe.configs.errors import ConfigError
from ntkpipe.workers.operators.checks import check_finite
from ntkpipe.workers.operators.rectangle import AbstractRectangle, DenseRectangle


@final
@dataclass(frozen=True, slots=True)
class Validation:
    """Samples that are held out: a solve ends when it gets worse on them, with the coefficients that did best."""

    kernel: AbstractRectangle | torch.Tensor
    """(V, N) between them and the samples of the system."""
    targets: torch.Tensor
    """(V, T)."""
    classes: bool = True
    """Whether targets are one-hot classes, so that the loss is the share of wrong classes; else the mean square."""
    patience: int = 2
    """Steps without a smaller loss after which the solve ends."""

    def check(self, num_samples: int, num_targets: int) -> None:
        """Refuse samples that do not fit a system.

        Raises:
            ConfigError: Shapes are wrong, or one column cannot tell classes apart.
            NumericalError: Targets hold NaN or infinity.
        """
        found = (tuple(self.kernel.shape), tuple(self.targets.shape))
        num_held_out = len(self.targets)
        if found != ((num_held_out, num_samples), (num_held_out, num_targets)) or not num_held_out:
            raise ConfigError(
                f"held-out samples have a kernel of shape {found[0]} and targets of shape {found[1]}; expected "
                f"(V, {num_samples}) and (V, {num_targets}) with V >= 1."
            )
        if self.classes and num_targets == 1:
            raise ConfigError("held-out classes need a column per class; pass classes=False for real targets.")
        check_finite("the held-out targets", self.targets)

    def loss(self, alpha_NT: torch.Tensor) -> float:
        """Return the loss of coefficients; one pass over the kernel."""
        kernel = DenseRectangle(self.kernel) if isinstance(self.kernel, torch.Tensor) else self.kernel
        predictions_VT = kernel.matmat(alpha_NT.double())
        if self.classes:
            return float((predictions_VT.argmax(dim=1) != self.targets.argmax(dim=1)).double().mean())
        return float((predictions_VT - self.targets.double()).square().mean())
