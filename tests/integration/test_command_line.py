"""The command as a user types it."""

import json
import os
import shlex
import subprocess

import golden
import numpy as np
import pytest
import yaml
from commands import COMMAND, ntkpipe_command


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs")
    (folder / "config.yaml").write_text(yaml.safe_dump(golden.config()))
    found = ntkpipe_command("run", folder / "config.yaml", "--out", folder / "run")
    assert found.returncode == 0, found.stderr
    assert f"ntkpipe status {folder / 'run'}" in found.stdout
    return folder / "run"


@pytest.mark.parametrize("unbuffered", ["", "1"])
def test_a_full_disk_under_the_output_is_told_in_a_line(run, unbuffered):
    for words in (("status", run), ("query", run, "kernel/pntk")):
        with open("/dev/full", "w") as full:
            found = subprocess.run(
                [*COMMAND, *map(str, words)], stdout=full, stderr=subprocess.PIPE, text=True, check=False,
                env=os.environ | {"PYTHONUNBUFFERED": unbuffered},
            )  # fmt: skip
        assert found.returncode == 1
        assert found.stderr == "ntkpipe: what it prints cannot be written: No space left on device.\n"


def test_status_counts_tasks_and_speaks_json(run):
    found = ntkpipe_command("status", run)
    assert f"golden: finished ({run})" in found.stdout
    document = json.loads(ntkpipe_command("status", run, "--json").stdout)
    assert document["state"] == "finished"
    assert [stage["done"] for stage in document["stages"]] == [4, 7, 2, 0]


@pytest.mark.parametrize(
    ("command", "text"), [("run", "[runs/NAME-TIME]"), ("extend", "[runs/NAME-TIME]"), ("query", "[/ROWS-COLUMNS]")]
)
def test_help_shows_brackets_as_they_are(command, text):
    found = ntkpipe_command(command, "--help")
    assert found.returncode == 0, found.stderr
    assert text in found.stdout


def test_commands_that_a_run_recommends_can_be_pasted_into_a_shell(run, tmp_path):
    place = tmp_path / "my runs; ü"
    found = ntkpipe_command("run", run.parent / "config.yaml", "--out", place)
    recommended = found.stdout.partition("Try next:")[2].strip().splitlines()
    assert len(recommended) == 4
    for line in recommended:
        program, *words = shlex.split(line)
        assert program == "ntkpipe"
        assert ntkpipe_command(*words).returncode == 0
    (place / "receipts/solve/krr.json").unlink()
    assert f"resume {shlex.quote(str(place))}" in ntkpipe_command("status", place).stdout


def test_list_finds_the_run(run):
    found = ntkpipe_command("list", run.parent)
    assert "golden" in found.stdout
    assert "finished" in found.stdout


def test_verify_says_what_it_checked(run):
    found = ntkpipe_command("verify", run)
    assert found.returncode == 0
    assert "Everything is as it was committed." in found.stdout


def test_query_prints_csv_with_ids(run):
    found = ntkpipe_command("query", run, "kernel/trntk0/test-train", "--rows", "id:x1,id:x2", "--cols", "0:2")
    assert (found.stderr, found.stdout) == ("", "sample,x0,x1\nx1,30.0,72.0\nx2,11.0,38.0\n")
    found = ntkpipe_command("query", run, "component/trntk0/fc1.bias", "--rows", "2", "--cols", "1,2")
    assert found.stdout == "sample,x1,x2\nx2,5.0,5.0\n"
    found = ntkpipe_command("query", run, "neighbors/trntk0", "--rows", "id:x1", "--k", "1")
    assert found.stdout == "sample,neighbor,kernel\nx1,x2,38.0\n"


def test_query_writes_npy_csv_and_json(run, tmp_path):
    for ending in ("npy", "csv", "json"):
        assert ntkpipe_command("query", run, "kernel/pntk", "--out", tmp_path / f"k.{ending}").returncode == 0
    assert np.load(tmp_path / "k.npy").tolist() == golden.PNTK
    assert json.loads((tmp_path / "k.json").read_text())["values"] == golden.PNTK
    assert (tmp_path / "k.csv").read_text().startswith("sample,x0,x1,x2,x3\nx0,10.0,18.0,7.0,2.0\n")
    found = ntkpipe_command("query", run, "kernel/pntk", "--out", tmp_path / "k.xls")
    assert (found.returncode, "known are .npy, .csv, .json" in found.stderr) == (2, True)


@pytest.mark.parametrize(
    ("what", "first"),
    [
        ("features/pntk-sjlt/test", 17),
        ("diagonal/trntk", 2),
        ("solution/krr", 3),
        ("prediction/krr/test", 3),
        ("outputs/test", 3),
        ("labels/train", 2),
        ("ids/test", 2),
    ],
)
def test_everything_stored_can_be_asked_for(run, what, first):
    found = ntkpipe_command("query", run, what)
    assert found.returncode == 0, found.stderr
    lines = found.stdout.splitlines()
    assert len(lines) == 5
    assert len(lines[1].split(",")) == first


def test_what_a_solver_leaves_beside_its_solution_can_be_asked_for(tmp_path):
    section = {"kind": "gram", "name": "path", "kernel": "ck", "ridges": [0.1, 1.0, 10.0], "leave_one_out": True}
    document = golden.config(kernels=[{"kind": "ck"}], solve=[section])
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(document))
    assert ntkpipe_command("run", tmp_path / "config.yaml", "--out", tmp_path / "run").returncode == 0
    found = ntkpipe_command("query", tmp_path / "run", "extra/path/path_ridges", "--rows", "1:")
    assert (found.stderr, found.stdout) == ("", "row,0\n1,1.0\n2,10.0\n")
    found = ntkpipe_command("query", tmp_path / "run", "extra/path/weights", "--out", tmp_path / "weights.npy")
    assert found.returncode == 0
    assert np.load(tmp_path / "weights.npy").shape == (2, 2)
    found = ntkpipe_command("query", tmp_path / "run", "extra/path/path_rides")
    assert (found.returncode, "did you mean 'path_ridges'?" in found.stderr) == (2, True)
    found = ntkpipe_command("query", tmp_path / "run", "extra/path/path_ridges", "--rows", "3")
    assert "position 3 is outside of the 3 rows of 'path_ridges' of solution 'path'" in found.stderr


def test_plan_prints_stages_prices_and_routes(tmp_path):
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(golden.config()))
    found = ntkpipe_command("plan", tmp_path / "config.yaml")
    assert found.returncode == 0, found.stderr
    for word in (
        "features",
        "kernel",
        "solve",
        "FLOPs",
        "fc1.weight",
        "captured",
        "12 parameters",
        "rademacher, K = 64",
    ):
        assert word in found.stdout
    assert list(tmp_path.iterdir()) == [tmp_path / "config.yaml"]


def test_the_schema_describes_every_section():
    schema = json.loads(ntkpipe_command("schema").stdout)
    assert set(schema["properties"]) >= {
        "name",
        "model",
        "data",
        "kernels",
        "projection",
        "solve",
        "store",
        "resources",
    }
