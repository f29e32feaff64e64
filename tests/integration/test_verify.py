"""Whatever happens to anything that a run has stored, it is found, it is not read as data, and it is made good."""

import json
import re
import shutil
import tracemalloc
from contextlib import suppress
from pathlib import Path

import answers
import golden
import google_crc32c
import numpy as np
import pytest
from commands import ntkpipe_command
from faults.table import compare_runs
from interruptions import Killed, interrupt_after
from runs import chunk_hashes

import ntkpipe
from ntkpipe.configs.errors import NtkPipeError, RunLockedError, StorageError
from ntkpipe.pipeline.query.run import open_run
from ntkpipe.storage import layout
from ntkpipe.storage.arrays import ChunkStore
from ntkpipe.storage.ledger import Ledger
from ntkpipe.storage.locks import EpochLock
from ntkpipe.storage.metadata import ArraySpec
from ntkpipe.storage.records import ChunkRecord, Failure, Receipt
from ntkpipe.storage.stores.local import LocalRunStore
from ntkpipe.storage.stores.registry import open_store
from ntkpipe.storage.verify import verify_tasks

PLACES = {
    "features": ("data.zarr/features/pntk-sjlt/train/c/0/0", "data.zarr/features/pntk-sjlt/train/c/1/0"),
    "kernel": ("data.zarr/kernel/trntk0/train-train/c/1/0", "data.zarr/kernel/trntk0/train-train/c/1/1"),
    "component": ("data.zarr/component/trntk0/test-train/c/2/1/0", "data.zarr/component/trntk0/test-train/c/1/1/0"),
    "diagonal": ("data.zarr/diagonal/trntk0/test/c/0", "data.zarr/diagonal/trntk0/test/c/1"),
    "solution": ("data.zarr/solution/krr/c/0/0", "data.zarr/prediction/krr/train/c/0/0"),
    "ids": ("data.zarr/sample_id/train/c/0", "data.zarr/sample_id/test/c/0"),
    "labels": ("data.zarr/label/train/c/0", "data.zarr/sample_id/train/c/0"),
    "array": ("data.zarr/kernel/trntk0/train-train/zarr.json", "data.zarr/diagonal/trntk0/test/zarr.json"),
    "group": ("data.zarr/zarr.json", "data.zarr/kernel/zarr.json"),
    "inner group": ("data.zarr/kernel/trntk0/zarr.json", "data.zarr/zarr.json"),
    "receipt": ("receipts/features/train/00000001.json", "receipts/features/train/00000000.json"),
    "segment": ("segments/000001-000001.jsonl", "segments/000001-000002.jsonl"),
    "analysis": ("analyses/fidelity/summary.json", "solutions/krr.json"),
}
"""What is damaged, and its neighbour."""


def config(**changes):
    splits = {
        "train": {"kind": "python", "target": "golden:load"},
        "test": {
            "kind": "python",
            "target": "golden:load",
            "options": {"ids": ["t0", "t1", "t2", "t3"], "shift": 0.5},
        },
    }
    return golden.config(
        data={"splits": splits},
        kernels=[
            {"kind": "trntk0", "layerwise": True},
            {"kind": "pntk", "name": "pntk-sjlt", "projection": {"kind": "sjlt", "dim": 16}},
        ],
        solve=[{"kind": "cholesky", "name": "krr", "kernel": "trntk0", "ridge": 1.0}],
        analyses=[{"kind": "fidelity"}],
        **changes,
    )


def accept():
    """The driver still holds the run."""


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """A finished run, receipts as objects of their own, and all that it answers."""
    run = ntkpipe.run(config(), tmp_path_factory.mktemp("runs") / "whole")
    return run, {name: ask() for name, ask in answers.questions(run).items()}


@pytest.fixture
def copied(whole, tmp_path):
    return shutil.copytree(whole[0].url, tmp_path / "run")


def findings(url, **options):
    return [finding for checked in ntkpipe.verify(url, **options) for finding in checked.findings]


