"""A job's life on a cluster of several machines: everything that happens to it at once, and not one byte differs."""

import json
import subprocess
import sys

import pytest
import troubles
from clusters import LocalCluster
from commands import TESTS
from faults.table import compare_runs
from processes import wait_for

import ntkpipe
from ntkpipe.storage.ledger import Ledger
from ntkpipe.storage.stores.registry import open_store

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]

COMMAND = [sys.executable, "-m", "ntkpipe"]


class User:
    """Somebody with the cluster's token, who runs commands."""

    def __init__(self, cluster, folder):
        self.environment = cluster.environment | {"XDG_CONFIG_HOME": str(folder / "user"), "COLUMNS": "200"}

    def start(self, *arguments):
        return subprocess.Popen(
            [*COMMAND, *map(str, arguments)],
            cwd=TESTS,
            env=self.environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )

    def does(self, *arguments):
        process = self.start(*arguments)
        printed, _ = process.communicate(timeout=240)
        assert process.returncode == 0, printed
        return printed


def job(folder):
    """Thirty-two shards and ten blocks of a model that takes its time."""
    options = {"moods": str(folder / "moods")}
    document = troubles.config(
        model={"kind": "python", "target": "troubles:build_moody", "options": options},
        data={"splits": {"train": {"kind": "python", "target": "troubles:load", "options": {"num": 32}}}},
        store={"shard_rows": 1, "block_rows": 8},
        resources={"workers": 3, "threads_per_worker": 1, "max_attempts": 5, "grace_seconds": 10.0},
    )
    path = folder / "job.json"
    path.write_text(json.dumps(document))
    return path


def num_done(run):
    return len(Ledger(open_store(run)).committed("features")) if run.exists() else 0


def committers(run):
    """Return the worker processes whose shards are stored so far."""
    ledger = Ledger(open_store(run))
    return {ledger.receipt("features", task).worker for task in ledger.committed("features")}


def test_a_job_survives_its_client_a_node_and_a_stop_and_uses_a_node_that_joins(tmp_path, fault_table):
    config, run = job(tmp_path), tmp_path / "run"
    whole = ntkpipe.run(config, tmp_path / "whole", overrides=["resources.executor=serial"])
    troubles.set_pace(tmp_path, 0.5)
    with LocalCluster(environment={"PYTHONPATH": str(TESTS), "OMP_NUM_THREADS": "1"}) as cluster:
        user, first = User(cluster, tmp_path), cluster.add_node(1)
        second = cluster.add_node(1)
        client = user.start("submit", config, "--out", run, "--address", cluster.jobs_address, "--wait")
        assert wait_for(lambda: num_done(run) >= 1)
        # Nothing may be done before a busy machine has started workers and a node, and has answered commands.
        troubles.set_pace(tmp_path, 10.0)
        wait_for(lambda: len(committers(run)) >= 2, pause=0.2)
        client.kill()
        client.wait(60)
        second.kill()
        third = cluster.add_node(1)
        assert "nothing was submitted" in user.does("submit", config, "--out", run, "--address", cluster.jobs_address)
        wait_for(lambda: len(committers(run)) >= 3, pause=0.2)
        assert "running" in user.does("status", run)
        assert "features" in user.does("logs", run)
        assert "stopped" in user.does("stop", run)
        assert ntkpipe.open_run(run).status().state == "interrupted"
        (tmp_path / "pace").unlink()
        printed = user.does("resume", run, "--address", cluster.jobs_address, "--wait")
        assert "Finished in" in printed
        assert ntkpipe.open_run(run).status().state == "finished"
        first.terminate()
        third.terminate()
    # What is left is for workers of another driver.
    assert len(committers(run)) >= 4
    fault_table.add("a submitted job: client and node killed, node added, stop", 1, 1, *compare_runs(run, whole.url))
