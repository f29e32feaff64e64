"""Which parameters a kernel is made of, and with what weights."""

import re
from collections.abc import Mapping, Sequence
from fnmatch import fnmatchcase

import torch
from torch import nn

from ntkpipe.configs.base import unknown_name
from ntkpipe.configs.errors import ConfigError
from ntkpipe.workers.jacobians.coverage import select_parameters

Patterns = Sequence[str] | Mapping[str, float]
"""Shell-style patterns or ``last:<n>``, alone or with weights."""


def parameter_weights(model: nn.Module, patterns: Patterns | None, inputs: torch.Tensor) -> dict[str, float]:
    """Return the weight of every parameter that a kernel is made of, in the model's order.

    Args:
        model: The model.
        patterns: A parameter's weight is that of the first pattern it matches, 1 without weights; parameters that match
            none, or with weight 0, are left out. ``last:2`` matches those of the last two modules that have any, in the
            order in which the model calls them. None takes all trainable parameters.
        inputs: A sample or more, to see that order.

    Raises:
        ConfigError: A pattern matches no trainable parameter, or nothing is left.
    """
    names = select_parameters(model)
    if patterns is None:
        return dict.fromkeys(names, 1.0)
    if isinstance(patterns, str):
        patterns = [patterns]
    weights = dict(patterns) if isinstance(patterns, Mapping) else dict.fromkeys(patterns, 1.0)
    if not weights:
        raise ConfigError("parameters is empty; name at least one parameter, or leave it out to take all.")
    matches = {pattern: _matching(model, pattern, names, inputs) for pattern in weights}
    for pattern, matching in matches.items():
        if not matching:
            raise ConfigError(unknown_name("parameter", pattern, names))
    found: dict[str, float] = {}
    for name in names:
        weight = next((weights[pattern] for pattern, matching in matches.items() if name in matching), 0.0)
        if weight < 0:
            raise ConfigError(
                f"the weight {weight} of parameter {name!r} is negative: the kernel would not be positive."
            )
        if weight:
            found[name] = weight
    if not found:
        raise ConfigError("all weights of parameters are 0; no parameter is left.")
    return found


def _matching(model: nn.Module, pattern: str, names: Sequence[str], inputs: torch.Tensor) -> set[str]:
    last = re.fullmatch(r"last:([1-9]\d*)", pattern)
    if last is None:
        return {name for name in names if fnmatchcase(name, pattern)}
    owners = _called_owners(model, names, inputs)
    order = list(dict.fromkeys(owners.values()))
    wanted = sorted(order, key=lambda owner: owner[0])[-int(last[1]) :]
    return {name for name, owner in owners.items() if owner in wanted}


def _called_owners(model: nn.Module, names: Sequence[str], inputs: torch.Tensor) -> dict[str, tuple[int, str]]:
    """Return, for every parameter, the module that owns it and the number of its last call.

    A module whose parameters are used without a call of its own, such as the projection inside an attention layer, goes
    with the module around it.
    """
    order: list[str] = []
    handles = [
        module.register_forward_pre_hook(lambda *_, name=name: order.append(name))
        for name, module in model.named_modules()
    ]
    try:
        with torch.no_grad():
            model(inputs[:1])
    finally:
        for handle in handles:
            handle.remove()
    calls = {name: number for number, name in enumerate(order)}
    owners = {}
    for name in names:
        owner = name.rpartition(".")[0]
        while owner not in calls and owner:
            owner = owner.rpartition(".")[0]
        owners[name] = calls[owner], owner
    return owners
