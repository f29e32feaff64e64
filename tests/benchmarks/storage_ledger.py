"""Receipts: committing them one by one, and finding out what is left to do among very many."""

import os
import shutil
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path

from benchmarks.measure import Timing, timed
from benchmarks.storage_chunks import empty
from benchmarks.storage_report import CPU, Prepare, Row, repeated, take_turns
from ntkpipe.configs.loading import load_config
from ntkpipe.pipeline.plan import Plan
from ntkpipe.storage import layout
from ntkpipe.storage.kernel import KERNEL_STAGE
from ntkpipe.storage.ledger import SEGMENT_RECEIPTS, Ledger
from ntkpipe.storage.locks import EpochLock
from ntkpipe.storage.records import ChunkRecord, Geometry, KernelGeometry, Receipt, SplitGeometry
from ntkpipe.storage.stores.base import AbstractStore
from ntkpipe.storage.stores.registry import open_store

COMMIT_SECONDS = 1e-3
RESUME_SECONDS = 5.0
LEASE_SECONDS = 600.0


def measure_ledger(place: str, folder: Path, num_commits: int, num_receipts: int, repeats: int) -> Iterator[Row]:
    """Yield what receipts cost in a folder."""
    for fsync in (False, True):
        ours, bare = take_turns(
            _commits(folder, num_commits, fsync=fsync), _links(folder, num_commits, fsync=fsync), repeats
        )
        what, most = ("commit with fsync", None) if fsync else ("commit", COMMIT_SECONDS)
        bare_is = "a file, a link" + (", fsync of both" if fsync else "")
        yield Row(place, what, "each", num_commits, ours, bare, bare_is, None, most)
    yield _lock_checks(place, folder, num_commits, repeats)
    yield from _resumes(place, folder, num_receipts, repeats)
    for name in ("ours", "files"):
        shutil.rmtree(folder / name, ignore_errors=True)


def receipt(task: str) -> Receipt:
    """Return a receipt as a kernel task of two kernels leaves it."""
    chunks = tuple(
        ChunkRecord(
            array=f"kernel/{name}/train-train",
            position=(12, 7),
            start=(6144, 3584),
            shape=(512, 512),
            crc32c="0a1b2c3d",
            nbytes=2**20,
        )
        for name in ("one", "other")
    )
    return Receipt(
        stage=KERNEL_STAGE,
        task=task,
        chunks=chunks,
        seconds=1.25,
        worker="host:1234",
        epoch=1,
        versions={"python": "3.11.0", "torch": "2.9.0"},
        made_from={"one": "0" * 32, "other": "1" * 32},
    )


def plan(num_tasks: int) -> Plan:
    """Return the plan of a run with at least so many kernel tasks, and few others."""
    side = 1
    while side * (side + 1) // 2 < num_tasks:
        side += 1
    config = load_config(
        {
            "name": "bench",
            "data": {"splits": {"train": {"kind": "python", "target": "nobody:imports_this"}}},
            "kernels": [{"kind": "laplace", "bandwidth": 1.0}],
            "store": {"block_rows": 1, "shard_rows": side},
        }
    )
    geometry = Geometry(
        splits={"train": SplitGeometry(num_samples=side, labels="none", num_targets=0)},
        train_split="train",
        kernels=(KernelGeometry(name="laplace", kind="laplace", feature_dim=None, groups=()),),
        pairs=(("train", "train"),),
        solutions=(),
        solution_targets=(),
        num_outputs=0,
        shard_rows=side,
        block_rows=1,
        dtype="float32",
    )
    return Plan(config, geometry)


def _commits(folder: Path, num: int, *, fsync: bool) -> Prepare:
    receipts = [receipt(f"train-train/{index:06d}-000000") for index in range(num)]

    def prepare(number: int) -> Callable[[], object]:
        ledger = Ledger(open_store(empty(folder / "ours"), fsync=fsync))
        ledger.refresh()

        def commit() -> None:
            for one in receipts:
                ledger.commit(one)

        return commit

    return prepare


