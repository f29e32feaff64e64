"""What a driver does with tasks that fail, with fewer workers than it hoped for, and when it is told to stop."""

import itertools
import os
import signal
import threading
import time
from collections import deque

import golden
import numpy as np
import pytest
import torch
from watching import Notes

from ntkpipe.configs.errors import (
    ConfigError,
    CoverageError,
    NumericalError,
    RunLockedError,
    RunStoppedError,
    StorageError,
    TaskFailedError,
)
from ntkpipe.configs.loading import load_config
from ntkpipe.pipeline.drive import Driver
from ntkpipe.pipeline.events import EventLog, Silent
from ntkpipe.pipeline.executors import metrics
from ntkpipe.pipeline.executors.base import AbstractExecutor, Outcome, TaskError
from ntkpipe.pipeline.plan import Plan
from ntkpipe.pipeline.rounds import run_rounds
from ntkpipe.pipeline.scheduling.queue import TaskQueue
from ntkpipe.pipeline.status import read_status
from ntkpipe.pipeline.stopping import StopRequest
from ntkpipe.storage import layout
from ntkpipe.storage.grid import Shard
from ntkpipe.storage.ledger import Ledger
from ntkpipe.storage.locks import EpochLock
from ntkpipe.storage.records import Failure, Geometry, KernelGeometry, Manifest, Receipt, SplitGeometry
from ntkpipe.storage.stores.registry import open_store
from ntkpipe.workers.passes import PassPlan
from ntkpipe.workers.tasks import FeaturesTask, MomentsTask, SolveStepTask, SolveTask, TaskResult, WorkerSpec
from ntkpipe.workers.worker import describe_failure

FINE = "fine"


class Scripted(AbstractExecutor):
    """Ends attempts as it is told, by task id: a list of errors, the last of which is repeated; all others are fine."""

    def __init__(self, script=None, *, capacities=(3,)):
        self.script = {name: deque(errors) for name, errors in (script or {}).items()}
        self.capacities = itertools.chain(capacities, itertools.repeat(capacities[-1]))
        self.waiting = deque()
        self.seen = []
        self.halvings = []
        self.before_wait = lambda: None

    def __enter__(self):
        return self

    def __exit__(self, *exception):
        pass

    def now(self):
        return time.monotonic()

    @property
    def num_ready(self):
        return 1

    @property
    def num_wanted(self):
        return 1

    def next_worker(self, num_left):
        return 0 if num_left and len(self.waiting) < next(self.capacities) else None

    def submit(self, worker, task, halvings=0):
        self.waiting.append(task)
        self.seen.append(task.id)
        self.halvings.append(halvings)

    def wait(self, timeout_seconds):
        self.before_wait()
        if not self.waiting:
            return []
        task = self.waiting.popleft()
        errors = self.script.get(task.id)
        if not errors:
            return [Outcome(task, result=TaskResult((), (), 0.0, "w", {}))]
        error = errors.popleft() if len(errors) > 1 else errors[0]
        return [Outcome(task, error=error) if error != FINE else Outcome(task, result=TaskResult((), (), 0.0, "w", {}))]


GEOMETRY = Geometry(
    splits={"train": SplitGeometry(num_samples=12, labels="classes", num_targets=2)},
    train_split="train",
    kernels=(KernelGeometry(name="pntk", kind="pntk", feature_dim=None, groups=()),),
    pairs=(("train", "train"),),
    solutions=("krr", "other"),
    solution_targets=(2, 2),
    num_outputs=2,
    shard_rows=1,
    block_rows=4,
    dtype="float32",
)


def boom(kind="exception", message="boom", **options):
    return TaskError(kind, message, **options)


class Rig:
    """A driver on a real store, with a scripted executor."""

    def __init__(self, folder, script=None, *, capacities=(3,), made_from=None, **resources):
        self.store = open_store(folder)
        self.config = load_config(
            golden.config(
                data={"splits": {"train": {"kind": "python", "target": "golden:load"}}},
                kernels=[{"kind": "pntk"}],
                solve=[
                    {"kind": "cholesky", "name": name, "kernel": "pntk", "ridge": 1.0} for name in GEOMETRY.solutions
                ],
                resources=resources,
            )
        )
        self.plan = Plan(self.config, GEOMETRY)
        self.executor = Scripted(script, capacities=capacities)
        self.ledger = Ledger(self.store)
        self.notes = Notes()
        self.stop = StopRequest()
        self.lock = EpochLock(self.store, 60.0).__enter__()
        self.log = EventLog(self.store, self.lock.epoch)
        self.driver = Driver(
            self.plan,
            self.executor,
            self.ledger,
            self.lock,
            self.log,
            self.notes,
            self.stop,
            last_state=lambda name: "",
            made_from=made_from,
        )

    def run(self):
        try:
            for stages in self.plan.waves:
                self.driver.run_stages(*stages)
            self.driver.conclude()
        finally:
            self.lock.__exit__()

    def failures(self):
        keys = self.store.names(layout.FAILED)
        found = [Failure.parse(self.store.read(key), key) for key in keys]
        return [(one.stage, one.task, one.verdict) for one in sorted(found, key=lambda one: one.failed_at)]

    def status(self):
        manifest = Manifest(
            run_id="r",
            name="n",
            created_at=0.0,
            config=self.config.document(),
            semantic={},
            fingerprints={},
            geometry=GEOMETRY,
            num_parameters=1,
            versions={},
        )
        return read_status(self.store, manifest)


