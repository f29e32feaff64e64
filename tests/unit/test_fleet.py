"""Which worker is given the next task, and what becomes of workers that are slow, late, lost or about to leave."""

import math
from collections import Counter

import golden
import pytest
from clockwork import Clockwork, carry_out
from hypothesis import given, settings
from hypothesis import strategies as st

from ntkpipe.configs.errors import ConfigError, PlanError, StorageError
from ntkpipe.configs.loading import load_config
from ntkpipe.configs.resources import PoolConfig
from ntkpipe.pipeline.scheduling.fleet import Fleet
from ntkpipe.pipeline.scheduling.workers import Draining, Lost, NotStarted, Ready, Trouble
from ntkpipe.storage.grid import Shard
from ntkpipe.storage.records import Geometry, SplitGeometry
from ntkpipe.workers.passes import PassPlan
from ntkpipe.workers.tasks import FeaturesTask, SolveStepTask, WorkerSpec

SPEC = WorkerSpec(
    url="",
    config=load_config(golden.config()),
    geometry=Geometry(
        splits={"train": SplitGeometry(num_samples=1000, labels="none", num_targets=0)},
        train_split="train",
        kernels=(),
        pairs=(("train", "train"),),
        solutions=(),
        solution_targets=(),
        num_outputs=2,
        shard_rows=8,
        block_rows=8,
        dtype="float32",
    ),
    routes={},
    weights_digests={},
    input_digests={},
    modules={},
    fingerprints={},
    passes=PassPlan(batch_size=8, max_vectors=1, gram_samples=1, row_samples=1),
    choices={},
    threads=None,
)


def tasks(number, start=0):
    return [FeaturesTask(Shard("train", index, 8 * index, 8 * index + 8)) for index in range(start, start + number)]


class Rig:
    """A fleet of clockwork."""

    def __init__(
        self,
        seconds,
        *pools,
        starting=lambda worker, pool: 0.0,
        task_seconds=3600.0,
        start_seconds=120.0,
        slow_factor=10.0,
    ):
        if not callable(seconds):
            table, seconds = seconds, lambda worker, pool, task: table[worker]
        self.workers = Clockwork(seconds, starting)
        self.told = []
        self.fleet = Fleet(
            self.workers,
            SPEC,
            pools or [PoolConfig()],
            task_seconds=task_seconds,
            start_seconds=start_seconds,
            slow_factor=slow_factor,
            tell=lambda **fields: self.told.append(fields),
        )

    def __enter__(self):
        self.fleet.__enter__()
        while self.workers._events and self.workers._events[0][0] <= 0.0:
            self.fleet.wait(0.0)
        return self

    def __exit__(self, *exception):
        self.fleet.__exit__(*exception)

    def run(self, number, *, start=0, until=10**6):
        return carry_out(self.fleet, tasks(number, start), until=until)

    def given(self):
        """Return how many tasks each worker was given."""
        return Counter(worker for worker, _, _ in self.workers.sent)

    def states(self, worker):
        return [fields["state"] for fields in self.told if fields["worker"] == f"host-{worker}:1"]


def pool(workers=1, **options):
    return PoolConfig(workers=workers, **options)


def test_every_worker_has_two_tasks_and_gets_another_when_one_is_done():
    with Rig([1.0, 1.0], pool(2)) as rig:
        for task in tasks(4):
            rig.fleet.submit(rig.fleet.next_worker(100), task)
        assert rig.given() == {0: 2, 1: 2}
        assert rig.fleet.next_worker(100) is None
        rig.fleet.wait(10.0)
        rig.fleet.wait(10.0)
        assert {rig.fleet.next_worker(100)} <= {0, 1}


def test_tasks_go_to_workers_that_have_none_before_they_go_to_others():
    with Rig([1.0, 1.0, 1.0], pool(3)) as rig:
        found = []
        for task in tasks(3):
            found.append(rig.fleet.next_worker(100))
            rig.fleet.submit(found[-1], task)
        assert sorted(found) == [0, 1, 2]