def flip(path, other):
    data = bytearray(path.read_bytes())
    data[len(data) // 3] ^= 4
    path.write_bytes(bytes(data))


def truncate(path, other):
    path.write_bytes(path.read_bytes()[:-5])


def empty(path, other):
    path.write_bytes(b"")


def delete(path, other):
    path.unlink()


def swap(path, other):
    path.write_bytes(other.read_bytes())


def blank(path, other):
    """Overwrite a chunk with fill values and the checksum that goes with them, as other software may do."""
    data = path.read_bytes()[:-4]
    if "sample_id" in str(path):
        content = (4).to_bytes(4, "little") + bytes(4 * 4)
    else:
        kind = json.loads((path.parents[len(path.parts) - path.parts.index("c") - 1] / "zarr.json").read_text())
        dtype = np.dtype(kind["data_type"])
        fill = np.nan if dtype.kind == "f" else np.iinfo(dtype).min
        content = np.full(len(data) // dtype.itemsize, fill, dtype).tobytes()
    path.write_bytes(content + google_crc32c.value(content).to_bytes(4, "little"))


DAMAGES = {
    flip: "a flipped bit",
    truncate: "a truncated file",
    empty: "an emptied file",
    delete: "a deleted file",
    swap: "a neighbour's content",
    blank: "fill values",
}
CASES = [
    pytest.param(place, damage, marks=[] if (index + 2 * row) % len(DAMAGES) == 0 else [pytest.mark.slow])
    for row, place in enumerate(PLACES)
    for index, damage in enumerate(DAMAGES)
    if damage is not blank or "/c/" in PLACES[place][0]
]


@pytest.mark.parametrize(("place", "damage"), CASES)
def test_any_damage_is_found_not_read_and_repaired(place, damage, whole, copied, fault_table):
    if place == "segment":
        Ledger(open_store(copied)).compact(1, accept, beyond=0, per_segment=6)
    path, other = (copied / name for name in PLACES[place])
    damage(path, other)
    # A receipt that is gone leaves nothing behind that could be wrong: its task is to be done.
    lost = place in ("receipt", "segment") and damage is delete
    found = findings(copied)
    assert found or (lost and open_run(copied).status().state == "interrupted")
    for name, ask in answers.questions(open_run(copied)).items():
        with suppress(NtkPipeError):
            assert np.array_equal(ask(), whole[1][name]), name
    assert findings(copied, repair=True) == found
    repaired = ntkpipe.resume(copied)
    assert repaired.status().state == "finished"
    assert findings(copied) == []
    assert chunk_hashes(copied) == chunk_hashes(Path(whole[0].url))
    for name, ask in answers.questions(open_run(copied)).items():
        assert np.array_equal(ask(), whole[1][name]), name
    fault_table.add(DAMAGES[damage], 1, 1, *compare_runs(copied, whole[0].url))


@pytest.mark.parametrize("damage", [flip, truncate, empty, delete])
@pytest.mark.parametrize("place", ["receipt", "segment"])
def test_a_resume_that_comes_before_the_repair_does_no_harm(place, damage, whole, copied):
    if place == "segment":
        Ledger(open_store(copied)).compact(1, accept, beyond=0, per_segment=6)
    path, other = (copied / name for name in PLACES[place])
    damage(path, other)
    if place == "segment" and damage is not delete:
        with pytest.raises(
            StorageError, match=r"000001-000001\.jsonl, which says which tasks are finished, is damaged"
        ):
            ntkpipe.resume(copied)
    else:
        ntkpipe.resume(copied)
    findings(copied, repair=True)
    ntkpipe.resume(copied)
    assert findings(copied) == []
    assert chunk_hashes(copied) == chunk_hashes(Path(whole[0].url))


def test_a_whole_run_is_found_to_be_whole(whole):
    checked = list(ntkpipe.verify(whole[0].url))
    assert not [one.findings for one in checked if one.findings]
    stages = [one.receipt.stage for one in checked if one.receipt is not None]
    assert {stage: stages.count(stage) for stage in stages} == {
        "prepare": 1, "features": 4, "kernel": 7, "solve": 1, "analyze": 1,
    }  # fmt: skip


def test_a_damaged_manifest_is_an_error(copied):
    path = copied / "run.json"
    path.write_text(path.read_text().replace('"seed": 0', '"seed": 1'))
    with pytest.raises(StorageError, match=r"run\.json cannot be read: it is damaged .* put a copy of it back"):
        next(ntkpipe.verify(copied))


def test_receipts_that_belong_to_no_task_are_reported_and_taken_back(whole, copied):
    ledger = Ledger(open_store(copied))
    for stage, task in (("features", "train/00000009"), ("polish", "x")):
        ledger.commit(Receipt(stage=stage, task=task, chunks=(), seconds=0, worker="w"))
    found = findings(copied, repair=True)
    assert [(one.stage, one.task) for one in found] == [("features", "train/00000009"), ("polish", "x")]
    assert all("no such task" in one.problem for one in found)
    assert findings(copied) == []


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        ({"start": (0, 0), "shape": (2, 16)}, "committed were .2, 16. values from .0, 0. on, the grid has"),
        ({"position": (7, 0)}, "beyond the array's end"),
        ({"position": (1,)}, "the array has 2 axes"),
        ({"array": "features/else/train"}, "no readable array features/else/train"),
        ({"crc32c": "00000000"}, "committed was 00000000"),
    ],
)
def test_a_receipt_that_does_not_fit_the_grid_is_reported(change, problem, copied):
    store = open_store(copied)
    receipt = Ledger(store).receipt("features", "train/00000001")
    records = [
        ChunkRecord.model_validate(record.model_dump() | change) if record.array.startswith("features") else record
        for record in receipt.chunks
    ]
    wrong = receipt.model_copy(update={"chunks": tuple(records)})
    store.put("receipts/features/train/00000001.json", wrong.encode())
    (found,) = findings(copied)
    assert re.search(problem, found.problem)


