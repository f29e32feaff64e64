"""Two drivers at once, a driver that was asleep while another one took its run, and drivers that are told to stop."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import troubles
from commands import TESTS
from contending import contests
from faults.table import compare_runs
from processes import PATIENCE_SECONDS, wait_for, workers_of

import ntkpipe
from ntkpipe.storage import layout
from ntkpipe.storage.ledger import Ledger
from ntkpipe.storage.locks import liveness, read_claim
from ntkpipe.storage.stores.registry import open_store

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]

ROUNDS = 50


@pytest.fixture(params=["disk", "s3"])
def place(request, tmp_path):
    """Return a place for a run that nobody has used: on disk and in an object store."""
    if request.param == "disk":
        return str(tmp_path / "run")
    return request.getfixturevalue("s3").new_url()


def test_of_two_drivers_that_start_at_once_exactly_one_gets_the_run_every_time(place, fault_table):
    owners = contests(place, ROUNDS)
    assert [number for number, _, _ in owners] == list(range(ROUNDS))
    assert [epoch for _, epoch, _ in owners] == list(range(1, ROUNDS + 1))
    fault_table.add(f"two drivers at once, {'local' if '://' not in place else 'S3'}", ROUNDS, len(owners), 0)


def write_job(path, document):
    # As many threads in every process: sums of another number of them may differ in their last bits.
    document["resources"]["threads_per_worker"] = 1
    path.write_text(json.dumps(document))
    return path


def features_job(folder, **resources):
    """A job that spends its time on samples, in features and in blocks of an exact kernel."""
    options = {"moods": str(folder / "moods")}
    document = troubles.config(
        model={"kind": "python", "target": "troubles:build_moody", "options": options},
        kernels=[{"kind": "pntk"}, {"kind": "trntk0"}],
        solve=[{"kind": "cholesky", "name": "krr", "kernel": "pntk", "ridge": 1.0}],
    )
    document["resources"] |= resources
    document["store"] |= {"lease_seconds": 2.0}
    return write_job(folder / "features.yaml", document)


def solves_job(folder, **resources):
    """A job that spends its time in solvers: one that is shared between workers, one that is a task."""
    split = {"kind": "python", "target": "solving:points"}
    document = {
        "name": "stopped",
        "data": {"splits": {"train": split | {"options": {"num": 800, "seed": 0}}}},
        "kernels": [{"kind": "laplace", "bandwidth": 3.0}],
        "solve": [
            {"name": "shared", "kernel": "laplace", "ridge": 1e-3, "kind": "pcg", "tolerance": 1e-11, "rank": 20},
            {
                "name": "alone",
                "kernel": "laplace",
                "ridge": 1e-3,
                "kind": "eigenpro2",
                "epochs": 400,
                "tolerance": 1e-13,
            },
        ],
        "store": {"shard_rows": 100, "block_rows": 100, "lease_seconds": 2.0},
        "resources": {"executor": "ray", "workers": 2, "checkpoint_seconds": 0.0} | resources,
    }
    return write_job(folder / "solves.yaml", document)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Where the jobs of this module are: paths are part of them."""
    return tmp_path_factory.mktemp("jobs")


@pytest.fixture(scope="module")
def undisturbed(folder):
    """Return the runs that nobody disturbs, by the function that writes their job."""
    runs = {}
    for job in (features_job, solves_job):
        runs[job] = folder / job.__name__
        ntkpipe.run(job(folder), runs[job], overrides=["resources.executor=serial"])
    troubles.set_pace(folder, 0.2)
    return runs


def num_receipts(store, stage):
    return len(store.names(f"{layout.RECEIPTS}/{stage}"))


def test_a_driver_that_slept_through_its_replacement_ends_without_writing(
    place, folder, undisturbed, start, fault_table
):
    store = open_store(place)
    job = features_job(folder, executor="ray" if "://" not in place else "serial")
    first = start("run", job, "--out", place)
    wait_for(lambda: num_receipts(store, "features") >= 2)
    os.kill(first.pid, signal.SIGSTOP)
    time.sleep(4)  # for its lease, and the second by which stores date their objects
    second = start("resume", place)
    before = num_receipts(store, "features")
    wait_for(lambda: num_receipts(store, "features") > before)
    mine = {key: store.get(key) for key in store.names("") if key.startswith((layout.LOCK, "events/000001"))}
    os.kill(first.pid, signal.SIGCONT)
    _, errors = first.communicate(timeout=PATIENCE_SECONDS)
    assert first.returncode == 1
    assert "epoch 2 has taken over" in errors
    assert "Traceback" not in errors
    after = {key: store.get(key) for key in mine}
    changed = {key for key in mine if mine[key] != after[key]}
    # The first one may have been stopped between its look for a successor and its own sign of life, which nobody reads now.
    assert changed <= {layout.heartbeat(1), layout.heartbeat(2)}
    _, errors = second.communicate(timeout=300)
    assert second.returncode == 0, errors
    epochs = [receipt.epoch for stage in ("features", "kernel", "solve") for receipt in Ledger(store).receipts(stage)]
    assert set(epochs) == {1, 2}
    assert epochs.count(1) <= before
    fault_table.add(
        f"driver asleep for a lease, {'local' if '://' not in place else 'S3'}",
        1,
        1,
        *compare_runs(place, undisturbed[features_job]),
    )


