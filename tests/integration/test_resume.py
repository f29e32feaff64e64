"""Interrupted, changed and damaged runs."""

import os
from pathlib import Path

import golden
import pytest
from interruptions import Killed, interrupt_after
from runs import chunk_hashes

import ntkpipe
from ntkpipe.configs.errors import (
    ChunkNotReadyError,
    ConfigError,
    CorruptChunkError,
    NotFoundError,
    RunLockedError,
    RunMismatchError,
)
from ntkpipe.storage.stores.registry import open_store


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory):
    return Path(ntkpipe.run(golden.config(), tmp_path_factory.mktemp("runs") / "whole").url)


@pytest.mark.parametrize("num_tasks", [0, 1, 3, 4, 7, 10, 11])
def test_a_resumed_run_equals_an_uninterrupted_one(num_tasks, uninterrupted, tmp_path, monkeypatch):
    with monkeypatch.context() as patch:
        interrupt_after(patch, num_tasks)
        with pytest.raises(Killed):
            ntkpipe.run(golden.config(), tmp_path / "run")
    status = ntkpipe.open_run(tmp_path / "run").status()
    assert sum(stage.done for stage in status.stages) == num_tasks
    assert status.state == "interrupted"
    resumed = ntkpipe.resume(tmp_path / "run")
    assert resumed.status().state == "finished"
    assert resumed.status().epoch == 2
    assert chunk_hashes(tmp_path / "run") == chunk_hashes(uninterrupted)


def test_resuming_a_finished_run_computes_nothing(uninterrupted, tmp_path, monkeypatch):
    ntkpipe.run(golden.config(), tmp_path / "run")
    interrupt_after(monkeypatch, -1)
    assert ntkpipe.resume(tmp_path / "run").status().state == "finished"


def test_reads_before_the_commit_are_refused_even_if_the_chunk_exists(tmp_path, monkeypatch):
    interrupt_after(monkeypatch, 4)
    with pytest.raises(Killed):
        ntkpipe.run(golden.config(), tmp_path / "run")
    run = ntkpipe.open_run(tmp_path / "run")
    assert (tmp_path / "run/data.zarr/kernel/trntk0/train-train/c/0/0").exists()
    with pytest.raises(ChunkNotReadyError, match="kernel task train-train/000000-000000 is not committed"):
        run.kernel("trntk0")[0, 0]
    assert run.diagonal("trntk0").tolist() == [18, 72, 60, 2]


def test_runtime_fields_may_change_on_resume(tmp_path, monkeypatch, uninterrupted):
    with monkeypatch.context() as patch:
        interrupt_after(patch, 3)
        with pytest.raises(Killed):
            ntkpipe.run(golden.config(), tmp_path / "run")
    ntkpipe.resume(tmp_path / "run", overrides=["resources.batch_size=1", "resources.max_attempts=5"])
    assert chunk_hashes(tmp_path / "run") == chunk_hashes(uninterrupted)


@pytest.mark.parametrize(
    ("override", "named"),
    [
        ("store.block_rows=3", r"config\.store\.block_rows: stored 2, now 3"),
        ("data.splits.train.options.label_shift=1", r"fingerprints\.data\.train"),
        ("projection.seed=1", r"config\.projection\.seed: stored 0, now 1"),
        ("kernels.0.kind=trntk", r"config\.kernels\[0\]\.kind: stored 'trntk0', now 'trntk'"),
    ],
)
def test_drift_is_refused_with_a_field_by_field_difference(override, named, uninterrupted):
    with pytest.raises(
        (RunMismatchError, ConfigError), match=named if "kind" not in override else "more than once|kind"
    ):
        ntkpipe.resume(uninterrupted, overrides=[override])


