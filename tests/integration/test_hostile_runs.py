"""Runs that somebody else has prepared: looking at one runs no code, leaves its folder alone, and writes plain text."""

import json
import os
import shutil
import subprocess
import sys
from contextlib import contextmanager, suppress
from pathlib import Path

import golden
import numpy as np
import pytest
from commands import TESTS, ntkpipe_command
from runs import chunk_hashes

import ntkpipe
from ntkpipe.configs.errors import NtkPipeError, StorageError
from ntkpipe.storage.documents import SEAL, seal_of

UP = "../../outside"


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    run = tmp_path_factory.mktemp("runs") / "run"
    analyses = [{"kind": "spectrum", "name": "spectrum"}]
    ntkpipe.run(golden.config(analyses=analyses), run)
    return run


@pytest.fixture
def run(finished, tmp_path):
    return shutil.copytree(finished, tmp_path / "runs" / "run")


def rewrite(file, change):
    """Change a document as its author could have: with a seal that fits."""
    document = json.loads(file.read_text())
    change(document)
    if SEAL in document:
        document[SEAL] = seal_of(document)
    file.write_text(json.dumps(document))


def receipt_of(run, stage):
    return next(iter(sorted((run / "receipts" / stage).rglob("*.json"))))


WATCHED: dict[str, Path | set[str] | None] = {"folder": None, "touched": set()}


def _watch(event, arguments):
    folder = WATCHED["folder"]
    if folder is None or not event.startswith(("open", "os.", "shutil.")):
        return
    for argument in arguments[:2]:
        if isinstance(argument, str | bytes | os.PathLike):
            path = os.path.realpath(os.fsdecode(argument))
            if path.startswith(f"{folder}{os.sep}"):
                WATCHED["touched"].add(path)


sys.addaudithook(_watch)


@contextmanager
def watched(folder):
    """Collect what is opened, listed, linked, renamed or removed below a folder, by Python code of this process."""
    WATCHED.update(folder=Path(os.path.realpath(folder)), touched=set())
    try:
        yield WATCHED["touched"]
    finally:
        WATCHED["folder"] = None


def look_at(run):
    """Ask a run for everything that the command line can ask for; what it refuses is no matter here."""
    try:
        opened = ntkpipe.open_run(run)
        geometry, analyses = opened.manifest.geometry, opened.config.analyses
    except NtkPipeError:
        return ["open"]
    refused = []
    questions = [
        opened.status,
        *(lambda split=split: (opened.ids(split), opened.labels(split)) for split in geometry.splits),
        *(lambda name=name: opened.kernel(name)[:, :] for name in geometry.references),
        *(lambda name=name: opened.features[name][:] for name in geometry.references),
        *(lambda name=name: opened.diagonal(name) for name in geometry.references),
        *(lambda name=name: opened.solution(name) for name in geometry.solutions),
        *(lambda name=name: opened.solution_record(name) for name in geometry.solutions),
        *(lambda name=name: opened.solution_extra(name, UP) for name in geometry.solutions),
        *(lambda name=name: opened.predictions(name, "test") for name in geometry.solutions),
        *(lambda item=item: opened.analysis_files(item.name) for item in analyses),
        *(lambda item=item: opened.analysis(item.name, f"../{UP}/secret") for item in analyses),
        lambda: list(ntkpipe.verify(run)),
    ]
    for question in questions:
        try:
            question()
        except (NtkPipeError, ValueError) as error:
            refused.append(type(error).__name__)
    return refused


def rename_kernel(document):
    document["geometry"]["kernels"][0]["name"] = UP


def rename_solution(document):
    document["geometry"]["solutions"][0] = UP


def rename_split(document):
    splits = document["geometry"]["splits"]
    splits[UP] = splits.pop("test")


def rename_member(document):
    document["geometry"]["kernels"][0]["members"] = [UP]


def rename_pair(document):
    document["geometry"]["pairs"][0] = [UP, UP]


def rename_factor(document):
    document["geometry"]["factors"] = [{"name": UP, "size": 4, "tile_rows": 2, "dtype": "float32"}]


def rename_parent(document):
    document["geometry"]["kernels"][0]["parents"] = [UP]


def rename_analysis(document):
    document["config"]["analyses"][0]["name"] = UP


def rename_train_split(document):
    document["geometry"]["train_split"] = UP


MANIFESTS = [
    rename_kernel,
    rename_solution,
    rename_split,
    rename_member,
    rename_pair,
    rename_factor,
    rename_parent,
    rename_analysis,
    rename_train_split,
]


