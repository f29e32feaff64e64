"""Measuring this machine and a job's tasks on real workers, and predictions that rest on it."""

import json
from pathlib import Path

import golden
import pytest
import yaml
from benchmarks.calibration import compare
from commands import ntkpipe_command

from ntkpipe.configs.calibration import load_calibration
from ntkpipe.configs.loading import load_config

pytestmark = pytest.mark.slow


def test_doctor_measures_a_job_and_plan_predicts_from_it(tmp_path):
    config, out, store = tmp_path / "golden.yaml", tmp_path / "calibration.yaml", tmp_path / "runs"
    kernels = [{"kind": "pntk", "projection": {"kind": "sjlt", "dim": 16}}, {"kind": "trntk0"}]
    config.write_text(yaml.safe_dump(golden.config(kernels=kernels, solve=[])))
    answer = ntkpipe_command("doctor", config, "--calibrate", "--store", store, "--out", out)
    assert answer.returncode == 0, answer.stderr
    assert "features: " in answer.stdout
    found = load_calibration(str(out))
    assert set(found.stages) == {"features", "kernel"}
    assert found.workers == 1
    assert found.device.measured
    assert found.storage is not None
    assert found.storage.measured
    assert found.single is not None
    assert found.single.cores == 1
    # The scratch run is gone.
    assert [path for path in Path(store).rglob("*") if path.is_file() or path.name.startswith("calibration")] == []

    planned = ntkpipe_command("plan", config, "--calibration", out, "--json")
    assert planned.returncode == 0, planned.stderr
    cluster = json.loads(planned.stdout)["cluster"]
    assert cluster["basis"].startswith("tasks of this job, measured at ")
    assert cluster["workers"] == 1
    assert all(stage["task_seconds"] > 0 for stage in cluster["stages"])

    rows = compare(load_config(golden.config(kernels=kernels, solve=[])), found)
    assert [row.stage for row in rows] == ["features", "kernel"]
    assert all(row.ratio > 0 for row in rows)

    config.write_text(yaml.safe_dump(golden.config(kernels=kernels[1:], solve=[])))
    other = ntkpipe_command("plan", config, "--calibration", out, "--cluster", "1xthis,1xh100@this")
    assert other.returncode == 0, other.stderr
    assert "tasks of job 'golden'" in other.stdout