def test_changed_weights_are_refused(uninterrupted, monkeypatch):
    build = golden.build_model

    def other():
        model = build()
        model.fc1.weight.data[0, 0] += 2**-20
        return model

    monkeypatch.setattr(golden, "build_model", other)
    with pytest.raises(RunMismatchError, match=r"fingerprints\.weights"):
        ntkpipe.resume(uninterrupted)


def test_code_that_computes_other_numbers_is_refused(tmp_path):
    run = ntkpipe.run(golden.config(), tmp_path / "run")
    path = tmp_path / "run/run.json"
    path.write_text(path.read_text().replace('"numerics_version": 4', '"numerics_version": 2'))
    with pytest.raises(RunMismatchError, match="numerics_version: stored 2, now 4"):
        ntkpipe.resume(run.url)


def test_a_second_run_at_the_same_place_is_refused(uninterrupted):
    with pytest.raises(ConfigError, match="holds a run already"):
        ntkpipe.run(golden.config(), uninterrupted)


def test_a_living_driver_keeps_its_run(uninterrupted):
    from ntkpipe.storage.locks import EpochLock

    with EpochLock(open_store(uninterrupted), 60), pytest.raises(RunLockedError, match="being worked on by process"):
        ntkpipe.resume(uninterrupted)


def test_there_is_nothing_to_resume_where_there_is_no_run(tmp_path):
    with pytest.raises(NotFoundError, match="is not a run"):
        ntkpipe.resume(tmp_path)


def damage_bit(path):
    data = bytearray(path.read_bytes())
    data[len(data) // 3] ^= 4
    path.write_bytes(bytes(data))


def damage_truncate(path):
    path.write_bytes(path.read_bytes()[:-5])


def damage_other_chunk(path):
    path.write_bytes((path.parent / "1").read_bytes())


@pytest.mark.parametrize("damage", [damage_bit, damage_truncate, os.unlink, damage_other_chunk])
def test_damage_is_found_and_repaired(damage, tmp_path, uninterrupted):
    run = ntkpipe.run(golden.config(), tmp_path / "run")
    damage(tmp_path / "run/data.zarr/kernel/trntk0/train-train/c/1/0")
    findings = [finding for checked in ntkpipe.verify(run.url) for finding in checked.findings]
    assert [(finding.stage, finding.task) for finding in findings] == [("kernel", "train-train/000001-000000")]
    if damage is not damage_other_chunk:
        with pytest.raises(CorruptChunkError, match=r"trntk0/train-train, chunk \[1, 0\]"):
            ntkpipe.open_run(run.url).kernel("trntk0")[2, 0]
    assert any(checked.findings for checked in ntkpipe.verify(run.url, repair=True))
    ntkpipe.resume(run.url)
    assert not any(checked.findings for checked in ntkpipe.verify(run.url))
    assert chunk_hashes(tmp_path / "run") == chunk_hashes(uninterrupted)


def test_lost_metadata_of_an_array_is_found_and_repaired(tmp_path, uninterrupted):
    run = ntkpipe.run(golden.config(), tmp_path / "run")
    (tmp_path / "run/data.zarr/diagonal/ck/test/zarr.json").unlink()
    findings = [finding for checked in ntkpipe.verify(run.url, repair=True) for finding in checked.findings]
    assert {finding.task for finding in findings} == {"test/00000000", "test/00000001"}
    ntkpipe.resume(run.url)
    assert chunk_hashes(tmp_path / "run") == chunk_hashes(uninterrupted)


def test_a_damaged_receipt_is_found_and_repaired(tmp_path, uninterrupted):
    run = ntkpipe.run(golden.config(), tmp_path / "run")
    receipt = tmp_path / "run/receipts/features/train/00000001.json"
    receipt.write_text(receipt.read_text()[:40])
    findings = [finding for checked in ntkpipe.verify(run.url, repair=True) for finding in checked.findings]
    assert "cannot be read" in findings[0].problem
    ntkpipe.resume(run.url)
    assert chunk_hashes(tmp_path / "run") == chunk_hashes(uninterrupted)
