"""Jobs on a real cluster of two nodes: submitted, watched, stopped and resumed, through the command as a user would."""

import json
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import golden
import pytest
import troubles
from clusters import LocalCluster
from commands import COMMAND as INTERRUPTIBLE
from commands import TESTS
from ports import free_ports
from processes import PATIENCE_SECONDS, wait_for
from runs import chunk_hashes

import ntkpipe
from ntkpipe.configs.errors import RunMismatchError
from ntkpipe.storage.jobs import recorded_jobs
from ntkpipe.storage.ledger import Ledger
from ntkpipe.storage.stores.registry import open_store

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]

COMMAND = [sys.executable, "-m", "ntkpipe"]

OTHER_VERSION = """
import ntkpipe
ntkpipe.__version__ = "9.9.9"
from ntkpipe.pipeline.cli import main
main()
"""

USERS_MODEL = '''
"""A network that insists on coming from a wheel, together with the ntkpipe that loads it."""

import torch
from torch import nn

import ntkpipe
from ntkpipe.workers.sources.samples import Samples

for path in (__file__, ntkpipe.__file__):
    if "py_modules_files" not in path:
        raise RuntimeError(f"{path} was not shipped")


def build():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(2, 3), nn.ReLU(), nn.Linear(3, 2))


def load():
    return Samples(torch.arange(8.0).reshape(4, 2), torch.tensor([0, 1, 1, 0]), ("a", "b", "c", "d"))
'''


@pytest.fixture(scope="module")
def cluster():
    """A head without CPUs and a node with two; the nodes find the tests' models."""
    with LocalCluster(environment={"PYTHONPATH": str(TESTS), "OMP_NUM_THREADS": "1"}) as started:
        started.add_node(2)
        yield started


@pytest.fixture
def user(cluster, tmp_path):
    """The environment of somebody with the cluster's token, and with files of their own."""
    return cluster.environment | {"XDG_CONFIG_HOME": str(tmp_path / "user")}


def ask(environment, *arguments, folder=TESTS, command=COMMAND):
    return subprocess.run(
        [*command, *map(str, arguments)],
        cwd=folder,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
        timeout=300,
    )


def done(environment, *arguments, **options):
    """Return what a command prints that must succeed."""
    found = ask(environment, *arguments, **options)
    assert found.returncode == 0, found.stdout + found.stderr
    return found.stdout


def write(folder, document):
    path = folder / "config.json"
    path.write_text(json.dumps(document))
    return path


def ids(run):
    return [record.submission_id for record in recorded_jobs(open_store(run))]


def test_a_client_without_torch_submits_a_run_that_equals_one_in_its_own_process(cluster, user, tmp_path, monkeypatch):
    """The first job is one of another version, which fails before it has begun; the next one has an id of its own."""
    (tmp_path / "none" / "torch").mkdir(parents=True)
    (tmp_path / "none" / "torch" / "__init__.py").write_text("raise ImportError('there is no torch here')")
    client = user | {"PYTHONPATH": str(tmp_path / "none"), "COLUMNS": "300"}
    config, run = write(tmp_path, golden.config(resources={"workers": 1})), tmp_path / "a run & $(its quotes)'"
    submit = ["submit", config, "--out", run, "--address", cluster.jobs_address, "--wait"]
    failed = ask(client, *submit, command=[sys.executable, "-c", OTHER_VERSION])
    assert failed.returncode == 2
    assert f"expects ntkpipe 9.9.9, but {TESTS.parent}" in failed.stdout
    assert f"is ntkpipe {ntkpipe.__version__}" in failed.stdout
    state = done(client, "status", run)
    assert "its job has ended before it began: submit it again" in state
    assert "failed (exit code 2)" in state
    assert "Finished in" in done(client, *submit)
    serial = ntkpipe.run(golden.config(), tmp_path / "serial")
    assert chunk_hashes(run) == chunk_hashes(Path(serial.url))
    for name in ("RAY_AUTH_TOKEN", "XDG_CONFIG_HOME"):
        monkeypatch.setenv(name, client[name])
    assert ntkpipe.submit(config, run, address=cluster.jobs_address).outcome == "finished"
    with pytest.raises(RunMismatchError, match=r"differs in store\.shard_rows\."):
        ntkpipe.submit(config, run, address=cluster.jobs_address, overrides=["store.shard_rows=3"])
    assert [name.partition("-e")[2] for name in ids(run)] == ["1", "1-2"]
    state = json.loads(done(client, "status", run, "--json"))
    assert (state["state"], state["job"]["state"], state["job"]["exit_code"]) == ("finished", "succeeded", 0)
    assert f"{ids(run)[1]}: succeeded" in done(client, "list", "--address", cluster.jobs_address)
    assert not ntkpipe.gc(run, dry_run=True).foreign


