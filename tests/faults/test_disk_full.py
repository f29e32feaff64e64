"""A disk that fills up in the middle of a run: a small tmpfs, for real."""

import errno
import subprocess
import threading
import time
from functools import partial

import golden
import pytest
from faults.table import compare_runs

import ntkpipe
from ntkpipe.configs.errors import NtkPipeError, StorageError
from ntkpipe.pipeline import execution
from ntkpipe.pipeline import run as run_module
from ntkpipe.pipeline.status_file import StatusFile
from ntkpipe.storage.stores.local import LocalRunStore

pytestmark = pytest.mark.slow


@pytest.fixture
def small_disk(tmp_path):
    folder = tmp_path / "disk"
    folder.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=3m", "tmpfs", str(folder)], capture_output=True, text=True, check=False
    )
    if mounted.returncode:
        pytest.skip(f"mounting a tmpfs needs more rights: {mounted.stderr.strip()}")
    yield folder
    subprocess.run(["umount", str(folder)], check=True)


def enlarge(disk):
    subprocess.run(["mount", "-o", "remount,size=40m", str(disk)], check=True)


def large_config():
    """A run of about 10 MB, most of it features."""
    return golden.config(
        kernels=[{"kind": "pntk", "projection": {"kind": "sjlt", "dim": 300_000}}], solve=[], store={"shard_rows": 1}
    )


def test_a_full_disk_ends_the_run_with_one_message_and_loses_nothing(small_disk, tmp_path, monkeypatch, fault_table):
    run = small_disk / "run"
    with pytest.raises(NtkPipeError, match="MB are free"):
        ntkpipe.run(large_config(), run)
    monkeypatch.setattr(run_module.Plan, "check_space", lambda *_: None)
    with pytest.raises(StorageError, match="the disk is full") as caught:
        ntkpipe.run(large_config(), run)
    assert caught.value.exit_code == 1
    status = ntkpipe.open_run(run).status()
    done = status.stages[0].done
    assert status.state == "interrupted"
    assert 0 < done < 8
    assert not any(checked.findings for checked in ntkpipe.verify(run))
    assert not list(run.rglob("*.partial"))
    enlarge(small_disk)
    assert ntkpipe.resume(run).status().state == "finished"
    assert not any(checked.findings for checked in ntkpipe.verify(run))
    whole = ntkpipe.run(large_config(), tmp_path / "whole")
    fault_table.add("disk full", 1, 1, *compare_runs(run, whole.url))


class Filler:
    """Fills a disk to the last byte in the moment before an object of a kind is written for the first time."""

    def __init__(self, monkeypatch, disk, prefix, *, stays):
        self.file = disk / "filler"
        self.was_full = 0
        lock = threading.Lock()
        for name in ("put", "put_new"):
            monkeypatch.setattr(LocalRunStore, name, self.filling(getattr(LocalRunStore, name), prefix, stays, lock))

    def filling(self, write, prefix, stays, lock):
        def patched(store, key, data):
            with lock:  # nobody else meets a disk that is full for a moment only
                if not key.startswith(prefix) or self.was_full:
                    return write(store, key, data)
                self.fill()
                try:
                    return write(store, key, data)
                except StorageError:
                    self.was_full += 1
                    raise
                finally:
                    if not stays:
                        self.file.unlink()

        return patched

    def fill(self):
        with open(self.file, "ab", buffering=0) as file:
            for size in (2**16, 1):
                try:
                    while True:
                        file.write(b"x" * size)
                except OSError as error:
                    assert error.errno == errno.ENOSPC  # noqa: PT017 - it is what ends the loop


def small_config():
    return golden.config(
        resources={"executor": "serial", "checkpoint_seconds": 0.0, "max_attempts": 2},
        store={"shard_rows": 1, "block_rows": 1, "lease_seconds": 0.3},
    )


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    return ntkpipe.run(small_config(), tmp_path_factory.mktemp("runs") / "whole").url


@pytest.mark.parametrize("prefix", ["receipts/kernel", "solver/"])
def test_a_disk_that_fills_up_under_a_receipt_or_a_state_of_a_solver_loses_nothing(
    prefix, whole, small_disk, monkeypatch, fault_table
):
    run = small_disk / "run"
    enlarge(small_disk)
    with monkeypatch.context() as patch:
        filler = Filler(patch, small_disk, prefix, stays=True)
        with pytest.raises(StorageError, match="the disk is full"):
            ntkpipe.run(small_config(), run)
    assert filler.was_full
    filler.file.unlink()
    time.sleep(1.5)  # the lock could not be released on a full disk, and its owner, this process, is alive
    assert ntkpipe.resume(run).status().state == "finished"
    assert not any(checked.findings for checked in ntkpipe.verify(run))
    fault_table.add("disk full", 1, 1, *compare_runs(run, whole))


@pytest.mark.parametrize("prefix", ["lock/heartbeat", "events/", "status.json"])
def test_a_disk_that_is_full_under_a_heartbeat_a_log_or_a_status_does_not_end_the_run(
    prefix, whole, small_disk, monkeypatch, fault_table
):
    enlarge(small_disk)
    monkeypatch.setattr(execution, "StatusFile", partial(StatusFile, seconds=0.01))
    filler = Filler(monkeypatch, small_disk, prefix, stays=False)
    run = ntkpipe.run(small_config(), small_disk / "run")
    assert filler.was_full
    assert run.status().state == "finished"
    text = "".join(file.read_text() for file in sorted((small_disk / "run/events").rglob("*.jsonl")))
    assert text.count('"event": "commit"') == sum(stage.total for stage in run.status().stages)
    fault_table.add("disk full", 1, 1, *compare_runs(run.url, whole))
