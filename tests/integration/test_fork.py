"""Runs that take finished tasks over from other runs."""

import hashlib
import os
import shutil
from pathlib import Path

import golden
import growing
import pytest
import yaml
from counting import computed, is_clean
from growing import rich_config
from interruptions import Killed, interrupt_after
from runs import chunk_hashes
from typer.testing import CliRunner
from watching import Notes

import ntkpipe
from ntkpipe.configs.errors import ConfigError, NotFoundError, RunStoppedError
from ntkpipe.pipeline.cli import app
from ntkpipe.pipeline.plan import stages
from ntkpipe.pipeline.stopping import StopRequest
from ntkpipe.storage.ledger import Ledger
from ntkpipe.storage.stores.local import LocalRunStore
from ntkpipe.storage.stores.registry import open_store


def contents(folder):
    return {path: hashlib.sha256(path.read_bytes()).hexdigest() for path in sorted(folder.rglob("*")) if path.is_file()}


@pytest.fixture(scope="module")
def original(tmp_path_factory):
    return Path(ntkpipe.run(growing.config(), tmp_path_factory.mktemp("runs") / "original").url)


@pytest.fixture
def copied(original, tmp_path):
    """A run that a test may damage."""
    shutil.copytree(original, tmp_path / "copied")
    return tmp_path / "copied"


def without(document, *labels):
    document["kernels"] = [kernel for kernel in document["kernels"] if kernel.get("name", kernel["kind"]) not in labels]
    document["solve"] = [solve for solve in document["solve"] if solve["kernel"] not in labels]
    document["analyses"] = []
    return document


def with_new_split(document):
    document["data"]["splits"]["late"] = {
        "kind": "python",
        "target": "growing:load",
        "options": {"num": 3, "first": 50},
    }
    return document


def test_another_ridge_takes_everything_over_but_its_solution(original, tmp_path):
    before, notes = contents(original), Notes()
    run = ntkpipe.fork(original, tmp_path / "fork", overrides=["solve.0.ridge=3.0"], progress=notes)
    assert computed(run.url) == ({"solve": 1}, {"features": 5, "kernel": 12, "solve": 1, "analyze": 1})
    assert notes.texts[:4] == [
        "features 5/5 reused",
        "kernel 12/12 reused",
        "solve 1/2 reused",
        "analyze 1/1 reused",
    ]
    ntkpipe.run(growing.config(), tmp_path / "fresh", overrides=["solve.0.ridge=3.0"])
    assert chunk_hashes(tmp_path / "fork") == chunk_hashes(tmp_path / "fresh")
    assert is_clean(run.url)
    assert run.manifest.origin == str(original)
    assert contents(original) == before


def test_chunks_of_one_file_system_are_linked(original, tmp_path):
    ntkpipe.fork(original, tmp_path / "fork", overrides=["solve.0.ridge=3.0"])
    place = "data.zarr/kernel/trntk0/train-train/c/1/0"
    assert os.path.samefile(tmp_path / "fork" / place, original / place)


@pytest.mark.parametrize(
    ("document", "here", "there"),
    [
        (without(growing.config(), "signs"), {}, {"features": 5, "kernel": 12, "solve": 2}),
        (without(growing.config(), "trntk0"), {}, {"features": 5, "kernel": 12, "solve": 1}),
        (growing.config(solve=[], analyses=[]), {}, {"features": 5, "kernel": 12}),
        (
            with_new_split(growing.config(analyses=[])),
            {"features": 2, "kernel": 6, "solve": 2},
            {"features": 5, "kernel": 12},
        ),
        (
            growing.config(kernels=[*growing.config()["kernels"], {"kind": "ck"}]),
            {"features": 5, "kernel": 12},
            {"solve": 2, "analyze": 1},
        ),
    ],
    ids=["a kernel less", "another kernel less", "no solutions", "a split more", "a kernel more"],
)
def test_what_is_still_valid_is_taken_over(document, here, there, original, tmp_path):
    run = ntkpipe.fork(original, tmp_path / "fork", config=document)
    assert computed(run.url) == (here, there)
    ntkpipe.run(document, tmp_path / "fresh")
    assert chunk_hashes(tmp_path / "fork") == chunk_hashes(tmp_path / "fresh")
    assert is_clean(run.url)


def test_other_weights_leave_what_sees_no_model(original, tmp_path, monkeypatch):
    build = golden.build_model

    def other():
        model = build()
        model.fc1.weight.data[0, 0] += 1
        return model

    monkeypatch.setattr(golden, "build_model", other)
    run = ntkpipe.fork(original, tmp_path / "fork")
    # The tasks of the first stages serve kernels of the model too; a solution of a formula needs none of them.
    assert computed(run.url) == ({"features": 5, "kernel": 12, "solve": 1, "analyze": 1}, {"solve": 1})
    document = without(growing.config(model=None), "trntk0", "signs")
    formula = ntkpipe.fork(original, tmp_path / "formula", config=document)
    assert computed(formula.url) == ({}, {"features": 5, "kernel": 12, "solve": 1})


