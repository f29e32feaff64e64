"""From what a caller has to tensors that solvers take."""

from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from ntkpipe.configs.errors import ConfigError

Matrix = torch.Tensor | npt.NDArray[Any]


def as_tensor(name: str, values: Matrix) -> torch.Tensor:
    """Return a tensor or an array as a real tensor on the CPU, without a gradient.

    Integers become float64, half precision float32, in which it is exact and for which there are fast products; arrays
    are copied.

    Raises:
        ConfigError: It is something else, or not of real numbers.
    """
    if isinstance(values, np.ndarray):
        if values.dtype.kind not in "biuf":
            raise ConfigError(f"{name} must be real numbers, found an array of {values.dtype}.")
        # Longer floats than float64, and byte orders of other machines, are unknown to torch.
        known = values.dtype.isnative and values.dtype.itemsize <= 8
        tensor = torch.from_numpy(np.array(values, dtype=None if known else np.float64))
    else:
        tensor = values
    if not isinstance(tensor, torch.Tensor):
        raise ConfigError(f"{name} must be a tensor or an array, found {type(values).__name__}.")
    if tensor.is_complex():
        raise ConfigError(f"{name} must be real, found {tensor.dtype}.")
    tensor = tensor.detach().cpu()
    if not tensor.is_floating_point():
        return tensor.double()
    return tensor if tensor.dtype in (torch.float32, torch.float64) else tensor.float()


def as_columns(name: str, values: Matrix) -> torch.Tensor:
    """Return (N,) or (N, T) values as (N, T) float64."""
    tensor = as_tensor(name, values).double()
    return tensor.unsqueeze(1) if tensor.dim() == 1 else tensor
