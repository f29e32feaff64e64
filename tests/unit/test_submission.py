"""Jobs without a cluster: their ids and command lines, the code that is shipped, what is refused, what is remembered."""

import json
import os
import re
import socket
import subprocess
import sys
import zipfile

import golden
import pytest
from typer.testing import CliRunner

import ntkpipe
from ntkpipe.configs.errors import ConfigError, NotFoundError, PlanError, RunMismatchError
from ntkpipe.configs.loading import load_config
from ntkpipe.pipeline import credentials, jobs, submission
from ntkpipe.pipeline.cli import app, inspecting
from ntkpipe.pipeline.jobserver import Job, JobServer, checked_address
from ntkpipe.pipeline.wheels import prepared, read_wheels
from ntkpipe.storage.jobs import SUBMISSION_ID, JobRecord, record_job, recorded_jobs
from ntkpipe.storage.stores.registry import open_store

NOWHERE = "http://127.0.0.1:9"

PYTHON = """#!/bin/sh
for word in "$@"; do printf '%s\\0' "$word"; done
"""


@pytest.fixture(autouse=True)
def _own_files(monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "user"))


def test_ids_follow_from_run_epoch_and_attempt_and_are_safe_names():
    asked = [
        (url, name, epoch, attempt)
        for url in ("/a", "s3://b/c")
        for name in ("n", "x" * 500)
        for epoch in (1, 2)
        for attempt in (1, 2)
    ]
    found = [submission.submission_id(*one) for one in asked]
    assert found == [submission.submission_id(*one) for one in asked]
    assert len(set(found)) == len(asked)
    assert all(re.fullmatch(SUBMISSION_ID, name) for name in found)
    assert found[0].endswith("-e1")
    assert found[1].endswith("-e1-2")


def program(folder, name):
    folder.mkdir(exist_ok=True)
    path = folder / name
    path.write_text(PYTHON)
    path.chmod(0o755)
    return path


def words(line, path):
    found = subprocess.run(
        ["/bin/sh", "-c", line], env={"PATH": str(path)}, capture_output=True, text=True, check=False
    )
    return found.returncode, found.stdout.split("\0")[:-1], found.stderr


@pytest.mark.parametrize("url", ["/a b/c", '/it\'s $(here) & "there"', "s3://bucket/run;ls", "-x"])
@pytest.mark.parametrize("name", ["python", "python3"])
def test_the_command_line_of_a_job_survives_the_shell(url, name, tmp_path):
    program(tmp_path / "bin", name)
    expected = ["-m", "ntkpipe", "run", "env:NTKPIPE_CONFIG", "--out", url, "--or-resume"]
    assert words(submission.entrypoint(url), tmp_path / "bin") == (0, expected, "")
    own = program(tmp_path / "my python", "it's")
    assert words(submission.entrypoint(url, str(own)), tmp_path) == (0, expected, "")


def test_a_head_node_without_python_on_its_path_says_so(tmp_path):
    code, _, text = words(submission.entrypoint("/run"), tmp_path)
    assert code == 127
    assert "no python is on the PATH of the head node" in text