def owner(record):
    """Return the kernel that a chunk belongs to; nothing for outputs, factors and solutions."""
    what, name, *_ = record.array.split("/")
    return name if what in ("features", "diagonal", "moments", "kernel", "component", "statistic") else ""


@pytest.mark.slow
def test_equal_digests_mean_equal_bytes(tmp_path):
    """Every digest of many runs belongs to one content."""
    changes = [
        "kernels.1.parameters=['*.bias']",
        "kernels.4.precondition.samples=2",
        "kernels.5.bandwidth=3",
        "kernels.7.terms.1.weight=2",
        "data.splits.train.options.flipped=6",
        "data.splits.train.options.moved=5",
        "data.splits.train.options.renamed=6",
        "data.splits.train.options.num=9",
        "data.splits.test.options.num=3",
        "model.options.shift=0.5",
        "store.dtype=float64",
        "store.block_rows=3",
        "solve.0.ridge=2",
        "resources.batch_size=1",
    ]
    seen, num_equal = {}, 0
    for number, change in enumerate(["name=first", *changes]):
        run = ntkpipe.run(rich_config(), tmp_path / str(number), overrides=[change])
        ledger = Ledger(open_store(run.url))
        for stage in stages(run.manifest.geometry):
            for receipt in ledger.receipts(stage):
                for label, text in receipt.made_from.items():
                    key = (stage, text)
                    own = tuple((record.crc32c, record.shape) for record in receipt.chunks if owner(record) == label)
                    own += tuple(record.crc32c for record in receipt.objects)
                    num_equal += key in seen
                    assert seen.setdefault(key, own) == own, (change, receipt.task, label)
    assert num_equal > 1000


@pytest.mark.parametrize("num_calls", range(0, 60, 12))
def test_a_kill_while_tasks_are_taken_over_loses_nothing(num_calls, original, tmp_path, monkeypatch):
    calls, copy = [], LocalRunStore.copy

    def counting(self, *arguments):
        if len(calls) == num_calls:
            raise Killed
        calls.append(arguments)
        copy(self, *arguments)

    with monkeypatch.context() as patch:
        patch.setattr(LocalRunStore, "copy", counting)
        with pytest.raises(Killed):
            ntkpipe.fork(original, tmp_path / "fork", overrides=["solve.0.ridge=3.0"])
    run = ntkpipe.resume(tmp_path / "fork")
    assert computed(run.url) == ({"solve": 1}, {"features": 5, "kernel": 12, "solve": 1, "analyze": 1})
    ntkpipe.run(growing.config(), tmp_path / "fresh", overrides=["solve.0.ridge=3.0"])
    assert chunk_hashes(tmp_path / "fork") == chunk_hashes(tmp_path / "fresh")


def interrupted_fork(origin, out, monkeypatch):
    """Fork a run, but end before anything is taken over."""

    def killed(*_):
        raise Killed

    with monkeypatch.context() as patch:
        patch.setattr(LocalRunStore, "copy", killed)
        with pytest.raises(Killed):
            ntkpipe.fork(origin, out, overrides=["solve.0.ridge=3.0"])


def test_a_fork_whose_origin_is_gone_is_computed(copied, tmp_path, monkeypatch):
    interrupted_fork(copied, tmp_path / "fork", monkeypatch)
    shutil.rmtree(copied)
    notes = Notes()
    run = ntkpipe.resume(tmp_path / "fork", progress=notes)
    assert "nothing is taken over" in notes.texts[0]
    assert computed(run.url) == ({"features": 5, "kernel": 12, "solve": 2, "analyze": 1}, {})
    ntkpipe.run(growing.config(), tmp_path / "fresh", overrides=["solve.0.ridge=3.0"])
    assert chunk_hashes(tmp_path / "fork") == chunk_hashes(tmp_path / "fresh")


def test_a_finished_fork_does_not_need_its_origin(copied, tmp_path):
    ntkpipe.fork(copied, tmp_path / "fork", overrides=["solve.0.ridge=3.0"])
    shutil.rmtree(copied)
    assert is_clean(tmp_path / "fork")
    assert ntkpipe.resume(tmp_path / "fork").status().state == "finished"
    again = ntkpipe.fork(tmp_path / "fork", tmp_path / "again", overrides=["solve.0.ridge=4.0"])
    assert computed(again.url) == ({"solve": 1}, {"features": 5, "kernel": 12, "solve": 1, "analyze": 1})


