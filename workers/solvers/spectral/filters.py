"""Spectral filters: by how much each eigenvalue answers.

A filter h turns targets into coefficients alpha = V h(l) V^T y, so that predictions on the samples are V l h(l) V^T y.
l h(l), from 0 to 1, is the share of a direction that is learned, and its sum the effective degrees of freedom (Lo
Gerfo, Rosasco, Odone, De Vito, Verri: "Spectral algorithms for supervised learning", Neural Computation 2008).
"""

import torch

from ntkpipe.configs.errors import ConfigError
from ntkpipe.configs.solve.spectral import FilterSolve

SMALL = 0.5
"""Below this step times eigenvalue, powers of one minus it lose digits and go through logarithms."""


def response(config: FilterSolve, values_Q: torch.Tensor, ridge: float, largest: float, size: int) -> torch.Tensor:
    """Return h at eigenvalues of at least 0, float64.

    Args:
        config: Which filter.
        values_Q: Eigenvalues of K.
        ridge: In the units of K.
        largest: The largest eigenvalue.
        size: N.

    Raises:
        ConfigError: The step size or the inverse Laplacian does not fit the largest eigenvalue.
    """
    if config.filter == "ridge":
        return (values_Q + ridge).reciprocal()
    if config.filter == "iterated-ridge":
        return _iterated(values_Q / (values_Q + ridge), values_Q, _number(config.num_iterations), 1 / ridge)
    if config.filter == "gradient-flow":
        time = float(config.time or 0.0)
        return _share(-torch.expm1(-time * values_Q), values_Q, time)
    if config.filter == "gradient-descent":
        step = config.step_size if config.step_size is not None else 1 / largest if largest > 0 else 1.0
        if step * largest >= 2:
            raise ConfigError(
                f"gradient descent with step_size {step:g} diverges: the largest eigenvalue is {largest:g}; expected "
                f"less than {2 / largest:g}. Leave step_size out for {1 / largest:g}."
            )
        return _iterated(step * values_Q, values_Q, _number(config.num_iterations), step)
    if config.filter == "cutoff":
        kept_Q = values_Q > (config.threshold or torch.finfo(torch.float64).eps * size) * largest
        return values_Q.reciprocal().where(kept_Q, 0.0)
    ratio_Q = _transformed(config, values_Q, largest, size)
    return ratio_Q / (values_Q * ratio_Q + ridge)


def _number(num_iterations: int | None) -> int:
    assert num_iterations is not None
    return num_iterations


def _share(learned_Q: torch.Tensor, values_Q: torch.Tensor, limit: float) -> torch.Tensor:
    """Return the learned share over the eigenvalue; its limit where that is zero."""
    return (learned_Q / values_Q).where(values_Q > 0, limit)


def _iterated(step_Q: torch.Tensor, values_Q: torch.Tensor, num: int, slope: float) -> torch.Tensor:
    """Return (1 - (1 - step)^num) / l, whose limit at l = 0 is num times the slope of step."""
    learned_Q = -torch.expm1(num * torch.log1p(-step_Q.clamp_max(SMALL)))
    return _share(learned_Q.where(step_Q <= SMALL, 1 - (1 - step_Q) ** num), values_Q, num * slope)


def _transformed(config: FilterSolve, values_Q: torch.Tensor, largest: float, size: int) -> torch.Tensor:
    """Return s(l) / l: sum of pi_p (l / N)^(p - 1)."""
    if config.inverse_laplacian is None:
        ratio_Q = torch.zeros_like(values_Q)
        for power in reversed(config.powers):
            ratio_Q = ratio_Q * (values_Q / size) + power
        return ratio_Q
    if config.inverse_laplacian * largest >= size:
        raise ConfigError(
            f"inverse_laplacian {config.inverse_laplacian:g} is too large for the largest eigenvalue {largest:g}; "
            f"expected less than N / largest eigenvalue = {size / largest:g}."
        )
    return (1 - config.inverse_laplacian * values_Q / size).reciprocal()
