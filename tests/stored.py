"""Runs whose numbers are given instead of computed: storage as a run leaves it, for tests and benchmarks of what reads it."""

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from ntkpipe.storage import features, layout
from ntkpipe.storage.arrays import Array, ChunkStore
from ntkpipe.storage.documents import seal_of
from ntkpipe.storage.grid import Block, Shard, blocks, pair_name, shards
from ntkpipe.storage.kernel import KERNEL_STAGE
from ntkpipe.storage.ledger import Ledger
from ntkpipe.storage.records import ChunkRecord, Geometry, KernelGeometry, Manifest, Receipt, SplitGeometry
from ntkpipe.storage.schema import array_specs
from ntkpipe.storage.stores.base import AbstractStore
from ntkpipe.storage.stores.registry import open_store

Entries = Callable[[str, str | None, str, slice, str, slice], Array]
"""(kernel, component, split of the rows, rows, split of the columns, columns) to entries of a kernel of samples."""

Rows = Callable[[str, str | None, str, slice], Array]
"""(kernel, component, split, rows) to features, or to K(x, x)."""


@dataclass(frozen=True, slots=True)
class Stored:
    """What a run is to hold."""

    entries: Entries
    diagonals: Rows
    features: Rows | None = None
    statistics: Rows | None = None
    """Of derived kernels that keep any, (M, S)."""
    labels: Mapping[str, Array] = field(default_factory=dict)
    """Classes by split."""
    left_out: Collection[str] = ()
    """Kernel tasks that are not committed."""
    written: Callable[[Block], bool] = field(default=lambda block: True)
    """Which blocks there are at all."""


def kernel(name: str, **changes: Any) -> KernelGeometry:
    """Return the geometry of a kernel of samples without features."""
    return KernelGeometry(**{"name": name, "kind": "pntk", "feature_dim": None, "groups": ()} | changes)


def geometry(
    sizes: Mapping[str, int],
    kernels: Sequence[KernelGeometry],
    *,
    block_rows: int,
    shard_rows: int,
    pairs: Sequence[tuple[str, str]] | None = None,
    num_classes: int = 0,
    dtype: str = "float32",
) -> Geometry:
    """Return the geometry of a run whose first split is the training split."""
    train = next(iter(sizes))
    labels = "classes" if num_classes else "none"
    return Geometry(
        splits={
            name: SplitGeometry(num_samples=size, labels=labels, num_targets=num_classes)
            for name, size in sizes.items()
        },
        train_split=train,
        kernels=tuple(kernels),
        pairs=tuple((name, train) for name in sizes) if pairs is None else tuple(pairs),
        solutions=(),
        solution_targets=(),
        num_outputs=0,
        shard_rows=shard_rows,
        block_rows=block_rows,
        dtype=dtype,
    )


def store_run(url: str | Path, shape: Geometry, stored: Stored) -> AbstractStore:
    """Write a run as workers and drivers would have; memory is O(block)."""
    store = open_store(url)
    manifest = Manifest(
        run_id="given",
        name="given",
        created_at=0.0,
        config={},
        semantic={},
        fingerprints={},
        geometry=shape,
        num_parameters=0,
        versions={},
    )
    document = manifest.model_dump(mode="json")
    store.put_new(layout.MANIFEST, manifest.model_copy(update={"seal": seal_of(document)}).encode())
    chunks, ledger = ChunkStore(store), Ledger(store)
    chunks.create(array_specs(shape), {})
    _commit(ledger, features.PREPARE_STAGE, features.PREPARE_TASK, _prepared(chunks, shape, stored))
    for split, size in shape.splits.items():
        for shard in shards(split, size.num_samples, shape.shard_rows):
            _commit(ledger, features.FEATURES_STAGE, shard.task, _of_shard(chunks, shape, stored, shard))
    _commit_statistics(chunks, ledger, shape, stored)
    for rows, columns in shape.pairs:
        sizes = shape.splits[rows].num_samples, shape.splits[columns].num_samples
        for block in blocks(rows, sizes[0], columns, sizes[1], shape.block_rows):
            records = _of_block(chunks, shape, stored, block) if stored.written(block) else []
            if records and block.task not in stored.left_out:
                _commit(ledger, KERNEL_STAGE, block.task, records)
    return store


def sample_name(split: str, position: int) -> str:
    """Return the id of a sample."""
    return f"{split}-{position:06d}"


def _commit(ledger: Ledger, stage: str, task: str, records: Sequence[ChunkRecord]) -> None:
    ledger.commit(Receipt(stage=stage, task=task, chunks=tuple(records), seconds=1.0, worker="given", epoch=1))


def _prepared(chunks: ChunkStore, shape: Geometry, stored: Stored) -> list[ChunkRecord]:
    records = []
    for split, size in shape.splits.items():
        names = [sample_name(split, position) for position in range(size.num_samples)]
        records.append(chunks.write(layout.sample_id(split), (0,), np.array(names, dtype=object)))
        if size.labels == "classes":
            records.append(chunks.write(layout.label(split), (0,), stored.labels[split].astype(np.int64)))
    return records


def _of_shard(chunks: ChunkStore, shape: Geometry, stored: Stored, shard: Shard) -> list[ChunkRecord]:
    records, rows = [], slice(shard.start, shard.stop)
    for one in shape.kernels:
        if one.derived is not None:
            continue
        values = stored.diagonals(one.name, None, shard.split, rows)
        records.append(chunks.write(layout.diagonal(one.name, shard.split), (shard.index,), values))
        if one.feature_dim is None or stored.features is None:
            continue
        for index, group in enumerate(one.groups or (None,)):
            values, prefix = stored.features(one.name, group, shard.split, rows), (index,) if one.groups else ()
            path = layout.features(one.name, shard.split)
            records.append(chunks.write(path, (*prefix, shard.index, 0), values[(np.newaxis,) * len(prefix)]))
    return records


def _commit_statistics(chunks: ChunkStore, ledger: Ledger, shape: Geometry, stored: Stored) -> None:
    for one in shape.kernels:
        if one.statistic_dim is None or stored.statistics is None:
            continue
        for split, size in shape.splits.items():
            for shard in shards(split, size.num_samples, shape.block_rows):
                values = stored.statistics(one.name, None, split, slice(shard.start, shard.stop))
                record = chunks.write(layout.statistic(one.name, split), (shard.index, 0), values)
                _commit(ledger, features.derive_stage(one.level), features.derive_task(one.name, shard), [record])


def _of_block(chunks: ChunkStore, shape: Geometry, stored: Stored, block: Block) -> list[ChunkRecord]:
    records, pair = [], pair_name(block.rows.split, block.columns.split)
    sides = (
        (block.rows.split, slice(block.rows.start, block.rows.stop)),
        (
            block.columns.split,
            slice(block.columns.start, block.columns.stop),
        ),
    )
    orders = [(sides, (block.rows.index, block.columns.index))]
    if block.rows.split == block.columns.split and not block.on_diagonal:
        orders.append((sides[::-1], (block.columns.index, block.rows.index)))
    for one in shape.kernels:
        if one.derived is not None:
            continue
        for (rows, columns), position in orders[: 1 if one.symmetric else 2]:
            values = stored.entries(one.name, None, *rows, *columns)
            records.append(chunks.write(layout.kernel(one.name, pair), position, values))
            for index, group in enumerate(one.groups):
                part = stored.entries(one.name, group, *rows, *columns)[np.newaxis]
                records.append(chunks.write(layout.component(one.name, pair), (index, *position), part))
    return records