@pytest.fixture
def outside(tmp_path):
    """Folders that names with ``..`` lead to, with copies of what a run holds, so that nothing is refused as missing."""
    folder = tmp_path / "outside"
    folder.mkdir()
    (folder / "secret").write_text("secret")
    return folder


def test_the_watch_sees_what_is_touched(outside):
    with watched(outside) as touched:
        (outside / "secret").read_text()
        list(outside.iterdir())
        os.link(outside / "secret", outside.parent / "link")
    assert touched == {str(outside / "secret")}


@pytest.mark.parametrize("change", MANIFESTS)
def test_names_in_a_manifest_lead_nowhere_else(run, outside, change):
    rewrite(run / "run.json", change)
    before = sorted(path for path in outside.parent.rglob("*") if run not in path.parents)
    with watched(outside) as touched:
        assert look_at(run)
    assert touched == set()
    assert sorted(path for path in outside.parent.rglob("*") if run not in path.parents) == before


def chunk_elsewhere(document):
    document["chunks"][0]["array"] = "../../../outside/array"


def object_elsewhere(document):
    document["objects"] = [{"key": "../../outside/secret", "crc32c": "00000000", "nbytes": 6}]


def object_absolute(document):
    document["objects"] = [{"key": "/etc/passwd", "crc32c": "00000000", "nbytes": 6}]


def other_task(document):
    document["task"], document["stage"] = f"../{UP}/secret", UP


RECEIPTS = [chunk_elsewhere, object_elsewhere, object_absolute, other_task]


@pytest.mark.parametrize("change", RECEIPTS)
def test_keys_in_receipts_lead_nowhere_else(run, outside, change):
    rewrite(receipt_of(run, "solve"), change)
    with watched(outside) as touched:
        look_at(run)
        findings = [finding for checked in ntkpipe.verify(run, repair=True) for finding in checked.findings]
    assert touched == set()
    assert findings or change is other_task
    assert (outside / "secret").read_text() == "secret"


@pytest.mark.parametrize("change", [chunk_elsewhere, object_elsewhere, object_absolute])
def test_a_fork_takes_nothing_from_and_leaves_nothing_at_other_places(run, outside, tmp_path, change):
    rewrite(receipt_of(run, "solve"), change)
    fork = tmp_path / "forks" / "deep" / "fork"
    with watched(outside) as touched, suppress(NtkPipeError):
        ntkpipe.fork(run, fork)
    assert touched == set()
    assert not list((tmp_path / "forks").rglob("secret"))
    assert sorted(item.name for item in (tmp_path / "forks").iterdir()) == ["deep"]


def test_links_out_of_a_run_are_not_followed(run, outside):
    """Not even to the very bytes that were committed: what is not in the run can change behind its back."""
    hashes = chunk_hashes(run)
    chunk = next(run / key for key in hashes if key.startswith("data.zarr/kernel/ck/") and "/c/" in key)
    record = run / "solutions" / "krr.json"
    for file in (chunk, record):
        shutil.move(file, outside / file.name)
        file.symlink_to(outside / file.name)
    assert look_at(run)
    findings = [finding for checked in ntkpipe.verify(run) for finding in checked.findings]
    assert {finding.stage for finding in findings} == {"kernel", "solve"}


def test_a_folder_that_is_a_link_out_of_a_run_is_not_followed(run, outside):
    shutil.move(run / "data.zarr" / "solution", outside / "solution")
    (run / "data.zarr" / "solution").symlink_to(outside / "solution")
    kept = sorted((outside / "solution").rglob("*"))
    with pytest.raises(StorageError, match="symbolic link to something outside"):
        list(ntkpipe.verify(run))
    (run / "receipts" / "solve" / "krr.json").unlink()
    with pytest.raises(StorageError, match="symbolic link to something outside"):
        ntkpipe.resume(run)
    assert sorted((outside / "solution").rglob("*")) == kept


def test_a_run_that_is_reached_through_a_link_is_a_run(run, tmp_path):
    link = tmp_path / "link"
    link.symlink_to(run)
    assert ntkpipe.open_run(link).status().state == "finished"
    assert not any(checked.findings for checked in ntkpipe.verify(link))


LOOKING = """
import contextlib, io, sys
from ntkpipe.pipeline.cli import main

for command in {commands!r}:
    sys.argv = ["ntkpipe", *command]
    with contextlib.redirect_stdout(io.StringIO()) as output:
        try:
            main()
        except SystemExit as end:
            if end.code:
                raise
    print(command[0], len(output.getvalue()) > 0)
"""


