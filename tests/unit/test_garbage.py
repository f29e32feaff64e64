"""gc removes what killed and finished work has left, and nothing that counts."""

import os
import random
import shutil
from pathlib import Path

import answers
import golden
import numpy as np
import pytest
from commands import ntkpipe_command
from interruptions import Killed, interrupt_after
from runs import chunk_hashes

import ntkpipe
from ntkpipe.configs.errors import NotFoundError, RunLockedError, StorageError
from ntkpipe.storage.garbage import Kind
from ntkpipe.storage.ledger import Ledger
from ntkpipe.storage.locks import EpochLock
from ntkpipe.storage.records import Failure
from ntkpipe.storage.stores.registry import open_store


def config():
    return golden.config(
        kernels=[
            {"kind": "trntk0", "layerwise": True},
            {"kind": "pntk", "name": "pntk-sjlt", "projection": {"kind": "sjlt", "dim": 16}},
        ],
        solve=[{"kind": "pcg", "name": "krr", "kernel": "trntk0", "ridge": 1.0}],
        analyses=[{"kind": "fidelity"}],
    )


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    return Path(ntkpipe.run(config(), tmp_path_factory.mktemp("runs") / "whole").url)


@pytest.fixture
def copied(whole, tmp_path):
    return shutil.copytree(whole, tmp_path / "run")


def interrupted(path, monkeypatch, num_tasks):
    with monkeypatch.context() as patch:
        interrupt_after(patch, num_tasks)
        with pytest.raises(Killed):
            ntkpipe.run(config(), path)


def files(root):
    return {str(path.relative_to(root)) for path in root.rglob("*") if path.is_file()}


DEBRIS = {
    "receipts/kernel/train-train/000001-000000.json.0f.partial": Kind.TEMPORARY,
    "data.zarr/kernel/trntk0/train-train/c/1/0.77aa.partial": Kind.TEMPORARY,
    "data.zarr/kernel/trntk0/train-train/c/0/1": Kind.CHUNK,
    "solver/krr/states/000000000003": Kind.SOLVER,
    "solver/krr/constants": Kind.SOLVER,
    "solver/gone/progress.json": Kind.SOLVER,
    "failed/kernel/train-train/000001-000000-000001-2.json": Kind.FAILURE,
    "failed/solve/krr/step-000001-1.json": Kind.FAILURE,
    "lock/clock-0123456789abcdef": Kind.LOCK,
    "lock/probe-0123456789abcdef": Kind.LOCK,
}
"""What killed processes leave in a run that is finished now. The chunk is above the diagonal, which no task writes."""

FOREIGN = [
    "notes.txt",
    "data.zarr/kernel/trntk0/train-train/c/9/9",
    "data.zarr/kernel/trntk0/train-train/c/00/1",
    "data.zarr/kernel/mine/c/0/0",
    "analyses/fidelity/my-notes.txt",
    "analyses/mine/summary.json",
    "solutions/krr/mine.npy",
    "receipts/README",
    "failed/README",
    "lock/mine",
    "events/mine",
    "solver.txt",
]


def scatter(root, names):
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(b"debris")


def test_debris_is_removed_and_said(copied, whole):
    scatter(copied, DEBRIS)
    (copied / "receipts/solve/other.json").touch()
    (copied / "data.zarr/kernel/left/c/0").mkdir(parents=True)
    expected = DEBRIS | {"receipts/solve/other.json": Kind.RECEIPT, "lock/heartbeat-000001.json": Kind.LOCK}
    before = files(copied)
    looked = ntkpipe.gc(copied, dry_run=True)
    assert files(copied) == before
    assert {piece.key: piece.kind for piece in looked.pieces} == expected
    assert not looked.foreign
    removed = ntkpipe.gc(copied)
    assert {piece.key: piece.kind for piece in removed.pieces} == expected
    assert removed.num_bytes == 6 * len(DEBRIS) + (whole / "lock/heartbeat-000001.json").stat().st_size
    assert files(copied) == before - set(expected) | {"lock/epoch-000002.json", "lock/heartbeat-000002.json"}
    assert not [path for path in copied.rglob("*") if path.is_dir() and not any(path.iterdir())]
    assert [piece.kind for piece in ntkpipe.gc(copied, dry_run=True).pieces] == [Kind.LOCK]
    with EpochLock(open_store(copied), 60):
        # What a living driver says of itself is needed.
        assert "lock/heartbeat-000003.json" not in {piece.key for piece in ntkpipe.gc(copied, dry_run=True).pieces}


def test_what_others_have_put_there_is_left_alone_and_reported(copied):
    scatter(copied, FOREIGN)
    found = ntkpipe.gc(copied)
    assert sorted(found.foreign) == sorted(FOREIGN)
    assert set(FOREIGN) <= files(copied)


def test_epochs_are_kept_because_they_fence(copied):
    ntkpipe.resume(copied)
    ntkpipe.gc(copied)
    assert sorted(path.name for path in (copied / "lock").iterdir()) == [
        "epoch-000001.json",
        "epoch-000002.json",
        "epoch-000003.json",
        "heartbeat-000003.json",
    ]


def test_a_finished_run_is_the_same_afterwards(copied, whole):
    expected = {name: ask() for name, ask in answers.questions(ntkpipe.open_run(whole)).items()}
    scatter(copied, DEBRIS)
    ntkpipe.gc(copied)
    assert not any(checked.findings for checked in ntkpipe.verify(copied))
    assert chunk_hashes(copied) == chunk_hashes(whole)
    for name, ask in answers.questions(ntkpipe.open_run(copied)).items():
        assert np.array_equal(ask(), expected[name]), name


