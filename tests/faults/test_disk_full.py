"""A disk that fills up in the middle of a run: a small tmpfs, for real."""

import subprocess

import golden
import pytest

import ntkpipe
from ntkpipe.configs.errors import NtkPipeError, StorageError
from ntkpipe.pipeline import run as run_module

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


def large_config():
    """A run of about 10 MB, most of it features."""
    return golden.config(
        kernels=[{"kind": "pntk", "projection": {"kind": "sjlt", "dim": 300_000}}], solve=[], store={"shard_rows": 1}
    )


def test_a_full_disk_ends_the_run_with_one_message_and_loses_nothing(small_disk, tmp_path, monkeypatch):
    run = small_disk / "run"
    with pytest.raises(NtkPipeError, match="GiB are free"):
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
    subprocess.run(["mount", "-o", "remount,size=40m", str(small_disk)], check=True)
    assert ntkpipe.resume(run).status().state == "finished"
    assert not any(checked.findings for checked in ntkpipe.verify(run))