def test_tasks_of_a_damaged_segment_that_are_whole_are_kept(whole, copied):
    store = open_store(copied)
    Ledger(store).compact(1, accept, beyond=0, per_segment=6)
    path = copied / "segments/000001-000001.jsonl"
    path.write_text(path.read_text().replace('"task":"train/00000000"', '"task":"train/00000007"'))
    found = findings(copied, repair=True)
    assert [(one.stage, one.task) for one in found] == [
        ("segments", "segments/000001-000001.jsonl"),
        ("features", "train/00000000"),
    ]
    assert Ledger(store).committed("features") == {"train/00000001", "test/00000000", "test/00000001"}
    ntkpipe.resume(copied)
    assert chunk_hashes(copied) == chunk_hashes(Path(whole[0].url))


@pytest.mark.parametrize("num_tasks", [3, 8, 12])
def test_a_run_whose_receipts_are_moved_into_segments_goes_on_and_answers(num_tasks, whole, tmp_path, monkeypatch):
    compact = Ledger.compact
    monkeypatch.setattr(
        Ledger, "compact", lambda self, epoch, check: compact(self, epoch, check, beyond=1, per_segment=2)
    )
    with monkeypatch.context() as patch:
        interrupt_after(patch, num_tasks)
        with pytest.raises(Killed):
            ntkpipe.run(config(), tmp_path / "run")
    run = ntkpipe.resume(tmp_path / "run")
    assert len(list((tmp_path / "run/segments").iterdir())) >= 6
    assert len(list((tmp_path / "run/receipts").rglob("*.json"))) <= 2
    assert run.status().state == "finished"
    assert findings(run.url) == []
    assert chunk_hashes(tmp_path / "run") == chunk_hashes(Path(whole[0].url))
    for name, ask in answers.questions(run).items():
        assert np.array_equal(ask(), whole[1][name]), name


def test_verifying_holds_a_chunk_for_each_thread_and_no_more(tmp_path):
    store, chunk_bytes, num_chunks = open_store(tmp_path), 2**20, 48
    spec = ArraySpec("features/a/train", (num_chunks * 256, 1024), (256, 1024), "float32", ("train", "feature"))
    chunks, ledger = ChunkStore(store, specs=[spec]), Ledger(store)
    for index in range(num_chunks):
        record = chunks.write(spec.path, (index, 0), np.full((256, 1024), index, np.float32))
        ledger.commit(Receipt(stage="features", task=f"{index:03d}", chunks=(record,), seconds=0, worker="w"))
    tracemalloc.start()
    try:
        planned = [("features", ledger.committed("features"))]
        checked = list(verify_tasks(chunks, ledger, planned, threads=3))
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert len(checked) == num_chunks
    assert not any(one.findings for one in checked)
    assert peak < 5 * chunk_bytes


