"""SIGKILL of drivers and workers at random moments of the digits job, on a real private Ray."""

import os
import random
import signal
import time
from pathlib import Path

import pytest
from faults.table import compare_runs
from processes import PATIENCE_SECONDS, children, ending, wait_for, workers_of

import ntkpipe
from ntkpipe.configs.errors import NotFoundError

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1800)]

KILLS = int(os.environ.get("NTKPIPE_TEST_KILLS", "3"))
"""How many processes are killed before the run may finish."""

RUN_SECONDS = 20.0
"""About how long an undisturbed run takes; kills are spread over it."""


def finished(run):
    try:
        return ntkpipe.open_run(run).status().state == "finished"
    except NotFoundError:
        return False


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory):
    run = tmp_path_factory.mktemp("runs") / "whole"
    with ending() as start:
        process = start("run", "digits", "--out", run)
        _, errors = process.communicate(timeout=300)
    assert process.returncode == 0, errors
    return run


@pytest.mark.parametrize("victim", ["driver", "worker"])
def test_a_run_that_is_killed_again_and_again_ends_with_the_same_bytes(
    victim, uninterrupted, start, tmp_path, fault_table
):
    run, chance, kills = tmp_path / "run", random.Random(victim), 0
    arguments = ("run", "digits", "--out", run)
    while kills < KILLS:
        process = start(*arguments)
        # A driver dies once per start; of a driver's workers one dies every other second, for as long as it lasts.
        time.sleep(chance.uniform(2, RUN_SECONDS if victim == "driver" else 8))
        while process.poll() is None and kills < KILLS:
            if victim == "driver":
                process.kill()
                process.wait()
                kills += 1
                break
            workers = workers_of(process.pid)
            if workers:
                os.kill(chance.choice(workers), signal.SIGKILL)
                kills += 1
            time.sleep(chance.uniform(0.5, 4))
        if victim == "worker":
            _, errors = process.communicate(timeout=600)
            # A task that was running on three killed workers gives up, as it should; resuming goes on.
            assert process.returncode == 0 or "Everything that was committed is safe" in errors, errors
        if finished(run):
            # It was faster than the killing: start again from nothing committed in the later stages.
            for stage in ("kernel", "solve", "analyze"):
                for receipt in (run / "receipts" / stage).rglob("*.json"):
                    receipt.unlink()
        arguments = ("resume", run) if (run / "run.json").exists() else ("run", "digits", "--out", run)
    process = start(*arguments)
    _, errors = process.communicate(timeout=600)
    assert process.returncode == 0, errors
    assert not any(checked.findings for checked in ntkpipe.verify(run))
    fault_table.add(f"SIGKILL of a {victim}", kills, kills, *compare_runs(run, uninterrupted))


def test_nothing_is_left_running_after_a_driver_is_killed(start, tmp_path):
    process = start("run", "digits", "--out", tmp_path / "run")
    wait_for(lambda: workers_of(process.pid), pause=0.2)
    started = [process.pid, *children(process.pid), *workers_of(process.pid)]
    assert len(started) > 3
    process.kill()
    process.wait()
    wait_for(lambda: not any(Path(f"/proc/{pid}").exists() for pid in started), pause=0.2)


def test_an_interrupted_driver_says_how_to_go_on(start, tmp_path):
    process = start("run", "digits", "--out", tmp_path / "run")
    wait_for(lambda: workers_of(process.pid), pause=0.2)
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=PATIENCE_SECONDS)
    assert process.returncode == 130
    assert "ntkpipe resume" in errors
    assert "Traceback" not in errors
    assert ntkpipe.open_run(tmp_path / "run").status().state == "interrupted"