BAD = "train/00000002"
"""A features task; its sample is in the first strip of blocks."""


@pytest.fixture
def rig(tmp_path):
    made = []

    def make(*arguments, **options):
        made.append(Rig(tmp_path / "run", *arguments, **options))
        return made[-1]

    yield make
    for one in made:
        one.lock.__exit__()


def test_a_task_that_fails_is_tried_again_and_every_attempt_is_recorded(rig):
    one = rig({BAD: [boom(), boom(), FINE]})
    one.run()
    assert one.executor.seen.count(BAD) == 3
    assert one.failures() == [("features", BAD, "again")] * 2
    assert one.ledger.receipt("features", BAD).attempt == 3
    assert one.status().state == "finished"
    assert one.status().failures == ()


def test_a_stage_goes_on_with_the_other_tasks_and_then_fails(rig):
    one = rig({BAD: [boom(message="the sample is broken.")]})
    with pytest.raises(
        TaskFailedError, match=r"train/00000002 \(samples: train 2\) failed 3 times, last with: the sample"
    ):
        one.run()
    assert len(one.ledger.committed("features")) == 11
    assert one.failures() == [("features", BAD, "again")] * 2 + [("features", BAD, "aside")]
    status = one.status()
    assert status.state == "interrupted"
    assert (status.stages[0].done, status.stages[0].set_aside) == (11, 1)
    assert status.failures == ("features task train/00000002: the sample is broken.",)


def test_wrong_numbers_are_not_tried_again_and_keep_their_class(rig):
    one = rig({BAD: [boom("numerical", "NaN for sample 'x2'")]})
    with pytest.raises(NumericalError, match="NaN for sample 'x2'"):
        one.run()
    assert one.executor.seen.count(BAD) == 1
    assert len(one.ledger.committed("features")) == 11


def test_a_run_that_may_have_holes_goes_on_and_says_what_is_missing(rig):
    one = rig({BAD: [boom()]}, max_bad_share=0.1, max_attempts=1)
    one.executor.script |= {name: deque([boom("chunk-not-ready", "no such block")]) for name in GEOMETRY.solutions}
    one.run()
    assert ("features", BAD, "aside") in one.failures()
    # Blocks of the first strip need the sample: they were not even tried, and solutions found nothing to read.
    tried = [name for name in one.executor.seen if name.startswith("train-train")]
    assert sorted(tried) == ["train-train/000001-000001", "train-train/000002-000001", "train-train/000002-000002"]
    assert one.executor.seen.count("krr") == 1
    status = one.status()
    assert status.state == "incomplete"
    assert [(stage.done, stage.set_aside, stage.left_out) for stage in status.stages] == [
        (11, 1, 0),
        (3, 0, 3),
        (0, 0, 2),
        (0, 0, 0),
    ]
    assert status.failures == ("features task train/00000002: boom",)
    assert "The run has ended with holes; missing tasks: features 1, kernel 3, solve 2" in one.notes.texts[-1]
    one.log.flush()
    events = "".join(one.store.read(key).decode() for key in one.store.names("events"))
    assert '"event": "finish", "set_aside": 1, "left_out": 5' in events


def test_a_damaged_record_of_a_failure_does_not_keep_a_run_from_telling_how_far_it_is(rig):
    one = rig({BAD: [boom()]}, max_bad_share=0.1, max_attempts=1)
    one.run()
    one.store.put(layout.failure("features", BAD, 1, 1), b"")
    assert (one.status().state, one.status().failures) == ("interrupted", ())


def test_resuming_tries_again_what_was_set_aside_and_what_needed_it(rig):
    first = rig({BAD: [boom()], "krr": [boom("chunk-not-ready")]}, max_bad_share=0.1, max_attempts=1)
    first.run()
    second = rig()
    second.run()
    assert second.executor.seen[0] == BAD
    assert len(second.executor.seen) == 1 + 3 + 1
    assert second.status().state == "finished"


