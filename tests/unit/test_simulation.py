"""Simulated runs: the real driver and fleet, with workers that take as long as they are told."""

import io
import json

import golden
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from typer.testing import CliRunner

from ntkpipe.configs.cluster import ClusterConfig, StorageConfig
from ntkpipe.configs.described import load_cluster
from ntkpipe.configs.errors import ConfigError
from ntkpipe.configs.loading import load_config
from ntkpipe.configs.units import duration
from ntkpipe.pipeline.cli import app
from ntkpipe.pipeline.plan import Plan
from ntkpipe.pipeline.prediction.durations import Times
from ntkpipe.pipeline.scheduling.blocks import planned_reads, strip_height
from ntkpipe.pipeline.simulation.bandwidth import Server, SharedStorage
from ntkpipe.pipeline.simulation.chance import EVEN, Chance, Draws, Join
from ntkpipe.pipeline.simulation.labour import Habits
from ntkpipe.pipeline.simulation.memory import KeptSides
from ntkpipe.pipeline.simulation.simulate import Scene, simulate
from ntkpipe.storage.grid import Block, shard_at
from ntkpipe.storage.records import Geometry, KernelGeometry, SplitGeometry

FAST_STORAGE = {
    "source": "as fast as anybody could wish",
    "worker_read": 1e12,
    "worker_write": 1e12,
    "total_read": 1e15,
    "total_write": 1e15,
    "request_seconds": 0.0,
    "total_requests": 1e12,
    "commits": 1e12,
}


PATIENT = {"max_attempts": 1000}


class Fixed:
    """Takes equally long for all tasks of a stage."""

    def __init__(self, **stages):
        self.stages = stages

    def times(self, task):
        return self.stages[task.stage]


def taking(compute, **options):
    names = ("read", "write", "bytes_read", "bytes_written", "num_reads", "num_writes")
    return Times(compute, **{name: options.pop(name, 0) for name in names}, **options)


def group(nodes, name="g", **options):
    return {"name": name, "device": "cpu", "workers_per_node": 1, "nodes": nodes} | options


def scene(num_samples, groups, times, *, chance=EVEN, kernel=False, seed=0, driver=0.0, storage=None, **options):
    """A run with one features task for each sample, and blocks of four samples."""
    config = load_config(
        golden.config(
            data={"splits": {"train": {"kind": "python", "target": "golden:load"}}},
            kernels=[{"kind": "pntk"}],
            solve=[],
            resources=options.pop("resources", {}),
        )
    )
    geometry = Geometry(
        splits={"train": SplitGeometry(num_samples=num_samples, labels="classes", num_targets=2)},
        train_split="train",
        kernels=(KernelGeometry(name="pntk", kind="pntk", feature_dim=4, groups=()),),
        pairs=(("train", "train"),) if kernel else (),
        solutions=(),
        solution_targets=(),
        num_outputs=2,
        shard_rows=1,
        block_rows=4,
        dtype="float32",
    )
    described = ClusterConfig(
        groups=tuple(groups), storage=StorageConfig(**FAST_STORAGE | (storage or {})), driver_seconds_per_task=driver
    )
    cluster = load_cluster(described)
    found = times if isinstance(times, dict) else {each.name: times for each in cluster.groups}
    return Scene(Plan(config, geometry), cluster, found, Habits(**options), chance, seed)


def finished(one, **names):
    """Simulate, and see to it that everything was committed."""
    found = simulate(one, **names)
    assert found.failure == ""
    assert found.holes == 0
    assert found.num_tasks == sum(one.plan.num_tasks(stage) for stage in one.plan.stages)
    # All the time of workers is accounted for.
    away = found.worker_seconds - found.account.total
    assert away >= -1e-6 * found.worker_seconds
    return found


def test_equal_workers_take_as_long_as_arithmetic_says():
    found = finished(scene(96, [group(4)], Fixed(features=taking(2.0)), start_seconds=10.0))
    assert found.seconds == pytest.approx(10.0 + 96 / 4 * 2.0)
    assert found.utilisation == pytest.approx(48 / 58)


def test_reading_computing_and_writing_come_one_after_the_other():
    times = taking(2.0, read=0.5, write=0.25, bytes_read=10, bytes_written=20)
    found = finished(scene(8, [group(2)], Fixed(features=times)))
    assert found.seconds == pytest.approx(4 * 2.75)
    assert (found.bytes_read, found.bytes_written) == (80, 160)
    assert found.account.storage == pytest.approx(8 * 0.75)


