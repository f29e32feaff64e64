"""Runs on clusters of several nodes that come, go, leave with notice and are not alike, and drivers that are killed."""

import json
import os
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest
import troubles
from clusters import LocalCluster
from commands import TESTS
from processes import PATIENCE_SECONDS, command_of, start, wait_for, workers_of
from runs import chunk_hashes

import ntkpipe
from ntkpipe.pipeline.events import read_events
from ntkpipe.storage.stores.registry import open_store

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]

SAMPLES = 40


@pytest.fixture(scope="module")
def cluster():
    """A head without CPUs; every test adds its nodes, which wait for their tasks when they are told to end."""
    with LocalCluster(dashboard=False, environment={"RAY_GRACEFUL_SHUTDOWN_DRAIN_TIMEOUT_S": "60"}) as one:
        yield one


@pytest.fixture
def node(cluster):
    """Adds nodes that end with the test."""
    added = []

    def add(*arguments, **options):
        added.append(cluster.add_node(*arguments, **options))
        return added[-1]

    yield add
    for one in added:
        one.kill()


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Where the job of all runs of this module is: paths are part of it."""
    return tmp_path_factory.mktemp("job")


def document(folder, **resources):
    return troubles.config(
        model={"kind": "python", "target": "troubles:build_moody", "options": {"moods": str(folder / "moods")}},
        data={"splits": {"train": {"kind": "python", "target": "troubles:load", "options": {"num": SAMPLES}}}},
        resources=resources,
    )


@pytest.fixture(scope="module")
def whole(folder):
    """What every run must end with."""
    return chunk_hashes(Path(ntkpipe.run(document(folder, executor="serial"), folder / "whole").url))


class Job:
    """A run on the cluster, as slow as the test says."""

    def __init__(self, folder, run, cluster, **resources):
        self.run = run
        self._pace = folder / "pace"
        path = run.with_suffix(".yaml")
        options = {"executor": "ray", "address": cluster.address, "max_attempts": 5} | resources
        path.write_text(json.dumps(document(folder, **options)))
        self.take(0.5)
        self.driver = start("run", path, "--out", run, environment=cluster.environment)

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.driver.kill()
        self.driver.wait()
        self._pace.unlink(missing_ok=True)

    def take(self, seconds):
        """Let every batch take so long from now on."""
        troubles.set_pace(self._pace.parent, seconds)

    def end(self):
        """Let it get on with it; returns its events."""
        self.take(0.0)
        _, errors = self.driver.communicate(timeout=300)
        assert self.driver.returncode == 0, errors
        return list(read_events(open_store(self.run)))

    def wait_for_work_on(self, node, number=1):
        """Wait until workers of a node have finished so many tasks; returns their ids."""

        def found():
            if self.driver.poll() is not None:
                raise AssertionError(self.driver.communicate()[1])
            workers = {str(worker) for worker in workers_of(node.process.pid)}
            done = [label for label in self.committed() if label.rpartition(":")[2] in workers]
            return workers if len(done) >= number else None

        return {int(worker) for worker in wait_for(found, pause=0.2)}

    def committed(self):
        """Return who has finished each task so far."""
        files = [file for stage in ("features", "kernel") for file in (self.run / "receipts" / stage).rglob("*.json")]
        return [json.loads(file.read_text())["worker"] for file in files]


def states(events, process):
    """Return what became of a worker."""
    return [event.text("state") for event in events if event.name == "worker" and _process(event) == process]


def _process(event):
    return int(event.text("worker").rpartition(":")[2] or 0)


def failed(events):
    return [event for event in events if event.name == "failure"]


def test_a_node_that_joins_is_used_and_one_that_is_killed_is_done_without(cluster, node, folder, whole, tmp_path):
    first = node()
    with Job(folder, tmp_path / "run", cluster, workers=2, device="auto") as job:
        [before] = job.wait_for_work_on(first)
        second = node()
        [joined] = job.wait_for_work_on(second)
        first.kill()
        events = job.end()
    assert chunk_hashes(tmp_path / "run") == whole
    assert states(events, before) == ["ready", "lost"]
    assert states(events, joined)[0] == "ready"
    assert [event.text("kind") for event in failed(events)] == ["worker-lost"]
    # Nobody has a GPU, so that none was asked for.
    assert {event.text("device") for event in events if event.name == "worker" and _process(event)} == {"cpu"}


def node_id(node):
    """Return what the cluster calls a node."""
    arguments = command_of(node.raylet).split("\0")
    return next(text.partition("=")[2] for text in arguments if text.startswith(("--node-id=", "--node_id=")))


def test_workers_that_are_told_to_end_finish_their_tasks_and_are_replaced(cluster, node, folder, whole, tmp_path):
    one, other, third = node(), node(), None
    with Job(folder, tmp_path / "run", cluster, workers=2) as job:
        [drained], [left] = job.wait_for_work_on(one), job.wait_for_work_on(other)
        third = node(2)
        notice = ["--reason=DRAIN_NODE_REASON_PREEMPTION", "--reason-message=spot", "--deadline-remaining-seconds=300"]
        subprocess.run(
            ["ray", "drain-node", f"--address={cluster.address}", f"--node-id={node_id(one)}", *notice],
            env=cluster.environment,
            check=True,
            capture_output=True,
            timeout=PATIENCE_SECONDS,
        )
        [replaced] = job.wait_for_work_on(third)
        assert not Path(f"/proc/{drained}").exists()
        other.terminate()
        workers = wait_for(lambda: len(found := job.wait_for_work_on(third)) == 2 and found)
        events = job.end()
    assert chunk_hashes(tmp_path / "run") == whole
    assert [(event.text("kind"), event.text("message")) for event in failed(events)] == []
    for process in (drained, left):
        assert states(events, process) == ["ready", "draining", "ended"]
    assert replaced in workers
    assert all(states(events, process)[0] == "ready" for process in workers)


def test_pools_get_as_much_as_they_can_do_and_end_with_their_driver(cluster, node, folder, whole, tmp_path):
    """Two workers share what is counted as one GPU; another one is on a node where everything takes ten times as long."""
    shared = node(2, "--num-gpus=1")
    slow = node(1, '--resources={"slow": 1}', environment={"NTKPIPE_TEST_SLOWNESS": "10"})
    pools = [{"workers": 2, "gpus": 0.5}, {"workers": 1, "custom": {"slow": 0.5}}]
    with Job(folder, tmp_path / "run", cluster, pools=pools) as job:
        job.take(0.3)
        workers = wait_for(lambda: len(found := job.wait_for_work_on(shared)) == 2 and found)
        [on_slow] = job.wait_for_work_on(slow)
        # Which of them starts first says nothing: what counts is done while all are at work.
        before = Counter(job.committed())
        job.wait_for_work_on(slow, 3 + sum(number for label, number in before.items() if label.endswith(f":{on_slow}")))
        done = Counter(job.committed()) - before
        job.driver.kill()
        wait_for(lambda: not any(Path(f"/proc/{worker}").exists() for worker in (*workers, on_slow)))
        job.take(0.0)
        job.driver = start("resume", tmp_path / "run", environment=cluster.environment)
        _, errors = job.driver.communicate(timeout=300)
        assert job.driver.returncode == 0, errors
    assert chunk_hashes(tmp_path / "run") == whole
    # Ten to one by the clock of an idle machine, for each of the two; every task has some work besides its pause.
    on_slow_done = sum(number for label, number in done.items() if label.endswith(f":{on_slow}"))
    assert done.total() - on_slow_done > 6 * on_slow_done > 6


MEASURE = """
import sys, threading, time
import ray
from ray._private.internal_api import get_memory_info_reply, get_state_from_address
import ntkpipe
from ntkpipe.pipeline.executors.connection import OBJECT_STORE_BYTES

