"""A run that may have holes, as the user of the command line sees it: one sample of four overflows."""

import json

import golden
import yaml
from commands import ntkpipe_command

CONFIG = golden.config(
    model={"target": "golden:build_overflowing_model"},
    data={"splits": {"train": {"kind": "python", "target": "golden:load"}}},
    kernels=[{"kind": "pntk"}],
    solve=[{"kind": "cholesky", "name": "krr", "kernel": "pntk", "ridge": 1.0}],
    store={"shard_rows": 1, "block_rows": 1},
)


def test_a_run_says_what_it_has_ended_without(tmp_path):
    path, run = tmp_path / "config.yaml", tmp_path / "run"
    path.write_text(yaml.safe_dump(CONFIG))
    failed = ntkpipe_command("run", path, "--out", run)
    assert failed.returncode == 1
    assert "for sample 'x2'" in failed.stderr
    assert "Traceback" not in failed.stderr

    ended = ntkpipe_command("resume", run, "--set", "resources.max_bad_share=0.3")
    assert ended.returncode == 0, ended.stderr
    assert "Ended with holes" in ended.stdout
    assert "Missing of stage features: 1 of 4 tasks (1 set aside, 0 left out)" in ended.stdout
    assert "Missing of stage kernel: 4 of 10 tasks (0 set aside, 4 left out)" in ended.stdout
    assert "Missing of stage solve: 1 of 1 tasks (0 set aside, 1 left out)" in ended.stdout

    status = ntkpipe_command("status", run)
    assert "incomplete" in status.stdout
    assert "set aside" in status.stdout
    assert "failed: features task train/00000002" in status.stdout
    assert f"ntkpipe resume {run}" in status.stdout
    stages = json.loads(ntkpipe_command("status", run, "--json").stdout)["stages"]
    assert [(stage["set_aside"], stage["left_out"]) for stage in stages] == [(1, 0), (0, 4), (0, 1), (0, 0)]
