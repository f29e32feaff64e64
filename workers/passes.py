"""How a batch is cut so that a worker stays within its memory. Plain data: importing this module needs no torch."""

from dataclasses import dataclass, replace
from typing import final

from ntkpipe.configs.kernels.names import RANDOM_FEATURES
from ntkpipe.storage.records import Geometry

PROCESS_BYTES = 320 * 2**20
"""Of a Python process with PyTorch, zarr and Ray loaded, and what their libraries set aside."""

SCRATCH_BYTES = 192 * 2**20
"""For slices of gradients, transforms, products and a sketch's tables, whatever the batch."""

CACHED_SHARDS = 4
"""Shards of inputs that stay in a worker's memory: consecutive blocks share their rows."""

MAX_BATCH = 256
"""Larger batches gain nothing: matrix products are at full speed, and the first results appear later."""

ARRAY_BYTES = 24 * 2**20
"""The C library hands larger arrays back to the operating system and gets them again page by page, every time. On a CPU
batches are kept so small that no gradient is; measured on a ResNet, a batch of 8 is a quarter faster than one of 32."""

GRAM_SAMPLES = 64
"""Materialising gradients for a product of factors pays for this many samples on each side."""

SMALL_BATCH = 8
"""Below this many samples matrix products lose their speed; output vectors are then split over passes instead."""


@final
@dataclass(frozen=True, slots=True)
class Footprint:
    """Memory of a batch for each of its samples, in bytes."""

    graph_bytes: int
    """Saved by the forward pass for the backward passes."""
    input_bytes: int
    """What recorded operations saw; kept once for all output vectors."""
    new_input_bytes: int
    """The part of it that the graph does not hold anyway."""
    vector_bytes: int
    """Kept for one output vector: gradients at recorded operations, and of parameters that are materialised."""
    output_bytes: int
    """Gradients at all recorded operations for one output vector, those included that are reduced at once."""
    call_bytes: int
    """The largest of those that are kept."""
    output_vector_bytes: int
    """An output vector itself, C numbers."""
    unfolded_bytes: int
    """The largest input of a convolution as patches."""

    def factor_bytes(self, num_vectors: int) -> int:
        """Return what the factors of a sample hold."""
        return self.input_bytes + num_vectors * self.vector_bytes

    def sample_bytes(self, num_vectors: int) -> int:
        """Return the peak of a sample in a pass."""
        # All output vectors go back at once; besides what is recorded, activations hold gradients on their way.
        backward = self.graph_bytes + num_vectors * (self.output_bytes + 2 * self.call_bytes + self.output_vector_bytes)
        return self.new_input_bytes + backward

    def gram_bytes(self, num_vectors: int) -> int:
        """Return what a product takes for a sample: factors being joined, and one layer of both sides as it is multiplied."""
        return self.factor_bytes(num_vectors) + 2 * (self.unfolded_bytes + num_vectors * self.call_bytes)


@final
@dataclass(frozen=True, slots=True)
class PassPlan:
    """How a batch is worked on within a budget."""

    batch_size: int
    """Samples per forward pass."""
    max_vectors: int
    """Output vectors per pass; with fewer than there are, several passes over a batch are added up."""
    gram_samples: int
    """Samples whose factors are joined for a product of factors."""
    row_samples: int
    """Samples of a block's rows whose factors are kept while its columns stream past."""
    kept_sides: int = 0
    """Rows and columns of kernel blocks whose stored features are kept between blocks."""

    def halved(self, times: int, num_samples: int) -> "PassPlan":
        """Return how a task of some samples is cut after it ran out of memory so often; at the least sample by sample."""
        numbers = (self.batch_size, self.gram_samples, self.row_samples)
        batch, gram, rows = (max(1, min(number, num_samples) >> times) for number in numbers)
        kept = self.kept_sides >> times
        return replace(self, batch_size=batch, gram_samples=gram, row_samples=rows, kept_sides=kept)