def test_a_job_of_another_version_is_refused_before_anything_else():
    environment = os.environ | {submission.VERSION_VARIABLE: "9.9.9"}
    found = subprocess.run(
        [sys.executable, "-m", "ntkpipe", "run", "env:NTKPIPE_CONFIG"],
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert found.returncode == 2
    assert "expects ntkpipe 9.9.9" in found.stderr
    assert f"is ntkpipe {ntkpipe.__version__}" in found.stderr


def test_a_node_that_does_not_see_the_place_of_its_run_says_so(monkeypatch, tmp_path):
    monkeypatch.setenv(submission.JOB_VARIABLE, "job-e1")
    refused = CliRunner().invoke(app, ["run", "digits", "--out", str(tmp_path), "--or-resume"])
    assert isinstance(refused.exception, ConfigError)
    assert "must see the same folder" in refused.exception.message
    record_job(open_store(tmp_path), record())
    submission.check_place(str(tmp_path))


def wheel(folder, name="model-1.0-py3-none-any.whl", text="x = 1"):
    path = folder / name
    metadata = "Metadata-Version: 2.1\nName: model\nRequires-Dist: torch>=2\nRequires-Dist: other (>1);\n  extra == 'a'\nVersion: 1.0\n\nRequires-Dist: is prose here"
    with zipfile.ZipFile(path, "w") as file:
        file.writestr("model.py", text)
        file.writestr("model-1.0.dist-info/METADATA", metadata)
        file.writestr("model-1.0.dist-info/RECORD", "")
    return path


def test_a_wheel_is_shipped_without_what_it_requires_and_named_by_its_content(tmp_path):
    (tmp_path / "out").mkdir()
    first = prepared(*read_wheels([wheel(tmp_path)]), tmp_path / "out")
    assert first == prepared(*read_wheels([wheel(tmp_path)]), tmp_path / "out")
    second = prepared(*read_wheels([wheel(tmp_path, text="x = 2")]), tmp_path / "out")
    assert first.name != second.name
    assert re.fullmatch(r"model-1\.0-0[0-9a-f]{16}-py3-none-any\.whl", first.name)
    with zipfile.ZipFile(first) as file:
        assert file.read("model.py") == b"x = 1"
        text = file.read("model-1.0.dist-info/METADATA").decode()
    assert text == "Metadata-Version: 2.1\nName: model\nVersion: 1.0\n\nRequires-Dist: is prose here"


def test_what_is_no_wheel_is_refused(tmp_path):
    (tmp_path / "model-1.0-py3-none-any.whl").write_text("no archive")
    (tmp_path / "model.zip").write_text("")
    for path in ("model.zip", "missing-1.0-py3-none-any.whl"):
        with pytest.raises(ConfigError, match="is no wheel"):
            read_wheels([tmp_path / path])
    with pytest.raises(ConfigError, match="it is no archive"):
        read_wheels([tmp_path / "model-1.0-py3-none-any.whl"])
    (tmp_path / "more").mkdir()
    with pytest.raises(ConfigError, match="of the same distribution"):
        read_wheels([wheel(tmp_path), wheel(tmp_path / "more", "Model-2.0-py3-none-any.whl")])


@pytest.mark.parametrize(
    ("given", "expected"),
    [("http://head:8265/", "http://head:8265"), ("https://Ray.example.com/a/", "https://ray.example.com/a")],
)
def test_addresses_have_one_form(given, expected):
    assert checked_address(given) == expected


@pytest.mark.parametrize(
    "address", ["head:8265", "ray://head:10001", "auto", "", "http://", "http://h:x", "http://h?a=b"]
)
def test_what_is_no_address_of_a_job_server_is_refused(address):
    with pytest.raises(ConfigError, match="is not the address of a Ray job server"):
        checked_address(address)


def test_an_address_with_a_password_is_refused_without_repeating_it():
    with pytest.raises(ConfigError, match="carries a user or password") as caught:
        checked_address("http://somebody:sesame-open@head:8265")
    assert "sesame" not in caught.value.message


def test_a_server_that_says_nothing_holds_nobody_up():
    with socket.create_server(("127.0.0.1", 0)) as server, pytest.raises(PlanError, match="has not answered for"):
        JobServer(f"http://127.0.0.1:{server.getsockname()[1]}", answer_seconds=0.5)


def test_a_file_of_the_token_that_cannot_be_read_is_named(monkeypatch, tmp_path):
    monkeypatch.delenv("RAY_AUTH_TOKEN")
    monkeypatch.setenv("RAY_AUTH_TOKEN_PATH", str(tmp_path / "none"))
    with pytest.raises(ConfigError, match="RAY_AUTH_TOKEN_PATH names cannot be read: No such file"):
        JobServer(NOWHERE)


def test_clusters_are_remembered_where_that_is_possible(monkeypatch, tmp_path):
    assert not credentials.is_known("http://a:1")
    credentials.remember("http://a:1")
    credentials.remember("http://a:1")
    credentials.remember("http://b:1")
    assert credentials.is_known("http://a:1")
    assert (tmp_path / "user" / "ntkpipe" / "clusters").read_text() == "http://a:1\nhttp://b:1\n"
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "file"))
    credentials.remember("http://a:1")
    assert not credentials.is_known("http://a:1")


def record(**changes):
    fields = {
        "submission_id": "job-e1",
        "address": NOWHERE,
        "submitted_at": 1.0,
        "verb": "submit",
        "epoch": 1,
        "attempt": 1,
    }
    return JobRecord(**fields | changes)