def test_nobody_is_named_when_there_is_nothing_left_or_nobody_has_started():
    with Rig([1.0], starting=lambda worker, pool: 5.0) as rig:
        assert rig.fleet.next_worker(100) is None
        assert (rig.fleet.num_ready, rig.fleet.num_wanted) == (0, 1)
        rig.fleet.wait(10.0)
        assert rig.fleet.next_worker(100) == 0
        assert rig.fleet.next_worker(0) is None


def test_workers_get_as_much_as_they_can_do():
    with Rig([1.0, 4.0], pool(), pool()) as rig:
        rig.run(100)
        assert rig.given()[1] == pytest.approx(20, abs=3)
        assert rig.workers.time <= 100 / 1.25 + 4.0


def test_a_slow_worker_of_the_same_pool_gets_less_too():
    with Rig([1.0, 4.0], pool(2)) as rig:
        rig.run(100)
        assert rig.given()[1] == pytest.approx(20, abs=3)


def test_near_the_end_a_slow_worker_is_left_out_if_the_others_are_done_before_it():
    with Rig([1.0, 20.0], pool(), pool()) as rig:
        rig.run(100)
        before, rig.workers.sent[:] = rig.workers.time, []
        rig.run(10, start=100)
        assert rig.given() == {0: 10}
        assert rig.workers.time - before == pytest.approx(10.0)


def test_near_the_end_a_slow_worker_helps_if_the_others_would_take_longer():
    with Rig([1.0, 20.0], pool(), pool()) as rig:
        rig.run(100)
        before, rig.workers.sent[:] = rig.workers.time, []
        rig.run(30, start=100)
        assert rig.given() == {0: 29, 1: 1}
        assert rig.workers.time - before == pytest.approx(29.0)


def test_the_last_tasks_go_to_whoever_is_idle_first():
    with Rig([1.0, 1.0], pool(2)) as rig:
        rig.run(20)
        before = rig.workers.time
        rig.run(3, start=20)
        assert rig.workers.time - before == pytest.approx(2.0)
        rig.workers.sent.clear()
        assert rig.fleet.next_worker(1) is not None
        rig.fleet.submit(rig.fleet.next_worker(1), tasks(1)[0])
        other = rig.fleet.next_worker(1)
        assert other not in rig.given()
        rig.fleet.submit(other, tasks(2)[1])
        assert rig.fleet.next_worker(1) is None  # a round trip is nothing beside a second


def test_very_quick_tasks_wait_behind_others_to_the_end():
    with Rig([0.01, 0.01], pool(2)) as rig:
        rig.run(20)
        for task in tasks(2):
            rig.fleet.submit(rig.fleet.next_worker(2), task)
        assert rig.fleet.next_worker(1) is not None


@settings(max_examples=150, deadline=None)
@given(
    speeds=st.lists(st.sampled_from([0.01, 0.3, 1.0, 1.4, 5.0, 40.0]), min_size=1, max_size=6),
    in_one_pool=st.booleans(),
    numbers=st.lists(st.integers(0, 40), min_size=1, max_size=3),
)
def test_everything_is_done_once_and_nobody_is_waited_for_without_need(speeds, in_one_pool, numbers):
    pools = [pool(len(speeds))] if in_one_pool else [pool() for _ in speeds]
    with Rig(speeds, *pools) as rig:
        for turn, number in enumerate(numbers):
            before = rig.workers.time
            outcomes = rig.run(number, start=1000 * turn)
            assert Counter(outcome.task.id for outcome in outcomes) == Counter(t.id for t in tasks(number, 1000 * turn))
            ideal = number / sum(1 / seconds for seconds in speeds)
            # Before anything is known everybody has two; then nobody ends later than one of its tasks after all others.
            assert rig.workers.time - before <= ideal + 2 * max(speeds) + 1e-9


def test_once_speeds_are_known_a_stage_ends_soon_after_it_could():
    speeds = [1.0, 1.0, 3.0, 10.0, 40.0]
    with Rig(speeds, *(pool() for _ in speeds)) as rig:
        rig.run(400)
        for number in (1, 2, 7, 30, 100, 300):
            before = rig.workers.time
            rig.run(number, start=1000)
            ideal = number / sum(1 / seconds for seconds in speeds)
            assert rig.workers.time - before <= ideal + 2.0, number


