"""Output functionals: which combinations of the outputs are differentiated.

Every empirical kernel is an inner product of gradients of v . f(x) for one or more output vectors v(x, y), summed over
the vectors. A functional gives the (V, B, C) vectors of a batch.
"""

import math
from dataclasses import dataclass
from typing import Literal, final

import torch

from ntkpipe.configs.errors import ConfigError
from ntkpipe.workers.philox import philox, stream_key

Kind = Literal["trace", "sum", "signs", "true_class", "class", "loss", "margin", "probes", "cotangents"]

NEEDS_LABELS = frozenset({"signs", "true_class", "loss", "margin", "cotangents"})
PROBES_VERSION = 1


@final
@dataclass(frozen=True, slots=True)
class Functional:
    """One way to contract over the outputs.

    With f the outputs, y the class and e_c a unit vector:

    ==============  ==============================================================================  =======
    kind            output vectors                                                                  V
    ==============  ==============================================================================  =======
    ``trace``       e_1 ... e_C                                                                     C
    ``sum``         (1, ..., 1)                                                                     1
    ``signs``       +1 at y, -1 elsewhere, over sqrt(C)                                             1
    ``true_class``  e_y                                                                             1
    ``class``       e_index                                                                         1
    ``loss``        softmax(f) - e_y of the cross-entropy; f - y of half the squared error          1
    ``margin``      e_y - softmax over the other classes: of TRAK's log(p / (1 - p))                1
    ``probes``      ``index`` orthogonal probes of the trace: unbiased, exact for index >= C        index
    ``cotangents``  given instead of labels, (B, V, C)                                              any
    ==============  ==============================================================================  =======
    """

    kind: Kind
    index: int = 0
    """The class, or the number of probes."""
    seed: int = 0
    """Of the probes."""

    @property
    def needs_labels(self) -> bool:
        """Whether the output vectors depend on labels."""
        return self.kind in NEEDS_LABELS

    def num_vectors(self, num_outputs: int) -> int:
        """Return V; given cotangents count as one."""
        if self.kind == "trace":
            return num_outputs
        return min(self.index, num_outputs) if self.kind == "probes" else 1

    def cotangents(self, outputs_BC: torch.Tensor, labels: torch.Tensor | None) -> torch.Tensor:
        """Return the (V, B, C) output vectors of a batch.

        Args:
            outputs_BC: The model's outputs, detached.
            labels: (B,) classes, (B, C) targets for ``loss``, or (B, V, C) for ``cotangents``.

        Raises:
            ConfigError: Labels are missing or do not fit, or the class does not exist.
        """
        num_samples, num_outputs = outputs_BC.shape
        match self.kind:
            case "trace":
                return _for_all(torch.eye(num_outputs).to(outputs_BC), num_samples)
            case "sum":
                return outputs_BC.new_ones(1, num_samples, num_outputs)
            case "class":
                if not self.index < num_outputs:
                    raise ConfigError(f"there is no class {self.index}; the model has {num_outputs} outputs.")
                vector_C = outputs_BC.new_zeros(num_outputs)
                vector_C[self.index] = 1.0
                return _for_all(vector_C.unsqueeze(0), num_samples)
            case "probes":
                return _for_all(probes(num_outputs, self.index, self.seed).to(outputs_BC), num_samples)
            case "cotangents":
                given = self._given(labels, (num_samples, None, num_outputs))
                return given.to(outputs_BC).transpose(0, 1)
        if self.kind == "loss" and labels is not None and labels.is_floating_point():
            targets_BC = self._given(labels, (num_samples, num_outputs))
            return (outputs_BC - targets_BC.to(outputs_BC)).unsqueeze(0)
        classes_B = self._classes(labels, num_samples, num_outputs).to(outputs_BC.device)
        hot_BC = torch.nn.functional.one_hot(classes_B, num_outputs).to(outputs_BC)
        if self.kind == "signs":
            return ((2 * hot_BC - 1) / math.sqrt(num_outputs)).unsqueeze(0)
        if self.kind == "true_class":
            return hot_BC.unsqueeze(0)
        if self.kind == "loss":
            return (outputs_BC.softmax(dim=1) - hot_BC).unsqueeze(0)
        if num_outputs < 2:
            raise ConfigError("a margin needs at least two outputs; the model has one.")
        others_BC = outputs_BC.masked_fill(hot_BC.bool(), -torch.inf).softmax(dim=1)
        return (hot_BC - others_BC).unsqueeze(0)

    def _classes(self, labels: torch.Tensor | None, num_samples: int, num_outputs: int) -> torch.Tensor:
        classes_B = self._given(labels, (num_samples,))
        if classes_B.is_floating_point() or (
            num_samples and not 0 <= int(classes_B.min()) <= int(classes_B.max()) < num_outputs
        ):
            raise ConfigError(
                f"functional {self.kind!r} needs integer classes from 0 to {num_outputs - 1}, one for each of the "
                f"model's outputs; found {_described(classes_B)}."
            )
        return classes_B.long()

    def _given(self, labels: torch.Tensor | None, shape: tuple[int | None, ...]) -> torch.Tensor:
        if labels is None:
            raise ConfigError(f"functional {self.kind!r} needs labels, and there are none.")
        expected = tuple(size if want is None else want for want, size in zip(shape, labels.shape, strict=False))
        if labels.dim() != len(shape) or tuple(labels.shape) != expected:
            text = ", ".join("V" if size is None else str(size) for size in shape)
            raise ConfigError(f"functional {self.kind!r} needs labels of shape ({text}), found {tuple(labels.shape)}.")
        return labels


def probes(num_outputs: int, num: int, seed: int) -> torch.Tensor:
    """Return min(num, C) probes v_j of the trace over sqrt(their number), (m, C) float64.

    The rows of a random subset of an orthogonal matrix with random signs: the v_j are orthogonal, E[v_j v_j^T] = I, and
    their sum over all m = C is C I. Hence (1/m) sum_j v_j^T M v_j is unbiased for tr M, and exact for m = C. The matrix is
    the Hartley transform, cas(2 pi j c / C) / sqrt(C), which exists for every C.
    """
    num = min(num, num_outputs)
    key = stream_key("probes", PROBES_VERSION, seed, num_outputs)
    column_C = torch.arange(num_outputs)
    zero = torch.zeros_like(column_C)
    words = philox((column_C, zero, zero, zero), key)
    signs_C = ((words[0] & 1) * 2 - 1).double()
    rows_m = words[1].argsort(stable=True)[:num]
    angles_mC = torch.outer(rows_m, column_C).remainder(num_outputs).double() * (2 * math.pi / num_outputs)
    return (angles_mC.cos() + angles_mC.sin()) * signs_C / math.sqrt(num)


def _for_all(vectors_VC: torch.Tensor, num_samples: int) -> torch.Tensor:
    return vectors_VC.unsqueeze(1).expand(-1, num_samples, -1)


def _described(labels: torch.Tensor) -> str:
    if labels.is_floating_point():
        return f"numbers of type {labels.dtype}"
    return f"values from {int(labels.min())} to {int(labels.max())}"
