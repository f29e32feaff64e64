"""Worker processes on Ray as the fleet sees them: what they answer, and what is heard of those that end."""

import os
import signal
import time
from pathlib import Path

import golden
import pytest
from clockwork import carry_out
from processes import wait_for

from ntkpipe.configs.loading import load_config
from ntkpipe.configs.resources import PoolConfig
from ntkpipe.pipeline import execution
from ntkpipe.pipeline.executors.ray import QUIET_SECONDS, RayWorkers, cluster_state
from ntkpipe.pipeline.scheduling.fleet import Fleet
from ntkpipe.pipeline.scheduling.workers import Draining, Finished, Lost, NotStarted, Ready, Trouble
from ntkpipe.storage.ledger import Ledger
from ntkpipe.storage.stores.registry import open_store
from ntkpipe.workers.probing.probe import probe_run
from ntkpipe.workers.tasks import TaskResult

pytestmark = [pytest.mark.slow, pytest.mark.timeout(300)]

JOINED = "a-cluster"
"""As an address: a Ray that runs in this process is borrowed, whatever the address says."""


@pytest.fixture
def job(tmp_path):
    """What a worker is started with, and the tasks of the first stage."""
    config = load_config(golden.config())
    probe = probe_run(config)
    plan = execution.make_plan(probe)
    store = open_store(str(tmp_path / "run"))
    execution.prepare(store, Ledger(store), probe, 1)
    return execution.worker_spec(store, plan, probe), list(plan.tasks("features"))


def hear(workers, number=1):
    """Return events as soon as there are so many."""
    found = []
    wait_for(lambda: len(found) >= number or found.extend(workers.listen(1.0)), pause=0.0)
    return found


def process_of(ready):
    return int(ready.label.rpartition(":")[2])


def is_there(process):
    return Path(f"/proc/{process}").exists()


def test_a_worker_starts_answers_in_order_and_ends(local_ray, job):
    spec, tasks = job
    with RayWorkers(spec, address="local", num_workers=1) as workers:
        worker = workers.start(PoolConfig(device="auto"))
        [ready] = hear(workers)
        assert (type(ready), ready.worker, ready.device) == (Ready, worker, "cpu")
        for task in tasks[:2]:
            workers.send(worker, task, 0)
        first, second = hear(workers, 2)
        assert [type(event) for event in (first, second)] == [Finished, Finished]
        assert all(isinstance(event.answer, TaskResult) for event in (first, second))
        assert first.answer.chunks != second.answer.chunks
        workers.end(worker)
        wait_for(lambda: not is_there(process_of(ready)))
        assert workers.listen(0.01) == []


@pytest.mark.parametrize("when", ["while others work", "at the end"])
def test_a_stopped_worker_that_does_not_hear_its_end_is_killed(when, local_ray, job, monkeypatch):
    monkeypatch.setattr("ntkpipe.pipeline.executors.ray.ENDING_SECONDS", 0.2)
    with RayWorkers(job[0], address="local", num_workers=1) as workers:
        worker = workers.start(PoolConfig())
        [ready] = hear(workers)
        os.kill(process_of(ready), signal.SIGSTOP)
        if when == "while others work":
            workers.end(worker)
            wait_for(lambda: workers.listen(0.05) or not is_there(process_of(ready)))
    wait_for(lambda: not is_there(process_of(ready)))


def test_what_keeps_a_worker_from_starting_is_heard_with_its_kind(local_ray, job):
    with RayWorkers(job[0], address="local", num_workers=1) as workers:
        worker = workers.start(PoolConfig(device="cuda:7", gpus=0))
        [event] = hear(workers)
        assert (type(event), event.worker, event.kind) == (NotStarted, worker, "config")
        assert "cuda:7" in event.message


def test_a_worker_that_is_killed_is_lost_with_what_it_had(local_ray, job):
    spec, tasks = job
    with RayWorkers(spec, address="local", num_workers=1) as workers:
        worker = workers.start(PoolConfig())
        [ready] = hear(workers)
        os.kill(process_of(ready), signal.SIGSTOP)
        workers.send(worker, tasks[0], 0)
        os.kill(process_of(ready), signal.SIGKILL)
        [event] = hear(workers)
        assert (type(event), event.worker, event.kind) == (Lost, worker, "worker-lost")


