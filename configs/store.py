"""How a run is cut into chunks."""

from typing import ClassVar, Literal

from pydantic import Field

from ntkpipe.configs.base import Section


class StoreConfig(Section):
    """Chunk sizes and storage precision, and how long a silent driver keeps its run."""

    runtime_fields: ClassVar[frozenset[str]] = frozenset({"lease_seconds", "fsync", "single_writer"})

    shard_rows: int = Field(256, ge=1)
    """Samples per shard: one features task, one chunk of features."""
    block_rows: int = Field(512, ge=1)
    """Rows and columns per block: one kernel task, one chunk of a kernel matrix."""
    dtype: Literal["float32", "float64"] = "float32"
    """Precision of stored features, diagonals and kernels."""
    lease_seconds: float = Field(60.0, gt=0)
    """A driver that has not given a sign of life for this long may be replaced by another."""
    fsync: bool = False
    """Whether local disks are made to keep every chunk and receipt before work goes on, so that what is committed
    survives a power failure and not only a crash of processes. Object stores always do."""
    single_writer: bool = False
    """Allows a store that does not refuse to create an object twice. Two drivers are then not kept apart: the user must."""