def test_a_task_may_take_as_long_as_the_ceiling_before_enough_is_known():
    with Rig(lambda worker, pool, task: 1.0 if worker else None, task_seconds=500.0) as rig:
        [late, fine] = rig.run(1)
        assert (late.error.kind, late.error.counts) == ("deadline", True)
        assert "resources.task_seconds = 500" in late.error.message
        assert late.worker == "host-0:1"
        assert fine.result is not None
        assert 500 < rig.workers.time < 510
        assert rig.states(0) == ["ready", "lost"]
        assert rig.workers.ended == [0]


def hanging_at(stuck, seconds=1.0):
    """Tasks of so many seconds, of which one never ends on the first two workers."""
    return lambda worker, pool, task: None if task.shard.index == stuck and worker < 2 else seconds


def test_a_task_that_takes_far_longer_than_others_is_late_and_twice_as_long_the_next_time():
    with Rig(hanging_at(50, seconds=20.0), slow_factor=5.0) as rig:
        outcomes = rig.run(60)
        late = [outcome for outcome in outcomes if outcome.error is not None and outcome.error.kind == "deadline"]
        assert [outcome.task.shard.index for outcome in late] == [50, 50]
        assert "100 s, which is resources.slow_factor times" in late[0].error.message
        assert "200 s" in late[1].error.message
        waiting = [outcome.error for outcome in outcomes if outcome.error is not None and outcome not in late]
        assert {(error.kind, error.counts) for error in waiting} == {("not-started", False)}
        assert Counter(outcome.task.id for outcome in outcomes if outcome.result) == Counter(t.id for t in tasks(60))


def test_a_slow_pool_is_not_late_by_the_measure_of_a_fast_one():
    with Rig([1.0, 1.0, 300.0], pool(2), pool(), slow_factor=2.0) as rig:
        outcomes = rig.run(2000)
        assert [outcome for outcome in outcomes if outcome.error is not None] == []
        assert rig.given()[2] >= 2


def test_of_a_lost_worker_only_the_task_it_had_begun_is_a_failed_attempt():
    with Rig([10.0, 10.0], pool()) as rig:
        rig.workers.at(3.0, Lost(0, "worker-lost", "it is gone"))
        first, second, *others = rig.run(2)
        assert (first.error.kind, first.error.counts) == ("worker-lost", True)
        assert (second.error.kind, second.error.counts) == ("not-started", False)
        assert [outcome.worker for outcome in others] == ["host-1:1"] * 2
        assert rig.states(0) == ["ready", "lost"]
        assert next(fields["message"] for fields in rig.told if fields["state"] == "lost") == "it is gone"
        assert rig.fleet.num_ready == 1


@pytest.mark.parametrize("kind", ["worker-lost", "memory"])
def test_what_is_given_to_workers_that_are_gone_already_has_not_failed(kind):
    with Rig([None, None, None, 1.0], pool(3)) as rig:
        for worker in range(3):
            rig.workers.at(3.0 + worker, Lost(worker, kind, "it is gone", had_begun=False))
        *lost, fine = rig.run(1)
        assert [(one.error.kind, one.error.counts, one.worker) for one in lost] == [
            ("not-started", False, f"host-{worker}:1") for worker in range(3)
        ]
        assert (fine.worker, rig.fleet.num_ready) == ("host-3:1", 3)


def test_a_worker_that_ran_out_of_memory_is_tried_with_smaller_batches():
    with Rig([10.0, 10.0]) as rig:
        rig.workers.at(3.0, Lost(0, "memory", "killed"))
        first = rig.run(1)[0]
        assert (first.error.kind, first.error.counts) == ("memory", False)
        rig.workers.at(rig.workers.time + 1, Lost(1, "memory", "killed"))
        rig.fleet.submit(1, tasks(1)[0], 3)  # of 8 samples, one by one
        assert rig.fleet.wait(100.0)[0].error.counts


