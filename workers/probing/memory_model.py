"""What the memory of a worker depends on, measured once. Plain data: importing this module needs no torch."""

from dataclasses import dataclass, replace
from typing import final

from ntkpipe.configs.errors import PlanError
from ntkpipe.configs.units import size
from ntkpipe.storage.grid import num_chunks
from ntkpipe.storage.records import Geometry
from ntkpipe.workers.passes import Footprint, PassPlan, WorkerMemory, plan_passes, predict_memory, side_bytes


@final
@dataclass(frozen=True, slots=True)
class MemoryModel:
    """Predicts the memory of a worker, for any geometry of the same kernels and any budget."""

    footprint: Footprint
    """Of a sample."""
    num_vectors: int
    """V of all functionals together."""
    model_bytes: int
    """Parameters and buffers of all members."""
    input_bytes: int
    """Of a sample."""
    table_bytes: int
    """Of projections, kept between batches."""
    exact_groups: int | None
    """Components of exact kernels; None without them."""
    whole_vectors: bool
    """Whether all output vectors are needed at once."""

    def least_bytes(self, geometry: Geometry) -> int:
        """Return what a worker needs for one sample at a time."""
        return self.memory(
            geometry, PassPlan(1, max(1, self.num_vectors) if self.whole_vectors else 1, 1, 1)
        ).peak_bytes

    def memory(self, geometry: Geometry, passes: PassPlan | None) -> WorkerMemory:
        """Return the predicted peak of a worker; without passes, what does not depend on them."""
        return predict_memory(
            geometry,
            passes,
            self.footprint,
            model_bytes=self.model_bytes,
            input_bytes=self.input_bytes,
            table_bytes=self.table_bytes,
            exact_groups=self.exact_groups,
        )

    def plan(
        self, geometry: Geometry, allowed_bytes: int, batch_size: int | None, *, on_cpu: bool
    ) -> tuple[PassPlan, WorkerMemory]:
        """Cut batches so that a worker stays within its memory.

        Args:
            geometry: Of the run.
            allowed_bytes: For the whole worker.
            batch_size: The largest that is wanted; None leaves it to the device.
            on_cpu: Whether arrays should stay small.

        Raises:
            PlanError: It cannot; says how much is needed at the least.
        """
        least = self.least_bytes(geometry)
        if least > allowed_bytes:
            raise PlanError(
                f"a worker needs at least {size(least, at_least=True)} for one sample at a time, but "
                f"resources.max_worker_bytes is {size(allowed_bytes)}. Raise it, or lower store.shard_rows, "
                "store.block_rows or the projection's dim."
            )
        passes = plan_passes(
            self.footprint,
            self.num_vectors,
            allowed_bytes - self.memory(geometry, None).peak_bytes,
            batch_size,
            keep_rows=self.exact_groups is not None,
            on_cpu=on_cpu,
            split_vectors=not self.whole_vectors,
        )
        spare = allowed_bytes - self.memory(geometry, passes).kernel_bytes
        passes = replace(passes, kept_sides=_kept_sides(geometry, spare // 2))
        return passes, self.memory(geometry, passes)


def _kept_sides(geometry: Geometry, budget_bytes: int) -> int:
    """Return of how many rows and columns of kernel blocks the features are kept; all that there are, if they fit.

    What is computed from samples, exact kernels and formulas, goes through a row of blocks at a time instead.
    """
    # A sample at a time may take more than its part of the budget already.
    fit = max(0, budget_bytes) // max(1, side_bytes(geometry))
    if any(kernel.feature_dim is None for kernel in geometry.kernels if kernel.derived is None):
        return min(2, fit)
    splits = {split for pair in geometry.pairs for split in pair}
    return min(fit, 2 + sum(num_chunks(geometry.splits[name].num_samples, geometry.block_rows) for name in splits))