def plan_passes(
    footprint: Footprint,
    num_vectors: int,
    budget_bytes: int,
    limit: int | None = None,
    *,
    keep_rows: bool = True,
    on_cpu: bool = True,
    split_vectors: bool = True,
) -> PassPlan:
    """Cut work so that a pass, and the factors of rows that are kept beside it, stay within a budget.

    Args:
        footprint: Of a sample.
        num_vectors: V of all functionals together.
        budget_bytes: For both.
        limit: The largest batch that is wanted; None leaves it to the device.
        keep_rows: Whether there are exact kernels; rows then get half of the budget.
        on_cpu: Whether arrays should stay small.
        split_vectors: Whether passes over some of the output vectors can be added up.
    """
    # With exact kernels a pass, a product of factors and the rows that are kept may exist at once.
    budget = budget_bytes // 4 if keep_rows else budget_bytes
    if limit is None:
        quick = ARRAY_BYTES // max(1, num_vectors * footprint.call_bytes) if on_cpu else MAX_BATCH
        limit = min(MAX_BATCH, max(SMALL_BATCH, quick))
    vectors = num_vectors
    crowded = budget // max(1, footprint.sample_bytes(vectors)) < min(SMALL_BATCH, limit)
    if crowded and num_vectors > 1 and split_vectors:
        spare = budget // min(SMALL_BATCH, limit) - footprint.sample_bytes(0)
        vectors = max(1, min(num_vectors, spare // max(1, footprint.sample_bytes(1) - footprint.sample_bytes(0))))
    batch = max(1, min(limit, budget // max(1, footprint.sample_bytes(vectors))))
    group = max(1, min(max(batch, GRAM_SAMPLES), budget // max(1, footprint.gram_bytes(vectors))))
    rows = max(group, budget_bytes // 2 // max(1, footprint.factor_bytes(vectors)))
    return PassPlan(batch, max(1, vectors), group, rows)


def side_bytes(geometry: Geometry) -> int:
    """Return the memory of the stored features and norms of all kernels for a row, or a column, of kernel blocks."""
    itemsize = 4 if geometry.dtype == "float32" else 8
    per_sample = 0
    for kernel in geometry.kernels:
        members = max(1, len(kernel.members))
        # Maps of samples are multiplied in double precision.
        width = 8 if kernel.kind in RANDOM_FEATURES else itemsize
        per_sample += members * (width * (kernel.feature_dim or 0) * max(1, len(kernel.groups)) + 8 * kernel.width)
    return geometry.block_rows * per_sample


@final
@dataclass(frozen=True, slots=True)
class WorkerMemory:
    """Predicted peak of a worker, in bytes."""

    features_bytes: int
    kernel_bytes: int

    @property
    def peak_bytes(self) -> int:
        """Of both stages."""
        return max(self.features_bytes, self.kernel_bytes)


def predict_memory(
    geometry: Geometry,
    passes: PassPlan | None,
    footprint: Footprint,
    *,
    model_bytes: int,
    input_bytes: int,
    table_bytes: int,
    exact_groups: int | None,
) -> WorkerMemory:
    """Return the memory of a worker in the features and the kernel stage.

    Args:
        geometry: Of the run.
        passes: How batches are cut; None leaves out what depends on it.
        footprint: Of a sample.
        model_bytes: Parameters and buffers.
        input_bytes: Of a sample as it is given to the model.
        table_bytes: Of projections, kept between batches.
        exact_groups: Components of exact kernels; None if there are no exact kernels.
    """
    itemsize = 4 if geometry.dtype == "float32" else 8
    fixed = PROCESS_BYTES + model_bytes + SCRATCH_BYTES + CACHED_SHARDS * geometry.shard_rows * input_bytes
    widths = [(kernel.feature_dim or 0) * max(1, len(kernel.groups)) for kernel in geometry.kernels]
    # Features of a shard exist batch by batch and joined, and as they are written.
    features = fixed + table_bytes + 3 * geometry.shard_rows * sum(widths) * itemsize
    entries = (geometry.block_rows * max(kernel.width for kernel in geometry.kernels)) ** 2
    dims = [kernel.feature_dim or 0 for kernel in geometry.kernels]
    groups = max([exact_groups or 0, *(len(kernel.groups) for kernel in geometry.kernels), 1])
    kernel = fixed + 2 * geometry.block_rows * max(dims) * itemsize + entries * (itemsize * (2 * groups + 1) + 24)
    if passes is not None:
        batch = passes.batch_size * footprint.sample_bytes(passes.max_vectors)
        features += batch
        kernel += passes.kept_sides * side_bytes(geometry)
        if exact_groups is not None:
            kept = min(passes.row_samples, geometry.block_rows)
            kernel += batch + kept * footprint.factor_bytes(passes.max_vectors)
            kernel += passes.gram_samples * footprint.gram_bytes(passes.max_vectors)
    return WorkerMemory(features, kernel)