WHEN = {
    "features": (features_job, "serial", "receipts/features/**/*.json"),
    "kernel": (features_job, "ray", "receipts/kernel/**/*.json"),
    "shared solve": (solves_job, "ray", "solver/shared/states/*"),
    "plain solve": (solves_job, "serial", "solver/alone/states/*"),
}
"""For every stage a job that takes a while there, where it runs, and what is stored once the stage has begun."""


@pytest.mark.parametrize("stage", list(WHEN))
def test_a_driver_that_is_told_to_stop_commits_what_it_can_and_leaves(
    stage, folder, undisturbed, start, tmp_path, fault_table
):
    job, executor, sign = WHEN[stage]
    run = tmp_path / "run"
    process = start("run", job(folder, executor=executor, grace_seconds=2.0), "--out", run)
    wait_for(lambda: any(run.glob(sign)), pause=0.005)
    workers = workers_of(process.pid)
    assert bool(workers) == (executor == "ray")
    process.send_signal(signal.SIGTERM)
    _, errors = process.communicate(timeout=PATIENCE_SECONDS)
    assert process.returncode == 143, errors
    assert "`ntkpipe resume` goes on from there" in errors
    assert "Traceback" not in errors
    wait_for(lambda: not any(Path(f"/proc/{worker}").exists() for worker in workers))
    assert ntkpipe.open_run(run).status().state == "interrupted"
    assert liveness(read_claim(open_store(run), 1)) == "released"
    assert '"kind": "stopped"' in "".join(file.read_text() for file in (run / "events").rglob("*.jsonl"))
    process = start("resume", run)
    _, errors = process.communicate(timeout=300)
    assert process.returncode == 0, errors
    fault_table.add("SIGTERM of a driver (job stop)", 1, 1, *compare_runs(run, undisturbed[job]))


def endless_job(folder, executor, grace_seconds):
    split = {"kind": "python", "target": "solving:points", "options": {"num": 800, "seed": 0}}
    solve = {"name": "a", "kernel": "laplace", "ridge": 1e-9, "kind": "eigenpro2", "epochs": 10**6, "tolerance": 1e-15}
    return write_job(
        folder / "endless.yaml",
        {
            "name": "endless",
            "data": {"splits": {"train": split}},
            "kernels": [{"kind": "laplace", "bandwidth": 3.0}],
            "solve": [solve],
            "store": {"shard_rows": 400, "block_rows": 400},
            "resources": {
                "executor": executor,
                "workers": 1,
                "checkpoint_seconds": 0.0,
                "grace_seconds": grace_seconds,
            },
        },
    )


@pytest.mark.parametrize(
    ("executor", "grace_seconds", "signals"), [("serial", 1.0, 1), ("serial", 3600.0, 2), ("ray", 1.0, 1)]
)
def test_a_task_that_takes_longer_than_the_grace_is_left(
    executor, grace_seconds, signals, start, tmp_path, fault_table
):
    run = tmp_path / "run"
    process = start("run", endless_job(tmp_path, executor, grace_seconds), "--out", run)
    wait_for(lambda: list((run / "solver").rglob("states/*")))
    process.send_signal(signal.SIGTERM)
    for _ in range(signals - 1):
        time.sleep(3)  # two that arrive before a busy process has heard the first are one
        process.send_signal(signal.SIGTERM)
    _, errors = process.communicate(timeout=PATIENCE_SECONDS)
    assert process.returncode == 143, errors
    assert "Traceback" not in errors
    assert ntkpipe.open_run(run).status().state == "interrupted"
    assert liveness(read_claim(open_store(run), 1)) == "released"
    fault_table.add("SIGTERM of a driver in a long task", 1, 1, 0)


SLOW = """
import time
import torch
from ntkpipe import Samples

def build():
    open("begun", "w").close()
    time.sleep(3600)

def load():
    return Samples(torch.ones(4, 2), torch.arange(4) % 2)
"""


def test_a_driver_that_is_told_to_stop_before_it_has_begun_leaves_at_once(start, tmp_path):
    program = tmp_path / "slow.py"
    program.write_text(SLOW)
    document = troubles.config(
        model={"kind": "python", "target": "slow:build"},
        data={"splits": {"train": {"kind": "python", "target": "slow:load"}}},
        resources={"executor": "serial"},
    )
    process = start("run", write_job(tmp_path / "job.yaml", document), "--out", tmp_path / "run", folder=tmp_path)
    wait_for((tmp_path / "begun").exists)
    process.send_signal(signal.SIGTERM)
    _, errors = process.communicate(timeout=PATIENCE_SECONDS)
    assert process.returncode == 143, errors
    assert "Traceback" not in errors
    assert not (tmp_path / "run").exists()


OUTLIVING = """
import signal, sys
import golden
import ntkpipe

heard = []
signal.signal(signal.SIGTERM, lambda *_: heard.append("SIGTERM"))
ntkpipe.run(golden.config(resources={"executor": "ray", "workers": 1}), sys.argv[1])
signal.raise_signal(signal.SIGTERM)
print(*heard)
"""


def test_a_handler_of_sigterm_outlives_the_ray_of_a_run(tmp_path):
    command = [sys.executable, "-c", OUTLIVING, str(tmp_path / "run")]
    found = subprocess.run(command, cwd=TESTS, capture_output=True, text=True, check=False, timeout=PATIENCE_SECONDS)
    assert (found.returncode, found.stdout.strip()) == (0, "SIGTERM"), found.stderr
