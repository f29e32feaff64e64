"""How right predictions are: simulated and real times of the features and kernel stages, and the driver's time for a task.

``python tests/benchmarks/prediction.py [--samples N] [--repeats N] [--workers 1,2]`` calibrates this machine for each job,
simulates it, runs it, and prints one line for each stage. A machine that has other things to do gives other figures, and
other ones a minute later: the last figure of a line is simulated with what tasks took in that very run, so that it tells
how right the simulation is, whatever was measured before.
"""

import argparse
import itertools
import math
import statistics
import sys
import tempfile
import time
from collections import deque
from dataclasses import replace
from pathlib import Path
from typing import Final, Self

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import torch
from torch import nn

from ntkpipe.configs.loading import load_config
from ntkpipe.configs.run import RunConfig
from ntkpipe.pipeline.drive import Driver
from ntkpipe.pipeline.events import EventLog, Silent, read_events
from ntkpipe.pipeline.executors.base import AbstractExecutor, Outcome
from ntkpipe.pipeline.plan import Plan
from ntkpipe.pipeline.prediction.calibrating import calibrate
from ntkpipe.pipeline.prediction.described import this_machine
from ntkpipe.pipeline.prediction.durations import Times
from ntkpipe.pipeline.prediction.workload import Workload
from ntkpipe.pipeline.run import run
from ntkpipe.pipeline.simulation.chance import EVEN
from ntkpipe.pipeline.simulation.labour import Habits
from ntkpipe.pipeline.simulation.simulate import scene_of, simulate
from ntkpipe.pipeline.stopping import StopRequest
from ntkpipe.storage import layout
from ntkpipe.storage.features import FEATURES_STAGE
from ntkpipe.storage.kernel import KERNEL_STAGE
from ntkpipe.storage.ledger import Ledger
from ntkpipe.storage.locks import EpochLock
from ntkpipe.storage.records import ChunkRecord
from ntkpipe.storage.stores.registry import open_store
from ntkpipe.workers.probing.probe import probe_run
from ntkpipe.workers.sources.samples import Samples
from ntkpipe.workers.tasks import Task, TaskResult

STAGES: Final = (FEATURES_STAGE, KERNEL_STAGE)
WIDTH: Final = 512
NUM_INPUTS: Final = 256
NUM_OUTPUTS: Final = 10
DRIVER_SAMPLES: Final = 50_000


def build_model() -> nn.Module:
    """Return a multilayer perceptron of 0.4 million parameters."""
    torch.manual_seed(0)
    hidden = nn.Linear(WIDTH, WIDTH)
    return nn.Sequential(nn.Linear(NUM_INPUTS, WIDTH), nn.ReLU(), hidden, nn.ReLU(), nn.Linear(WIDTH, NUM_OUTPUTS))


def load(samples: int) -> Samples:
    """Return random inputs (N, 256)."""
    inputs = torch.randn(samples, NUM_INPUTS, generator=torch.Generator().manual_seed(1))
    return Samples(inputs=inputs)


def random_job(num_samples: int, workers: int) -> RunConfig:
    """Return a job of some tens of seconds whose kernel stage is as long as its features stage."""
    return load_config(
        {
            "name": f"random-{num_samples}",
            "model": {"target": "benchmarks.prediction:build_model"},
            "data": {
                "splits": {
                    "train": {
                        "kind": "python",
                        "target": "benchmarks.prediction:load",
                        "options": {"samples": num_samples},
                    }
                }
            },
            "projection": {"kind": "auto", "dim": 4096, "seed": 0},
            "kernels": [{"kind": "trntk"}, {"kind": "pntk"}],
            "store": {"shard_rows": 256, "block_rows": 256},
            "resources": {"executor": "ray", "workers": workers, "threads_per_worker": 1},
        }
    )


def digits_job(workers: int) -> RunConfig:
    """Return the demo without its solutions."""
    settings = ("solve=[]", "analyses=[]", f"resources.workers={workers}", "resources.threads_per_worker=1")
    return load_config("digits", settings)


class Nobody(AbstractExecutor):
    """Is done with every task at once."""

    def __init__(self, records: tuple[ChunkRecord, ...]) -> None:
        self._records = records
        self._tasks: deque[Task] = deque()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        pass

    def now(self) -> float:
        return time.monotonic()

    @property
    def num_ready(self) -> int:
        return 1

    @property
    def num_wanted(self) -> int:
        return 1

    def next_worker(self, num_left: int) -> int | None:
        return 0 if num_left and len(self._tasks) < 2 else None

    def submit(self, worker: int, task: Task, halvings: int = 0) -> None:
        self._tasks.append(task)

    def wait(self, timeout_seconds: float) -> list[Outcome]:
        return [Outcome(self._tasks.popleft(), result=TaskResult(self._records, (), 0.1, "host:1", {}))]