def test_an_error_of_a_task_is_reported_and_its_worker_goes_on():
    with Rig(lambda worker, pool, task: ("numerical", "NaN") if task.shard.index == 1 else 1.0) as rig:
        for task in tasks(2):
            rig.fleet.submit(0, task)
        fine, bad = rig.fleet.wait(5.0) + rig.fleet.wait(5.0)
        assert fine.result is not None
        assert (bad.error.kind, bad.error.counts, bad.worker) == ("numerical", True, "host-0:1")
        assert rig.workers.ended == []


def test_a_worker_that_leaves_finishes_what_it_has_and_is_replaced():
    with Rig([10.0, 10.0, 1.0], pool(2)) as rig:
        rig.workers.at(3.0, Draining(0))
        outcomes = rig.run(12)
        assert all(outcome.result is not None for outcome in outcomes)
        assert rig.given()[0] == 2
        assert rig.states(0) == ["ready", "draining", "ended"]
        assert rig.states(2) == ["ready"]
        assert rig.fleet.num_ready == 2


def test_an_idle_worker_that_leaves_is_replaced_at_once():
    with Rig([1.0, 1.0]) as rig:
        rig.workers.at(0.0, Draining(0))
        rig.fleet.wait(0.0)
        assert rig.workers.ended == [0]
        assert rig.fleet.next_worker(5) is None
        rig.fleet.wait(1.0)
        assert rig.fleet.next_worker(5) == 1


def test_a_worker_that_is_lost_as_it_leaves_has_not_failed():
    with Rig([10.0, 10.0]) as rig:
        rig.workers.at(3.0, Draining(0))
        rig.workers.at(3.0, Draining(0))
        rig.workers.at(5.0, Lost(0, "worker-lost", "it is gone"))
        first, second, *_ = rig.run(2)
        assert [outcome.error.counts for outcome in (first, second)] == [False, False]
        assert "it had been told to end" in first.error.message
        assert rig.states(0) == ["ready", "draining", "lost"]


def test_a_worker_that_hangs_as_it_leaves_is_late_all_the_same():
    with Rig(lambda worker, pool, task: 1.0 if worker else None, task_seconds=100.0) as rig:
        rig.workers.at(3.0, Draining(0))
        first, *_ = rig.run(1)
        assert (first.error.kind, first.error.counts) == ("deadline", True)


def test_what_a_worker_refuses_because_it_was_told_to_end_has_not_failed():
    with Rig(lambda worker, pool, task: 1.0 if worker else ("not-started", "the worker was told to end")) as rig:
        rig.workers.at(0.0, Draining(0))
        rig.fleet.submit(0, tasks(1)[0])
        rig.fleet.wait(0.0)
        [outcome, fine] = rig.run(1)[-1:] + carry_out(rig.fleet, tasks(1))
        assert outcome.result is not None
        assert fine.result is not None
        assert rig.workers.ended == [0]


def never(worker, pool):
    return None


def test_when_all_workers_have_failed_to_start_three_times_the_run_ends():
    with Rig([1.0] * 9, pool(2), starting=never) as rig:
        for worker in range(5):
            rig.workers.at(rig.workers.time, NotStarted(worker, "exception", "boom"))
            rig.fleet.wait(1.0)
        rig.workers.at(rig.workers.time, NotStarted(5, "exception", "boom"))
        with pytest.raises(PlanError, match="in 3 tries, the last one because boom") as caught:
            rig.fleet.wait(1.0)
        assert "resources.workers" in caught.value.message
        assert [fields["state"] for fields in rig.told] == ["lost"] * 6
        messages = [fields["message"] for fields in rig.told]
        assert messages[:4] == ["boom"] * 4
        assert messages[4:] == ["boom; 3 starts in a row have failed"] * 2


