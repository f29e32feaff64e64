"""How long tasks are predicted to take."""

from collections import Counter
from dataclasses import replace

import golden
import numpy as np
import pytest

from ntkpipe.configs.calibration import Calibration
from ntkpipe.configs.described import load_cluster
from ntkpipe.configs.errors import ConfigError
from ntkpipe.configs.resources import ResourcesConfig
from ntkpipe.pipeline.prediction.described import this_machine
from ntkpipe.pipeline.prediction.durations import durations_on, shape_of
from ntkpipe.pipeline.prediction.forecast import forecast
from ntkpipe.pipeline.prediction.workload import Workload
from ntkpipe.pipeline.run import plan
from ntkpipe.storage.features import FEATURES_STAGE
from ntkpipe.storage.grid import Block, Shard
from ntkpipe.storage.kernel import KERNEL_STAGE
from ntkpipe.workers.jacobians.rates import CPU, GPU, Rates
from ntkpipe.workers.probing.work import work_of
from ntkpipe.workers.tasks import FeaturesTask, KernelTask


def workload(*overrides):
    return Workload.of(plan(golden.config(), overrides)[1])


@pytest.fixture(scope="module")
def job():
    return workload()


@pytest.fixture(scope="module")
def durations(job):
    return durations_on(job, load_cluster("1xcpu2@local-disk"))["cpu2"]