def driver_seconds(num_tasks: int = 2000) -> tuple[float, float]:
    """Return the driver's seconds for a task on a local store, receipt included, and those of a receipt alone."""
    config = digits_job(1)
    probe = probe_run(config)
    shard = probe.geometry.shard_rows
    split = probe.geometry.splits["train"].model_copy(update={"num_samples": num_tasks * shard})
    geometry = probe.geometry.model_copy(update={"splits": {"train": split}, "pairs": ()})
    record = ChunkRecord(
        crc32c="00000000", nbytes=1, array=layout.sample_id("train"), position=(0,), start=(0,), shape=(1,)
    )
    with tempfile.TemporaryDirectory() as folder:
        store = open_store(folder)
        plan, ledger = Plan(config.model_copy(update={"solve": ()}), geometry), Ledger(store)
        with EpochLock(store, 600.0) as lock, Nobody((record,) * 6) as executor:
            log = EventLog(store, lock.epoch)
            driver = Driver(plan, executor, ledger, lock, log, Silent(), StopRequest(), last_state=lambda name: "")
            started = time.perf_counter()
            driver.run_stages(FEATURES_STAGE)
            whole = (time.perf_counter() - started) / num_tasks
            receipt = ledger.receipt(FEATURES_STAGE, "train/00000000")
            started = time.perf_counter()
            for number in range(num_tasks // 4):
                ledger.commit(receipt.model_copy(update={"task": f"other/{number:08d}"}))
            alone = (time.perf_counter() - started) / (num_tasks // 4)
    return whole, alone


def measured_seconds(url: str) -> dict[str, float]:
    """Return for how long each stage was worked on in a run: from the first task that began to the last that ended."""
    begun, ended = dict.fromkeys(STAGES, math.inf), dict.fromkeys(STAGES, 0.0)
    for event in read_events(open_store(url)):
        stage = event.text("stage")
        if event.name == "commit" and stage in begun:
            begun[stage] = min(begun[stage], event.time - event.number("seconds"))
            ended[stage] = max(ended[stage], event.time)
    return {stage: ended[stage] - begun[stage] for stage in STAGES}


class OwnTimes:
    """Takes for every task of a stage what such tasks took on the average in a run."""

    def __init__(self, url: str) -> None:
        seconds: dict[str, list[float]] = {stage: [] for stage in STAGES}
        for event in read_events(open_store(url)):
            if event.name == "commit" and event.text("stage") in seconds:
                seconds[event.text("stage")].append(event.number("seconds"))
        self._means = {stage: statistics.fmean(found) for stage, found in seconds.items()}

    def times(self, task: Task) -> Times:
        return Times(self._means[task.stage], 0.0, 0.0, 0, 0, 0, 0)


def compare(config: RunConfig, repeats: int, folder: Path) -> None:
    """Calibrate, simulate and run a job several times, one after the other, and print medians."""
    simulated: dict[str, list[float]] = {stage: [] for stage in STAGES}
    real: dict[str, list[float]] = {stage: [] for stage in STAGES}
    replayed: dict[str, list[float]] = {stage: [] for stage in STAGES}
    resources = config.resources
    for number in range(repeats):
        store = open_store(str(folder / "calibration"))
        found = calibrate(config=config, store=store)
        workload = Workload.of(probe_run(config))
        one = simulate(scene_of(workload, this_machine(found, resources), found, EVEN, seed=0))
        url = str(folder / f"run-{number}")
        run(config, url, progress=Silent())
        scene = scene_of(workload, this_machine(found, resources), found, EVEN, seed=0)
        own = simulate(replace(scene, times=dict.fromkeys(scene.times, OwnTimes(url)), habits=Habits()))
        for stage, seconds in measured_seconds(url).items():
            real[stage].append(seconds)
            simulated[stage].append(one.stages[stage].seconds)
            replayed[stage].append(own.stages[stage].seconds)
    for stage in STAGES:
        each = " ".join(f"{s:.2f}/{r:.2f}" for s, r in zip(simulated[stage], real[stage], strict=True))
        ours, theirs = statistics.median(simulated[stage]), statistics.median(real[stage])
        off = 100 * (ours / theirs - 1)
        print(
            f"{config.name:24} {resources.num_workers} workers  {stage:9} simulated {ours:7.2f} s  measured {theirs:7.2f} s "
            f"{off:+6.1f} %   with the run's own task seconds {statistics.median(replayed[stage]):7.2f} s   each: {each}",
            flush=True,
        )


def main() -> None:
    """Run the comparison."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--samples", type=int, default=4096)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--workers", default="1,2")
    parser.add_argument("--jobs", default="digits,random")
    options = parser.parse_args()
    whole, receipt = driver_seconds()
    print(f"driver: {1e3 * whole:.2f} ms a task, of which {1e3 * receipt:.2f} ms are its receipt", flush=True)
    counts = [int(part) for part in options.workers.split(",")]
    makers = {"digits": digits_job, "random": lambda num: random_job(options.samples, num)}
    for workers, job in itertools.product(counts, options.jobs.split(",")):
        with tempfile.TemporaryDirectory() as folder:
            compare(makers[job](workers), options.repeats, Path(folder))


if __name__ == "__main__":
    main()