def _links(folder: Path, num: int, *, fsync: bool) -> Prepare:
    """Return the least that makes a file appear once and as a whole."""
    data = receipt("train-train/000000-000000").encode()

    def write() -> None:
        for index in range(num):
            path = folder / "files" / f"{index:06d}.json"
            temporary = f"{path}.{uuid.uuid4().hex}"
            with open(temporary, "xb", buffering=0) as file:
                file.write(data)
                if fsync:
                    os.fsync(file.fileno())
            os.link(temporary, path)
            os.unlink(temporary)
            if fsync:
                descriptor = os.open(path.parent, os.O_RDONLY)
                os.fsync(descriptor)
                os.close(descriptor)

    def prepare(number: int) -> Callable[[], object]:
        empty(folder / "files").mkdir(parents=True)
        return write

    return prepare


def _lock_checks(place: str, folder: Path, num: int, repeats: int) -> Row:
    """Time asking whether another driver has taken over."""
    with EpochLock(open_store(empty(folder / "ours")), LEASE_SECONDS) as lock:
        path = folder / "ours" / layout.epoch(lock.epoch + 1)

        def check() -> None:
            for _ in range(num):
                lock.check()

        def look() -> None:
            for _ in range(num):
                os.path.exists(path)

        ours, bare = take_turns(repeated(check), repeated(look), repeats)
    return Row(place, "look for a successor", "each", num, ours, bare, "os.path.exists")


def _resumes(place: str, folder: Path, num_receipts: int, repeats: int) -> Iterator[Row]:
    """Yield what finding nothing left to do takes, with receipts as objects and in segments."""
    made, root = plan(num_receipts), empty(folder / "ours")
    store = open_store(root)
    tasks = [task.id for task in made.tasks(KERNEL_STAGE)]
    for task in tasks:
        path = root / layout.receipt(KERNEL_STAGE, task)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(receipt(task).encode())
    prefix = root / layout.RECEIPTS
    ours, bare = take_turns(repeated(lambda: store.sizes(layout.RECEIPTS)), repeated(lambda: _walk(prefix)), repeats)
    yield Row(place, "list receipts", "whole", len(tasks), ours, bare, "os.scandir and stat")
    ours, bare = take_turns(repeated(lambda: _left(store, made)), repeated(lambda: _walk(prefix)), repeats)
    yield Row(place, "plan a resume", "whole", len(tasks), ours, bare, "os.scandir and stat", None, RESUME_SECONDS)
    ledger = Ledger(store)
    per_segment = min(SEGMENT_RECEIPTS, len(tasks))
    _, seconds = timed(lambda: ledger.compact(1, lambda: None, beyond=0, per_segment=per_segment), CPU)
    yield Row(place, "move receipts into segments, once", "whole", len(tasks), Timing((seconds,)), None, "")
    segments = root / layout.SEGMENTS
    ours, bare = take_turns(repeated(lambda: _left(store, made)), repeated(lambda: _read(segments)), repeats)
    what = "plan a resume from segments"
    yield Row(place, what, "whole", len(tasks), ours, bare, "reading the segments", None, RESUME_SECONDS)


def _left(store: AbstractStore, made: Plan) -> None:
    """Find out what is left to do, as a driver does when it starts."""
    ledger = Ledger(store)
    done = ledger.committed(KERNEL_STAGE)
    left = [task for task in made.tasks(KERNEL_STAGE) if task.id not in done]
    if left:
        raise AssertionError(f"{len(left)} tasks are left, but all have receipts")


def _walk(folder: Path) -> int:
    total = 0
    with os.scandir(folder) as entries:
        for entry in entries:
            total += _walk(Path(entry.path)) if entry.is_dir() else entry.stat().st_size
    return total


def _read(folder: Path) -> int:
    return sum(len(file.read_bytes()) for file in folder.glob("*") if file.is_file())