def test_a_worker_that_is_killed_while_it_has_nothing_to_do_is_lost(local_ray, job, monkeypatch):
    monkeypatch.setattr("ntkpipe.pipeline.executors.ray.ASKING_SECONDS", 0.05)
    with RayWorkers(job[0], address="local", num_workers=1) as workers:
        worker = workers.start(PoolConfig())
        [ready] = hear(workers)
        begun = time.monotonic()
        assert workers.listen(0.5) == []
        assert time.monotonic() - begun >= 0.5, "that a worker is there is no news"
        os.kill(process_of(ready), signal.SIGKILL)
        [event] = hear(workers)
        assert (type(event), event.worker, event.kind, event.had_begun) == (Lost, worker, "worker-lost", False)


def test_a_worker_that_is_told_to_end_while_it_has_nothing_to_do_says_so(local_ray, job, monkeypatch):
    monkeypatch.setattr("ntkpipe.pipeline.executors.ray.ASKING_SECONDS", 0.05)
    with RayWorkers(job[0], address="local", num_workers=1) as workers:
        worker = workers.start(PoolConfig())
        [ready] = hear(workers)
        os.kill(process_of(ready), signal.SIGTERM)
        assert hear(workers) == [Draining(worker)]


def test_idle_workers_that_were_killed_cost_the_next_task_no_attempt(local_ray, job):
    spec, tasks = job
    options = {"task_seconds": 600.0, "start_seconds": 600.0, "slow_factor": 10.0}
    told = []
    ray_workers = RayWorkers(spec, address="local", num_workers=3)
    with Fleet(
        ray_workers, spec, [PoolConfig(workers=3)], **options, tell=lambda **fields: told.append(fields)
    ) as fleet:
        wait_for(lambda: fleet.wait(1.0) or fleet.num_ready == 3, pause=0.0)
        time.sleep(QUIET_SECONDS)
        first, second, _ = [int(fields["worker"].rpartition(":")[2]) for fields in told]
        for process in (first, second):
            os.kill(process, signal.SIGKILL)
        *lost, fine = carry_out(fleet, tasks[:1])
        assert [(outcome.error.kind, outcome.error.counts) for outcome in lost] == [("not-started", False)] * 2
        assert isinstance(fine.result, TaskResult)


def test_a_worker_that_is_told_to_end_says_so_with_its_next_answer(local_ray, job):
    spec, tasks = job
    with RayWorkers(spec, address="local", num_workers=1) as workers:
        worker = workers.start(PoolConfig())
        [ready] = hear(workers)
        os.kill(process_of(ready), signal.SIGTERM)
        workers.send(worker, tasks[0], 0)
        workers.send(worker, tasks[1], 0)
        draining, _, again, refused = hear(workers, 4)
        assert (draining, again) == (Draining(worker), Draining(worker))
        assert refused.answer[0] == "not-started"
        assert is_there(process_of(ready))


def test_workers_of_a_node_that_is_about_to_leave_are_heard_of_once(local_ray, job, monkeypatch):
    leaving = {}
    monkeypatch.setattr(cluster_state, "get_draining_nodes", lambda: leaving)
    monkeypatch.setattr("ntkpipe.pipeline.executors.ray.LEAVING_SECONDS", 0.05)
    with RayWorkers(job[0], address=JOINED, num_workers=1) as workers:
        worker = workers.start(PoolConfig(cpus=0.1))
        assert [type(event) for event in hear(workers)] == [Ready]
        assert workers.listen(0.2) == []
        leaving[local_ray.get_runtime_context().get_node_id()] = 0
        assert hear(workers) == [Draining(worker)]
        assert workers.listen(0.2) == []


def test_a_cluster_that_does_not_tell_who_is_about_to_leave_is_trouble_once(local_ray, job, monkeypatch):
    def fail():
        raise AttributeError("no such thing")

    monkeypatch.setattr(cluster_state, "get_draining_nodes", fail)
    monkeypatch.setattr("ntkpipe.pipeline.executors.ray.LEAVING_SECONDS", 0.05)
    with RayWorkers(job[0], address=JOINED, num_workers=1) as workers:
        assert hear(workers) == [
            Trouble("Ray does not tell which nodes are about to leave: AttributeError: no such thing")
        ]
        assert workers.listen(0.2) == []
