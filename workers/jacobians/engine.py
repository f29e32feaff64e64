"""From a batch of inputs to the gradient factors of every parameter, for all output functionals in one pass."""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import final

import torch
from torch import nn

from ntkpipe.configs.errors import CoverageError
from ntkpipe.workers.jacobians.capture import Capture
from ntkpipe.workers.jacobians.factors.base import AbstractFactor
from ntkpipe.workers.jacobians.factors.dense import DenseFactor
from ntkpipe.workers.jacobians.fallback import looped_gradients, vectorised_gradients
from ntkpipe.workers.jacobians.functionals import Functional
from ntkpipe.workers.jacobians.interception import Gradients
from ntkpipe.workers.jacobians.routes import ParameterRoute

TRACE = Functional("trace")

Factors = Mapping[str, AbstractFactor]
"""Parameter name to its gradients, in the order of the routes."""


@dataclass(frozen=True, slots=True)
class Portion:
    """What one pass over a batch computes: all output vectors of some functionals, or some of those of one."""

    functionals: frozenset[Functional]
    vectors: tuple[int, int] | None = None
    """First and last plus one of the output vectors; None for all."""
    modules: tuple[str, ...] = ()
    """Modules whose outputs are wanted too."""


def portions(
    functionals: Collection[Functional], num_outputs: int, max_vectors: int, modules: tuple[str, ...] = ()
) -> list[Portion]:
    """Cut functionals into passes of at most ``max_vectors`` output vectors; what they give is added up.

    Outputs of modules come with a pass without functionals where there are several passes.
    """
    num_vectors = {functional: functional.num_vectors(num_outputs) for functional in functionals}
    if sum(num_vectors.values()) <= max_vectors or not functionals:
        return [Portion(frozenset(functionals), modules=modules)]
    return [*([Portion(frozenset(), modules=modules)] if modules else []), *_cut(num_vectors, max_vectors)]


def _cut(num_vectors: Mapping[Functional, int], max_vectors: int) -> list[Portion]:
    return [
        Portion(frozenset({functional}), (first, min(first + max_vectors, num)))
        for functional, num in sorted(num_vectors.items(), key=lambda item: repr(item[0]))
        for first in range(0, num, max_vectors)
    ]


@dataclass(frozen=True, slots=True)
class BatchJacobian:
    """Everything one pass over a batch gives."""

    outputs_BC: torch.Tensor
    penultimate_BD: torch.Tensor | None
    """Input of the final Linear layer, None if the model does not end in one."""
    factors: dict[Functional, Factors]
    activations: dict[str, torch.Tensor]
    """(B, D) outputs of the modules that were asked for, by call."""