def test_only_what_is_committed_is_taken_over(tmp_path, monkeypatch):
    with monkeypatch.context() as patch:
        interrupt_after(patch, 7)
        with pytest.raises(Killed):
            ntkpipe.run(growing.config(), tmp_path / "run")
    # The chunks of the eighth task are there, its receipt is not.
    run = ntkpipe.fork(tmp_path / "run", tmp_path / "fork")
    assert computed(run.url) == ({"kernel": 10, "solve": 2, "analyze": 1}, {"features": 5, "kernel": 2})
    assert ntkpipe.open_run(tmp_path / "run").status().state == "interrupted"


def test_missing_chunks_and_damaged_receipts_are_not_taken_over(copied, tmp_path):
    (copied / "data.zarr/kernel/signs/train-train/c/1/0").unlink()
    (copied / "solutions/formula.json").unlink()
    receipt = copied / "receipts/features/train/00000001.json"
    receipt.write_text(receipt.read_text()[:60])
    notes = Notes()
    run = ntkpipe.fork(copied, tmp_path / "fork", progress=notes)
    assert computed(run.url) == (
        {"features": 1, "kernel": 1, "solve": 1},
        {"features": 4, "kernel": 11, "solve": 1, "analyze": 1},
    )
    assert any("some tasks are computed again" in text for text in notes.texts)
    assert is_clean(run.url)
    ntkpipe.run(growing.config(), tmp_path / "fresh")
    assert chunk_hashes(tmp_path / "fork") == chunk_hashes(tmp_path / "fresh")


def test_a_damaged_chunk_that_was_taken_over_is_found_and_repaired_here_and_there_apart(copied, tmp_path):
    place = "data.zarr/kernel/signs/train-train/c/1/0"
    data = bytearray((copied / place).read_bytes())
    data[3] ^= 1
    (copied / place).write_bytes(bytes(data))
    run = ntkpipe.fork(copied, tmp_path / "fork", overrides=["analyses=[]"])
    assert not is_clean(run.url)
    list(ntkpipe.verify(run.url, repair=True))
    ntkpipe.resume(run.url)
    assert is_clean(run.url)
    assert not is_clean(copied)


def test_a_run_that_tells_no_digests_is_forked_by_computing(copied, tmp_path):
    ledger = Ledger(open_store(copied))
    for stage in ("features", "kernel", "solve", "analyze"):
        for receipt in list(ledger.receipts(stage)):
            older = receipt.model_copy(update={"made_from": {}})
            (copied / "receipts" / stage / f"{receipt.task}.json").write_bytes(older.encode())
    notes = Notes()
    run = ntkpipe.fork(copied, tmp_path / "fork", progress=notes)
    assert computed(run.url) == ({"features": 5, "kernel": 12, "solve": 2, "analyze": 1}, {})
    assert any("do not tell what tasks were made from" in text for text in notes.texts)


def test_a_fork_may_live_in_another_kind_of_store(original, tmp_path):
    there = ntkpipe.fork(original, "memory://forks/there", overrides=["solve.0.ridge=3.0"])
    assert computed(there.url) == ({"solve": 1}, {"features": 5, "kernel": 12, "solve": 1, "analyze": 1})
    assert is_clean(there.url)
    back = ntkpipe.fork(there.url, tmp_path / "back")
    assert computed(back.url) == ({}, {"features": 5, "kernel": 12, "solve": 2, "analyze": 1})
    assert is_clean(back.url)


def test_a_fork_can_be_stopped(original, tmp_path):
    stop = StopRequest()
    stop.request()
    with pytest.raises(RunStoppedError):
        ntkpipe.fork(original, tmp_path / "fork", stop=stop)
    assert ntkpipe.resume(tmp_path / "fork").status().state == "finished"


def test_there_is_nothing_to_fork_where_there_is_no_run(original, tmp_path):
    with pytest.raises(NotFoundError, match="is not a run"):
        ntkpipe.fork(tmp_path / "nothing", tmp_path / "fork")
    with pytest.raises(ConfigError, match="holds a run already"):
        ntkpipe.fork(original, original)


def test_the_command_forks_by_settings_and_by_file(original, tmp_path):
    found = CliRunner().invoke(
        app, ["resume", str(original), "--fork", str(tmp_path / "one"), "--set", "solve.0.ridge=3"]
    )
    assert (found.exception, found.exit_code) == (None, 0)
    assert "features 5/5 reused" in found.output
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(growing.config(analyses=[]), sort_keys=False))
    arguments = ["run", tmp_path / "config.yaml", "--out", tmp_path / "two", "--fork", original, "--single-writer"]
    found = CliRunner().invoke(app, list(map(str, arguments)))
    assert (found.exception, found.exit_code) == (None, 0)
    assert "solve 2/2 reused" in found.output
    assert ntkpipe.open_run(tmp_path / "two").config.store.single_writer