def test_workers_get_tasks_in_proportion_to_their_speed():
    times = {"fast": Fixed(features=taking(1.0)), "slow": Fixed(features=taking(4.0))}
    lines = io.StringIO()
    found = finished(scene(400, [group(1, "fast"), group(1, "slow")], times), lines=lines)
    workers = [
        event["worker"] for event in map(json.loads, lines.getvalue().splitlines()) if event["event"] == "commit"
    ]
    share = sum(worker.startswith("fast") for worker in workers) / len(workers)
    assert share == pytest.approx(0.8, abs=0.01)
    # Neither is left to work alone for longer than a task takes.
    assert found.seconds <= 320 + 4


def test_the_same_seed_gives_the_same_run():
    chance = Chance(task_spread=0.3)
    groups = [group(6, hours_between_failures=0.01, start_seconds=5.0)]

    def run(seed):
        lines = io.StringIO()
        finished(
            scene(120, groups, Fixed(features=taking(2.0)), chance=chance, seed=seed, resources=PATIENT), lines=lines
        )
        return lines.getvalue()

    assert run(3) == run(3)
    assert run(3) != run(4)


def test_tasks_of_a_node_that_is_lost_are_done_again():
    groups = [group(4, hours_between_failures=0.008, start_seconds=20.0)]
    chance = Chance(task_spread=0.0, lost_seconds=3.0)
    found = finished(scene(300, groups, Fixed(features=taking(2.0)), chance=chance, resources=PATIENT, seed=1))
    assert found.num_nodes_lost > 3
    assert found.num_retries >= found.num_lost > 0
    assert found.account.lost > 0
    assert found.seconds > 300 / 4 * 2.0


def test_tasks_are_charged_for_a_node_only_if_it_was_lost_while_it_worked_on_them():
    times = Fixed(features=taking(50.0), kernel=taking(5.0))
    # Of eight workers two have nothing to do in the first stage, and are given a task of the second before their end is noticed.
    groups = [group(8, hours_between_failures=0.05, start_seconds=20.0)]
    chance = Chance(task_spread=0.0, lost_seconds=40.0)
    found = [
        finished(scene(6, groups, times, chance=chance, kernel=True, resources=PATIENT, seed=seed))
        for seed in range(1, 6)
    ]
    assert sum(one.num_nodes_lost for one in found) > 20
    assert [one.num_retries for one in found] == [one.num_lost for one in found]


def test_nodes_that_join_are_used():
    chance = Chance(task_spread=0.0, failures=False, joins=(Join(50.0, "g", 3),))
    found = finished(scene(200, [group(1)], Fixed(features=taking(1.0)), chance=chance))
    # One worker for 50 s, four from then on.
    assert found.seconds == pytest.approx(50 + 150 / 4, abs=2.0)


def test_a_node_that_is_about_to_leave_finishes_what_it_has():
    groups = [group(4, hours_between_failures=0.02, start_seconds=20.0)]
    chance = Chance(task_spread=0.0, notice_seconds=30.0)
    found = finished(scene(300, groups, Fixed(features=taking(2.0)), chance=chance, seed=1))
    assert found.num_nodes_lost > 0
    assert (found.num_lost, found.num_retries) == (0, 0)


def test_a_job_that_is_bound_by_storage_does_not_get_faster_with_nodes():
    times = Fixed(features=taking(0.1, write=0.01, bytes_written=100, num_writes=1))
    storage = {"total_write": 1000.0}
    few, many = (finished(scene(400, [group(num)], times, storage=storage)) for num in (2, 16))
    assert many.seconds == pytest.approx(400 * 100 / 1000.0, rel=0.02)
    assert few.seconds == pytest.approx(many.seconds, rel=0.02)
    assert many.bottleneck == "storage bandwidth"
    assert finished(scene(400, [group(16)], times)).seconds < many.seconds / 4


def test_a_job_with_more_requests_than_storage_answers_waits_for_them():
    times = Fixed(features=taking(0.1, bytes_written=1, num_writes=10))
    found = finished(scene(200, [group(16)], times, storage={"total_requests": 100.0}))
    assert found.seconds == pytest.approx(200 * 10 / 100.0, rel=0.02)
    assert found.bottleneck == "requests to the storage"


def test_a_driver_that_is_slower_than_its_workers_is_the_limit():
    found = finished(scene(200, [group(50)], Fixed(features=taking(0.5)), driver=0.1))
    assert found.seconds == pytest.approx(200 * 0.1, rel=0.1)
    assert found.driver_seconds == pytest.approx(200 * 0.1)
    assert found.bottleneck == "the driver"


