"""Why each parameter is computed the way it is: predicted times of the ways there are, for one sample or one pair.

Ways are chosen again for every batch, by its size; what is shown here is for a full batch.
"""

from dataclasses import dataclass

from ntkpipe.workers.jacobians.engine import Factors
from ntkpipe.workers.jacobians.factors.base import AbstractFactor
from ntkpipe.workers.jacobians.factors.outer import OuterFactor
from ntkpipe.workers.jacobians.rates import rates_of
from ntkpipe.workers.projections.base import AbstractProjection


@dataclass(frozen=True, slots=True)
class Choice:
    """How a kernel handles one parameter."""

    way: str
    """What is done: ``transforms``, ``gradients``, ``rows`` or ``position pairs``."""
    seconds: float
    """Predicted for each sample (projected) or pair of samples (exact)."""
    others: dict[str, float]
    """The ways that were not taken."""


def projected_choices(
    factors: Factors, num_vectors: int, batch: int, projection: AbstractProjection
) -> dict[str, Choice]:
    """Return how a projection handles every parameter, per sample."""
    found = {}
    for name, factor in factors.items():
        wide = stretched(factor, batch, num_vectors)
        found[name] = _cheapest(projection.ways(wide), wide.num_samples)
    return found


def exact_choices(factors: Factors, num_vectors: int, batch: int) -> dict[str, Choice]:
    """Return how an exact kernel handles every parameter, per pair of samples."""
    found = {}
    for name, factor in factors.items():
        wide = stretched(factor, batch, num_vectors)
        found[name] = _cheapest(exact_ways(wide, num_vectors), wide.num_samples**2)
    return found


def exact_ways(factor: AbstractFactor, num_vectors: int) -> dict[str, float]:
    """Return the predicted seconds of the products of a batch with itself, for every way to compute them."""
    if isinstance(factor, OuterFactor):
        pairs, gradients = factor.gram_seconds(factor)
        return {"position pairs": pairs, "gradients": gradients}
    entries = factor.num_samples**2 * num_vectors * factor.numel
    return {"gradients": rates_of(factor.like.device).matmul(2.0 * entries)}


def stretched(factor: AbstractFactor, batch: int, num_vectors: int) -> AbstractFactor:
    """Return a factor of a whole batch and all output vectors that takes no memory: views of one sample's."""
    part = factor.parts()[-1]
    if not isinstance(part, OuterFactor):
        return part
    (inputs,), (deltas_BVTO,) = part.tensors()
    return part.like_this(
        inputs[:1].expand(batch, *inputs.shape[1:]), deltas_BVTO[:1, :1].expand(batch, num_vectors, -1, -1)
    )


def _cheapest(ways: dict[str, float], count: int) -> Choice:
    each = {way: seconds / count for way, seconds in ways.items()}
    way = min(each, key=lambda name: each[name])
    return Choice(way, each.pop(way), each)
