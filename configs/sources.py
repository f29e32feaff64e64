"""Where the model and the samples come from.

Code a configuration names is code the user trusts; only what computes imports it, looking at a run does not. Weights and
data are not trusted: weights are read as safetensors or with ``weights_only``, arrays without pickle.
"""

import re
from typing import Annotated, Any, ClassVar, Literal

from pydantic import Field, field_validator, model_validator

from ntkpipe.configs.base import Section, unknown_name
from ntkpipe.configs.locations import Location

ImportPath = Annotated[str, Field(pattern=r"^[A-Za-z_][\w.]*:[A-Za-z_]\w*$")]
"""``package.module:callable``."""


class Member(Section):
    """What sets one checkpoint or seed of a model apart."""

    runtime_fields: ClassVar[frozenset[str]] = frozenset({"weights"})

    options: dict[str, Any] = Field(default_factory=dict)
    """Added to the model's options, such as a seed."""
    weights: Location | None = None
    """Instead of the model's weights."""


class PythonModel(Section):
    """A model built by a callable, with weights from a file.

    Where the weights are may change between a run and its resumption; what they are may not.
    """

    runtime_fields: ClassVar[frozenset[str]] = frozenset({"weights"})

    kind: Literal["python"] = "python"
    target: ImportPath
    """``package.module:callable``; called with ``options``, returns an ``nn.Module``."""
    options: dict[str, Any] = Field(default_factory=dict)
    weights: Location | None = None
    """A safetensors file or a state dict; None keeps what the callable built."""
    dtype: Literal["float32", "float64"] = "float32"
    """In which precision Jacobians and kernels are computed."""
    pseudo_gradient: Literal["refuse", "allow"] = "refuse"
    """What to do with a model whose backward pass is not the derivative of its forward pass, such as a straight-through
    estimator: ``allow`` computes with what the backward pass says and marks the run."""
    mode: Literal["eval", "as-built"] = "eval"
    """``eval`` calls ``model.eval()``; ``as-built`` does not, and the run is refused if samples would mix."""
    members: dict[str, Member] = Field(default_factory=dict)
    """Several checkpoints or seeds of the model, by name; they become the leading axis of what is stored. Without any
    the model is on its own and there is no such axis."""

    @field_validator("members")
    @classmethod
    def _member_names_are_safe(cls, members: dict[str, Member]) -> dict[str, Member]:
        for name in members:
            if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9_.-]*", name):
                raise ValueError(f"member {name!r} must be a plain name of letters, digits, dots, hyphens, underscores")
        return members

    @property
    def member_names(self) -> tuple[str, ...]:
        """The members, or one nameless member for a model on its own."""
        return tuple(self.members) or ("",)

    def member(self, name: str) -> "PythonModel":
        """Return the model that a member is."""
        if not name:
            return self
        member = self.members[name]
        update = {"options": self.options | member.options, "weights": member.weights or self.weights, "members": {}}
        return self.model_copy(update=update)


class PythonData(Section):
    """Samples from a callable."""

    kind: Literal["python"] = "python"
    target: ImportPath
    """``package.module:callable``; called with ``options``, returns a map-style data set or a ``Samples`` object."""
    options: dict[str, Any] = Field(default_factory=dict)


class ArrayData(Section):
    """Samples from NumPy files: ``.npy`` holding inputs, or ``.npz`` with ``inputs`` and maybe ``labels``, ``ids``.

    Where the files are may change between a run and its resumption; what they hold may not.
    """

    runtime_fields: ClassVar[frozenset[str]] = frozenset({"inputs", "labels", "ids"})

    kind: Literal["arrays"] = "arrays"
    inputs: Location
    """An ``.npy`` file with shape (N, ...), or an ``.npz`` file."""
    labels: Location | None = None
    """An ``.npy`` file: integer classes (N,) or real targets (N, T)."""
    ids: Location | None = None
    """A text file with one sample id per line; positions are used when there is none."""


SplitData = Annotated[PythonData | ArrayData, Field(discriminator="kind")]


class DataConfig(Section):
    """The splits of the data and the pairs of splits between which kernels are computed."""

    splits: dict[str, SplitData] = Field(min_length=1)
    """Named sets of samples."""
    train: str | None = None
    """The split in which solutions live; by default the one named ``train``, or the only one."""
    pairs: tuple[tuple[str, str], ...] | None = None
    """(row split, column split) of the kernel matrices; by default the training split with itself and every other
    split with the training split."""

    @field_validator("splits")
    @classmethod
    def _names_are_safe(cls, splits: dict[str, Any]) -> dict[str, Any]:
        for name in splits:
            if not name.isidentifier():
                raise ValueError(f"split {name!r} must be a plain name of letters, digits and underscores")
        return splits

    @model_validator(mode="after")
    def _train_is_a_split(self) -> "DataConfig":
        if self.train is None and "train" not in self.splits and len(self.splits) > 1:
            raise ValueError(f"say which split is the training set: data.train is one of {', '.join(self.splits)}")
        if self.train is not None and self.train not in self.splits:
            raise ValueError(unknown_name("split", self.train, self.splits))
        return self

    @model_validator(mode="after")
    def _pairs_name_splits(self) -> "DataConfig":
        for pair in self.pairs or ():
            for split in pair:
                if split not in self.splits:
                    raise ValueError(f"pair {list(pair)} names split {split!r}; there are: {', '.join(self.splits)}")
        if self.pairs is not None and len(set(self.pairs)) != len(self.pairs):
            raise ValueError("pairs must not repeat")
        return self

    @property
    def train_split(self) -> str:
        """The split in which solutions live."""
        if self.train is not None:
            return self.train
        return "train" if "train" in self.splits else next(iter(self.splits))

    @property
    def resolved_pairs(self) -> tuple[tuple[str, str], ...]:
        """The pairs that are really computed."""
        if self.pairs is not None:
            return self.pairs
        train = self.train_split
        return ((train, train), *((split, train) for split in self.splits if split != train))
