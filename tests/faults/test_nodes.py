"""Nodes of a cluster that are killed, that are told to end, and that stop to answer in the middle of a run."""

import json
import os
import secrets
import signal
import socket
import subprocess
import sys
import tempfile
from contextlib import contextmanager
from pathlib import Path

import pytest
import troubles
from faults.table import compare_runs
from processes import raylet_of, start, wait_for, workers_of

import ntkpipe

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]

QUICK_TO_DOUBT = {
    "health_check_initial_delay_ms": 1000,
    "health_check_period_ms": 500,
    "health_check_timeout_ms": 1000,
    "health_check_failure_threshold": 3,
}
"""Ray's own patience with a node that does not answer is a minute."""


@contextmanager
def node(environment, *options):
    """Start a node in a session of its own; nothing of it is left afterwards, stopped or not."""
    process = subprocess.Popen(
        [
            str(Path(sys.executable).parent / "ray"),
            "start",
            "--block",
            "--num-cpus=1",
            "--disable-usage-stats",
            *options,
        ],
        env=environment,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )
    try:
        yield process
    finally:
        kill(process)


def kill(process):
    """End a node without warning."""
    raylet = raylet_of(process.pid)
    for one in [process.pid, raylet, *workers_of(process.pid)] if raylet else [process.pid]:
        if Path(f"/proc/{one}").exists():
            os.kill(one, signal.SIGKILL)
    process.wait(60)


@pytest.fixture(scope="module")
def cluster():
    """A head node of one CPU; yields its address and the environment of its users."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    environment = os.environ | {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": secrets.token_hex(32)}
    environment |= {"RAY_GRACEFUL_SHUTDOWN_DRAIN_TIMEOUT_S": "1"}
    with tempfile.TemporaryDirectory(prefix="ntkpipe-head-", ignore_cleanup_errors=True) as folder:
        head = node(
            environment,
            "--head",
            f"--port={port}",
            "--include-dashboard=false",
            f"--temp-dir={folder}",
            f"--system-config={json.dumps(QUICK_TO_DOUBT)}",
        )
        with head as process:
            wait_for(lambda: raylet_of(process.pid))
            yield f"127.0.0.1:{port}", environment
            process.send_signal(signal.SIGTERM)
            process.wait(60)


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
    (folder / "pace").write_text("0.5")
    return folder / "whole"


def stop_raylet(process):
    os.kill(raylet_of(process.pid), signal.SIGSTOP)


def freeze(process):
    for worker in workers_of(process.pid):
        os.kill(worker, signal.SIGSTOP)
    stop_raylet(process)


FAULTS = {
    "SIGKILL of a node": kill,
    "SIGTERM of a node": lambda process: process.send_signal(signal.SIGTERM),
    "SIGSTOP of a raylet": stop_raylet,
    "SIGSTOP of a node": freeze,
}


@pytest.mark.parametrize("fault", list(FAULTS))
def test_a_run_survives_the_loss_of_a_node(fault, cluster, whole, tmp_path, fault_table):
    """The worker that was on it cannot be started again, because there is no room; the run goes on with the other one."""
    address, environment = cluster
    run = tmp_path / "run"
    with node(environment, f"--address={address}") as second:
        wait_for(lambda: raylet_of(second.pid))
        driver = start("run", job(whole.parent, address), "--out", run, environment=environment)
        try:
            wait_for(lambda: workers_of(second.pid) and list((run / "receipts/features").rglob("*.json")))
            FAULTS[fault](second)
            _, errors = driver.communicate(timeout=240)
        finally:
            driver.kill()
            driver.wait()
    assert driver.returncode == 0, errors
    fault_table.add(fault, 1, 1, *compare_runs(run, whole))
