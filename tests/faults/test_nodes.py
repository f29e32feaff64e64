"""Nodes of a cluster that are killed, that are told to end, and that stop to answer in the middle of a run."""

import json
import os
import signal

import pytest
import troubles
from clusters import LocalCluster
from faults.table import compare_runs
from processes import start, wait_for, workers_of

import ntkpipe

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]


@pytest.fixture(scope="module")
def cluster():
    """A head node of one CPU."""
    with LocalCluster(1, dashboard=False, environment={"RAY_GRACEFUL_SHUTDOWN_DRAIN_TIMEOUT_S": "1"}) as started:
        yield started


def job(folder, address):
    options = {"moods": str(folder / "moods")}
    document = troubles.config(
        model={"kind": "python", "target": "troubles:build_moody", "options": options},
        resources={"executor": "ray", "address": address, "workers": 2, "task_seconds": 60.0, "max_attempts": 5},
    )
    path = folder / "job.yaml"
    path.write_text(json.dumps(document))
    return path


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """The run of a process on its own, which sees no trouble."""
    folder = tmp_path_factory.mktemp("job")
    ntkpipe.run(job(folder, "local"), folder / "whole", overrides=["resources.executor=serial"])
    return folder / "whole"


def stop_raylet(node):
    os.kill(node.raylet, signal.SIGSTOP)


def freeze(node):
    for worker in workers_of(node.process.pid):
        os.kill(worker, signal.SIGSTOP)
    stop_raylet(node)


FAULTS = {
    "SIGKILL of a node": lambda node: node.kill(),
    "SIGTERM of a node": lambda node: node.terminate(),
    "SIGSTOP of a raylet": stop_raylet,
    "SIGSTOP of a node": freeze,
}


@pytest.mark.parametrize("fault", list(FAULTS))
def test_a_run_survives_the_loss_of_a_node(fault, cluster, whole, tmp_path, fault_table):
    """The worker that was on it cannot be started again, because there is no room; the run goes on with the other one."""
    run, second = tmp_path / "run", cluster.add_node(1)
    troubles.set_pace(whole.parent, 0.5)
    try:
        driver = start("run", job(whole.parent, cluster.address), "--out", run, environment=cluster.environment)
        try:
            wait_for(lambda: workers_of(second.process.pid) and list((run / "receipts/features").rglob("*.json")))
            FAULTS[fault](second)
            troubles.set_pace(whole.parent, 0.0)
            _, errors = driver.communicate(timeout=400)
        finally:
            driver.kill()
            driver.wait()
    finally:
        second.kill()
    assert driver.returncode == 0, errors
    fault_table.add(fault, 1, 1, *compare_runs(run, whole))
