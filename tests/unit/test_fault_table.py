"""The table of faults: what it counts, and that a lost or differing run fails its test."""

import json
import shutil
import subprocess
import sys

import golden
import pytest
from commands import TESTS
from faults.table import FaultTable, compare_runs
from runs import chunk_hashes

import ntkpipe
from ntkpipe.storage.stores.registry import open_store


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    run = tmp_path_factory.mktemp("runs") / "whole"
    ntkpipe.run(golden.config(), run)
    return run


def pytest_session(folder, text, *arguments):
    (folder / "test_faults.py").write_text(text)
    (folder / "pytest.ini").write_text(f"[pytest]\npythonpath = {TESTS}\n")
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-p", "faults.table", *arguments]
    return subprocess.run(
        command, cwd=folder, capture_output=True, text=True, check=False, env={"PYTHONPATH": str(TESTS)}, timeout=120
    )


def test_rows_of_one_fault_are_added_up_and_totals_follow():
    table = FaultTable()
    table.add("SIGKILL of a worker", 3, 3, 1000)
    table.add("two drivers", 50, 50, 0)
    table.add("SIGKILL of a worker", 2, 2, 500)
    assert table.lines() == [
        "| fault               | tries | survived | bytes compared | differing |",
        "| ------------------- | ----: | -------: | -------------: | --------: |",
        "| SIGKILL of a worker |     5 |        5 |          1,500 |         0 |",
        "| two drivers         |    50 |       50 |              0 |         0 |",
        "| all faults          |    55 |       55 |          1,500 |         0 |",
    ]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [((3, 2, 100), "2 of 3 tries"), ((0, 0, 100), "0 of 0 tries"), ((1, 1, 100, 7), "7 of 100 bytes differ")],
)
def test_a_lost_or_differing_run_fails_its_test_and_stays_in_the_table(arguments, message):
    table = FaultTable()
    with pytest.raises(pytest.fail.Exception, match=message):
        table.add("bit flip", *arguments)
    assert table.rows[0].tries == arguments[0]
    assert table.rows[0].survived == arguments[1]


def test_a_session_with_a_lost_run_fails_and_prints_and_writes_the_table(tmp_path):
    text = (
        "def test_kept(fault_table):\n    fault_table.add('SIGTERM', 2, 2, 10)\n"
        "def test_lost(fault_table):\n    fault_table.add('SIGKILL', 2, 1, 10)\n"
    )
    done = pytest_session(tmp_path, text, "--fault-table", "table.json")
    assert done.returncode == 1, done.stdout + done.stderr
    assert "1 failed, 1 passed" in done.stdout
    assert "| SIGKILL    |     2 |        1 |             10 |         0 |" in done.stdout
    assert "1 tests have failed: the table may lack" in done.stdout
    rows = json.loads((tmp_path / "table.json").read_text())
    assert rows[-1] == {
        "fault": "all faults", "tries": 4, "survived": 3, "compared_bytes": 20, "differing_bytes": 0
    }  # fmt: skip


@pytest.mark.slow
def test_a_session_without_faults_prints_no_table(tmp_path):
    done = pytest_session(tmp_path, "def test_nothing():\n    pass\n", "--fault-table", "table.md")
    assert done.returncode == 0, done.stdout + done.stderr
    assert "faults" not in done.stdout
    assert not (tmp_path / "table.md").exists()


def test_equal_runs_have_no_differing_bytes_whatever_store_they_are_in(whole, tmp_path):
    other = open_store("memory://fault-table/run")
    for key in chunk_hashes(whole):
        other.put(key, (whole / key).read_bytes())
    size = sum((whole / key).stat().st_size for key in chunk_hashes(whole))
    assert compare_runs(other, whole) == (size, 0)
    assert compare_runs(ntkpipe.run(golden.config(), tmp_path / "again").url, str(whole)) == (size, 0)


def test_flipped_lost_and_added_bytes_are_counted(whole, tmp_path):
    size, _ = compare_runs(whole, whole)
    run = shutil.copytree(whole, tmp_path / "run")
    chunk = run / "data.zarr/kernel/ck/train-train/c/1/1"
    lost = run / "solutions/krr.json"
    data = chunk.read_bytes()
    chunk.write_bytes(bytes([data[0] ^ 255]) + data[1:])
    assert compare_runs(run, whole) == (size, 1)
    chunk.write_bytes(data[:-3])
    assert compare_runs(run, whole) == (size, 3)
    chunk.write_bytes(data + b"12")
    assert compare_runs(run, whole) == (size + 2, 2)
    chunk.write_bytes(data)
    num_lost = lost.stat().st_size
    lost.unlink()
    assert compare_runs(run, whole) == (size, num_lost)
    (run / "analyses").mkdir(exist_ok=True)
    (run / "analyses/empty").touch()
    assert compare_runs(run, whole) == (size, num_lost + 1)


def test_nothing_to_compare_is_a_failure(tmp_path):
    with pytest.raises(pytest.fail.Exception, match="nothing to compare"):
        compare_runs(tmp_path / "one", tmp_path / "other")


def test_processes_of_a_distributed_session_hand_their_tables_in(tmp_path):
    text = "import pytest\n@pytest.mark.parametrize('n', range(4))\ndef test_x(n, fault_table): fault_table.add('bit flip', 1, 1, 10)\n"
    session = pytest_session(tmp_path, text, "-p", "xdist", "-n", "2")
    assert session.returncode == 0, session.stdout
    assert "| bit flip   |     4 |        4 |             40 |         0 |" in session.stdout
