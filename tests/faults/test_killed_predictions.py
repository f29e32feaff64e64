"""SIGKILL of a prediction for new samples that is kept, in the middle of its kernel rows."""

import json
import os
import signal

import numpy as np
import pytest
from faults.table import compare_runs
from processes import wait_for

import ntkpipe
from ntkpipe.configs.errors import RunStoppedError

pytestmark = [pytest.mark.slow, pytest.mark.timeout(300)]

KILLS = 3


def config():
    """A run whose kernel rows with some thousand new samples are many blocks."""
    split = {"kind": "python", "target": "solving:points"}
    return {
        "name": "trained",
        "data": {"splits": {"train": split | {"options": {"num": 1000, "seed": 0}}}},
        "kernels": [{"kind": "ntk", "depth": 3}],
        "solve": [{"kind": "cholesky", "name": "a", "kernel": "ntk", "ridge": 1e-3}],
        "store": {"shard_rows": 50, "block_rows": 50},
    }


def test_a_kept_prediction_that_is_killed_again_and_again_ends_with_the_same_bytes(start, tmp_path, fault_table):
    ntkpipe.run(config(), tmp_path / "run")
    options = {"num": 1000, "seed": 1}
    expected = ntkpipe.predict(tmp_path / "run", "solving:points", options=options, keep=tmp_path / "whole")
    given = [f"--option={key}={value}" for key, value in options.items()]
    call = ("predict", tmp_path / "run", "--data", "solving:points", *given, "--keep", tmp_path / "kept")
    receipts, kills, seen = tmp_path / "kept" / "receipts" / "kernel", 0, 0
    for _ in range(KILLS):
        process = start(*call)
        wait_for(lambda process=process, seen=seen: process.poll() is not None or num_files(receipts) > seen + 20)
        kills += process.poll() is None
        process.kill()
        process.communicate()
        seen = num_files(receipts)
    assert kills == KILLS
    assert 60 < seen < 400
    process = start(*call, "--out", tmp_path / "answer.json")
    _, errors = process.communicate(timeout=120)
    assert process.returncode == 0, errors
    columns = json.loads((tmp_path / "answer.json").read_text())["values"]
    np.testing.assert_array_equal(np.array(columns)[:, 1:], expected.values["a"])
    assert not any(checked.findings for checked in ntkpipe.verify(tmp_path / "kept"))
    fault_table.add("SIGKILL of a kept prediction", kills, kills, *compare_runs(tmp_path / "kept", tmp_path / "whole"))


def test_a_prediction_that_is_told_to_stop_leaves_no_temporary_run(start, tmp_path):
    ntkpipe.run(config(), tmp_path / "run")
    scratch = tmp_path / "scratch"
    scratch.mkdir()
    call = ("predict", tmp_path / "run", "--data", "solving:points", "--option=num=4000", "--option=seed=1")
    process = start(*call, environment=os.environ | {"TMPDIR": str(scratch)})
    wait_for(lambda: process.poll() is not None or num_files(scratch) > 20)
    process.send_signal(signal.SIGTERM)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == RunStoppedError.exit_code, errors
    assert "the prediction was told to stop; nothing is kept of it without --keep" in errors
    assert not list(scratch.glob("ntkpipe-*"))


def num_files(folder):
    return sum(path.suffix == ".json" for path in folder.rglob("*"))
