"""A worker's measured peak is what the plan has predicted, and no more than it is allowed."""

import pickle
import subprocess
import sys
from pathlib import Path

import pytest

from ntkpipe.configs.loading import load_config
from ntkpipe.pipeline import execution as verbs
from ntkpipe.storage.ledger import Ledger
from ntkpipe.storage.stores.registry import open_store
from ntkpipe.workers.probing.probe import probe_run

TESTS = Path(__file__).parents[1]

MEASURE = r"""
import pickle, re, sys
from pathlib import Path
from ntkpipe.storage.ledger import Ledger
from ntkpipe.storage.records import Receipt
from ntkpipe.storage.stores.registry import open_store
from ntkpipe.workers.worker import Worker

spec, tasks = pickle.loads(Path(sys.argv[1]).read_bytes())
worker, ledger = Worker(spec), Ledger(open_store(spec.url))
for task in tasks:
    found = worker.run(task)
    ledger.commit(Receipt(stage=task.stage, task=task.id, chunks=found.chunks, seconds=0.0, worker="test"))
status = Path("/proc/self/status").read_text()
print(int(re.search(r"VmHWM:\s+(\d+)", status)[1]) * 1024)
"""


def peak(spec, tasks, folder):
    """The peak of a process of its own that carries out tasks."""
    path = folder / "tasks.pickle"
    path.write_bytes(pickle.dumps((spec, tasks)))
    found = subprocess.run(
        [sys.executable, "-c", MEASURE, str(path)], cwd=TESTS, capture_output=True, text=True, check=False, timeout=500
    )
    assert found.returncode == 0, found.stderr
    return int(found.stdout)


def predicted_and_measured(changes, folder):
    """Bytes of the features and of the kernel stage."""
    document = {
        "name": "memory",
        "model": {"target": "memory_models:build_convolutional"},
        "data": {
            "splits": {"train": {"kind": "python", "target": "memory_models:load_images", "options": {"num": 96}}}
        },
        "store": {"shard_rows": 96, "block_rows": 48},
        "kernels": [{"kind": "trntk"}],
        "projection": {"kind": "auto", "dim": 2048},
    }
    config = load_config(document | changes)
    probe = probe_run(config)
    plan = verbs.make_plan(probe)
    store = open_store(str(folder / "run"))
    verbs.prepare(store, Ledger(store), probe, 1)
    spec = verbs.worker_spec(store, plan, probe)
    stages = [list(plan.tasks(stage)) for stage in ("features", "kernel")]
    measured = [peak(spec, tasks, folder) for tasks in stages]
    return probe, [probe.memory.features_bytes, probe.memory.kernel_bytes], measured


CASES = {
    "small": {"resources": {"max_worker_bytes": "800MiB", "batch_size": 256}},
    "large": {"resources": {"max_worker_bytes": "1600MiB", "batch_size": 256}},
    "exact": {"resources": {"max_worker_bytes": "1400MiB", "batch_size": 256}, "projection": {"kind": "none"}},
    "many outputs": {
        "resources": {"max_worker_bytes": "860MiB", "batch_size": 256},
        "model": {"target": "memory_models:build_wide", "options": {"num_outputs": 600}},
        "data": {
            "splits": {"train": {"kind": "python", "target": "memory_models:load_vectors", "options": {"num": 12}}}
        },
    },
}


@pytest.mark.slow
@pytest.mark.parametrize("name", CASES)
def test_the_peak_of_a_worker_is_within_a_fifth_of_its_prediction(name, tmp_path):
    allowed = allowed_bytes(CASES[name])
    probe, predicted, measured = predicted_and_measured(CASES[name], tmp_path)
    assert max(predicted) <= allowed
    for said, found in zip(predicted, measured, strict=True):
        assert found < 1.2 * said, (predicted, measured)
    # The stage that the batches were cut for; what the other one takes is mostly the process itself.
    assert max(measured) > 0.7 * max(predicted), (predicted, measured)
    if name == "many outputs":
        assert probe.passes.max_vectors < 600


def allowed_bytes(changes):
    value = changes["resources"]["max_worker_bytes"]
    return int(value.removesuffix("MiB")) * 2**20