def test_a_receipt_takes_as_long_as_the_storage_says():
    found = finished(scene(50, [group(1)], Fixed(features=taking(0.01)), storage={"commits": 5.0}))
    assert found.driver_seconds == pytest.approx(50 / 5)


KERNEL = Fixed(
    features=taking(0.2),
    kernel=taking(1.0, bytes_read=200, kept_bytes=100, num_reads=4),
)


def test_the_driver_looks_for_a_successor_before_it_writes_what_has_come_back():
    storage = {"request_seconds": 0.5}
    one = finished(scene(20, [group(1)], Fixed(features=taking(2.0)), storage=storage))
    # One look for each task, as they come back one by one; the worker has its next task by then.
    assert one.driver_seconds == pytest.approx(20 * 0.5)
    assert one.seconds == pytest.approx(20 * 2.0 + 0.5)
    # What comes back at the same moment is looked for once.
    many = finished(scene(20, [group(10)], Fixed(features=taking(2.0)), storage=storage))
    assert many.driver_seconds < 20 * 0.5


def test_a_worker_alone_reads_each_side_as_often_as_is_planned():
    one = scene(160, [group(1)], KERNEL, kernel=True, kept_sides=6)
    found = finished(one)
    geometry = one.plan.geometry
    assert found.sides_planned == planned_reads(geometry, strip_height(geometry, 6, 1), 1)
    assert found.sides_read <= found.sides_planned
    # Diagonal blocks have one side of 200 bytes here, of which the columns are not read again.
    assert 100 * found.sides_read >= found.bytes_read


def test_many_workers_read_little_more_than_is_planned():
    found = finished(scene(400, [group(8)], KERNEL, kernel=True, kept_sides=8, driver=0.001))
    assert found.sides_read <= 1.35 * found.sides_planned
    blocks = 100 * 101 // 2
    assert found.sides_read < 2 * blocks / 2


def test_blocks_are_begun_before_the_last_shard_is_committed_and_never_before_their_own():
    lines = io.StringIO()
    finished(scene(160, [group(3)], KERNEL, kernel=True, kept_sides=6, chance=Chance(task_spread=0.2)), lines=lines)
    events = [event for event in map(json.loads, lines.getvalue().splitlines()) if event["event"] == "commit"]
    shards = {int(event["task"][-8:]): event["time"] for event in events if event["stage"] == "features"}
    begun = []
    for event in events:
        if event["stage"] == "kernel":
            row, column = (int(part) for part in event["task"].rpartition("/")[2].split("-"))
            needed = max(shards[4 * side + offset] for side in (row, column) for offset in range(4))
            start = event["time"] - event["seconds"]
            assert start >= needed - 0.01  # times are rounded
            begun.append(start)
    assert min(begun) < max(shards.values())


def test_a_solve_goes_on_where_its_last_state_was_stored():
    config = load_config(
        golden.config(
            kernels=[{"kind": "pntk"}],
            solve=[{"kind": "cholesky", "kernel": "pntk", "ridge": 1.0, "name": "krr"}],
            resources={"task_seconds": 100.0},
        )
    )
    one = scene(8, [group(1)], Fixed(features=taking(1.0), solve=taking(1000.0)), checkpoint_seconds=30.0)
    geometry = one.plan.geometry.model_copy(update={"solutions": ("krr",), "solution_targets": (2,)})
    plan = Plan(config.model_copy(update={"analyses": ()}), geometry)
    one = Scene(plan, one.cluster, one.times, one.habits, one.chance, one.seed)
    found = finished(one)
    # Of every 100 s, those since the last state are lost with the worker.
    assert found.num_lost >= 10
    assert 1000 < found.seconds < 1250


def test_memory_of_sides_forgets_what_was_not_used_for_the_longest_time():
    def block(row, column):
        return Block(shard_at("train", row, 100, 10), shard_at("train", column, 100, 10))

    kept = KeptSides(2)
    assert kept.look_at(block(1, 0)) == (True, True)
    assert kept.look_at(block(1, 1)) == (False, False)
    assert kept.look_at(block(2, 1)) == (True, False)
    assert kept.look_at(block(1, 0)) == (False, True)
    assert KeptSides(0).look_at(block(1, 0)) == (True, True)