def test_more_than_may_be_missing_is_an_error_that_names_ten(rig):
    script = {f"train/{number:08d}": [boom(message=f"broken {number}")] for number in range(12)}
    one = rig(script, max_attempts=1, max_bad_share=0.95)
    with pytest.raises(TaskFailedError, match="12 of 12 features tasks were set aside") as caught:
        one.run()
    message = caught.value.message
    assert "max_bad_share = 0.95 allows" in message
    assert "features task train/00000000 (samples: train 0): broken 0" in message
    assert "broken 9" in message
    assert "broken 10" not in message
    assert "and 2 more" in message
    assert "`ntkpipe resume`" in message


def test_a_stage_of_which_much_fails_is_given_up_early(rig):
    script = {f"train/{number:08d}": [boom()] for number in range(12)}
    one = rig(script, max_attempts=1, max_bad_share=0.0, capacities=(1,))
    with pytest.raises(TaskFailedError, match="11 of 12 features tasks were set aside"):
        one.run()
    assert len(one.executor.seen) == 11


@pytest.mark.parametrize(
    ("kind", "error"),
    [("config", ConfigError), ("coverage", CoverageError), ("run-locked", RunLockedError)],
)
def test_what_concerns_the_whole_run_ends_it_at_once(kind, error, rig):
    one = rig({BAD: [boom(kind)]}, capacities=(1,))
    with pytest.raises(error, match="boom"):
        one.run()
    assert len(one.executor.seen) == 3
    assert one.failures() == [("features", BAD, "end")]


def test_storage_that_fails_for_good_ends_the_run(rig):
    one = rig({BAD: [boom("storage")]}, max_bad_share=0.5)
    with pytest.raises(StorageError, match="boom"):
        one.run()
    assert one.executor.seen.count(BAD) == 3


def test_a_missing_chunk_is_an_error_when_nothing_was_set_aside(rig):
    one = rig({"krr": [boom("chunk-not-ready")]}, max_bad_share=0.5)
    with pytest.raises(StorageError, match="boom"):
        one.run()


def test_memory_that_ran_out_halves_the_batch_and_is_not_held_against_the_task(rig):
    out = boom("memory", counts=False)
    one = rig({BAD: [out, out, boom("memory"), FINE]}, max_attempts=2)
    one.run()
    halvings = [count for name, count in zip(one.executor.seen, one.executor.halvings, strict=True) if name == BAD]
    assert halvings == [0, 1, 2, 3]
    assert one.ledger.receipt("features", BAD).attempt == 4
    others = [count for name, count in zip(one.executor.seen, one.executor.halvings, strict=True) if name != BAD]
    assert set(others) == {0}


def test_other_errors_do_not_change_the_batch(rig):
    one = rig({BAD: [boom(), boom("deadline"), FINE]})
    one.run()
    assert set(one.executor.halvings) == {0}


def test_a_task_that_never_started_is_handed_out_again_without_a_word(rig):
    one = rig({BAD: [boom("not-started", counts=False), FINE]}, max_attempts=1)
    one.run()
    assert one.failures() == []


def test_a_driver_waits_for_the_first_worker(rig):
    one = rig(capacities=(0, 0, 0, 2))
    one.run()
    assert one.status().state == "finished"


def test_blocks_start_as_soon_as_their_shards_are_committed_and_not_before(rig):
    one = rig(capacities=(4,))
    submit, overlapped = one.executor.submit, []

    def watching(worker, task, halvings=0):
        if task.stage == "kernel":
            done = one.ledger.committed("features")
            sides = (task.block.rows, task.block.columns)
            assert {f"train/{index:08d}" for side in sides for index in range(side.start, side.stop)} <= done
            overlapped.append(len(done) < 12)
        submit(worker, task, halvings)

    one.executor.submit = watching
    one.run()
    assert len(overlapped) == 6
    assert any(overlapped)
    assert one.status().state == "finished"


def test_no_block_is_begun_when_too_many_shards_have_failed(rig):
    one = rig({BAD: [boom("numerical")]}, capacities=(4,))
    with pytest.raises(NumericalError):
        one.run()
    assert not [name for name in one.executor.seen if name.startswith("train-train")]
    assert one.failures() == [("features", BAD, "aside")]


@pytest.mark.parametrize(("stage", "stray"), [("features", "train/00000042"), ("kernel", "train-train/000042-000000")])
def test_a_receipt_that_belongs_to_no_task_does_not_make_up_for_one(stage, stray, rig):
    one = rig()
    one.ledger.commit(Receipt(stage=stage, task=stray, chunks=(), objects=(), seconds=0.0, worker=""))
    one.run()
    assert {task.id for task in one.plan.tasks(stage)} <= one.ledger.committed(stage)
    assert one.status().state == "finished"


