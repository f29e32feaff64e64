"""What the leaf modules of a model return, sample by sample."""

import fnmatch
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any, final

import torch
from torch import nn

from ntkpipe.configs.base import unknown_name
from ntkpipe.configs.errors import ConfigError, CoverageError

AGREEMENT = {torch.float32: 1e-3, torch.float64: 1e-8}
"""How far a sample's activations may differ, relative to the largest one, between a batch and the sample alone."""


@final
class ActivationRecorder:
    """Records the outputs of modules during a forward pass.

    A module that is called several times gives one output per call: ``relu``, ``relu#2``, ``relu#3``.

    Attributes:
        outputs: (B, D) by module and call, in the order of the calls.
    """

    def __init__(self, model: nn.Module, modules: Sequence[str], num_samples: int) -> None:
        wanted = set(modules)
        self._modules = [(name, module) for name, module in model.named_modules() if name in wanted]
        self._num_samples = num_samples
        self._counts: Counter[str] = Counter()
        self.outputs: dict[str, torch.Tensor] = {}

    def __enter__(self) -> "ActivationRecorder":
        self._handles = [module.register_forward_hook(self._hook(name)) for name, module in self._modules]
        return self

    def __exit__(self, *_: object) -> None:
        for handle in self._handles:
            handle.remove()

    def _hook(self, name: str) -> Callable[[nn.Module, Any, Any], None]:
        def record(module: nn.Module, arguments: Any, output: Any) -> None:
            value = output[0] if isinstance(output, tuple | list) and output else output
            if not isinstance(value, torch.Tensor) or value.dim() == 0 or len(value) != self._num_samples:
                found = tuple(value.shape) if isinstance(value, torch.Tensor) else type(value).__name__
                raise CoverageError(
                    f"module {name!r} returns {found} for {self._num_samples} samples; kernel 'em' needs outputs whose "
                    "first axis is that of the samples. Leave the module out with the kernel's option modules."
                )
            self._counts[name] += 1
            call = name if self._counts[name] == 1 else f"{name}#{self._counts[name]}"
            # What follows may write into it, as in-place activations do.
            self.outputs[call] = value.detach().flatten(1).clone()

        return record


def leaf_modules(model: nn.Module, patterns: Sequence[str] | None) -> list[str]:
    """Return the names of the leaf modules that match, in the order of registration.

    Args:
        model: To be looked at.
        patterns: Shell-style; None matches all.

    Raises:
        ConfigError: A pattern matches no leaf module.
    """
    leaves = [name for name, module in model.named_modules() if name and not list(module.children())]
    if patterns is None:
        return leaves
    for pattern in patterns:
        if not fnmatch.filter(leaves, pattern):
            raise ConfigError(
                f"no leaf module of the model matches {pattern!r}. {unknown_name('module', pattern, leaves)}"
            )
    return [name for name in leaves if any(fnmatch.fnmatchcase(name, pattern) for pattern in patterns)]


def called_modules(model: nn.Module, patterns: Sequence[str] | None, inputs: torch.Tensor) -> tuple[str, ...]:
    """Return the calls of leaf modules that a forward pass makes, after checking that samples do not mix in them.

    Args:
        model: In eval mode.
        patterns: As for :func:`leaf_modules`.
        inputs: A few samples.

    Raises:
        ConfigError: No module is called, or a pattern matches none.
        CoverageError: A module's output for a sample depends on the batch, or has no axis of samples.
    """
    modules = leaf_modules(model, patterns)
    together = _recorded(model, modules, inputs)
    if not together:
        raise ConfigError("the model calls none of the leaf modules whose outputs kernel 'em' multiplies.")
    for position in range(min(2, len(inputs))):
        alone = _recorded(model, modules, inputs[position : position + 1])
        if list(alone) != list(together):
            raise CoverageError("which modules the model calls depends on its input, which kernel 'em' cannot follow.")
        for name, value_1D in alone.items():
            expected_D = together[name][position]
            limit = AGREEMENT.get(value_1D.dtype, 1e-2) * float(expected_D.abs().max()) if expected_D.numel() else 0.0
            if value_1D.shape[1] != len(expected_D) or not bool(((value_1D[0] - expected_D).abs() <= limit).all()):
                raise CoverageError(
                    f"what module {name!r} returns for a sample depends on the other samples of the batch, or its first "
                    "axis is not that of the samples. Leave it out with the kernel's option modules."
                )
    return tuple(together)


def _recorded(model: nn.Module, modules: Sequence[str], inputs: torch.Tensor) -> dict[str, torch.Tensor]:
    with torch.no_grad(), ActivationRecorder(model, modules, len(inputs)) as recorder:
        model(inputs)
    return recorder.outputs


def module_of(call: str) -> str:
    """Return the module of a call such as ``relu#2``."""
    return call.partition("#")[0]
