"""Runs that earlier versions have stored answer every question as they did then, are verified, and are resumed if that
mixes no numbers; tests/fixtures/runs/README.md says how they were made."""

import json
import re
import tarfile
from pathlib import Path

import answers
import numpy as np
import pytest
from runs import chunk_hashes

import ntkpipe
from ntkpipe.configs.errors import RunMismatchError
from ntkpipe.storage.ledger import Ledger
from ntkpipe.storage.records import NUMERICS_VERSION, SCHEMA_VERSION, Manifest
from ntkpipe.storage.stores.registry import open_store

FOLDER = Path(__file__).parents[1] / "fixtures/runs"
STORED = sorted(path.name.removesuffix(".tar.xz") for path in FOLDER.glob("*.tar.xz"))
VERSIONS = {name: tuple(map(int, re.findall(r"\d+", name))) for name in STORED}
"""Of schema and numbers."""


@pytest.fixture
def unpacked(tmp_path):
    def unpack(name):
        with tarfile.open(FOLDER / f"{name}.tar.xz") as archive:
            archive.extractall(tmp_path, filter="data")
        return tmp_path / "run"

    return unpack


def test_every_version_of_the_documents_and_of_the_numbers_has_its_stored_run():
    """Raise SCHEMA_VERSION or NUMERICS_VERSION, and a run of the new version has to be stored here with make.py."""
    assert {schema for schema, _ in VERSIONS.values()} == set(range(1, SCHEMA_VERSION + 1))
    assert {numerics for _, numerics in VERSIONS.values()} == set(range(1, NUMERICS_VERSION + 1))
    assert (SCHEMA_VERSION, NUMERICS_VERSION) in VERSIONS.values()


@pytest.mark.parametrize("name", STORED)
def test_an_old_run_answers_as_it_did(name, unpacked):
    run = ntkpipe.open_run(unpacked(name))
    assert (run.manifest.schema_version, run.manifest.numerics_version) == VERSIONS[name]
    folder, asked = Path(run.url).parent, answers.questions(run)
    with np.load(folder / "answers.npz", allow_pickle=False) as stored:
        expected = {key.replace("|", "/"): stored[key] for key in stored.files}
    assert set(asked) == set(expected)
    for key, ask in asked.items():
        value = ask()
        assert value.dtype == expected[key].dtype, key
        assert np.array_equal(value, expected[key]), key
    assert answers.status(run) == json.loads((folder / "status.json").read_text())


@pytest.mark.parametrize("name", STORED)
def test_an_old_run_is_verified_and_cleaned(name, unpacked):
    run = unpacked(name)
    before = chunk_hashes(run)
    assert not any(checked.findings for checked in ntkpipe.verify(run))
    assert not ntkpipe.gc(run).foreign
    assert chunk_hashes(run) == before
    damaged = run / "data.zarr/kernel/trntk0/train-train/c/1/0"
    damaged.write_bytes(damaged.read_bytes()[::-1])
    (found,) = [finding for checked in ntkpipe.verify(run) for finding in checked.findings]
    assert (found.stage, found.task) == ("kernel", "train-train/000001-000000")


@pytest.mark.parametrize("name", [name for name in STORED if VERSIONS[name][1] == NUMERICS_VERSION])
def test_a_run_with_the_same_numbers_is_resumed_and_repaired(name, unpacked):
    run = unpacked(name)
    before = chunk_hashes(run)
    for lost in ("data.zarr/kernel/trntk0/train-train/c/1/0", "receipts/solve/krr.json", "data.zarr/label/zarr.json"):
        (run / lost).unlink()
    assert sum(len(checked.findings) for checked in ntkpipe.verify(run, repair=True)) == 2
    assert ntkpipe.resume(run).status().state == "finished"
    assert not any(checked.findings for checked in ntkpipe.verify(run))
    after = chunk_hashes(run)
    # What is written for the group says which version has written last.
    assert {key for key in before if before[key] != after[key]} <= {"data.zarr/zarr.json"}
    assert set(before) == set(after)
    assert Manifest.read(open_store(run)).schema_version == VERSIONS[name][0]


@pytest.mark.parametrize("name", [name for name in STORED if VERSIONS[name][1] != NUMERICS_VERSION])
def test_a_run_with_other_numbers_is_not_continued(name, unpacked):
    run = unpacked(name)
    message = f"numerics_version: stored {VERSIONS[name][1]}, now {NUMERICS_VERSION}"
    with pytest.raises(RunMismatchError, match=message):
        ntkpipe.resume(run)


@pytest.mark.parametrize("name", [name for name in STORED if VERSIONS[name][0] == SCHEMA_VERSION])
def test_the_stored_run_of_this_version_has_receipts_of_both_kinds(name, unpacked):
    store = open_store(unpacked(name))
    assert store.names("segments")
    assert store.names("receipts")
    assert all(receipt.seal for stage in Ledger(store).stages() for receipt in Ledger(store).receipts(stage))