def test_receipts_tell_what_a_task_was_made_from(rig):
    one = rig(made_from=lambda task: {"pntk": f"digest of {task.id}"})
    one.run()
    assert one.ledger.receipt("features", BAD).made_from == {"pntk": f"digest of {BAD}"}


def test_a_superseded_driver_writes_nothing_more(rig):
    one = rig(capacities=(1,))

    def take_over():
        if one.executor.seen == ["train/00000000", "train/00000001", BAD]:
            one.store.put_new(layout.epoch(2), b"{}")

    one.executor.before_wait = take_over
    with pytest.raises(RunLockedError, match="epoch 2 has taken over"):
        one.run()
    assert len(one.ledger.committed("features")) == 2
    assert not one.store.exists(layout.heartbeat(1))


def test_a_failure_of_a_superseded_driver_is_not_recorded(rig):
    one = rig({BAD: [boom()]})
    one.executor.before_wait = lambda: one.store.put_new(layout.epoch(2), b"{}")
    with pytest.raises(RunLockedError):
        one.run()
    assert one.failures() == []


def test_a_driver_that_is_told_to_stop_commits_what_is_under_way(rig):
    one = rig()
    with one.stop.heeded(60.0):
        one.executor.before_wait = one.stop.request
        with pytest.raises(RunStoppedError, match="`ntkpipe resume` goes on"):
            one.run()
    assert len(one.executor.seen) == 3
    assert one.ledger.committed("features") == set(one.executor.seen)
    assert one.status().state == "interrupted"


def test_a_driver_that_is_told_to_stop_does_not_try_again(rig):
    one = rig({"train/00000000": [boom()]})
    with one.stop.heeded(60.0):
        one.executor.before_wait = one.stop.request
        with pytest.raises(RunStoppedError):
            one.run()
    assert len(one.ledger.committed("features")) == 2
    assert one.failures() == []


def test_the_grace_of_a_driver_ends(rig):
    one = rig()
    with one.stop.heeded(0.05):
        one.stop.request()
        time.sleep(0.1)
        with pytest.raises(RunStoppedError):
            one.run()
    assert one.executor.seen == []


def test_a_stop_that_comes_when_everything_is_done_changes_nothing(rig):
    one = rig()
    with one.stop.heeded(60.0):
        for stages in one.plan.waves:
            one.driver.run_stages(*stages)
        one.stop.request()
        one.run()
    assert one.status().state == "finished"


def test_a_shared_solve_that_fails_for_good_is_set_aside_with_its_solution(rig):
    one = rig({"krr/step": [boom()]}, max_bad_share=0.6)
    one.driver.run_stages(*one.plan.stages[:2])
    run_rounds(one.driver, one.store, one.ledger, "krr")
    one.run()
    assert "krr" not in one.executor.seen
    assert one.executor.seen.count("krr/step") == 3
    solve = one.status().stages[2]
    assert (solve.done, solve.set_aside) == (1, 1)
    assert one.status().state == "incomplete"


def listen(stop, act, grace_seconds=None):
    """Do something under a listener, and under a driver that looks if there is a time of grace."""
    with stop.listening():
        if grace_seconds is None:
            act()
        else:
            with stop.heeded(grace_seconds):
                act()


def terminate():
    os.kill(os.getpid(), signal.SIGTERM)


def test_what_a_listener_is_told_before_anybody_looks_ends_it_at_once():
    stop = StopRequest()

    def act():
        terminate()
        time.sleep(20)

    with pytest.raises(RunStoppedError):
        listen(stop, act)
    assert stop.requested


def test_a_listener_hears_once_and_leaves_at_the_second_time():
    before, stop, heard = signal.getsignal(signal.SIGTERM), StopRequest(), []

    def act():
        terminate()
        heard.append(stop.requested and not stop.is_over)
        terminate()
        time.sleep(20)

    with pytest.raises(RunStoppedError):
        listen(stop, act, grace_seconds=60.0)
    assert heard == [True]
    assert signal.getsignal(signal.SIGTERM) == before


def test_a_listener_leaves_what_takes_longer_than_the_grace():
    caught = []

    def act():
        terminate()
        try:
            time.sleep(20)
        except Exception as error:  # noqa: BLE001 - as executors do; they must not take the end for a failure of the task
            caught.append(error)
        caught.append("not left")

    with pytest.raises(RunStoppedError):
        listen(StopRequest(), act, grace_seconds=0.1)
    assert caught == []


