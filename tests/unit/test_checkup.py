"""What doctor finds, and what plan prints for a cluster."""

import json
import re
import socket
from pathlib import Path

import golden
import pytest
import yaml
from typer.testing import CliRunner

from ntkpipe.configs.calibration import load_calibration
from ntkpipe.configs.errors import ConfigError, PlanError
from ntkpipe.pipeline import checkup
from ntkpipe.pipeline.checkup import findings
from ntkpipe.pipeline.cli import app

ROOT = Path(__file__).parents[2]


def command(*words):
    return CliRunner().invoke(app, [str(word) for word in words])


def found(**arguments):
    return {finding.name: finding for finding in findings(**arguments)}


@pytest.fixture
def config(tmp_path, monkeypatch):
    monkeypatch.chdir(Path(golden.__file__).parent)
    file = tmp_path / "golden.yaml"
    file.write_text(yaml.safe_dump(golden.config()))
    return file


def test_the_tested_versions_are_those_of_the_constraints():
    lines = (ROOT / "constraints.txt").read_text().splitlines()
    pinned = dict(line.split("==") for line in lines if "==" in line)
    assert {name: pinned[name].partition("+")[0] for name in checkup.TESTED} == checkup.TESTED


def test_this_machine_has_no_problem():
    assert [finding for finding in findings() if finding.status == "problem"] == []


def test_an_old_library_is_a_problem_and_another_one_a_warning(monkeypatch):
    monkeypatch.setattr(checkup.importlib.metadata, "version", lambda name: "2.3.9")
    assert found()["torch"].status == "problem"
    assert "At least 2.4" in found()["torch"].advice
    monkeypatch.setitem(checkup.TESTED, "torch", "2.9.1")
    monkeypatch.setattr(checkup.importlib.metadata, "version", lambda name: "2.8.0")
    assert found()["torch"].status == "warning"


def test_ray_without_tokens_is_a_warning_and_without_the_token_a_problem(monkeypatch, tmp_path):
    monkeypatch.setenv("RAY_AUTH_TOKEN", "secret-of-the-test")
    assert found()["ray tokens"].status == "ok"
    assert not any("secret-of-the-test" in finding.text + finding.advice for finding in findings())
    monkeypatch.delenv("RAY_AUTH_TOKEN")
    monkeypatch.setenv("RAY_AUTH_TOKEN_PATH", str(tmp_path / "missing"))
    assert found()["ray tokens"].status == "problem"
    monkeypatch.delenv("RAY_AUTH_MODE")
    assert found()["ray tokens"].status == "warning"


def test_few_open_files_are_a_warning(monkeypatch):
    monkeypatch.setattr(checkup.resource, "getrlimit", lambda what: (1024, 4096))
    finding = found()["open files"]
    assert (finding.status, "up to 4,096" in finding.advice) == ("warning", True)


def test_a_store_is_written_to_and_left_as_it_was(tmp_path):
    checked = found(store=str(tmp_path / "runs"))
    assert {checked[name].status for name in ("store", "clock", "space")} <= {"ok", "warning"}
    assert [path for path in (tmp_path / "runs").rglob("*") if path.is_file()] == []


def test_a_store_that_cannot_be_used_is_a_problem(tmp_path):
    (tmp_path / "file").write_text("")
    assert found(store=str(tmp_path / "file" / "runs"))["store"].status == "problem"
    assert found(store="ftp://somewhere/runs")["store"].status == "problem"


def test_a_cluster_that_listens_is_found_and_one_that_does_not_is_a_problem():
    with socket.create_server(("127.0.0.1", 0)) as server:
        address = f"127.0.0.1:{server.getsockname()[1]}"
        assert found(address=address)["cluster"].status == "ok"
    assert found(address=address)["cluster"].status == "problem"
    assert found(address="nonsense")["cluster"].status == "problem"
    for damaged in ("http://[::1", "[::1"):
        assert found(address=damaged)["cluster"].status == "problem"


def test_doctor_prints_a_line_each_and_ends_with_1_where_there_is_a_problem(tmp_path):
    fine = command("doctor", "--store", tmp_path / "runs")
    assert fine.exit_code == 0, fine.output
    assert re.search(r"^ok +python: 3\.", fine.output, re.MULTILINE)
    bad = command("doctor", "--store", "ftp://somewhere/runs")
    assert bad.exit_code == 1
    assert "PROBLEM store: " in bad.output


def test_doctor_prints_json():
    answer = command("doctor", "--json", "--address", "nonsense")
    assert answer.exit_code == 1
    names = {finding["name"]: finding["status"] for finding in json.loads(answer.output)["findings"]}
    assert names["cluster"] == "problem"
    assert names["python"] == "ok"


def test_a_configuration_without_calibrate_is_refused():
    answer = command("doctor", "digits")
    assert isinstance(answer.exception, ConfigError)


def test_plan_prints_what_a_cluster_takes(config):
    answer = command("plan", config, "--cluster", "2xh100,1xcpu@s3", "--samples", "train=1000")
    assert answer.exit_code == 0, answer.output
    for text in (
        "On cluster 2xh100,1xcpu@s3",
        "nominal rates, unmeasured",
        "group h100: 2 nodes, 2 workers on h100",
        "price",
    ):
        assert text in answer.output
    assert "split train: 1,000 samples" in answer.output


def test_plan_without_a_cluster_says_nothing_of_times(config):
    answer = command("plan", config)
    assert answer.exit_code == 0, answer.output
    assert "On cluster" not in answer.output


def test_plan_prints_json(config):
    answer = command("plan", config, "--cluster", "1xcpu@s3", "--json")
    document = json.loads(answer.output)
    assert [stage["stage"] for stage in document["stages"]] == ["features", "kernel", "solve", "analyze"]
    assert document["samples"] == {"train": 4, "test": 4}
    assert document["cluster"]["workers"] == 8
    assert document["cluster"]["seconds"] == pytest.approx(
        sum(stage["seconds"] for stage in document["cluster"]["stages"])
    )
    assert document["projections"]["pntk-sjlt"] == {"kind": "sjlt", "dim": 16}
    assert json.loads(command("plan", config, "--json").output)["cluster"] is None


def test_plan_refuses_what_does_not_fit_after_it_has_shown_why(config, tmp_path):
    cluster = tmp_path / "small.yaml"
    cluster.write_text("groups: [{nodes: 1, device: cpu2, workers_per_node: 1, memory: 400MiB}]")
    answer = command("plan", config, "--cluster", cluster)
    assert isinstance(answer.exception, PlanError)
    assert "does not fit cluster" in answer.exception.message
    assert "Plan of golden" in answer.output


def test_plan_refuses_samples_that_are_no_number(config):
    for text in ("train=many", "train=²", "=3", "train="):
        assert isinstance(command("plan", config, "--samples", text).exception, ConfigError), text


def test_a_calibration_that_is_none_is_refused(tmp_path):
    file = tmp_path / "no.yaml"
    for text, expected in (("[]", "expected what"), ("device: {}", "not a valid calibration")):
        file.write_text(text)
        with pytest.raises(ConfigError, match=expected):
            load_calibration(str(file))
    with pytest.raises(ConfigError, match="does not exist"):
        load_calibration(str(tmp_path / "missing.yaml"))
