"""What is learned from finished tasks of how long others will take."""

import pytest

from ntkpipe.pipeline.scheduling.speeds import ENOUGH, MIN_DEADLINE_SECONDS, Speeds

CEILING = 3600.0


def speeds(*pools, slow_factor=10.0):
    """Of workers 0, 1, ..., each in the pool that is given."""
    one = Speeds(CEILING, slow_factor)
    for worker, pool in enumerate(pools):
        one.add(worker, pool)
    return one


def learn(one, stage, **seconds):
    """Let ``w0=[...]`` be what tasks of worker 0 took, in turn with those of the others."""
    longest = max(map(len, seconds.values()))
    for turn in range(longest):
        for name, taken in seconds.items():
            if turn < len(taken):
                one.learn(int(name[1:]), stage, taken[turn])


def test_nobody_knows_anything_of_a_stage_that_has_not_begun():
    one = speeds(0)
    assert one.expected(0, "features") is None
    assert one.fastest("features") is None
    assert one.deadline(0, "features", 0) == CEILING


def test_a_worker_takes_as_long_as_it_did_before():
    one = speeds(0, 0)
    learn(one, "features", w0=[1.0] * 4, w1=[10.0] * 4)
    assert one.expected(0, "features") == pytest.approx(1.0)
    assert one.expected(1, "features") == pytest.approx(10.0)
    assert one.spread == pytest.approx(10.0)
    assert one.fastest("features") == pytest.approx(1.0)


def test_a_worker_that_is_slow_in_one_stage_is_taken_to_be_slow_in_the_next():
    one = speeds(0, 0)
    learn(one, "features", w0=[1.0] * 4, w1=[10.0] * 4)
    learn(one, "kernel", w0=[0.2] * 3)
    assert one.expected(1, "kernel") == pytest.approx(2.0)


def test_a_new_worker_is_taken_for_one_of_its_pool():
    one = speeds(0, 1)
    learn(one, "features", w0=[1.0] * 4, w1=[10.0] * 4)
    one.add(2, 1)
    assert one.expected(2, "features") == pytest.approx(10.0)


def test_the_first_task_of_a_worker_does_not_tell_what_others_take():
    """It loads the model; what it took is only what the first task of a new worker will take."""
    one = speeds(0, 0)
    learn(one, "features", w0=[31.0, 1.0, 1.0], w1=[32.0, 1.0, 1.0])
    assert one.expected(0, "features") == pytest.approx(1.0)
    assert one.spread == pytest.approx(1.0)
    one.add(2, 0)
    assert one.expected(2, "features") > 30.0
    one.learn(2, "features", 33.0)
    assert one.expected(2, "features") == pytest.approx(1.0)


@pytest.mark.parametrize("ratio", [10.0, 100.0])
def test_many_fast_workers_that_join_do_not_change_what_is_known_of_a_slow_one(ratio):
    one = speeds(0, *([1] * 20))
    learn(one, "features", w0=[ratio] * 4)
    learn(one, "features", **{f"w{worker}": [1.0] * 5 for worker in range(1, 21)})
    assert one.expected(0, "features") == pytest.approx(ratio)
    assert {round(one.expected(worker, "features"), 6) for worker in range(1, 21)} == {1.0}
    one.learn(0, "kernel", ratio)
    one.learn(0, "kernel", ratio)
    assert one.expected(1, "kernel") == pytest.approx(
        ratio
    )  # it has not begun: its first task is like that of the other
    one.learn(1, "kernel", 1.0)
    assert one.expected(1, "kernel") == pytest.approx(1.0)


def test_averages_follow_what_changes():
    one = speeds(0)
    learn(one, "features", w0=[1.0] * 10 + [3.0] * 20)
    assert one.expected(0, "features") == pytest.approx(3.0, rel=0.01)


def test_nothing_is_expected_of_stages_whose_tasks_differ():
    one = speeds(0)
    learn(one, "solve", w0=[1.0] * 20)
    assert one.expected(0, "solve") is None
    assert one.deadline(0, "solve", 0) == CEILING


def test_before_enough_is_known_the_ceiling_is_the_deadline():
    one = speeds(0)
    learn(one, "features", w0=[20.0] * (ENOUGH - 1))
    assert one.deadline(0, "features", 0) == CEILING
    one.learn(0, "features", 20.0)
    assert one.deadline(0, "features", 0) == pytest.approx(200.0)


def test_a_task_that_was_late_before_has_twice_as_long_up_to_the_ceiling():
    one = speeds(0)
    learn(one, "features", w0=[20.0] * ENOUGH)
    assert [one.deadline(0, "features", late) for late in (1, 2, 9)] == [400.0, 800.0, CEILING]


def test_quick_tasks_are_not_late_before_a_minute():
    one = speeds(0)
    learn(one, "features", w0=[0.01] * 20)
    assert one.deadline(0, "features", 0) == MIN_DEADLINE_SECONDS


def test_fast_and_slow_workers_are_judged_each_by_its_own_kind():
    one = speeds(0, 1)
    learn(one, "features", w0=[10.0] * 6, w1=[300.0] * 6)
    assert one.deadline(0, "features", 0) == pytest.approx(100.0)
    assert one.deadline(1, "features", 0) == pytest.approx(3000.0)
    one = speeds(0, 1)
    learn(one, "features", w1=[300.0] * 6)
    learn(one, "features", w0=[10.0] * 6)
    assert one.deadline(0, "features", 0) == pytest.approx(100.0)
    assert one.deadline(1, "features", 0) == pytest.approx(3000.0)


def test_a_pool_that_has_finished_nothing_has_all_the_time_there_is():
    one = speeds(0, 1)
    learn(one, "features", w0=[10.0] * 20)
    assert one.deadline(1, "features", 0) == CEILING


def test_a_worker_that_joins_has_as_long_as_others_had_for_loading():
    one = speeds(0, 0)
    learn(one, "features", w0=[120.0, *[1.0] * 20])
    assert one.deadline(0, "features", 0) == MIN_DEADLINE_SECONDS
    assert one.deadline(1, "features", 0) == pytest.approx(1200.0)


def test_a_worker_that_is_gone_leaves_what_is_known_of_its_pool():
    one = speeds(0, 1)
    learn(one, "features", w0=[1.0] * 4, w1=[10.0] * 4)
    one.forget(1)
    one.add(2, 1)
    assert one.expected(2, "features") == pytest.approx(10.0)


def test_a_worker_remembers_a_few_stages_only():
    one = speeds(0)
    for level in range(50):
        learn(one, f"derive-{level}", w0=[1.0, 1.0])
    assert len(one._own[0]) < 10
    assert one.expected(0, "derive-49") == pytest.approx(1.0)


def test_tasks_that_take_no_time_do_no_harm():
    one = speeds(0, 1)
    learn(one, "features", w0=[0.0] * 10, w1=[1.0] * 10)
    assert one.expected(0, "features") < 0.001
    assert one.expected(1, "features") == pytest.approx(1.0)