def test_in_other_threads_nothing_is_listened_to():
    before, found = signal.getsignal(signal.SIGTERM), []

    def listen():
        with StopRequest().listening():
            found.append(signal.getsignal(signal.SIGTERM))

    thread = threading.Thread(target=listen)
    thread.start()
    thread.join()
    assert found == [before]


@pytest.mark.parametrize(
    "ask", [lambda: torch.empty(2**60, dtype=torch.uint8), lambda: np.empty(2**60, np.uint8), lambda: bytearray(2**60)]
)
def test_errors_that_say_that_there_is_no_memory_are_known(ask):
    with pytest.raises((RuntimeError, MemoryError)) as caught:
        ask()
    assert describe_failure(caught.value)[0] == "memory"
    assert describe_failure(RuntimeError("shapes do not match"))[0] == "exception"


def test_batches_are_halved_down_to_single_samples():
    passes = PassPlan(batch_size=256, max_vectors=3, gram_samples=5, row_samples=10**6)
    assert passes.halved(0, 8) == PassPlan(8, 3, 5, 8)
    assert passes.halved(1, 8) == PassPlan(4, 3, 2, 4)
    assert passes.halved(3, 8) == passes.halved(9, 8) == PassPlan(1, 3, 1, 1)


def test_only_tasks_with_batches_can_do_with_less_memory(rig):
    spec = WorkerSpec(
        url="",
        config=rig().config,
        geometry=GEOMETRY,
        routes={},
        weights_digests={},
        input_digests={},
        modules={},
        fingerprints={},
        passes=PassPlan(batch_size=256, max_vectors=1, gram_samples=64, row_samples=512),
        choices={},
        threads=None,
    )
    features = FeaturesTask(Shard("train", 0, 0, 4))
    assert spec.passes_of(features, 0) == spec.passes
    assert spec.passes_of(features, 1).batch_size == 2
    assert [spec.can_halve(features, halvings) for halvings in range(4)] == [True, True, False, False]
    assert spec.can_halve(MomentsTask("pntk"), 0)
    assert not spec.can_halve(SolveTask("krr"), 0)
    assert spec.passes_of(SolveTask("krr"), 2) == spec.passes


def test_tasks_that_are_to_be_tried_again_come_first():
    queue = TaskQueue([SolveStepTask("a"), SolveStepTask("b")], 2)
    queue.push(queue.pop(0))
    assert [queue.pop(0).name for _ in range(2)] == ["a", "b"]
    assert queue.num_left == 0
    assert queue.pop(0) is None


def test_an_event_log_keeps_what_the_store_does_not_take(tmp_path, monkeypatch):
    store = open_store(tmp_path / "run")
    log = EventLog(store, 1)
    log.add("one")

    def full(*_):
        raise StorageError("the disk is full")

    with monkeypatch.context() as patch:
        patch.setattr(store, "put", full)
        log.add("two")
        with pytest.raises(StorageError):
            log.flush()
    log.flush()
    text = store.read(layout.events(1, 1)).decode()
    assert ['"one"' in text, '"two"' in text] == [True, True]


def test_how_many_workers_there_are_is_told_every_few_seconds_though_nothing_happens(rig, monkeypatch):
    one, clock = rig(), itertools.count()
    monkeypatch.setattr(one.executor, "now", lambda: float(next(clock)))
    wait = one.executor.wait
    # The first task takes a minute.
    monkeypatch.setattr(one.executor, "wait", lambda seconds: wait(seconds) if next(clock) > 60 else [])
    one.run()
    assert set(one.notes.ready) == {1}
    assert 8 <= len(one.notes.ready) <= 20


def test_the_gauge_of_workers_is_set_whenever_they_are_told(monkeypatch):
    numbers = []

    class Instrument:
        def __init__(self, name, *_):
            self.name = name

        def set(self, value):
            numbers.append((self.name, value))

    for kind in ("Counter", "Gauge", "Histogram"):
        monkeypatch.setattr(metrics, kind, Instrument)
    observer = metrics.RayMetrics()
    observer.hear("worker", {"worker": "", "state": "unknown"})
    for state, name in (("ready", "a:1"), ("ready", "b:1"), ("lost", "a:1")):
        observer.hear("worker", {"worker": name, "state": state})
    observer.workers(1, 2)
    observer.workers(1, 2)
    assert numbers == [("ntkpipe_workers_ready", value) for value in (0, 1, 2, 1, 1, 1)]


def test_silence_watches_without_a_word():
    silent = Silent()
    silent.stage("features", 0, 1)
    silent.task("features", 1)
    silent.note("text")
