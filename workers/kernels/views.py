"""What a kernel takes of a batch: which gradients or activations, after which function of their entries."""

from collections.abc import Hashable, Mapping
from dataclasses import dataclass
from typing import Literal

import torch

from ntkpipe.configs.errors import CoverageError
from ntkpipe.workers.jacobians.activations import module_of
from ntkpipe.workers.jacobians.coverage import NOISE
from ntkpipe.workers.jacobians.engine import BatchJacobian, Factors
from ntkpipe.workers.jacobians.factors.base import AbstractFactor
from ntkpipe.workers.jacobians.factors.dense import DenseFactor
from ntkpipe.workers.jacobians.factors.entrywise import EntrywiseFactor, scaled_by, signs, unchanged
from ntkpipe.workers.kernels.definitions import Entries, KernelDefinition

Side = Literal["rows", "columns"]

PENULTIMATE = "penultimate"
OUTPUTS = "outputs"
"""Names of the only factor of kernels of those activations."""


@dataclass(frozen=True, slots=True)
class View:
    """One way to look at a batch; kernels with equal views share the products of its factors."""

    definition: KernelDefinition
    calls: tuple[str, ...] = ()
    """For kernels of modules: the calls whose outputs are multiplied."""
    modules: tuple[str, ...] = ()
    """All modules that would belong to the kernel if the model called them."""
    scales: Mapping[str, torch.Tensor] | None = None
    """By parameter, in its shape: gradients are multiplied by them, coordinate by coordinate."""
    scales_of: str = ""
    """Names the scales."""

    @property
    def key(self) -> Hashable:
        """Equal for views that see the same."""
        one = self.definition
        return (one.source, one.per_output, one.row_entries, one.column_entries, self.calls, self.scales_of)

    @property
    def base_key(self) -> Hashable:
        """Equal for views with the same :meth:`base`."""
        return (self.definition.source, self.calls)

    @property
    def symmetric(self) -> bool:
        """Whether rows and columns contribute the same."""
        return self.definition.row_entries == self.definition.column_entries

    def base(self, jacobian: BatchJacobian) -> Factors:
        """Return the factors of a batch, before any function of their entries.

        Raises:
            CoverageError: The kernel needs the penultimate activations of a model that has none, or a module that is not
                called on the model's path for these samples.
        """
        source = self.definition.source
        if source == "penultimate":
            return {PENULTIMATE: _activations(penultimate(jacobian))}
        if source == "outputs":
            return {OUTPUTS: _activations(jacobian.outputs_BC)}
        if source == "modules":
            found = [call for call in jacobian.activations if module_of(call) in self.modules]
            if found != list(self.calls):
                raise CoverageError(
                    "for some samples the model calls other modules than for those that were looked at before: "
                    f"expected {', '.join(self.calls)}; found {', '.join(found)}."
                )
            return {call: _activations(jacobian.activations[call]) for call in self.calls}
        return jacobian.factors[source]

    def of(self, base: Factors, side: Side) -> Factors:
        """Return the factors that are multiplied, from those of :meth:`base`, on one side of the product."""
        found = dict(base)
        if self.scales is not None:
            found = {name: EntrywiseFactor(factor, scaled_by(self.scales[name])) for name, factor in found.items()}
        if self.takes_signs:
            found = _signed(found) if self._entries(side) == "signs" else _unchanged(found)
        return {name: factor.per_output() for name, factor in found.items()} if self.definition.per_output else found

    @property
    def takes_signs(self) -> bool:
        """Whether either side of the product is of signs; both are then materialised, in the same slices."""
        return "signs" in (self.definition.row_entries, self.definition.column_entries)

    def _entries(self, side: Side) -> Entries:
        return self.definition.row_entries if side == "rows" else self.definition.column_entries


def _unchanged(factors: Mapping[str, AbstractFactor]) -> dict[str, AbstractFactor]:
    return {name: EntrywiseFactor(factor, unchanged) for name, factor in factors.items()}


def _signed(factors: Mapping[str, AbstractFactor]) -> dict[str, AbstractFactor]:
    """Take signs of entries; those that are rounding beside a sample's largest entry have none."""
    largest = [EntrywiseFactor(factor, unchanged).largest_entries() for factor in factors.values()]
    floors_B = torch.stack(largest).amax(dim=0)
    floors_B *= NOISE[floors_B.dtype]
    return {name: EntrywiseFactor(factor, signs, floors_B) for name, factor in factors.items()}


def penultimate(jacobian: BatchJacobian) -> torch.Tensor:
    """Return the (B, D) input of the final Linear layer.

    Raises:
        CoverageError: The model does not end in a Linear layer.
    """
    if jacobian.penultimate_BD is None:
        raise CoverageError(
            "kernel 'ck' is the inner product of the inputs of a final Linear layer, but the model's output is not the "
            "output of its last Linear layer. Remove what follows that layer, or leave 'ck' out."
        )
    return jacobian.penultimate_BD


def _activations(values_BD: torch.Tensor) -> DenseFactor:
    # One row per activation, as a vector parameter has one per entry.
    return DenseFactor(values_BD.unsqueeze(1), (values_BD.shape[1],))