def test_a_stray_receipt_does_not_make_up_for_one_that_is_gone(copied):
    path = copied / "receipts/features/train/00000001.json"
    path.rename(path.with_name("00000001 copy.json"))
    status = open_run(copied).status()
    assert (status.state, status.stages[0].done, status.stages[0].total) == ("interrupted", 3, 4)


def test_a_task_that_had_failed_before_it_was_finished_has_not_failed_when_it_is_to_be_repaired(copied):
    store = open_store(copied)
    for task in ("train/00000000", "train/00000001"):
        failure = Failure(
            stage="features", task=task, epoch=1, attempt=1, kind="exception", message="", verdict="aside"
        )
        Ledger(store).record_failure(failure)
    flip(copied / PLACES["features"][0], None)
    assert findings(copied, repair=True)
    status = open_run(copied).status()
    assert (status.state, status.failures) == ("interrupted", ())
    assert store.names(layout.FAILED) == ["failed/features/train/00000001-000001-1.json"]


def test_a_repair_needs_the_run_for_itself(copied):
    with EpochLock(open_store(copied), 60), pytest.raises(RunLockedError, match="being worked on by process"):
        next(ntkpipe.verify(copied, repair=True))


def test_a_repair_that_is_broken_off_has_taken_back_what_it_found(copied):
    flip(copied / PLACES["features"][0], None)
    assert any(checked.findings for checked in ntkpipe.verify(copied, repair=True))
    assert not Ledger(open_store(copied)).is_committed("features", "train/00000000")


@pytest.mark.parametrize("num_chunks", [0, 3, 20])
def test_a_store_that_ceases_to_answer_is_no_damage(num_chunks, copied, monkeypatch):
    flip(copied / PLACES["ids"][0], None)
    read, get, calls = LocalRunStore.get_writable, LocalRunStore.get, []

    def failing_read(self, key):
        calls.append(key)
        return failing_get(self, key, read)

    def failing_get(self, key, method=get):
        if len(calls) > num_chunks:
            raise StorageError("the store does not answer")
        return method(self, key)

    with monkeypatch.context() as patch:
        patch.setattr(LocalRunStore, "get_writable", failing_read)
        patch.setattr(LocalRunStore, "get", failing_get)
        with pytest.raises(StorageError, match="does not answer"):
            findings(copied, repair=True)
    assert all(stage.done == stage.total for stage in open_run(copied).status().stages)
    found = findings(copied, repair=True)
    assert {(finding.stage, finding.task) for finding in found} <= {("prepare", "arrays")}


def test_a_chunk_that_alone_cannot_be_read_is_damaged(copied, monkeypatch):
    """A disk that reports an error in the middle of a file."""
    path, read = PLACES["kernel"][0], LocalRunStore.get_writable

    def failing(self, key):
        if key == path:
            raise StorageError("the store failed (Input/output error)")
        return read(self, key)

    monkeypatch.setattr(LocalRunStore, "get_writable", failing)
    assert [(finding.stage, finding.problem) for finding in findings(copied)] == [
        ("kernel", "the store failed (Input/output error)")
    ]


def test_the_command_line_tells_and_repairs(whole, copied):
    flip(copied / PLACES["kernel"][0], None)
    found = ntkpipe_command("verify", copied)
    assert found.returncode == 1
    assert "kernel task train-train/000001-000000: " in found.stdout
    assert "1 problem found. `ntkpipe verify" in found.stdout
    found = ntkpipe_command("verify", copied, "--repair")
    assert found.returncode == 0, found.stderr
    assert findings(copied) == []
    assert chunk_hashes(copied) == chunk_hashes(Path(whole[0].url))
