"""Samples that end, stop or upset their worker, workers without memory, and workers that are told to end or to stop."""

import json
import os
import signal
import time
from pathlib import Path

import pytest
import troubles
from faults.table import compare_runs
from processes import wait_for, workers_of

import ntkpipe
from ntkpipe.configs.errors import NumericalError, TaskFailedError
from ntkpipe.pipeline.events import read_events
from ntkpipe.storage.stores.registry import open_store

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]

TASK_SECONDS = 15.0
"""After which a task is late. The first one of a process loads the model: seconds where many processes share two cores."""

POISON = {"exit": 0, "raise": 1, "hang": 2, "nan": 3, "crash": 5}
"""Positions of samples, by what they do to the worker that looks at them; what ends it comes some time after the answer of 3."""


def moody(folder, **changes):
    model = {"kind": "python", "target": "troubles:build_moody", "options": {"moods": str(folder / "moods")}}
    return troubles.config(model=model) | changes


def failures(run):
    found = [json.loads(file.read_text()) for file in sorted((run / "failed").rglob("*.json"))]
    return sorted(found, key=lambda failure: failure["failed_at"])


def test_poison_samples_are_set_aside_and_all_others_are_finished(local_ray, tmp_path, fault_table):
    moods = tmp_path / "moods"
    resources = {"executor": "ray", "workers": 2, "max_attempts": 2, "task_seconds": TASK_SECONDS, "max_bad_share": 0.7}
    kernels = [{"kind": "pntk"}, {"kind": "ck"}, {"kind": "trntk0"}]
    config = moody(tmp_path, kernels=kernels, resources=resources, data=data(12))
    whole = ntkpipe.run(config, tmp_path / "whole")
    moods.write_text("".join(f"{position} {mood}\n" for mood, position in POISON.items()))
    run = ntkpipe.run(config, tmp_path / "run")
    status = run.status()
    assert status.state == "incomplete"
    features, kernel, solve, _ = status.stages
    assert (features.done, features.set_aside, features.left_out) == (7, 5, 0)
    # Of six strips of two rows the first three hold a poisoned sample; no block was lost that needs none of them.
    assert (kernel.done, kernel.set_aside, kernel.left_out) == (6, 0, 15)
    assert (solve.done, solve.set_aside, solve.left_out) == (0, 0, 1)
    for what in ("worker process was lost", "this sample is broken", "task_seconds", "for sample 's3'"):
        assert any(what in failure for failure in status.failures), what
    # The others were tried twice. Numbers that are wrong once are wrong again, so that they are judged once; a worker that
    # ends with its next sample may take the answer with it.
    tried = [failure for failure in failures(tmp_path / "run") if failure["stage"] == "features"]
    kinds = {at: [one["kind"] for one in tried if one["task"] == f"train/0000000{at}"] for at in POISON.values()}
    assert [len(of_one) for of_one in kinds.values()] == [2, 2, 2, len(kinds[3]), 2]
    assert kinds[3] in (["numerical"], ["worker-lost", "numerical"])
    assert run.kernel("pntk")[6:, 6:].tolist() == whole.kernel("pntk")[6:, 6:].tolist()

    # Those that end or hold up a worker are well again: what is told is the same of all, and they cost seconds each.
    moods.write_text(f"{POISON['raise']} raise\n{POISON['nan']} nan\n")
    with pytest.raises(TaskFailedError, match="2 of 12 features tasks were set aside") as caught:
        ntkpipe.resume(tmp_path / "run", overrides=["resources.max_bad_share=0", "resources.max_attempts=1"])
    for position in (POISON["raise"], POISON["nan"]):
        assert f"features task train/0000000{position} (samples: train {position})" in caught.value.message
    assert ntkpipe.open_run(tmp_path / "run").status().state == "incomplete"

    moods.unlink()
    assert ntkpipe.resume(tmp_path / "run").status().state == "finished"
    fault_table.add("poison sample", len(POISON), len(POISON), *compare_runs(tmp_path / "run", tmp_path / "whole"))


def test_a_sample_that_ends_workers_which_had_nothing_to_do_is_set_aside_all_the_same(local_ray, tmp_path, monkeypatch):
    # Every worker that has no task is asked whether it is there before it is given one.
    monkeypatch.setattr("ntkpipe.pipeline.executors.ray.QUIET_SECONDS", -1.0)
    (tmp_path / "moods").write_text("0 exit\n")
    resources = {"executor": "ray", "workers": 2, "max_attempts": 2}
    with pytest.raises(TaskFailedError, match=r"failed 2 times.*worker process was lost"):
        ntkpipe.run(moody(tmp_path, resources=resources, data=data(1)), tmp_path / "run")
    assert [failure["kind"] for failure in failures(tmp_path / "run")] == ["worker-lost"] * 2


def data(num):
    return {"splits": {"train": {"kind": "python", "target": "troubles:load", "options": {"num": num}}}}


def test_one_poison_sample_ends_a_run_that_allows_none_with_its_own_error(local_ray, tmp_path):
    (tmp_path / "moods").write_text("3 nan\n")
    with pytest.raises(NumericalError, match="for sample 's3'"):
        ntkpipe.run(moody(tmp_path), tmp_path / "run")
    status = ntkpipe.open_run(tmp_path / "run").status()
    assert (status.stages[0].done, status.stages[0].set_aside) == (7, 1)
    assert status.state == "interrupted"