found = []

def look():
    while True:
        time.sleep(0.3)
        if ray.is_initialized() and ray.cluster_resources():
            state = get_state_from_address(ray.get_runtime_context().gcs_address)
            store = get_memory_info_reply(state).store_stats
            found.append((store.num_local_objects, store.object_store_bytes_used))
            assert ray.cluster_resources()["object_store_memory"] == OBJECT_STORE_BYTES

threading.Thread(target=look, daemon=True).start()
ntkpipe.run(sys.argv[1], sys.argv[2])
print(*max(found))
"""


def test_the_object_store_of_a_private_ray_holds_the_description_of_the_run_and_nothing_else(folder, tmp_path):
    path = tmp_path / "job.yaml"
    path.write_text(json.dumps(document(folder, executor="ray", workers=2)))
    troubles.set_pace(folder, 0.05)
    # A Ray of its own: that of other tests in this process may hold more.
    environment = {key: value for key, value in os.environ.items() if not key.startswith("RAY_AUTH")}
    command = [sys.executable, "-c", MEASURE, path, tmp_path / "run"]
    found = subprocess.run(
        command, cwd=TESTS, env=environment, capture_output=True, text=True, check=False, timeout=300
    )
    (folder / "pace").unlink()
    assert found.returncode == 0, found.stderr
    num_objects, num_bytes = map(int, found.stdout.split())
    assert num_objects == 1
    assert num_bytes < 100_000
