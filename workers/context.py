"""What a worker loads once and every task of a run uses."""

from collections.abc import Hashable, Iterator
from functools import cached_property
from typing import final

import torch

from ntkpipe.configs.errors import RunMismatchError
from ntkpipe.storage.arrays import ChunkStore
from ntkpipe.storage.features import SampleReader
from ntkpipe.storage.fencing import FencedStore
from ntkpipe.storage.grid import Shard, shard_at
from ntkpipe.storage.ledger import Ledger
from ntkpipe.storage.matrices import MatrixReader
from ntkpipe.storage.schema import array_specs
from ntkpipe.storage.stores.base import AbstractStore
from ntkpipe.storage.stores.registry import open_store
from ntkpipe.workers.jacobians.engine import Factors, JacobianEngine
from ntkpipe.workers.kept import KeptTensors
from ntkpipe.workers.passes import CACHED_SHARDS, PassPlan, side_bytes
from ntkpipe.workers.run_kernels import RunKernels
from ntkpipe.workers.run_operators import RunOperators
from ntkpipe.workers.sources.data import SplitSource
from ntkpipe.workers.sources.model import DTYPES, load_model, usable_device, weights_digest
from ntkpipe.workers.tasks import WorkerSpec

TRUST_SECONDS = 1.0
"""For how long a worker that has not been replaced writes chunks without looking again."""

BaseFactors = dict[Hashable, Factors]
"""Factors of a group of samples by what they are of, see :attr:`View.base_key`."""


@final
class WorkerContext:
    """Model, data, projections and storage of a run; each is loaded when a task first needs it.

    Attributes:
        spec: What the worker was started with.
        passes: How the batches of the task under way are cut.
        store: Where the run lives; refuses to be written to once the worker's driver has been replaced.
        chunks: Its arrays, likewise.
        ledger: Its receipts.
        samples: Reads what is stored per sample.
        matrices: Reads kernel matrices.
        kept_factors: Those of the last rows of an exact block, by what they are of; the kernel stage's own.
        kept_sides: Stored features and norms of rows and columns of kernel blocks; the kernel stage's own.
        kept_choleskys: The factor of the last posterior, by kernel; the derive stage's own.
        kept_solves: Solves that more than one task works on, by solution; the solve stage's own.
    """

    def __init__(self, spec: WorkerSpec) -> None:
        self.spec = spec
        self.passes = spec.passes
        store = open_store(spec.url, fsync=spec.config.store.fsync)
        self.store: AbstractStore = FencedStore(store, spec.epoch, trust_seconds=TRUST_SECONDS) if spec.epoch else store
        self.chunks = ChunkStore(self.store, specs=array_specs(spec.geometry))
        self.ledger = Ledger(self.store)
        self.samples = SampleReader(self.chunks, self.ledger, spec.geometry)
        self.matrices = MatrixReader(self.chunks, self.ledger, spec.geometry)
        self.kept_factors: tuple[object, list[BaseFactors]] | None = None
        self.kept_choleskys: dict[str, torch.Tensor] = {}
        self.kept_solves: dict[str, object] = {}
        self.kept_sides = KeptTensors(spec.passes.kept_sides * side_bytes(spec.geometry))
        self._splits: dict[str, SplitSource] = {}
        self._shards: dict[tuple[str, int], torch.Tensor] = {}
        self._engines: dict[str, JacobianEngine] = {}

    @property
    def dtype(self) -> torch.dtype:
        """Precision of the computation; of a run without a model, that of its storage."""
        model = self.spec.config.model
        return DTYPES[model.dtype if model is not None else self.spec.geometry.dtype]

    @cached_property
    def device(self) -> torch.device:
        """Where the computation happens; one that this machine has."""
        return usable_device(self.spec.device)

    def engine(self, member: str) -> JacobianEngine:
        """Return the Jacobian engine over the run's model, or over one of its members."""
        if member not in self._engines:
            config = self.spec.config.model
            assert config is not None
            model = load_model(config.member(member))
            if weights_digest(model) != self.spec.weights_digests[member]:
                raise RunMismatchError(
                    f"{config.target} builds other weights in this process than the run was planned for. "
                    "Name a weights file in model.weights, or let the callable fix its seed."
                )
            self._engines[member] = JacobianEngine(model.to(self.device), self.spec.routes[member])
        return self._engines[member]

    def use(self, passes: PassPlan) -> None:
        """Cut the batches of the next task like this, and keep no more between tasks than goes with it."""
        self.passes = passes
        self.kept_sides.limit(passes.kept_sides * side_bytes(self.spec.geometry))

    def forget(self) -> None:
        """Drop what was kept for the next task, to have more memory for it."""
        self.kept_factors = None
        self.kept_sides.clear()
        self.kept_choleskys = {}
        self.kept_solves = {}
        self._shards = {}

    @property
    def members(self) -> tuple[str, ...]:
        """The members of the model: one without a name for a model on its own, none without a model."""
        config = self.spec.config.model
        return () if config is None else config.member_names

    @cached_property
    def kernels(self) -> RunKernels:
        """The kernels of the run, and what each of them looks at."""
        return RunKernels(self.spec, self.samples, self.device, self.dtype)

    @cached_property
    def operators(self) -> RunOperators:
        """The kernel matrices of the run, stored or not."""

        def inputs(split: str) -> torch.Tensor:
            return self.plain_inputs(shard_at(split, 0, len(self.split(split)), len(self.split(split))))

        return RunOperators(self.spec.geometry, self.samples, self.matrices, self.kernels, inputs)

    def split(self, name: str) -> SplitSource:
        """Return the samples of a split, whose ids and labels are those that the run was planned for.

        Raises:
            RunMismatchError: They are not: the source gives others every time it is asked, or has changed.
        """
        if name not in self._splits:
            found = SplitSource(name, self.spec.config.data.splits[name])
            if found.fingerprint(self.spec.input_digests[name]) != self.spec.fingerprints[f"data.{name}"]:
                raise RunMismatchError(
                    f"split {name!r}: ids or labels differ from those the run was planned for. The source must give the "
                    "same ones in every process: fix its seed, and do not change its files while a run is under way."
                )
            self._splits[name] = found
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

    def plain_inputs(self, shard: Shard) -> torch.Tensor:
        """Return the inputs of a range of samples for kernels that are formulas, in double precision."""
        inputs = self.inputs(shard.split, shard.start, shard.stop).to(self.device)
        return inputs.double() if inputs.is_floating_point() else inputs

    def batches(self, shard: Shard) -> Iterator[tuple[torch.Tensor, torch.Tensor | None]]:
        """Yield inputs and labels of a range of samples, batch by batch, on the device of the computation."""
        inputs, labels = self.inputs(shard.split, shard.start, shard.stop), self.split(shard.split).labels
        size = self.passes.batch_size
        for start in range(0, len(inputs), size):
            part = inputs[start : start + size]
            first = shard.start + start
            yield (
                part.to(device=self.device, dtype=self.dtype if part.is_floating_point() else None),
                None if labels is None else labels[first : first + len(part)].to(self.device),
            )