class Outage(Clockwork):
    """Clockwork of which the first worker starts, the others only from a time on: before it they fail after four seconds."""

    def __init__(self, until, kind="storage"):
        super().__init__(lambda worker, pool, task: None)
        self.until = until
        self.kind = kind
        self.started_at = []

    def start(self, pool):
        worker = len(self.pools)
        self.pools[worker] = pool
        self.started_at.append(self.time)
        if worker and self.time < self.until:
            self.at(self.time + 4.0, NotStarted(worker, self.kind, "the storage is away."))
        else:
            self.at(self.time + 4.0, Ready(worker, f"host-{worker}:1", pool.device))
        return worker


@pytest.mark.parametrize("seconds", [60.0, 3 * 3600.0])
def test_workers_that_do_not_start_for_a_while_are_there_afterwards(seconds):
    workers, notes = Outage(seconds), []
    options = {"task_seconds": 3600.0, "start_seconds": 600.0, "slow_factor": 10.0}
    with Fleet(workers, SPEC, [pool(8)], **options, note=notes.append) as fleet:
        while workers.time < seconds:
            fleet.wait(1.0)
        # Once the pauses are as long as they get, each of them starts every five minutes.
        assert len(workers.started_at) <= 8 + 7 * (8 + seconds / 300)
        while workers.time < seconds + 310:
            fleet.wait(1.0)
        assert fleet.num_ready == 8
        starts = len(workers.started_at)
        while workers.time < seconds + 3600:
            fleet.wait(1.0)
        assert len(workers.started_at) == starts
    [note] = notes
    assert "3 times in a row, the last one because the storage is away. The run goes on" in note
    assert "(1 of 8 are ready now)" in note


def test_what_one_worker_lacks_does_not_end_a_run_while_others_are_still_starting():
    with Rig([1.0] * 8, pool(4), starting=lambda worker, pool: 4.0 if worker else None) as rig:
        rig.workers.at(3.0, NotStarted(0, "storage", "the storage was away"))
        while rig.workers.time < 10.0:
            rig.fleet.wait(1.0)
        assert rig.fleet.num_ready == 4


def test_what_every_worker_lacks_ends_the_run_once_each_has_said_so():
    with Rig([1.0] * 9, pool(4), starting=never) as rig:
        for worker in range(4):
            rig.workers.at(worker, NotStarted(worker, "config", "no such device"))
        rig.workers.at(5.0, NotStarted(4, "config", "no such device"))
        with pytest.raises(ConfigError, match="no such device"):
            rig.run(1, until=10.0)
        assert 3.0 <= rig.workers.time <= 5.0


def test_that_there_is_no_room_for_some_is_told_once():
    with Rig([1.0] * 99, pool(4), starting=lambda worker, pool: None if worker else 0.0) as rig:
        while rig.workers.time < 1000.0:
            rig.fleet.wait(10.0)
        assert rig.fleet.num_ready == 1
        assert len([fields for fields in rig.told if fields["state"] == "lost"]) == 1


@pytest.mark.parametrize(("kind", "error"), [("storage", StorageError), ("exception", PlanError)])
def test_without_others_nothing_that_was_put_off_is_started_and_the_run_ends(kind, error):
    workers = Outage(math.inf, kind)
    with Fleet(workers, SPEC, [pool(4)], task_seconds=3600.0, start_seconds=600.0, slow_factor=10.0) as fleet:
        while workers.time < 125.0:
            fleet.wait(1.0)
        assert workers.started_at[-1] < 100.0, "nobody is starting"
        workers.at(workers.time, Lost(0, "worker-lost", "gone"))
        with pytest.raises(error, match="the storage is away"):
            carry_out(fleet, tasks(1))
    # In place of the one that was lost.
    assert len([at for at in workers.started_at if at > 120.0]) == (1 if kind == "storage" else 3)


def test_starting_well_once_forgets_what_failed_before():
    with Rig([1.0] * 9, starting=lambda worker, pool: 0.0 if worker in (2, 5) else None) as rig:
        for turn in range(2):
            for worker in (3 * turn, 3 * turn + 1):
                rig.workers.at(rig.workers.time, NotStarted(worker, "worker-lost", "boom"))
                rig.fleet.wait(1.0)
            rig.fleet.wait(1.0)
            assert rig.fleet.num_ready == 1
            rig.workers.at(rig.workers.time, Lost(3 * turn + 2, "worker-lost", "gone"))
            rig.fleet.wait(1.0)


