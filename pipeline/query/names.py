"""What can be asked of a run, by name; equal names mean equal answers."""

from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

Positions = npt.NDArray[np.int64]

Doubles = npt.NDArray[np.float64]

Index = int | str | slice | list[int] | list[str] | tuple[int, ...] | tuple[str, ...] | npt.NDArray[Any]
"""A position, a sample id, a slice of positions, several of either, or a boolean mask."""

Missing = Literal["raise", "nan"]
"""What becomes of entries that are not committed yet."""

Transform = Literal["cosine", "centred"]
"""``cosine``: K(x, x') / sqrt(K(x, x) K(x', x')). ``centred``: K(x, x') - m(x) - m(x') + mean m, m(x) the mean of K(x, .)
over the training split."""


@dataclass(frozen=True, slots=True)
class MatrixName:
    """A matrix between two splits: a kernel, or the sum of some of its components, maybe transformed when it is read."""

    kernel: str
    """NAME, or NAME@MEMBER where the model has several members."""
    rows: str
    """The split of the rows."""
    columns: str
    """The split of the columns."""
    layers: tuple[str, ...] = ()
    """Components of a layerwise kernel that are summed; empty for the kernel itself."""
    transforms: tuple[Transform, ...] = ()
    """In the order in which they are applied."""


@dataclass(frozen=True, slots=True)
class Nearest:
    """For each of M samples its k training samples with the largest kernel values, or the smallest; ties by position."""

    positions: Positions
    """(M, k) in the training split, most similar (or most opposed) first; -1 where a sample has fewer than others."""
    values: Doubles
    """(M, k); NaN where the position is -1."""


@dataclass(frozen=True, slots=True)
class Neighbor:
    """A training sample and its kernel value."""

    sample_id: str
    position: int
    value: float
    label: int | None = None
    """Its class, where the training split has classes."""


@dataclass(frozen=True, slots=True)
class ClassShare:
    """What the training samples of a class contribute to a prediction."""

    label: int
    num_samples: int
    """Of the class in the training split."""
    positive: float
    """Sum of the contributions above 0."""
    negative: float
    """Sum of those below 0."""


@dataclass(frozen=True, slots=True)
class AttributionSummary:
    """A prediction as the sum of what every training sample contributes to it."""

    sample_id: str
    position: int
    """In its split."""
    target: int
    """The column of the prediction."""
    prediction: float
    """As it is stored; a logit for classes that are separated by a logistic loss."""
    total: float
    """The sum of all contributions: the prediction, but for rounding."""
    by_class: tuple[ClassShare, ...]
    """In the order of classes; empty where the training split has none."""
    helpful: tuple[Neighbor, ...]
    """Training samples with the largest contributions above 0, which are their values."""
    harmful: tuple[Neighbor, ...]
    """Those with the smallest ones below 0."""


@dataclass(frozen=True, slots=True)
class Spectrum:
    """Eigenvalues of a kernel matrix of the training split, and how much of the labels its eigenvectors explain."""

    eigenvalues: Doubles
    """(M,), largest first."""
    label_energy: Doubles | None
    """(M,) share of the centred one-hot classes, or of the centred targets, in the first q eigenvectors; None without
    labels."""
    num_samples: int
    """N of the split; M where fewer, evenly spaced ones were taken."""