def test_a_worker_without_memory_gets_there_with_smaller_batches(local_ray, tmp_path, fault_table):
    config = troubles.config(
        model={"kind": "python", "target": "troubles:build_greedy", "options": {"poor": str(tmp_path / "poor")}},
        kernels=[{"kind": "pntk"}, {"kind": "trntk0"}],
        solve=[],
        store={"shard_rows": 8, "block_rows": 8},
        resources={"executor": "ray", "workers": 1, "batch_size": 8, "max_attempts": 1},
    )
    rich = ntkpipe.run(config, tmp_path / "rich")
    (tmp_path / "poor").touch()
    poor = ntkpipe.run(config, tmp_path / "run")
    assert poor.status().state == "finished"
    for name in ("pntk", "trntk0"):
        difference = abs(poor.kernel(name)[:, :] - rich.kernel(name)[:, :]).max()
        assert difference <= 1e-6 * abs(rich.kernel(name)[:, :]).max()
    for stage, task in (("features", "train/00000000"), ("kernel", "train-train/000000-000000")):
        assert [failure["kind"] for failure in failures(tmp_path / "run") if failure["stage"] == stage] == [
            "memory"
        ] * 2
        receipt = json.loads((tmp_path / f"run/receipts/{stage}/{task}.json").read_text())
        assert receipt["attempt"] == 3
    fault_table.add("worker out of memory", 2, 2, 0)


def test_memory_for_not_even_one_sample_is_a_failure(local_ray, tmp_path):
    options = {"poor": str(tmp_path / "poor"), "samples": 0}
    (tmp_path / "poor").touch()
    config = troubles.config(
        model={"kind": "python", "target": "troubles:build_greedy", "options": options},
        kernels=[{"kind": "pntk"}],
        solve=[],
        store={"shard_rows": 4, "block_rows": 4},
        resources={"executor": "ray", "workers": 1, "max_attempts": 2},
    )
    with pytest.raises(TaskFailedError, match="2 of 2 features tasks were set aside"):
        ntkpipe.run(config, tmp_path / "run")
    found = [failure for failure in failures(tmp_path / "run") if failure["task"] == "train/00000000"]
    assert [failure["verdict"] for failure in found] == ["again", "again", "again", "aside"]  # of 4, 2, 1 and 1 samples
    assert {failure["kind"] for failure in found} == {"memory"}


def job(folder, **resources):
    """A job that takes a while over every sample."""
    troubles.set_pace(folder, 0.3)
    document = moody(folder)
    document["resources"] |= resources
    path = folder / "job.yaml"
    path.write_text(json.dumps(document))
    return path


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Where the job of all runs of this module is: paths are part of it."""
    return tmp_path_factory.mktemp("job")


@pytest.fixture(scope="module")
def undisturbed(folder):
    ntkpipe.run(moody(folder), folder / "whole", overrides=["resources.executor=serial"])
    return folder / "whole"


def receipts(run):
    return list((run / "receipts/features").rglob("*.json"))


def test_a_worker_that_is_told_to_end_finishes_its_task_and_is_replaced(
    folder, undisturbed, start, tmp_path, fault_table
):
    run, ended = tmp_path / "run", []
    process = start("run", job(folder, max_attempts=10), "--out", run)
    while process.poll() is None:
        workers = [worker for worker in workers_of(process.pid) if worker not in ended]
        if workers and len(ended) < 3 and len(receipts(run)) > len(ended):
            os.kill(workers[0], signal.SIGTERM)
            ended.append(workers[0])
        time.sleep(0.02)
    _, errors = process.communicate()
    assert process.returncode == 0, errors
    wait_for(lambda: not any(Path(f"/proc/{worker}").exists() for worker in ended))
    assert failures(run) == []
    fault_table.add("SIGTERM of a worker", len(ended), len(ended), *compare_runs(run, undisturbed))


def test_a_worker_that_is_stopped_is_ended_and_replaced(folder, undisturbed, start, tmp_path, fault_table):
    run = tmp_path / "run"
    process = start("run", job(folder, task_seconds=TASK_SECONDS), "--out", run)
    wait_for(lambda: receipts(run))
    worker = workers_of(process.pid)[0]
    os.kill(worker, signal.SIGSTOP)
    _, errors = process.communicate(timeout=300)
    assert process.returncode == 0, errors
    # It is not only told to end, which it could not hear: when it goes on there is nothing left to write.
    wait_for(lambda: not Path(f"/proc/{worker}").exists())
    assert [failure["kind"] for failure in failures(run)] == ["deadline"]
    fault_table.add("SIGSTOP of a worker", 1, 1, *compare_runs(run, undisturbed))


NEVER_STARTING = """
import os, signal, sys
from ntkpipe.pipeline import cli
from ntkpipe.pipeline.executors import ray as executor

name = sys.argv.pop()

class Actor(executor.Actor):
    def __init__(self, spec):
        try:
            with open(name, "x") as file:
                file.write(str(os.getpid()))
        except FileExistsError:
            super().__init__(spec)
        else:
            os.kill(os.getpid(), signal.SIGSTOP)

executor.Actor = Actor
cli.main()
"""
"""A driver of whose workers the first one to be called stops before it has answered."""


def test_a_worker_that_never_starts_holds_nothing_up(folder, undisturbed, start, tmp_path):
    run, stopped = tmp_path / "run", tmp_path / "stopped"
    process = start("run", job(folder), "--out", run, stopped, program=NEVER_STARTING)
    try:
        _, errors = process.communicate(timeout=300)
    finally:
        worker = int(stopped.read_text())
        if Path(f"/proc/{worker}").exists():
            os.kill(worker, signal.SIGKILL)
    assert process.returncode == 0, errors
    events = [event for event in read_events(open_store(run)) if event.name == "worker"]
    assert [event.text("state") for event in events] == ["ready", "ended"]
    assert not any(event.text("worker").endswith(f":{worker}") for event in events)
    assert failures(run) == []
    assert compare_runs(run, undisturbed)[1] == 0