def look_without_import(folder, commands):
    return subprocess.run(
        [sys.executable, "-c", LOOKING.format(commands=commands)],
        cwd=folder, env=os.environ | {"PYTHONPATH": str(TESTS)}, capture_output=True, text=True, check=False, timeout=300,
    )  # fmt: skip


def test_looking_at_a_run_imports_none_of_the_code_that_it_names(tmp_path, monkeypatch):
    module = tmp_path / "named_by_a_run.py"
    module.write_text("from golden import build_model, load\n")
    monkeypatch.syspath_prepend(tmp_path)
    split = {"kind": "python", "target": "named_by_a_run:load"}
    document = golden.config(
        model={"target": "named_by_a_run:build_model"}, data={"splits": {"train": split, "test": split}}
    )
    run = tmp_path / "runs" / "run"
    ntkpipe.run(document, run)
    module.write_text("open('imported', 'w').close()\nfrom golden import build_model, load\n")
    commands = [
        ["status", str(run)],
        ["status", str(run), "--json"],
        ["verify", str(run)],
        ["list", str(run.parent)],
        ["gc", str(run)],
        ["query", str(run), "kernel/ck"],
        ["query", str(run), "neighbors/ck"],
        ["query", str(run), "outputs/train"],
        ["query", str(run), "solution/krr"],
    ]
    done = look_without_import(tmp_path, commands)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("True") == len(commands)
    assert not (tmp_path / "imported").exists()
    assert look_without_import(tmp_path, [["resume", str(run)]]).returncode == 0
    assert (tmp_path / "imported").exists()


HOSTILE = "\x1b]0;owned\x07\x1b[2J[red]x[/blue]\u202egnp.exe\r\b"
CONTROLS = "\x1b\x07\r\b\u202e\x00\x9b"


def assert_plain(done):
    for text in (done.stdout, done.stderr):
        assert [char for char in CONTROLS if char in text] == []
        assert "Traceback" not in text
    return done.stdout + done.stderr


@pytest.fixture(scope="module")
def decorated(tmp_path_factory):
    """A run whose ids, folder, name and failures are made for the terminal of whoever looks at it."""
    run = tmp_path_factory.mktemp("runs") / "[red]x[/blue]"
    ids = [f"{HOSTILE}{position}" for position in range(4)]
    split = {"kind": "python", "target": "golden:load", "options": {"ids": ids}}
    ntkpipe.run(golden.config(data={"splits": {"train": split}}, solve=[]), run)
    stage, task = "kernel", "x"
    (run / "failed" / stage).mkdir(parents=True)
    failure = {
        "schema_version": 1, "stage": stage, "task": task, "epoch": 1, "attempt": 1, "kind": "exception",
        "message": HOSTILE, "failed_at": 0.0,
    }  # fmt: skip
    (run / "failed" / stage / f"{task}-000001-1.json").write_text(json.dumps(failure))
    return run


@pytest.mark.slow
@pytest.mark.parametrize(
    "arguments",
    [
        ["list", ".."],
        ["status", "."],
        ["query", ".", "ids/train"],
        ["query", ".", "kernel/ck"],
        ["query", ".", "neighbors/ck"],
        ["query", ".", "kernel/ck", "--rows", "id:nobody"],
        ["query", ".", f"kernel/{HOSTILE}"],
        ["verify", "."],
    ],
    ids=lambda arguments: " ".join(arguments[::2])[:30],
)
def test_what_a_run_holds_is_shown_on_a_terminal_as_plain_text(decorated, arguments):
    command, url, *rest = arguments
    url = str(decorated.parent if url == ".." else decorated)
    shown = assert_plain(ntkpipe_command(command, url, *rest))
    if command in ("query", "status"):
        assert r"\x1b" in shown
        assert "[red]x[/blue]" in shown


def test_a_hostile_name_in_a_manifest_is_shown_as_plain_text(decorated, tmp_path):
    run = shutil.copytree(decorated, tmp_path / "runs" / "run")
    rewrite(run / "run.json", lambda document: document.update(name=HOSTILE))
    assert_plain(ntkpipe_command("status", run))
    assert_plain(ntkpipe_command("list", run.parent))


@pytest.mark.slow
def test_files_get_ids_as_they_are(decorated, tmp_path):
    assert ntkpipe_command("query", decorated, "ids/train", "--out", tmp_path / "ids.json").returncode == 0
    assert json.loads((tmp_path / "ids.json").read_text())["row_ids"][0] == f"{HOSTILE}0"
    assert np.shape(ntkpipe.open_run(decorated).kernel("ck")[f"{HOSTILE}1", :]) in {(4,), (1, 4)}
