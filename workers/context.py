"""What a worker loads once and every task of a run uses."""

from collections.abc import Iterator
from functools import cached_property
from typing import final

import torch

from ntkpipe.configs.errors import RunMismatchError
from ntkpipe.configs.kernels import KernelConfig
from ntkpipe.storage.arrays import ChunkStore
from ntkpipe.storage.features import SampleReader
from ntkpipe.storage.grid import Shard, shard_at
from ntkpipe.storage.kernel import KernelReader
from ntkpipe.storage.ledger import Ledger
from ntkpipe.storage.stores import open_store
from ntkpipe.workers.jacobians.engine import Factors, JacobianEngine, Portion, portions
from ntkpipe.workers.jacobians.functionals import Functional
from ntkpipe.workers.kernels.definitions import kernel_definition
from ntkpipe.workers.passes import CACHED_SHARDS
from ntkpipe.workers.projections.base import AbstractProjection
from ntkpipe.workers.projections.registry import make_projection
from ntkpipe.workers.sources.data import SplitSource
from ntkpipe.workers.sources.model import DTYPES, load_model, usable_device, weights_digest
from ntkpipe.workers.tasks import WorkerSpec


@final
class WorkerContext:
    """Model, data, projections and storage of a run; each is loaded when a task first needs it.

    Attributes:
        spec: What the worker was started with.
        store: Where the run lives.
        chunks: Its arrays.
        ledger: Its receipts.
        samples: Reads what is stored per sample.
        kept_factors: Those of the last rows of an exact block, by what they are of; the kernel stage's own.
    """

    def __init__(self, spec: WorkerSpec) -> None:
        self.spec = spec
        self.store = open_store(spec.url)
        self.chunks = ChunkStore(self.store)
        self.ledger = Ledger(self.store)
        self.samples = SampleReader(self.chunks, self.ledger, spec.geometry)
        self.kept_factors: tuple[object, list[dict[Functional, Factors]]] | None = None
        self._splits: dict[str, SplitSource] = {}
        self._shards: dict[tuple[str, int], torch.Tensor] = {}
        self._projections: dict[str, AbstractProjection] = {}

    @property
    def dtype(self) -> torch.dtype:
        """Precision of the computation."""
        return DTYPES[self.spec.config.model.dtype]

    @cached_property
    def device(self) -> torch.device:
        """Where the computation happens; one that this machine has."""
        return usable_device(self.spec.config.resources.device)

    @cached_property
    def engine(self) -> JacobianEngine:
        """The Jacobian engine over the run's model."""
        model = load_model(self.spec.config.model)
        if weights_digest(model) != self.spec.weights_digest:
            raise RunMismatchError(
                f"{self.spec.config.model.target} builds other weights in this process than the run was planned for. "
                "Name a weights file in model.weights, or let the callable fix its seed."
            )
        return JacobianEngine(model.to(self.device), self.spec.routes)

    def split(self, name: str) -> SplitSource:
        """Return the samples of a split."""
        if name not in self._splits:
            self._splits[name] = SplitSource(name, self.spec.config.data.splits[name])
        return self._splits[name]

    def inputs(self, name: str, start: int, stop: int) -> torch.Tensor:
        """Return the inputs of a range of samples, each shard checked against the digest the run was planned with."""
        rows, digests, parts = self.spec.geometry.shard_rows, self.spec.input_digests[name], []
        for index in range(start // rows, -(-stop // rows)):
            shard = shard_at(name, index, len(self.split(name)), rows)
            if (name, index) not in self._shards:
                while len(self._shards) >= CACHED_SHARDS:
                    self._shards.pop(next(iter(self._shards)))
                self._shards[name, index] = self.split(name).shard(shard, digests[index])
            inputs = self._shards[name, index]
            parts.append(inputs[max(start - shard.start, 0) : stop - shard.start])
        return torch.cat(parts)

    def projection(self, kernel: KernelConfig) -> AbstractProjection | None:
        """Return a kernel's random map, None if it is exact; kernels with equal settings share one."""
        config = self.spec.config.projection_of(kernel)
        if config.resolved_kind == "none":
            return None
        key = config.model_dump_json()
        if key not in self._projections:
            self._projections[key] = make_projection(config)
        return self._projections[key]

    @property
    def has_exact_kernels(self) -> bool:
        """Whether a kernel of Jacobians is computed without features."""
        kernels = self.spec.config.kernels
        return any(kernel_definition(kernel.kind).functional and self.projection(kernel) is None for kernel in kernels)

    def portions(self, *, exact_only: bool = False) -> list[Portion]:
        """Return the passes that the run's kernels need over a batch, or only those of exact Jacobian kernels."""
        found: set[Functional] = set()
        for kernel in self.spec.config.kernels:
            functional = kernel_definition(kernel.kind).functional
            if functional is not None and (not exact_only or self.projection(kernel) is None):
                found.add(functional)
        return portions(found, self.spec.geometry.num_outputs, self.spec.passes.max_vectors)

    def batches(self, shard: Shard) -> Iterator[tuple[torch.Tensor, torch.Tensor | None]]:
        """Yield inputs and labels of a range of samples, batch by batch, on the device of the computation."""
        inputs, labels = self.inputs(shard.split, shard.start, shard.stop), self.split(shard.split).labels
        size = self.spec.passes.batch_size
        for start in range(0, len(inputs), size):
            part = inputs[start : start + size]
            first = shard.start + start
            yield (
                part.to(device=self.device, dtype=self.dtype if part.is_floating_point() else None),
                None if labels is None else labels[first : first + len(part)].to(self.device),
            )

    def kernel_reader(self, name: str, row_split: str, column_split: str, *, cache_bytes: int) -> KernelReader:
        """Return a reader of a stored kernel matrix."""
        return KernelReader(
            self.chunks, self.ledger, self.spec.geometry, name, row_split, column_split, cache_bytes=cache_bytes
        )