def shard(stop, start=0):
    return Shard("train", start // max(1, stop - start), start, stop)


def test_a_larger_shard_takes_longer(durations):
    times = [durations.times(FeaturesTask(shard(num))) for num in (1, 10, 100, 1000)]
    assert [t.compute for t in times] == sorted(t.compute for t in times)
    assert times[2].bytes_written == 100 * times[0].bytes_written
    assert times[2].write > times[0].write > 0


def test_a_larger_block_takes_longer_and_one_on_the_diagonal_less(durations):
    def block(num, start):
        return durations.times(KernelTask(Block(shard(start + num, start), shard(num))))

    assert block(200, 200).compute > block(100, 200).compute > 0
    diagonal, beside = block(100, 0), block(100, 100)
    assert diagonal.compute < beside.compute
    assert 2 * diagonal.bytes_read == beside.bytes_read
    assert beside.kept_bytes == diagonal.bytes_read
    assert 0 < beside.kept < beside.compute


def test_more_features_take_longer():
    kinds = [{"kind": "pntk", "projection": {"kind": "rademacher", "dim": dim}} for dim in (64, 4096)]
    jobs = [Workload.of(plan(golden.config(kernels=[kind], solve=[]))[1]) for kind in kinds]
    cluster = load_cluster("1xcpu2@local-disk")
    small, large = (durations_on(job, cluster)["cpu2"] for job in jobs)
    task, block = FeaturesTask(shard(100)), KernelTask(Block(shard(200, 100), shard(100)))
    assert large.times(task).compute > small.times(task).compute
    assert large.times(task).bytes_written > 10 * small.times(task).bytes_written
    assert large.times(block).compute > small.times(block).compute
    assert large.times(block).bytes_read == 64 * small.times(block).bytes_read


def test_a_faster_device_is_faster_and_half_of_it_takes_twice_as_long(job):
    task = FeaturesTask(shard(100_000))
    found = durations_on(job, load_cluster("1xcpu2,1xt4,1xh100@local-disk"))
    times = [found[name].times(task).compute for name in ("cpu2", "t4", "h100")]
    assert times == sorted(times, reverse=True)
    work = found["t4"].work(task)
    half = durations_on(job, load_cluster("1xt4"))["t4"]
    half.share = 0.5
    launched = work.launches * half.device.launch_seconds
    assert half.seconds(work) - launched == pytest.approx(2 * (found["t4"].seconds(work) - launched))


def test_an_efficiency_stretches_compute_and_leaves_storage_alone(job):
    from ntkpipe.pipeline.prediction.durations import TASK_SECONDS, Durations

    plain = durations_on(job, load_cluster("1xcpu2@local-disk"))["cpu2"]
    slow = Durations(job, plain.device, plain.share, plain.storage, {"features": 0.25})
    task, block = FeaturesTask(shard(1000)), KernelTask(Block(shard(200, 100), shard(100)))
    assert slow.times(task).compute - TASK_SECONDS == pytest.approx(4 * (plain.times(task).compute - TASK_SECONDS))
    assert slow.times(task).write == plain.times(task).write
    assert slow.times(block) == plain.times(block)


def test_work_is_what_a_predicted_time_is_made_of():
    def seconds(rates: Rates) -> float:
        return rates.matmul(1e9) + min(rates.passes(1e6), rates.scatter(1e9)) + rates.transforms(10, 1024) + 5e-5

    from ntkpipe.workers.jacobians import rates as module

    for rates in (CPU, GPU):
        work = work_of(lambda: seconds(module._ASSUMED.get()), rates)
        assert work.flops == pytest.approx(1e9)
        assert work.bytes == pytest.approx(8e6)
        assert work.fft_flops == pytest.approx(10 * 2.5 * 1024 * 10)
        assert work.scatters == pytest.approx(0, abs=1e-3)


def test_every_task_is_like_one_of_the_shapes_of_its_stage(job):
    job = workload("solve.0.kind=tile-cholesky", "solve.0.tile_rows=4")
    for train, test in ((1, 1), (3, 5), (4, 4), (9, 2), (30, 7)):
        made = job.scaled({"train": train, "test": test}).plan()
        for stage in made.stages:
            counted = Counter(shape_of(task) for task in made.tasks(stage))
            told = Counter()
            for task, num in made.shapes(stage):
                told[shape_of(task)] += num
            assert told == counted, (train, test, stage)
            assert made.num_tasks(stage) == sum(counted.values())


def test_prices_of_shapes_are_those_of_all_tasks(job):
    made = job.scaled({"train": 27}).plan()
    for price in made.prices():
        costs = [job.scaled({"train": 27}).costs().price(task) for task in made.tasks(price.stage)]
        assert price.cost.flops == sum(cost.flops for cost in costs)
        assert price.cost.bytes_written == sum(cost.bytes_written for cost in costs)


def test_formulas_have_a_price():
    job = Workload.of(plan(golden.config(model=None, kernels=[{"kind": "laplace"}], solve=[], analyses=[]))[1])
    (price,) = (price for price in job.plan().prices() if price.stage == KERNEL_STAGE)
    assert price.cost.flops > 0
    found = durations_on(job, load_cluster("1xcpu2"))["cpu2"]
    small, large = (KernelTask(Block(shard(2 * num, num), shard(num))) for num in (100, 1000))
    assert found.work(large).double_flops == 100 * found.work(small).double_flops > 0
    assert found.times(large).compute > found.times(small).compute


def test_double_precision_moves_twice_the_bytes():
    def moved(dtype):
        found = workload(f"model.dtype={dtype}")
        return found.work(found.passes(2**32, on_cpu=True)[0], on_cpu=True).sample.bytes

    assert moved("float64") == pytest.approx(2 * moved("float32"), rel=0.05)


def test_blocks_that_are_smaller_than_a_shard_read_all_of_it():
    projected = [{"kind": "pntk", "projection": {"kind": "sjlt", "dim": 16}}]

    def read(block_rows):
        job = Workload.of(plan(golden.config(kernels=projected, solve=[], store={"block_rows": block_rows}))[1])
        job = job.scaled({"train": 1024, "test": 512})
        return job.costs().price(KernelTask(Block(shard(300 + block_rows, 300), shard(block_rows)))).bytes_read

    assert read(32) == (256 + 256) * 16 * 4
    assert read(212) == (256 + 256) * 16 * 4
    assert read(256) == (512 + 256) * 16 * 4


@pytest.mark.parametrize("workers", [1, 2, 3, 8])
@pytest.mark.parametrize("threads", [None, 1, 2, 64])
def test_workers_of_this_machine_have_no_more_than_all_of_it(workers, threads):
    device = load_cluster("1xcpu2").groups[0].device
    resources = ResourcesConfig(executor="ray", workers=workers, threads_per_worker=threads)
    (group,) = this_machine(Calibration(measured_at="", device=device), resources).groups
    assert group.num_workers == workers
    assert 0 < workers * group.share <= 1


def test_kernels_with_equal_features_read_them_once():
    def read(*kinds):
        shared = {"kind": "sjlt", "dim": 64}
        kernels = [{"kind": kind, "projection": shared} for kind in kinds]
        job = Workload.of(plan(golden.config(kernels=kernels, solve=[]))[1])
        return next(price.cost.bytes_read for price in job.plan().prices() if price.stage == KERNEL_STAGE)

    assert read("trntk0", "trntk") == read("trntk0")
    assert read("trntk0", "pntk") == 2 * read("trntk0")


def test_a_prediction_for_a_billion_samples_takes_no_longer(job):
    job = Workload.of(plan(golden.config(solve=[], data=golden.config()["data"] | {"pairs": []}))[1])
    found = forecast(job.scaled({"train": 10**9}), load_cluster("hundred-nodes"))
    features = next(stage for stage in found.stages if stage.stage == FEATURES_STAGE)
    assert features.num_tasks == 10**9 // 2 + 2
    assert found.measured == "nominal rates, unmeasured"


def test_the_price_of_requests_is_not_told_for_that_of_a_run_on_nodes_of_unknown_price(job):
    cluster = load_cluster("8xh100@s3")
    assert not cluster.has_prices
    assert forecast(job, cluster).price == 0
    assert forecast(job, cluster).month_price > 0


def test_more_nodes_take_less_time_and_cost_the_same_work(job):
    job = job.scaled({"train": 1_000_000})
    one, ten = (forecast(job, load_cluster(f"{num}xcpu@local-disk")) for num in (1, 10))
    stages = zip(one.stages, ten.stages, strict=True)
    for alone, many in stages:
        assert many.worker_seconds <= alone.worker_seconds
        assert many.driver_seconds == alone.driver_seconds
    assert one.stages[0].worker_seconds == pytest.approx(10 * ten.stages[0].worker_seconds, rel=0.01)


def test_money_is_nodes_times_hours_and_requests(job):
    cluster = load_cluster("1xcpu@s3")
    cheap, dear = (
        forecast(job, replace(cluster, groups=(replace(cluster.groups[0], price_per_hour=price),)))
        for price in (3600.0, 7200.0)
    )
    assert dear.price - cheap.price == pytest.approx(cheap.seconds)
    assert 0 < cheap.price - cheap.seconds < 0.01
    assert cheap.month_price == pytest.approx(23 * cheap.stored_bytes / 1e12)


def test_a_scaled_job_is_the_one_with_so_many_samples(tmp_path):
    def job(num):
        rng = np.random.default_rng(0)
        for name, size in (("train", num), ("test", 5)):
            labels = np.arange(size) % 3
            np.savez(tmp_path / f"{name}-{num}.npz", inputs=rng.normal(size=(size, 2)).astype("float32"), labels=labels)
        splits = {n: {"kind": "arrays", "inputs": str(tmp_path / f"{n}-{num}.npz")} for n in ("train", "test")}
        kernels = [
            {"kind": "pntk", "projection": {"kind": "sjlt", "dim": 16}},
            {"kind": "trntk0"},
            {"kind": "posterior", "name": "after", "of": "trntk0", "noise": 0.1},
        ]
        solve = [
            {"kind": "auto", "name": "any", "kernel": "trntk0"},
            {"kind": "tile-cholesky", "name": "tiles", "kernel": "trntk0", "tile_rows": 4},
        ]
        return Workload.of(plan(golden.config(data={"splits": splits}, kernels=kernels, solve=solve))[1])

    small, large = job(8), job(40)
    scaled = small.scaled({"train": 40})
    assert scaled.geometry == large.geometry
    assert scaled.solvers == large.solvers
    assert scaled.plan().prices() == large.plan().prices()
    assert large.scaled({"train": 8}).geometry == small.geometry


def test_what_cannot_be_scaled_is_refused(job):
    with pytest.raises(ConfigError, match="did you mean 'train'"):
        job.scaled({"trian": 10})
    with pytest.raises(ConfigError, match="at least 1 sample"):
        job.scaled({"train": 0})
    centred = workload("solve.0={kind: falkon, name: few, kernel: trntk0, centres: 4}")
    with pytest.raises(ConfigError, match="centres = 4 exceeds the 3 samples"):
        centred.scaled({"train": 3})


def timed(tasks, seconds, **read):
    from ntkpipe.workers.calibration import Session, Timing
    from ntkpipe.workers.tasks import TaskResult

    results = [TaskResult((), (), seconds(task), "here:1", {}, **read) for task in tasks]
    return Session(
        0.0,
        tuple(Timing(task, result, first=not n) for n, (task, result) in enumerate(zip(tasks, results, strict=True))),
    )


def test_an_efficiency_is_found_from_tasks_that_took_twice_as_long(durations):
    from ntkpipe.pipeline.prediction.durations import TASK_SECONDS
    from ntkpipe.pipeline.prediction.sampling import compared

    tasks = [FeaturesTask(shard(100_000))] * 4

    def twice(task):
        times = durations.times(task)
        return 2 * (times.compute - TASK_SECONDS) + TASK_SECONDS + times.write

    session = timed(tasks, twice)
    assert compared(durations, [session, session]).efficiency == pytest.approx(0.5)
    assert compared(durations, [session]).first_seconds == pytest.approx(0, abs=0.01)
    assert compared(durations, [session, session]).num_tasks == 6


def test_an_efficiency_counts_what_was_read_and_what_was_kept_only(durations):
    from ntkpipe.pipeline.prediction.durations import TASK_SECONDS
    from ntkpipe.pipeline.prediction.sampling import compared

    blocks = [KernelTask(Block(Shard("train", 1, 5000, 10_000), Shard("train", 0, 0, 5000)))] * 3

    def as_predicted(task):
        times = durations.times(task)
        return times.compute - times.kept + times.write

    assert compared(durations, [timed(blocks, as_predicted)]).efficiency == pytest.approx(1.0, rel=1e-3)
    read = durations.read_seconds(10**9, 50)
    slower = timed(blocks, lambda task: as_predicted(task) + read, bytes_read=10**9, chunks_read=50)
    assert compared(durations, [slower]).efficiency == pytest.approx(1.0, rel=1e-3)
    assert read > TASK_SECONDS


def test_sampled_blocks_need_sampled_features_only(job):
    from ntkpipe.pipeline.prediction.sampling import MAX_BLOCKS, sampled_tasks

    geometry = job.scaled({"train": 1000}).geometry
    found = sampled_tasks(geometry)
    there = {position for task in found["features"] for position in range(task.shard.start, task.shard.stop)}
    needed = {
        position
        for task in found["kernel"]
        for side in (task.block.rows, task.block.columns)
        for position in range(side.start, side.stop)
    }
    assert needed == there
    assert len(found["kernel"]) == MAX_BLOCKS * (MAX_BLOCKS + 1) // 2