def test_a_job_outlives_its_client_and_is_stopped_and_resumed_with_the_same_bytes(cluster, user, tmp_path):
    moods = {"kind": "python", "target": "troubles:build_moody", "options": {"moods": str(tmp_path / "moods")}}
    split = {"kind": "python", "target": "troubles:load", "options": {"num": 24}}
    store = {"shard_rows": 1, "block_rows": 12}
    resources = {"workers": 1}
    document = troubles.config(model=moods, data={"splits": {"train": split}}, store=store, resources=resources)
    config, run = write(tmp_path, document), tmp_path / "run"
    ntkpipe.run(config, tmp_path / "serial", overrides=["resources.executor=serial"])
    troubles.set_pace(tmp_path, 0.1)
    submit = ["submit", str(config), "--out", str(run), "--address", cluster.jobs_address]
    client = subprocess.Popen(
        [*COMMAND, *submit, "--wait"], cwd=TESTS, env=user, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    try:
        wait_for(lambda: list((run / "receipts/features").rglob("*.json")))
        # Nothing may be done before a busy machine has answered six commands.
        troubles.set_pace(tmp_path, 10.0)
    finally:
        client.send_signal(signal.SIGKILL)
        client.wait()
    assert "there is a job for" in done(user, *submit)
    assert "Running entrypoint for job" in done(user, "logs", run)
    follower = subprocess.Popen(
        [*INTERRUPTIBLE, "logs", run, "--follow"], cwd=TESTS, env=user, stdout=subprocess.PIPE, text=True
    )
    assert "Runtime env is setting up" in follower.stdout.readline()
    follower.send_signal(signal.SIGINT)
    assert "The job goes on without this terminal" in follower.communicate(timeout=PATIENCE_SECONDS)[0]
    assert follower.returncode == 130
    # On a machine where nobody has named the cluster no token is sent to an address that only the run names.
    stranger = user | {"XDG_CONFIG_HOME": str(tmp_path / "stranger")}
    state = json.loads(done(stranger, "status", run, "--json"))
    assert (state["state"], state["job"]["state"]) == ("running", None)
    assert "never named on this machine" in state["job"]["trouble"]
    state = json.loads(done(stranger, "status", run, "--json", "--address", cluster.jobs_address))
    assert state["job"]["state"] == "running"
    printed = done(stranger, "stop", run)
    assert "is asked to stop" in printed
    assert "troubles: interrupted" in printed
    (tmp_path / "pace").unlink()
    assert "Finished in" in done(user, "resume", run, "--address", cluster.jobs_address, "--wait")
    assert chunk_hashes(run) == chunk_hashes(tmp_path / "serial")
    epochs = {receipt.epoch for receipt in Ledger(open_store(run)).receipts("features")}
    assert epochs == {1, 2}
    assert [name.rpartition("-")[2] for name in ids(run)] == ["e1", "e2"]


def test_code_is_shipped_as_wheels(cluster, user, tmp_path):
    wheels = [build_wheel(copy_of_ntkpipe(tmp_path)), build_wheel(users_project(tmp_path))]
    split = {"kind": "python", "target": "shipped_model:load"}
    document = {
        "name": "shipped",
        "model": {"target": "shipped_model:build"},
        "data": {"splits": {"train": split}},
        "kernels": [{"kind": "pntk"}],
        "resources": {"workers": 1},
    }
    config, run = write(tmp_path, document), tmp_path / "run"
    options = ["--out", run, "--address", cluster.jobs_address, "--wait"]
    for wheel in wheels:
        options += ["--wheel", wheel]
    nowhere = tmp_path / "empty"
    nowhere.mkdir()
    assert "Finished in" in done(user, "submit", config, *options, folder=nowhere)


def copy_of_ntkpipe(folder):
    target = folder / "checkout"
    root = TESTS.parent
    for name in ("configs", "storage", "workers", "pipeline"):
        shutil.copytree(root / name, target / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(root / name, target / name)
    return target


def users_project(folder):
    target = folder / "project"
    target.mkdir()
    (target / "shipped_model.py").write_text(USERS_MODEL)
    (target / "pyproject.toml").write_text(
        '[build-system]\nrequires = ["setuptools"]\nbuild-backend = "setuptools.build_meta"\n'
        '[project]\nname = "shipped-model"\nversion = "1.0"\ndependencies = ["a-package-that-nobody-has-published"]\n'
        '[tool.setuptools]\npy-modules = ["shipped_model"]\n'
    )
    return target


def build_wheel(project):
    target = project / "wheel"
    options = ["--no-deps", "--no-build-isolation", "--quiet", "--disable-pip-version-check", "--no-index"]
    subprocess.run([sys.executable, "-m", "pip", "wheel", *options, "-w", target, project], check=True, cwd=project)
    return next(target.glob("*.whl"))


def doubtful(case, cluster, user):
    """Return an environment and an address that must not work, and what is said about them."""
    without = {key: value for key, value in user.items() if not key.startswith("RAY_AUTH")}
    return {
        "no token": (without | {"HOME": str(Path(user["XDG_CONFIG_HOME"]))}, cluster.jobs_address, "needs a token"),
        "wrong token": (user | {"RAY_AUTH_TOKEN": "f" * 64}, cluster.jobs_address, "does not accept the token"),
        "nobody": (user, f"http://127.0.0.1:{free_ports(1)[0]}", "nobody answers at"),
        "another Ray address": (
            user | {"RAY_ADDRESS": cluster.jobs_address},
            "http://127.0.0.1:9",
            "nobody answers at",
        ),
    }[case]


@pytest.mark.parametrize("case", ["no token", "wrong token", "nobody", "another Ray address"])
def test_a_cluster_that_cannot_be_asked_is_one_readable_error(case, cluster, user, tmp_path):
    environment, address, text = doubtful(case, cluster, user)
    config = write(tmp_path, golden.config())
    found = ask(environment, "submit", config, "--out", tmp_path / "run", "--address", address)
    assert found.returncode == 2
    assert text in found.stderr
    assert "Traceback" not in found.stderr
    assert environment.get("RAY_AUTH_TOKEN", "no token") not in found.stderr
    assert not (tmp_path / "run").exists()