def test_a_server_gives_everybody_together_its_rate_and_nobody_more_than_a_worker_can_take():
    assert [Server(10.0).serve(5.0, 20.0), Server(10.0).serve(5.0, 0.0)] == [7.0, 5.0]
    shared = SharedStorage(StorageConfig(**FAST_STORAGE | {"total_read": 100.0}))
    assert shared.read(0.0, 3.0, 100.0, 0.0).at == 3.0
    # The second one finds that the server is busy until 1 s, and needs 3 s itself; the fifth waits for the others.
    ends = [shared.read(0.0, 3.0, 100.0, 0.0) for _ in range(4)]
    assert [moved.at for moved in ends] == [3.0, 3.0, 4.0, 5.0]
    assert ends[-1].bandwidth == 2.0


def test_times_of_tasks_are_spread_around_what_is_predicted():
    draws = Draws(0, Chance(task_spread=0.5))
    factors = [draws.task_factor() for _ in range(20_000)]
    assert sum(factors) / len(factors) == pytest.approx(1.0, abs=0.02)
    assert min(factors) > 0


@settings(max_examples=40, deadline=None)
@given(
    num_samples=st.integers(1, 60),
    fast=st.integers(1, 5),
    slow=st.integers(1, 4),
    factor=st.floats(1.0, 8.0),
    hours=st.floats(0.003, 1.0),
    chance=st.builds(
        Chance,
        task_spread=st.sampled_from((0.0, 0.3)),
        slow_nodes=st.sampled_from((0.0, 0.5)),
        notice_seconds=st.sampled_from((0.0, 5.0)),
        lost_seconds=st.floats(0.0, 20.0),
    ),
    kept_sides=st.integers(0, 8),
    seed=st.integers(0, 100),
)
def test_every_task_is_committed_once_whatever_fails(num_samples, fast, slow, factor, hours, chance, kept_sides, seed):
    groups = [group(fast, "fast", hours_between_failures=hours, start_seconds=4.0), group(slow, "slow")]
    times = {
        "fast": KERNEL,
        "slow": Fixed(
            features=taking(0.2 * factor), kernel=taking(factor, bytes_read=200, kept_bytes=100, num_reads=4)
        ),
    }
    one = scene(
        num_samples,
        groups,
        times,
        kernel=True,
        chance=chance,
        kept_sides=kept_sides,
        seed=seed,
        driver=0.003,
        start_seconds=2.0,
        resources=PATIENT,
    )
    found = finished(one)
    # No run is faster than all its workers without a pause.
    work = sum(one.plan.num_tasks(stage) * KERNEL.stages[stage].compute for stage in ("features", "kernel"))
    if not chance.task_spread:
        assert found.seconds >= 2.0 + work / (fast + slow) - 1e-6


def test_the_command_shows_sizes_and_writes_curves(tmp_path):
    out = tmp_path / "curves"
    words = ["simulate", "digits", "--cluster", "1xcpu2@local-disk", "--nodes", "1,4", "--seed", "7"]
    found = CliRunner().invoke(
        app, [*words, "--set", "analyses=[]", "--json", "--out", str(out)], catch_exceptions=False
    )
    assert found.exit_code == 0
    content = json.loads((out / "curves.json").read_text())
    assert [row["nodes"] for row in content["sizes"]] == [1, 4]
    one, four = content["sizes"]
    # In the words of plan.
    assert f"simulated: 4 nodes, {duration(four['seconds'])}" in found.stderr.splitlines()
    assert one["tasks"] == four["tasks"] == 8 + 9 + 3
    assert 1 <= four["speed_up"] <= 4.5
    assert sum(one["worker_time"].values()) == pytest.approx(1.0)
    assert (out / "curves.png").read_bytes().startswith(b"\x89PNG")
    assert len((out / "table.csv").read_text().splitlines()) == 3


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ([], "needs a cluster"),
        (["--cluster", "2xcpu2", "--nodes", "1,many"], "not of the form N,N"),
        (["--cluster", "2xcpu2", "--nodes", "\N{SUPERSCRIPT TWO}"], "not of the form N,N"),
        (["--cluster", "2xcpu2,2xh100", "--nodes", "1"], "at least as many nodes"),
        (["--cluster", "2xcpu2", "--nodes", "1000000000"], "too many to be simulated"),
    ],
)
def test_what_cannot_be_simulated_is_refused(words, message):
    found = CliRunner().invoke(app, ["simulate", "digits", *words])
    assert isinstance(found.exception, ConfigError)
    assert message in str(found.exception)
