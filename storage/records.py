"""What the documents of a run say."""

import time
from typing import Any, Literal, Self

from pydantic import Field, model_validator

from ntkpipe.configs.errors import NotFoundError
from ntkpipe.configs.kernels.derived import DerivedConfig
from ntkpipe.configs.secrets import RedactedText
from ntkpipe.storage import layout
from ntkpipe.storage.documents import Record
from ntkpipe.storage.plausible import check_geometry
from ntkpipe.storage.stores.base import AbstractStore
from ntkpipe.storage.stores.keys import check_name

SCHEMA_VERSION = 2
"""Of the layout and of all documents. Runs of earlier versions stay readable; unknown versions are refused.

2: receipts tell ranges, shapes and what a task was made from; many receipts may share a segment; runs have an origin;
manifests and receipts are sealed."""


NUMERICS_VERSION = 4
"""Raised whenever the same configuration would give other numbers, so that a run is never continued by code that
disagrees with what it has stored."""


MOST = 2**40
"""Samples, features or rows that a run can have: a manifest that tells of more lies, and would overflow sizes."""

MOST_VALUES = 2**22
"""Outputs or targets per sample that a run can have."""


class WrittenRecord(Record):
    """What a task wrote, so that it can be checked."""

    crc32c: str
    """Eight hexadecimal digits: of an object's bytes, or of a chunk's raw little-endian values inside the bounds."""
    nbytes: int


class ChunkRecord(WrittenRecord):
    """One chunk."""

    array: str
    position: tuple[int, ...]
    """Index in the chunk grid."""
    start: tuple[int, ...] = ()
    """Of the chunk's range in the array; missing in runs of schema version 1."""
    shape: tuple[int, ...] = ()
    """Of the values inside the array's bounds; missing in runs of schema version 1."""


class ObjectRecord(WrittenRecord):
    """A small object, such as a picture."""

    key: str


class Receipt(Record):
    """Proof that one task is finished. Reads of its chunks are allowed once it exists."""

    schema_version: Literal[1, 2] = 2
    stage: str
    task: str
    chunks: tuple[ChunkRecord, ...]
    objects: tuple[ObjectRecord, ...] = ()
    seconds: float
    """Spent on the task by its worker."""
    worker: str
    epoch: int = 0
    attempt: int = 1
    versions: dict[str, str] = Field(default_factory=dict)
    committed_at: float = Field(default_factory=time.time)
    made_from: dict[str, str] = Field(default_factory=dict)
    """Digests of all that determines the bytes, by kernel; equal digests mean equal chunks. Missing in version 1."""
    origin: str = ""
    """URL of the run that the chunks were taken from; empty if they were computed here."""
    seal: str = ""
    """Of the document, set when it is encoded; missing in version 1."""

    @property
    def written(self) -> tuple[ChunkRecord | ObjectRecord, ...]:
        """Chunks and objects."""
        return (*self.chunks, *self.objects)

    @property
    def num_bytes(self) -> int:
        """Of everything that was written."""
        return sum(record.nbytes for record in self.written)


Verdict = Literal["again", "aside", "left-out", "end"]
"""What became of a task that failed: it was tried again, was set aside for good, was left out because something that it
needs was set aside, or ended the run."""


class Failure(Record):
    """One failed attempt at a task."""

    schema_version: Literal[1] = 1
    stage: str
    task: str
    epoch: int
    attempt: int
    kind: str
    message: RedactedText
    verdict: Verdict = "end"
    failed_at: float = Field(default_factory=time.time)


class SplitGeometry(Record):
    """The shape of a split."""

    num_samples: int = Field(ge=1, le=MOST)
    labels: Literal["none", "classes", "values"]
    num_targets: int = Field(ge=0, le=MOST_VALUES)
    """T: classes, or columns of real targets; 0 without labels."""

    def width(self, targets: Literal["one-hot", "values"]) -> int:
        """Return how many columns of targets of a kind the labels give, 0 if they give none."""
        if targets == "values":
            return 1 if self.labels == "classes" else self.num_targets
        return self.num_targets if self.labels == "classes" else 0


class KernelGeometry(Record):
    """The shape of what is stored of a kernel."""

    name: str
    kind: str
    feature_dim: int | None = Field(ge=1, le=MOST)
    """K of the stored features; None for a kernel that stores none."""
    groups: tuple[str, ...]
    """Names of the components; empty unless the kernel is layerwise."""
    members: tuple[str, ...] = ()
    """Members of the model, the leading axis of features, diagonals and matrices; empty for a model on its own."""
    cross: bool = False
    """Whether rows are seen by the first of two members and columns by the second; there is one matrix then, and only
    features and diagonals have the leading axis."""
    symmetric: bool = True
    """Whether K(x, x') = K(x', x), so that one triangle is enough."""
    cosine: bool = False
    """Whether the matrix is divided by the roots of the stored diagonal."""
    width: int = Field(1, ge=1)
    """Rows of the matrix per sample: C where they are (sample, output) pairs, outputs fastest."""
    num_negative: int = Field(0, ge=0)
    """How many features, the last ones, enter inner products with a minus sign."""
    sketched: bool = False
    """Whether the features are a random projection, whose two halves are independent."""
    modules: tuple[str, ...] = ()
    """Calls of modules whose outputs are multiplied, for kernels of activations."""
    weights: dict[str, float] = Field(default_factory=dict)
    """Of the parameters that the kernel is made of; empty for all of them with weight 1."""
    derived: DerivedConfig | None = None
    """How it is made of other kernels; None for a kernel that is stored."""
    parents: tuple[str, ...] = ()
    """References of the matrices that it is made of, one per term."""
    level: int = Field(0, ge=0)
    """How many passes over other matrices it needs, one after the other."""
    num_moments: int = Field(0, ge=0, le=MOST)
    """P of the second moments that gradients are scaled by, where the run computes them; 0 where it does not."""
    statistic_dim: int | None = Field(None, ge=0, le=MOST)
    """Numbers per sample of what such a pass leaves; None without a pass of its own."""

    @property
    def references(self) -> tuple[str, ...]:
        """Of its matrices: NAME, or NAME@MEMBER for each member."""
        if self.members and not self.cross:
            return tuple(f"{self.name}@{member}" for member in self.members)
        return (self.name,)


