"""The model of a run: built by a callable, loaded from weights that are never unpickled."""

import io

import safetensors
import safetensors.torch
import torch
from torch import nn

from ntkpipe.configs.errors import ConfigError
from ntkpipe.configs.sources import PythonModel
from ntkpipe.storage.assets import check_unpacked, read_asset
from ntkpipe.workers.sources.imports import call
from ntkpipe.workers.sources.tensors import tensors_digest

DTYPES = {"float32": torch.float32, "float64": torch.float64}


def load_model(config: PythonModel) -> nn.Module:
    """Build the model and load its weights, on the CPU and in the run's precision.

    Raises:
        ConfigError: The callable returns no module, or the weights do not fit it.
    """
    model = call(config.target, config.options)
    if not isinstance(model, nn.Module):
        raise ConfigError(f"{config.target} returned a {type(model).__name__}; expected a torch.nn.Module.")
    if config.weights is not None:
        _load_weights(model, config.weights)
    if config.mode == "eval":
        model.eval()
    return model.to(device="cpu", dtype=DTYPES[config.dtype])


def usable_device(name: str) -> torch.device:
    """Return a device of this machine; ``auto`` is a GPU if there is one, otherwise the CPU.

    Raises:
        ConfigError: There is none of this name.
    """
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        device = torch.device(name)
        torch.empty(1, device=device)
    # PyTorch asserts that it was built with CUDA.
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        raise ConfigError(f"resources.device = {name!r} cannot be used here: {str(error).splitlines()[0]}") from None
    return device


def check_device(name: str, *, is_here: bool) -> None:
    """Refuse a device that no worker of a run could have; it would be waited for without end. Nothing is allocated on it.

    Args:
        name: Of a PyTorch device, or ``auto``.
        is_here: Whether all workers are on this machine.

    Raises:
        ConfigError: PyTorch knows no such device, or it is a GPU and there is none.
    """
    if name == "auto":
        return
    try:
        kind = torch.device(name).type
    except RuntimeError as error:
        raise ConfigError(f"resources.device = {name!r} cannot be used here: {str(error).splitlines()[0]}") from None
    if is_here and kind == "cuda" and not torch.cuda.is_available():
        raise ConfigError(
            f"resources.device = {name!r} cannot be used here: PyTorch sees no GPU on this machine. Set resources.device to "
            "cpu or auto, or resources.address to a cluster that has GPUs."
        )


def weights_digest(model: nn.Module) -> str:
    """Return the SHA-256 of all parameters and buffers, by name, dtype, shape and bytes."""
    return tensors_digest(model.state_dict())


def load_tensors(url: str) -> dict[str, torch.Tensor]:
    """Read a safetensors file.

    Raises:
        ConfigError: It is none.
    """
    try:
        return safetensors.torch.load(read_asset(url))
    except safetensors.SafetensorError as error:
        raise ConfigError(f"{url} is not a safetensors file: {error}") from None


def _reason(error: Exception) -> str:
    """Return what a reader says, without PyTorch's advice to read the file in a way that runs code."""
    lines = [line.strip() for line in str(error).splitlines() if "weights_only" not in line]
    return " ".join(line for line in lines if line).rstrip(".") or type(error).__name__


def _load_weights(model: nn.Module, url: str) -> None:
    data = read_asset(url)
    check_unpacked(url, data)
    try:
        if url.endswith(".safetensors"):
            state = safetensors.torch.load(data)
        else:
            state = torch.load(io.BytesIO(data), map_location="cpu", weights_only=True)
    except Exception as error:  # noqa: BLE001 - a file that is no state dict can make the readers raise anything
        raise ConfigError(
            f"{url} is not a safetensors file or a plain state dict: {_reason(error)}. Objects in it are never built, "
            "because that would run code of whoever made the file: save model.state_dict(), best as safetensors."
        ) from None
    if not isinstance(state, dict):
        raise ConfigError(f"{url} holds a {type(state).__name__}; expected a state dict.")
    try:
        model.load_state_dict(state, strict=True)
    except RuntimeError as error:
        details = " ".join(str(error).split())
        raise ConfigError(f"{url} does not fit the model: {details}") from None
