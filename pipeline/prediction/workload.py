"""All that a prediction needs of a job, as plain numbers: without its model and its data, and for any number of samples."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, final

from ntkpipe.configs.base import unknown_name
from ntkpipe.configs.canonical import digest
from ntkpipe.configs.errors import ConfigError
from ntkpipe.configs.projection import Projection
from ntkpipe.configs.run import RunConfig
from ntkpipe.pipeline.cost import CostModel
from ntkpipe.pipeline.plan import Plan
from ntkpipe.storage.records import Geometry
from ntkpipe.workers.passes import PassPlan, WorkerMemory
from ntkpipe.workers.probing.geometry import with_factors
from ntkpipe.workers.probing.memory_model import MemoryModel
from ntkpipe.workers.probing.probe import Probe
from ntkpipe.workers.probing.scaling import scaled_geometry
from ntkpipe.workers.probing.solvers import choose_solvers
from ntkpipe.workers.probing.work import model_work
from ntkpipe.workers.solvers.choice import Choice
from ntkpipe.workers.work import ModelWork


@final
@dataclass(frozen=True, slots=True)
class Workload:
    """A job in numbers."""

    config: RunConfig
    """With the solvers that were chosen in place of ``auto``."""
    geometry: Geometry
    solvers: dict[str, Choice]
    """By solution, what it is found with and why."""
    num_parameters: int
    forward_flops: int
    """Of a sample."""
    sample_size: int
    """Numbers in a sample."""
    needs: MemoryModel
    probe: Probe
    """What it was made from; its samples are fewer where it was scaled."""

    @classmethod
    def of(cls, probe: Probe) -> "Workload":
        """Return the job that was looked at."""
        return cls(
            config=probe.config,
            geometry=probe.geometry,
            solvers=probe.solvers,
            num_parameters=probe.num_parameters,
            forward_flops=probe.forward_flops,
            sample_size=probe.sample_size,
            needs=probe.needs,
            probe=probe,
        )

    @property
    def kernels_digest(self) -> str:
        """Equal for jobs whose features and blocks take equally long for each sample and pair."""
        semantic = self.config.semantic()
        return digest([semantic[name] for name in ("model", "kernels", "projection")])

    def scaled(self, samples: Mapping[str, int]) -> "Workload":
        """Return the same job with other numbers of samples, as if its splits had grown or shrunk.

        Solvers that ntkpipe chooses are chosen anew, and batches stay as they are. Nothing is loaded.

        Args:
            samples: By split.

        Raises:
            ConfigError: There is no such split, or a solution does not fit the number of samples.
            PlanError: No solver fits a worker's memory.
        """
        for name, num in samples.items():
            if name not in self.geometry.splits:
                raise ConfigError(unknown_name("split", name, self.geometry.splits))
            if num < 1:
                raise ConfigError(f"split {name!r} needs at least 1 sample, found {num}.")
        geometry = scaled_geometry(self.probe.asked, self.probe.geometry, samples)
        return self._planned(self.probe.asked, geometry)

    @property
    def least_bytes(self) -> int:
        """Memory of a worker for one sample at a time."""
        return self.needs.least_bytes(self.geometry)

    def resized(self, samples: Mapping[str, int]) -> "Workload":
        """Return the job with other numbers of samples, solved as it is; for what depends on sizes only."""
        return replace(self, geometry=scaled_geometry(self.config, self.geometry, samples))

    def with_geometry(self, **changes: Any) -> "Workload":
        """Return the job with other chunks, precision or pairs; model, data and solvers stay."""
        return replace(self, geometry=self.geometry.model_copy(update=changes))

    def with_dim(self, dim: int) -> "Workload":
        """Return the job with another dimension of the projection of all kernels that have none of their own."""
        projection = Projection.model_validate(
            self.config.projection.model_dump(exclude={"target_error"}) | {"dim": dim}
        )
        config = self.config.model_copy(update={"projection": projection})
        shared = {kernel.label for kernel in config.model_kernels if kernel.projection is None}
        kernels = tuple(
            kernel.model_copy(update={"feature_dim": projection.resolved_dim})
            if kernel.sketched and kernel.name in shared
            else kernel
            for kernel in self.geometry.kernels
        )
        return replace(self, config=config, geometry=self.geometry.model_copy(update={"kernels": kernels}))

    def _planned(self, asked: RunConfig, geometry: Geometry) -> "Workload":
        solvers = choose_solvers(asked, geometry, self.sample_size, {})
        config = asked.model_copy(update={"solve": tuple(choice.section for choice in solvers.values())})
        return replace(self, config=config, geometry=with_factors(config, geometry), solvers=solvers)

    def passes(self, allowed_bytes: int, *, on_cpu: bool) -> tuple[PassPlan, WorkerMemory]:
        """Cut batches so that a worker stays within its memory.

        Raises:
            PlanError: It cannot.
        """
        batch_size = self.config.resources.batch_size
        return self.needs.plan(self.geometry, allowed_bytes, batch_size, on_cpu=on_cpu)

    def work(self, passes: PassPlan, *, on_cpu: bool) -> ModelWork:
        """Return the work of the kernels of its model, where routes are chosen as on a CPU or as on a GPU."""
        if self.probe.model is None:
            return ModelWork()
        return model_work(self.config, self.geometry, self.probe.model, self.needs, passes, on_cpu=on_cpu)

    def plan(self) -> Plan:
        """Return its tasks, with prices."""
        return Plan(self.config, self.geometry, self.costs())

    def costs(self) -> CostModel:
        """Return the prices of its tasks."""
        return CostModel(
            self.config,
            self.geometry,
            num_parameters=self.num_parameters,
            forward_flops=self.forward_flops,
            sample_size=self.sample_size,
        )