@final
class JacobianEngine:
    """Computes gradient factors along the routes that were found for a model.

    One forward pass and one data-only backward pass per output vector serve all functionals. Where the functionals
    together have as many vectors as the model has outputs, or more, the passes are those of the outputs, and each
    functional is a linear combination of their gradients.

    Attributes:
        model: The model, which is not changed.
        names: Of the differentiated parameters.
    """

    def __init__(self, model: nn.Module, routes: Sequence[ParameterRoute]) -> None:
        self.model = model
        self.names = [route.name for route in routes]
        parameters = dict(model.named_parameters())
        self._layouts = {parameters[route.name]: route.layout for route in routes if route.route == "captured"}
        self._captured = {parameters[route.name]: route.name for route in routes if route.route == "captured"}
        self._vmap = [route.name for route in routes if route.route == "vmap"]
        self._loop = [route.name for route in routes if route.route == "loop"]
        self._batched = True
        self._shapes = {route.name: route.shape for route in routes}

    def num_outputs(self, inputs: torch.Tensor) -> int:
        """Return C."""
        return Capture(self.model, {}, inputs).outputs_BC.shape[1]

    def capture(self, inputs: torch.Tensor, modules: Sequence[str] = ()) -> Capture:
        """Run the model forward and record its operations, and what some modules return."""
        return Capture(self.model, self._layouts, inputs, modules)

    def run(
        self,
        inputs: torch.Tensor,
        portion: Portion,
        labels: torch.Tensor | None = None,
        *,
        capture: Capture | None = None,
    ) -> BatchJacobian:
        """Compute the factors of all parameters for a batch; memory is O(batch).

        Args:
            inputs: (B, ...).
            portion: Which contractions over the outputs.
            labels: Of the samples, for functionals that depend on them.
            capture: A forward pass over the same inputs, if there has been one.

        Raises:
            ConfigError: A functional needs labels that are missing or do not fit.
            CoverageError: The model's path through its layers depends on the samples.
        """
        capture = capture or self.capture(inputs, portion.modules)
        outputs_BC = capture.outputs_BC.detach()
        if not portion.functionals:
            return BatchJacobian(outputs_BC, capture.penultimate_BD, {}, capture.activations)
        if escaped := capture.escaped():
            raise _other_path(f"parameter {self._captured[escaped.pop()]!r} is used in another way")
        wanted = {
            functional: functional.cotangents(outputs_BC, labels)
            for functional in sorted(portion.functionals, key=repr)
        }
        found: dict[Functional, Factors]
        if portion.vectors is not None:
            first, last = portion.vectors
            found = {
                functional: self._part(capture, inputs, vectors_VBC[first:last], first)
                for functional, vectors_VBC in wanted.items()
            }
        elif len(wanted) > 1 and sum(map(len, wanted.values())) >= outputs_BC.shape[1]:
            base = _Gradients.of(self, capture, inputs, TRACE.cotangents(outputs_BC, None))
            found = {TRACE: self._assemble(capture, base)} if wanted.pop(TRACE, None) is not None else {}
            found |= self._split(capture, wanted, base.combined(torch.cat(list(wanted.values()))))
        else:
            vectors_VBC = torch.cat(list(wanted.values()))
            found = self._split(capture, wanted, _Gradients.of(self, capture, inputs, vectors_VBC))
        return BatchJacobian(outputs_BC, capture.penultimate_BD, found, capture.activations)

    def _split(
        self, capture: Capture, wanted: Mapping[Functional, torch.Tensor], gradients: "_Gradients"
    ) -> dict[Functional, Factors]:
        """Return the factors of every functional from gradients of all their vectors, one behind the other."""
        together = self._assemble(capture, gradients)
        parts = {name: factor.split([len(vectors) for vectors in wanted.values()]) for name, factor in together.items()}
        return {functional: {name: part[i] for name, part in parts.items()} for i, functional in enumerate(wanted)}

    def _part(self, capture: Capture, inputs: torch.Tensor, cotangents_VBC: torch.Tensor, first_vector: int) -> Factors:
        """Return the factors of some of the output vectors of a functional."""
        factors = self._assemble(capture, _Gradients.of(self, capture, inputs, cotangents_VBC))
        for factor in factors.values():
            for part in (factor, *factor.parts()):
                part.first_vector = first_vector
        return factors

    def _assemble(self, capture: Capture, gradients: "_Gradients") -> Factors:
        found: dict[str, AbstractFactor] = {
            self._captured[parameter]: factor for parameter, factor in capture.factors(gradients.calls).items()
        }
        if capture.misfits:
            raise _other_path("a layer is fed something other than the batch")
        for name, value_VBP in gradients.others.items():
            found[name] = DenseFactor(value_VBP.transpose(0, 1), self._shapes[name])
        for name in self.names:
            if name not in found:
                raise _other_path(f"parameter {name!r} is not used")
        return {name: found[name] for name in self.names}

    def _call_gradients(self, capture: Capture, cotangents_VBC: torch.Tensor) -> list[Gradients | None]:
        """Go back for all output vectors at once where the model allows it, else one by one."""
        if self._batched and len(cotangents_VBC) > 1:
            try:
                return capture.gradients(cotangents_VBC, batched=True)
            except RuntimeError:
                # An operation without batching rule; it will have none next time either.
                self._batched = False
        return capture.gradients(cotangents_VBC, batched=False)

    def _other_gradients(self, inputs: torch.Tensor, cotangents_VBC: torch.Tensor) -> dict[str, torch.Tensor]:
        gradients: dict[str, torch.Tensor] = {}
        if self._vmap:
            gradients |= vectorised_gradients(self.model, self._vmap, inputs, cotangents_VBC)
        if self._loop:
            gradients |= looped_gradients(self.model, self._loop, inputs, cotangents_VBC)
        return gradients


@dataclass(frozen=True, slots=True)
class _Gradients:
    """What backward passes give for a set of output vectors."""

    calls: Sequence[Gradients | None]
    """Of every recorded call."""
    others: dict[str, torch.Tensor]
    """(V, B, P) of the parameters that are not captured."""
    num_samples: int

    @classmethod
    def of(
        cls, engine: JacobianEngine, capture: Capture, inputs: torch.Tensor, cotangents_VBC: torch.Tensor
    ) -> "_Gradients":
        return cls(
            engine._call_gradients(capture, cotangents_VBC),
            engine._other_gradients(inputs, cotangents_VBC),
            len(inputs),
        )

    def combined(self, weights_VBC: torch.Tensor) -> "_Gradients":
        """Return the gradients of sum_c weights[v, b, c] f_c from those of all outputs."""

        def combine(values: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
            by_sample = {key: value.unflatten(1, (self.num_samples, -1)) for key, value in values.items()}
            return {
                key: torch.einsum("vbc,cb...->vb...", weights_VBC, value).flatten(1, 2)
                for key, value in by_sample.items()
            }

        calls = [None if gradients is None else combine(gradients) for gradients in self.calls]
        return _Gradients(calls, combine(self.others), self.num_samples)


def _other_path(where: str) -> CoverageError:
    return CoverageError(
        f"for some samples {where}, unlike for those on which the gradients were checked: the model's path depends on "
        "its input, which the captured route cannot follow."
    )