class FactorGeometry(Record):
    """The shape of a stored Cholesky factor."""

    name: str
    """Of the solution."""
    size: int = Field(ge=1, le=MOST)
    """N."""
    tile_rows: int = Field(ge=1, le=MOST)
    dtype: Literal["float32", "float64"]

    @property
    def num_tiles(self) -> int:
        """In a column."""
        return -(-self.size // self.tile_rows)


class Geometry(Record):
    """Everything that determines the arrays of a run."""

    splits: dict[str, SplitGeometry]
    train_split: str
    """The split in which solutions live."""
    kernels: tuple[KernelGeometry, ...]
    pairs: tuple[tuple[str, str], ...]
    solutions: tuple[str, ...]
    solution_targets: tuple[int, ...]
    """T of each solution."""
    factors: tuple[FactorGeometry, ...] = ()
    """Of solutions that store a factor."""
    solution_splits: tuple[tuple[str, ...], ...] = ()
    """Of each solution, the splits on which it predicts."""
    num_outputs: int = Field(ge=0, le=MOST_VALUES)
    """C; 0 without a model."""
    members: tuple[str, ...] = ()
    """Of the model; the leading axis of its outputs."""
    shard_rows: int = Field(ge=1, le=MOST)
    block_rows: int = Field(ge=1, le=MOST)
    dtype: Literal["float32", "float64"]

    @model_validator(mode="after")
    def _names_are_safe_and_known(self) -> Self:
        # A run may come from anybody, and these names become parts of paths.
        members = (member for kernel in self.kernels for member in kernel.members)
        kernels, factors = (kernel.name for kernel in self.kernels), (factor.name for factor in self.factors)
        for name in (*self.splits, *self.solutions, *self.members, *members, *kernels, *factors):
            check_name(name)
        check_geometry(self)
        return self

    def kernel(self, name: str) -> KernelGeometry:
        """Return a kernel's geometry; the name must be known."""
        return next(kernel for kernel in self.kernels if kernel.name == name)

    def matrix(self, reference: str) -> tuple[KernelGeometry, int | None]:
        """Return the kernel that a reference names, and the position of its member; the reference must be known."""
        name, _, member = reference.partition("@")
        kernel = self.kernel(name)
        return kernel, kernel.members.index(member) if member else None

    def factor(self, solution: str) -> FactorGeometry:
        """Return the geometry of a solution's factor, which must exist."""
        return next(factor for factor in self.factors if factor.name == solution)

    def predicted_splits(self, solution: str) -> tuple[str, ...]:
        """Return the splits on which a solution predicts; the name must be known."""
        if not self.solution_splits:  # of runs that were made before it could be any other
            return tuple(rows for rows, columns in self.pairs if columns == self.train_split)
        return self.solution_splits[self.solutions.index(solution)]

    @property
    def paired_splits(self) -> tuple[str, ...]:
        """The splits that are rows or columns of a kernel matrix."""
        return tuple(dict.fromkeys(split for pair in self.pairs for split in pair))

    @property
    def references(self) -> tuple[str, ...]:
        """Every kernel matrix of the run."""
        return tuple(reference for kernel in self.kernels for reference in kernel.references)


class ChosenSolver(Record):
    """What ntkpipe took for a solution whose solver it was to choose."""

    section: dict[str, Any]
    """Of the solver, as it could have been configured."""
    why: str
    """In a sentence."""


class Manifest(Record):
    """What a run is: written once, compared on every resumption."""

    schema_version: Literal[1, 2] = 2
    numerics_version: int = NUMERICS_VERSION
    run_id: str
    name: str
    created_at: float
    config: dict[str, Any]
    """The whole configuration, runtime fields as of the first start."""
    semantic: dict[str, Any]
    """The part of the configuration that determines the numbers."""
    fingerprints: dict[str, str]
    """Digests of weights, data and projections."""
    geometry: Geometry
    solvers: dict[str, ChosenSolver] = Field(default_factory=dict)
    """By solution, what was chosen when the run was started; kept when it is resumed with other resources."""
    num_parameters: int
    versions: dict[str, str]
    """Of Python and the main libraries; recorded, not compared."""
    origin: str = ""
    """URL of the run that this one was forked from or extends."""
    seal: str = ""
    """Of the document, set when it is encoded; missing in version 1."""

    @classmethod
    def read(cls, store: AbstractStore) -> Self:
        """Read what a run is.

        Raises:
            NotFoundError: There is no run at the store's URL.
        """
        data = store.get(layout.MANIFEST)
        if data is None:
            raise NotFoundError(f"{store.url} is not a run: it has no {layout.MANIFEST}. `ntkpipe list` shows runs.")
        advice = "If it is damaged, put a copy of it back: nothing else tells what the run is."
        return cls.parse(data, f"{store.url}/{layout.MANIFEST}", advice)

    def identity(self) -> dict[str, Any]:
        """Return what must be equal for a run to be continued."""
        return {
            "numerics_version": self.numerics_version,
            "config": self.semantic,
            "fingerprints": self.fingerprints,
            "geometry": self.geometry.model_dump(mode="json"),
        }
