"""Second moments of gradients, and the scales that they turn into."""

from collections.abc import Iterable, Mapping, Sequence

import torch

from ntkpipe.configs.errors import ConfigError
from ntkpipe.workers.jacobians.engine import Factors
from ntkpipe.workers.jacobians.factors.base import slice_width
from ntkpipe.workers.jacobians.factors.entrywise import EntrywiseFactor, unchanged
from ntkpipe.workers.jacobians.routes import ParameterRoute


def gradient_scales(moments: Mapping[str, torch.Tensor], *, exponent: float, eps: float) -> dict[str, torch.Tensor]:
    """Return (v + eps)^(exponent / 2): both sides of an inner product are scaled, which gives (v + eps)^exponent.

    Raises:
        ConfigError: A second moment is negative or not finite.
    """
    for name, value in moments.items():
        if not bool((value >= 0).all()) or not bool(torch.isfinite(value).all()):
            raise ConfigError(f"what scales the gradients of parameter {name!r} must be finite and not negative.")
    return {name: (value.double() + eps) ** (exponent / 2) for name, value in moments.items()}


def check_moments(moments: Mapping[str, torch.Tensor], routes: Sequence[ParameterRoute], origin: str) -> None:
    """Refuse moments that do not belong to the model.

    Raises:
        ConfigError: A parameter has none, or they have another shape.
    """
    for route in routes:
        found = moments.get(route.name)
        if found is None or tuple(found.shape) != tuple(route.shape):
            shape = "none" if found is None else f"some of shape {tuple(found.shape)}"
            raise ConfigError(
                f"{origin}: parameter {route.name!r} of shape {tuple(route.shape)} needs second moments, found {shape}."
            )


def mean_squares(batches: Iterable[Factors]) -> dict[str, torch.Tensor]:
    """Return the mean over samples of the squared gradients, summed over output vectors, (P,) in float64 by parameter.

    Memory is O(P).
    """
    totals: dict[str, torch.Tensor] = {}
    num_samples = 0
    for factors in batches:
        for name, factor in factors.items():
            total_P = totals.setdefault(name, torch.zeros(factor.numel, dtype=torch.float64, device=factor.like.device))
            # Entry by entry: slices of some factors overlap and would have to be added up before they are squared.
            for offset, gradients_BW in EntrywiseFactor(factor, unchanged).slices(slice_width(factor.num_samples)):
                first = offset % factor.numel
                total_P[first : first + gradients_BW.shape[1]] += gradients_BW.double().square().sum(dim=0)
        num_samples += next(iter(factors.values())).num_samples
    return {name: total_P / num_samples for name, total_P in totals.items()}
