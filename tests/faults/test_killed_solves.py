"""SIGKILL of drivers and workers between the steps of solvers and inside them, on a real private Ray."""

import json
import os
import random
import signal
import time

import pytest
from faults.table import compare_runs
from processes import ending, workers_of

import ntkpipe
from ntkpipe.workers.solvers.checkpoint import PARTS_PER_STEP

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]

KILLS = 2


def job(folder):
    """A job whose solvers take many steps: one shared between two workers, two that are tasks, one in tiles."""
    split = {"kind": "python", "target": "solving:points"}
    document = {
        "name": "killed",
        "data": {
            "splits": {
                "train": split | {"options": {"num": 1200, "seed": 0}},
                "test": split | {"options": {"num": 100, "seed": 1}},
            },
        },
        "kernels": [{"kind": "laplace", "bandwidth": 3.0}],
        "solve": [
            {"name": name, "kernel": "laplace", "ridge": 1e-3} | section
            for name, section in {
                "shared": {"kind": "pcg", "tolerance": 1e-11, "rank": 20},
                "alone": {"kind": "eigenpro2", "epochs": 60, "tolerance": 1e-9},
                "sweeps": {"kind": "gauss-seidel", "epochs": 60, "tolerance": 1e-9},
                "tiles": {"kind": "tile-cholesky", "tile_rows": 300},
            }.items()
        ],
        "store": {"shard_rows": 100, "block_rows": 100},
        "resources": {"executor": "ray", "workers": 2, "checkpoint_seconds": 0.0, "max_attempts": 10},
    }
    path = folder / "job.yaml"
    path.write_text(json.dumps(document))
    return path


def states(run):
    """Return the names of all states of solvers and factors that are stored now."""
    found = [file.name for file in (run / "solver").rglob("states/*")]
    return {*found, *(file.name for stage in run.glob("receipts/factor-*") for file in stage.rglob("*.json"))}


def is_between_parts(run):
    """Return whether a step has been begun and not been finished: parts or sums of parts are stored of it."""
    stored = [int(file.name) for file in (run / "solver/alone").rglob("states/*") if file.name.isdigit()]
    return any(place % PARTS_PER_STEP for place in stored) or any((run / "solver/shared").rglob("parts/*"))


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs")
    with ending() as start:
        process = start("run", job(folder), "--out", folder / "whole")
        _, errors = process.communicate(timeout=300)
    assert process.returncode == 0, errors
    return folder / "whole"


@pytest.mark.parametrize("victim", ["driver", "worker"])
def test_solves_that_are_killed_between_steps_end_with_the_same_bytes(
    victim, uninterrupted, start, tmp_path, fault_table
):
    run, chance, kills, within = tmp_path / "run", random.Random(victim), 0, 0
    arguments = ("run", job(tmp_path), "--out", run)
    while True:
        process, met, wanted = start(*arguments), set(), chance.randint(2, 15)
        while process.poll() is None and kills < KILLS:
            met |= states(run)  # a state takes the place of the one before it
            victims = [process.pid] if victim == "driver" else workers_of(process.pid)
            # Every other kill is inside a step, between the parts of one product.
            is_within = is_between_parts(run)
            if len(met) >= wanted and victims and (is_within or kills % 2):
                os.kill(chance.choice(victims), signal.SIGKILL)
                kills, within, met, wanted = kills + 1, within + is_within, set(), chance.randint(2, 15)
                if victim == "driver":
                    break
            time.sleep(0.01)
        _, errors = process.communicate(timeout=600)
        if process.returncode == 0:
            break
        assert (victim, process.returncode) == ("driver", -signal.SIGKILL), errors
        arguments = ("resume", run)
    assert kills == KILLS
    assert within >= 1
    fault_table.add(
        f"SIGKILL of a {victim} between and in steps of solvers", kills, kills, *compare_runs(run, uninterrupted)
    )
    assert not any(checked.findings for checked in ntkpipe.verify(run))
    # What a killed writer was in the middle of is left to `ntkpipe gc`.
    assert not [file for file in (run / "solver").rglob("*") if file.is_file() and file.suffix != ".partial"]
