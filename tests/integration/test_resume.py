"""Interrupted, changed and damaged runs."""

import json
import os
import re
from pathlib import Path

import golden
import pytest
from interruptions import Killed, interrupt_after
from runs import chunk_hashes, edit_manifest

import ntkpipe
from ntkpipe.configs.errors import (
    ChunkNotReadyError,
    ConfigError,
    CorruptChunkError,
    NotFoundError,
    RunLockedError,
    RunMismatchError,
)
from ntkpipe.storage.records import NUMERICS_VERSION
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
    with pytest.raises(
        ChunkNotReadyError, match=r"1 of 1 blocks .* not committed yet: kernel train-train/000000-000000"
    ):
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


def test_the_split_whose_samples_have_changed_is_named(uninterrupted):
    with pytest.raises(RunMismatchError) as caught:
        ntkpipe.resume(uninterrupted, overrides=["data.splits.test.options.shift=1.0"])
    assert "fingerprints.data.test: stored" in caught.value.message
    assert "the samples, labels or ids of the split" in caught.value.message
    assert "fingerprints.data.train" not in caught.value.message
    assert f"ntkpipe resume {uninterrupted} --fork OUT" in caught.value.message


@pytest.mark.parametrize(
    ("name", "meaning"),
    [
        ("weights", "the weights of the model"),
        ("routes", "how gradients of the model are found"),
        ("data.train", "the samples, labels or ids of the split"),
        ("projection.pntk-sjlt", "the random map of the kernel"),
    ],
)
def test_every_fingerprint_is_named_and_explained(name, meaning, tmp_path):
    ntkpipe.run(golden.config(), tmp_path / "run")

    def edit(document):
        assert document["fingerprints"][name]
        document["fingerprints"][name] = "another"

    edit_manifest(tmp_path / "run", edit)
    with pytest.raises(
        RunMismatchError, match=rf"fingerprints\.{re.escape(name)}: stored 'another', now .*\({meaning}\)"
    ):
        ntkpipe.resume(tmp_path / "run")


def test_many_differences_are_counted(tmp_path):
    ntkpipe.run(golden.config(), tmp_path / "run")
    edit_manifest(tmp_path / "run", lambda document: document["fingerprints"].update({f"x{i}": "" for i in range(30)}))
    with pytest.raises(RunMismatchError) as caught:
        ntkpipe.resume(tmp_path / "run")
    assert caught.value.message.count(": stored") == 20
    assert "and 10 more" in caught.value.message


def test_a_run_of_schema_version_1_goes_on(tmp_path, monkeypatch, uninterrupted):
    with monkeypatch.context() as patch:
        interrupt_after(patch, 5)
        with pytest.raises(Killed):
            ntkpipe.run(golden.config(), tmp_path / "run")
    older = {"manifest": {"origin", "seal"}, "receipt": {"made_from", "origin", "seal"}}
    for path in [tmp_path / "run/run.json", *(tmp_path / "run/receipts").rglob("*.json")]:
        document = json.loads(path.read_text())
        for field in older["manifest" if path.name == "run.json" else "receipt"]:
            del document[field]
        for record in document.get("chunks", ()):
            del record["start"], record["shape"]
        path.write_text(json.dumps(document | {"schema_version": 1}))
    ntkpipe.resume(tmp_path / "run")
    assert chunk_hashes(tmp_path / "run") == chunk_hashes(uninterrupted)


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
    older = run.manifest.model_copy(update={"numerics_version": 2})
    (tmp_path / "run/run.json").write_bytes(older.encode())
    with pytest.raises(RunMismatchError, match=f"numerics_version: stored 2, now {NUMERICS_VERSION}"):
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
    assert {(finding.stage, finding.task) for finding in findings} == {("prepare", "arrays")}
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