def test_what_keeps_every_worker_from_starting_ends_the_run_with_its_own_error():
    with Rig([1.0], starting=never) as rig:
        rig.workers.at(0.0, NotStarted(0, "config", "this machine has no device cuda"))
        with pytest.raises(ConfigError, match="no device cuda"):
            rig.fleet.wait(1.0)


def test_workers_without_room_wait_as_long_as_others_work():
    with Rig(
        lambda *_: 50.0, pool(3), starting=lambda worker, pool: 0.0 if worker == 0 else None, task_seconds=60.0
    ) as rig:
        outcomes = rig.run(20)
        assert len(outcomes) == 20
        assert rig.given() == {0: 20}
        assert rig.fleet.num_ready == 1


def test_a_worker_that_finds_room_late_is_used():
    with Rig([1.0, 1.0], pool(2), starting=lambda worker, pool: 30.0 * worker) as rig:
        rig.run(100)
        assert rig.given()[1] == pytest.approx(35, abs=3)


@pytest.mark.parametrize("start_seconds", [5.0, 120.0])
def test_without_any_room_at_all_the_run_ends_with_a_word(start_seconds):
    with (
        Rig([], starting=never, start_seconds=start_seconds) as rig,
        pytest.raises(PlanError, match=rf"resources.start_seconds = {start_seconds:g} to start; is there room for it"),
    ):
        rig.run(1)
    # However long a task may take.
    assert rig.workers.time == pytest.approx(3 * start_seconds, abs=5.0)


def test_a_replacement_is_of_the_same_pool():
    kinds = (pool(device="cuda"), pool(device="cpu", custom={"slow": 1.0}))
    with Rig([10.0] * 3, *kinds) as rig:
        rig.workers.at(1.0, Lost(1, "worker-lost", "gone"))
        rig.fleet.wait(5.0)
        assert rig.workers.pools[2] == kinds[1]
        assert rig.told[0] == {"worker": "host-0:1", "state": "ready", "host": "host-0", "device": "cuda", "pool": 0}


def test_nothing_is_heard_of_workers_that_are_gone():
    with Rig([10.0, 10.0]) as rig:
        rig.workers.at(1.0, Lost(0, "worker-lost", "gone"))
        rig.fleet.wait(5.0)
        rig.workers.at(2.0, Lost(0, "worker-lost", "gone"))
        rig.workers.at(2.0, Draining(0))
        assert rig.fleet.wait(5.0) == []
        assert (rig.fleet.num_ready, rig.workers.ended) == (1, [0])


def test_trouble_is_told_and_ends_nothing():
    with Rig([1.0]) as rig:
        rig.workers.at(0.0, Trouble("nobody knows"))
        assert len(rig.run(3)) == 3
        [fields] = [fields for fields in rig.told if fields["worker"] == ""]
        assert (fields["state"], fields["message"]) == ("unknown", "nobody knows")


def test_tasks_of_which_nothing_is_known_go_to_idle_workers_first():
    with Rig([5.0, 5.0, 5.0], pool(3)) as rig:
        found = []
        while (worker := rig.fleet.next_worker(6 - len(found))) is not None:
            rig.fleet.submit(worker, SolveStepTask(f"s{len(found)}"))
            found.append(worker)
        assert sorted(found[:3]) == [0, 1, 2]
        assert len(found) == 4  # the last two wait for whoever is done first


def test_one_machine_that_lacks_something_does_not_end_a_run_that_others_carry():
    with Rig([1.0, 1.0], pool(1), pool(1), starting=lambda worker, pool: None if worker else 0.0) as rig:
        rig.workers.at(2.5, NotStarted(1, "config", "this machine has no such device"))
        assert len(rig.run(5)) == 5


def test_workers_that_are_there_at_the_end_are_said_to_have_ended():
    with Rig([1.0, 1.0], pool(2)) as rig:
        rig.run(2)
    assert [fields["state"] for fields in rig.told].count("ended") == 2