def test_jobs_are_recorded_once_and_the_last_one_is_found(tmp_path):
    store = open_store(tmp_path)
    for changes in ({"submission_id": "a", "epoch": 2}, {"submission_id": "b", "attempt": 2}, {"submission_id": "c"}):
        record_job(store, record(**changes))
    record_job(store, record(submission_id="a", epoch=9))
    (tmp_path / "jobs" / "d.json").write_text("{")
    (tmp_path / "jobs" / ".. x.json").write_text("{}")
    assert [found.submission_id for found in recorded_jobs(store)] == ["c", "b", "a"]
    assert jobs.last_job(store) == recorded_jobs(store)[-1]


def test_a_cluster_that_only_the_run_names_is_not_asked(tmp_path):
    record_job(open_store(tmp_path), record())
    news = jobs.news_of(open_store(tmp_path))
    assert "never named on this machine" in news.trouble
    assert f"--address {NOWHERE}" in news.trouble
    credentials.remember(NOWHERE)
    assert "nobody answers" in jobs.news_of(open_store(tmp_path)).trouble


def test_what_no_cluster_could_do_is_refused_before_it_is_asked(monkeypatch, tmp_path):
    with pytest.raises(ConfigError, match="exists in this process only"):
        submission.submit(golden.config(), "memory://run", address=NOWHERE)
    solve = [{"kind": "cholesky", "name": f"s{n}", "kernel": "ck"} for n in range(700)]
    with pytest.raises(ConfigError, match="a job carries at most"):
        submission.submit(golden.config(solve=solve), tmp_path / "run", address=NOWHERE)
    monkeypatch.setenv("MY_TOKEN", "open-sesame-open")
    model = {"target": "golden:build_model", "options": {"key": "open-sesame-open"}}
    with pytest.raises(ConfigError, match="would be stored"):
        submission.submit(golden.config(model=model), tmp_path / "run", address=NOWHERE)
    with pytest.raises(NotFoundError, match="is not a run"):
        submission.resume_on(tmp_path / "run", address=NOWHERE)
    assert not (tmp_path / "run").exists()


def test_a_run_that_no_driver_has_begun_is_listed_with_its_job(monkeypatch, tmp_path):
    url = str(tmp_path / "r")
    monkeypatch.setattr(inspecting, "_jobs_of_runs", lambda _: {url: "j-1: failed"})
    shown = CliRunner().invoke(app, ["list", "--address", NOWHERE], env={"COLUMNS": "200"})
    assert (shown.exit_code, "not begun" in shown.stdout, "j-1: failed" in shown.stdout) == (0, True, True)
    assert "unreadable" not in shown.stdout


def test_a_configuration_is_read_from_the_environment(monkeypatch):
    solve = [{"kind": "cholesky", "name": "a", "kernel": "ck", "ridge": 1e-05}]
    model = {"target": "golden:build_model", "options": {"text": "\N{GRINNING FACE}"}}
    document = golden.config(solve=solve, model=model)
    monkeypatch.setenv("JOB", json.dumps(document))
    assert load_config("env:JOB") == load_config(document)
    monkeypatch.setenv("JOB", "{")
    with pytest.raises(ConfigError, match="JOB does not hold a configuration as JSON"):
        load_config("env:JOB")
    with pytest.raises(ConfigError, match="there is no environment variable NONE"):
        load_config("env:NONE")


def test_a_run_that_was_never_submitted_shows_its_events_and_cannot_be_stopped(tmp_path):
    run = ntkpipe.run(golden.config(kernels=[{"kind": "ck"}], solve=[]), tmp_path / "run")
    shown = CliRunner().invoke(app, ["logs", run.url, "--tail", "1"])
    assert shown.exit_code == 0
    assert "never submitted" in shown.stderr
    assert re.fullmatch(r"\S+Z epoch 1 finish \{.*\}\n", shown.stdout)
    refused = CliRunner().invoke(app, ["stop", run.url])
    assert isinstance(refused.exception, NotFoundError)
    assert "never submitted" in refused.exception.message
    mistaken = CliRunner().invoke(app, ["stop", str(tmp_path / "rum")])
    assert "is not a run" in mistaken.exception.message
    state = CliRunner().invoke(app, ["status", run.url, "--json", "--watch"])
    assert json.loads(state.stdout)["job"] is None


