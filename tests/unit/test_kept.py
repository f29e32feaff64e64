"""What a worker keeps between tasks."""

from dataclasses import replace

import golden
import pytest
import torch

from ntkpipe.configs.loading import load_config
from ntkpipe.pipeline.execution import make_plan, prepare, worker_spec
from ntkpipe.storage.ledger import Ledger
from ntkpipe.storage.records import Receipt
from ntkpipe.storage.stores.registry import open_store
from ntkpipe.workers.kept import KeptTensors
from ntkpipe.workers.passes import side_bytes
from ntkpipe.workers.probing.probe import probe_run
from ntkpipe.workers.worker import Worker


class Shelf:
    """Makes tensors of so many bytes, and counts how often."""

    def __init__(self, max_bytes):
        self.kept = KeptTensors(max_bytes)
        self.made = []

    def get(self, key, num_bytes=10):
        def make():
            self.made.append(key)
            return torch.full((num_bytes,), len(self.made), dtype=torch.uint8)

        return self.kept.get(key, make)


def test_what_is_kept_is_not_made_again():
    shelf = Shelf(20)
    first = shelf.get("a")
    assert shelf.get("a") is first
    assert shelf.made == ["a"]


def test_what_was_not_used_for_the_longest_time_goes_first():
    shelf = Shelf(20)
    for key in ("a", "b", "a", "c", "a", "b"):
        shelf.get(key)
    assert shelf.made == ["a", "b", "c", "b"]


def test_no_more_than_so_many_bytes_are_kept():
    shelf = Shelf(25)
    for number in range(20):
        shelf.get(number, 1 + 3 * number % 11)
        assert shelf.kept.num_bytes <= 25
    assert shelf.kept.num_bytes > 0


def test_what_is_too_large_is_given_and_drives_nothing_out():
    shelf = Shelf(20)
    shelf.get("a")
    assert len(shelf.get("large", 21)) == 21
    shelf.get("a")
    shelf.get("large", 21)
    assert shelf.made == ["a", "large", "large"]


def test_nothing_is_kept_where_there_is_no_room_for_anything():
    shelf = Shelf(0)
    shelf.get("a")
    shelf.get("a")
    assert shelf.made == ["a", "a"]
    assert shelf.kept.num_bytes == 0


def test_what_could_not_be_made_leaves_nothing_behind():
    kept = KeptTensors(20)

    def fail():
        raise MemoryError

    with pytest.raises(MemoryError):
        kept.get("a", fail)
    assert kept.get("a", lambda: torch.ones(3)).tolist() == [1.0, 1.0, 1.0]


def test_a_lower_limit_lets_the_oldest_go_at_once():
    shelf = Shelf(30)
    for key in "abc":
        shelf.get(key)
    shelf.kept.limit(20)
    assert shelf.kept.num_bytes == 20
    shelf.get("c")
    shelf.get("b")
    assert shelf.made == ["a", "b", "c"]
    shelf.kept.limit(30)
    shelf.get("a")
    assert shelf.kept.num_bytes == 30


def test_after_clearing_there_is_room_again():
    shelf = Shelf(20)
    shelf.get("a")
    shelf.get("b")
    shelf.kept.clear()
    assert shelf.kept.num_bytes == 0
    shelf.get("a")
    shelf.get("a")
    assert shelf.made == ["a", "b", "a"]


PROJECTED = {"kind": "pntk", "projection": {"kind": "sjlt", "dim": 16}}


def worker_with_features(folder, kept_sides, **changes):
    """Return a worker on a run whose features are committed, and its plan."""
    document = golden.config(kernels=[PROJECTED], solve=[], **changes)
    probe = probe_run(load_config(document))
    plan, store = make_plan(probe), open_store(str(folder))
    ledger = Ledger(store)
    prepare(store, ledger, probe, 0)
    spec = worker_spec(store, plan, probe)
    worker = Worker(replace(spec, passes=replace(spec.passes, kept_sides=kept_sides)))
    for task in plan.tasks("features"):
        chunks = worker.run(task).chunks
        ledger.commit(Receipt(stage=task.stage, task=task.id, chunks=chunks, objects=(), seconds=0.0, worker=""))
    return worker, plan


def test_a_side_of_a_block_keeps_no_more_memory_than_its_own(tmp_path):
    worker, _ = worker_with_features(tmp_path / "run", 1, store={"shard_rows": 4, "block_rows": 1})
    samples = worker._context.samples
    assert samples.features("pntk", "train", 1, 2).base is None
    assert samples.diagonal("pntk", "train", 1, 2).base is None


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_as_many_sides_are_kept_as_were_planned_whatever_the_precision_of_the_model(tmp_path, dtype):
    model = {"target": "golden:build_model", "dtype": dtype}
    worker, plan = worker_with_features(tmp_path / "run", 4, model=model)
    reads = sum(worker.run(task).chunks_read for task in plan.tasks("kernel"))
    assert reads == 4  # two shards of each of two splits, each of them once
    assert worker._context.kept_sides.num_bytes <= 4 * side_bytes(plan.geometry)


def test_other_stages_find_the_memory_of_kept_sides_free(tmp_path):
    worker, plan = worker_with_features(tmp_path / "run", 4)
    worker.run(next(plan.tasks("kernel")))
    assert worker._context.kept_sides.num_bytes > 0
    worker.run(next(plan.tasks("features")))
    assert worker._context.kept_sides.num_bytes == 0