@pytest.mark.parametrize("seed", range(4))
def test_a_run_cut_anywhere_goes_on_to_the_same_bytes(seed, whole, tmp_path, monkeypatch):
    """Cut between tasks, its last tasks cut in half, receipts lost, in segments or not; then gc, then resume."""
    rng, path = random.Random(seed), tmp_path / "run"
    interrupted(path, monkeypatch, rng.randrange(13))
    scatter(path, rng.sample(sorted(DEBRIS), 4))
    receipts = sorted(path.glob("receipts/[!p]*/**/*.json"))
    for receipt in rng.sample(receipts, min(2, len(receipts))):
        receipt.unlink()
    store = open_store(path)
    if rng.random() < 0.5:
        Ledger(store).compact(1, lambda: None, beyond=0, per_segment=2)
    committed = {
        key
        for stage in Ledger(store).stages()
        for receipt in Ledger(store).receipts(stage)
        for key in (
            *(f"data.zarr/{record.array}/c/{'/'.join(map(str, record.position))}" for record in receipt.chunks),
            *(record.key for record in receipt.objects),
        )
    }
    kept = {name: (path / name).read_bytes() for name in committed}
    removed = ntkpipe.gc(path)
    assert not committed & {piece.key for piece in removed.pieces}
    assert {name: (path / name).read_bytes() for name in committed} == kept
    assert not any(checked.findings for checked in ntkpipe.verify(path))
    assert not [name for name in files(path) if "/c/" in name and name not in committed]
    ntkpipe.resume(path)
    assert chunk_hashes(path) == chunk_hashes(whole)


def test_what_an_unfinished_run_needs_is_kept(tmp_path, monkeypatch):
    path = tmp_path / "run"
    interrupted(path, monkeypatch, 11)
    scatter(path, ["solver/krr/states/000000000003", "solver/other/constants", "analyses/fidelity/table.csv"])
    Ledger(open_store(path)).record_failure(
        Failure(stage="solve", task="krr", epoch=1, attempt=1, kind="exception", message="m")
    )
    found = {piece.key: piece.kind for piece in ntkpipe.gc(path).pieces}
    assert found["solver/other/constants"] is Kind.SOLVER
    assert found["analyses/fidelity/table.csv"] is Kind.OBJECT
    assert found["solutions/krr.json"] is Kind.OBJECT, "it was computed, but the driver was killed before the commit"
    assert found["data.zarr/solution/krr/c/0/0"] is Kind.CHUNK
    assert (path / "failed/solve/krr-000001-1.json").exists()
    assert (path / "solver/krr/states/000000000003").exists()


def test_links_out_of_the_run_are_not_followed(copied, tmp_path):
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "precious").write_text("precious")
    (outside / "empty").mkdir()
    (copied / "solver").mkdir(exist_ok=True)
    os.symlink(outside, copied / "solver/linked")
    os.symlink(outside / "precious", copied / "solver/one")
    (copied / "data.zarr/kernel/trntk0/train-train/c/0/1").symlink_to(outside / "precious")
    found = ntkpipe.gc(copied)
    assert (outside / "precious").read_text() == "precious"
    assert (outside / "empty").is_dir()
    assert "data.zarr/kernel/trntk0/train-train/c/0/1" in found.foreign


def test_a_run_that_is_worked_on_is_not_touched(copied):
    scatter(copied, DEBRIS)
    with EpochLock(open_store(copied), 60), pytest.raises(RunLockedError, match="being worked on by process"):
        ntkpipe.gc(copied)
    assert set(DEBRIS) <= files(copied)


def test_nothing_is_removed_while_a_receipt_cannot_be_read(copied):
    scatter(copied, DEBRIS)
    (copied / "receipts/features/train/00000001.json").write_text("{")
    with pytest.raises(
        StorageError,
        match=r"receipts/features/train/00000001\.json cannot be read \(Invalid JSON.*`ntkpipe verify --repair`",
    ):
        ntkpipe.gc(copied)
    assert set(DEBRIS) <= files(copied)


def test_there_is_nothing_to_collect_where_there_is_no_run(tmp_path):
    with pytest.raises(NotFoundError, match="is not a run"):
        ntkpipe.gc(tmp_path)


def test_runs_in_object_stores_are_cleaned_too():
    url = "memory://garbage/run"
    ntkpipe.run(config(), url)
    store = open_store(url)
    for name in ("solver/gone/constants", "data.zarr/kernel/trntk0/train-train/c/0/1", "notes.txt"):
        store.put(name, b"debris")
    found = ntkpipe.gc(url)
    assert found.foreign == ("notes.txt",)
    assert {"solver/gone/constants", "data.zarr/kernel/trntk0/train-train/c/0/1"} <= {p.key for p in found.pieces}
    assert not any(checked.findings for checked in ntkpipe.verify(url))


def test_the_command_line_says_what_it_removes(copied):
    scatter(copied, [*DEBRIS, "notes.txt"])
    found = ntkpipe_command("gc", copied, "--dry-run")
    assert found.returncode == 0, found.stderr
    assert "states of solvers that are done or unknown: 3, 18 bytes" in found.stdout
    assert "left alone, no run has written it: notes.txt" in found.stdout
    assert "would be removed: " in found.stdout
    found = ntkpipe_command("gc", copied)
    assert "\nremoved: 11 objects" in found.stdout