@pytest.mark.parametrize(
    "arguments",
    [
        ["run", "digits", "--out", "x", "--fork", "y", "--or-resume"],
        ["run", "digits", "--or-resume"],
        ["resume", "x", "--wait"],
        ["resume", "x", "--address", NOWHERE, "--fork", "y"],
    ],
)
def test_options_that_do_not_go_together_are_refused(arguments):
    assert isinstance(CliRunner().invoke(app, arguments).exception, ConfigError)


class Cluster:
    """A job server without a network, that knows no job before it is handed over."""

    def __init__(self, address):
        self.address = address
        self.names = []

    def find(self, name):
        return None

    def submit(self, name, *_):
        self.names.append(name)
        return True


def test_a_run_that_is_submitted_to_another_cluster_in_the_same_moment_has_a_record_of_both_jobs(monkeypatch, tmp_path):
    store, config = open_store(tmp_path / "run"), load_config(golden.config())
    clusters = [Cluster("http://a:1"), Cluster("http://b:1")]
    before = [[], []]  # neither sees the other one's record yet
    monkeypatch.setattr(submission, "recorded_jobs", lambda where: before.pop() if before else recorded_jobs(where))
    shipment = submission._Shipment([], "", "submit")
    names = [submission._place(one, store, store.url, config, 1, shipment).submission_id for one in clusters]
    assert [one.names for one in clusters] == [[name] for name in names]
    assert {job.submission_id: job.address for job in recorded_jobs(store)} == dict(
        zip(names, ("http://a:1", "http://b:1"), strict=True)
    )


def test_whoever_submits_a_run_while_another_one_ships_its_code_does_not_submit_a_second_job(tmp_path):
    store, config = open_store(tmp_path / "run"), load_config(golden.config())
    shipment, cluster = submission._Shipment([], "", "submit"), Cluster("http://a:1")
    shipping = iter([lambda: submission._place(cluster, store, store.url, config, 1, shipment)])
    taken = set()

    def submit(name, *_):
        for ship in shipping:
            ship()
        is_new = name not in taken
        taken.add(name)
        return is_new

    cluster.submit = submit
    found = submission._place(cluster, store, store.url, config, 1, shipment)
    assert found.outcome == "attached"
    assert taken == {found.submission_id} == {job.submission_id for job in recorded_jobs(store)}


def test_a_wheel_with_damaged_content_is_named(tmp_path):
    path = tmp_path / "model-1.0-py3-none-any.whl"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("model.py", "text = 1\n" * 100)
    content = bytearray(path.read_bytes())
    content[len("model.py") + 30 : len("model.py") + 36] = b"\xff" * 6
    path.write_bytes(content)
    with pytest.raises(ConfigError, match="cannot be read as a wheel"):
        prepared(*read_wheels([path]), tmp_path)


def test_a_job_of_another_configuration_is_not_taken_for_that_of_this_one(tmp_path):
    store, cluster = open_store(tmp_path / "run"), Cluster("http://a:1")
    config, other = (load_config(golden.config(kernels=[{"kind": kind}], solve=[])) for kind in ("ck", "pntk"))
    shipment, jobs = submission._Shipment([], "", "submit"), {}

    def submit(name, _entrypoint, _environment, metadata):
        jobs[name] = Job(name, "pending", "", None, 0.0, metadata)
        return True

    cluster.submit, cluster.find = submit, jobs.get
    first = submission._place(cluster, store, store.url, config, 1, shipment)
    assert submission._place(cluster, store, store.url, config, 1, shipment).submission_id == first.submission_id
    with pytest.raises(RunMismatchError, match="is to carry out another configuration"):
        submission._place(cluster, store, store.url, other, 1, shipment)
    with pytest.raises(NotFoundError, match="submit it again"):
        submission.resume_on(store.url, address=cluster.address)


def test_a_job_that_its_cluster_has_forgotten_does_not_hide_the_one_after_it(tmp_path):
    store, config, cluster = open_store(tmp_path / "run"), load_config(golden.config()), Cluster("http://a:1")
    names = [submission.submission_id(store.url, config.name, 1, attempt) for attempt in (1, 2)]
    for attempt, name in enumerate(names, 1):
        record_job(store, record(submission_id=name, address=cluster.address, attempt=attempt))
    alive = Job(names[1], "running", "", None, 0.0, {})
    cluster.find = {names[1]: alive}.get
    found = submission._place(cluster, store, store.url, config, 1, submission._Shipment([], "", "submit"))
    assert (found.outcome, found.submission_id, cluster.names) == ("attached", names[1], [])
