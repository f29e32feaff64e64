"""What may not leave the library: values that are not finite, norms that are lost, samples that do not fit."""

import torch

from ntkpipe.configs.errors import ConfigError, NumericalError
from ntkpipe.workers.kernels.definitions import KernelDefinition
from ntkpipe.workers.kernels.features import SampleFeatures


def check_finite(values: torch.Tensor, kernel: str) -> torch.Tensor:
    """Return values if all of them are finite.

    Raises:
        NumericalError: They are not; names the sample.
    """
    # One sample without a finite gradient spoils an entry of every other one, so the worst row is the culprit.
    num_bad = (~torch.isfinite(values)).sum(dim=1)
    if int(num_bad.max()):
        raise NumericalError(
            f"kernel {kernel!r} is not finite for sample {int(num_bad.argmax())}: its gradient overflows or is "
            "undefined. Try dtype=torch.float64, or look for a non-differentiable point."
        )
    return values


def checked_norms(found: SampleFeatures) -> torch.Tensor:
    """Return the diagonal.

    Raises:
        NumericalError: A norm is lost in the precision of the computation.
    """
    if found.underflow_B.any():
        raise NumericalError(
            "the gradient of a sample is so small that its squared norm is lost in float32. Use dtype=torch.float64."
        )
    return found.diagonal


def checked_inputs(inputs: object) -> torch.Tensor:
    """Return inputs of a kernel.

    Raises:
        ConfigError: They are no tensor of samples, or a sample is not finite.
    """
    if not isinstance(inputs, torch.Tensor):
        raise ConfigError(f"inputs must be a torch.Tensor of shape (N, ...), found {type(inputs).__name__}.")
    if inputs.dim() == 0:
        raise ConfigError("inputs must have shape (N, ...), found a single number.")
    if len(inputs) == 0:
        raise ConfigError("there are no samples: the inputs have length 0.")
    if inputs.is_floating_point():
        bad = (~torch.isfinite(inputs).reshape(len(inputs), -1).all(1)).nonzero()
        if len(bad):
            raise ConfigError(f"sample {int(bad[0, 0])} of the inputs is NaN or infinite.")
    return inputs


def matching_labels(
    kernel: str, definition: KernelDefinition, labels: torch.Tensor | None, num_samples: int
) -> torch.Tensor | None:
    """Return the labels that a kernel depends on; None for one that does not.

    Raises:
        ConfigError: They are missing, or not as many as there are samples.
    """
    if definition.functional is None or not definition.functional.needs_labels:
        return None
    if labels is None:
        raise ConfigError(f"kernel {kernel!r} depends on labels; give y, and y2 for x2.")
    if len(labels) != num_samples:
        raise ConfigError(f"kernel {kernel!r}: there are {num_samples} samples but {len(labels)} labels.")
    return labels
