"""What a service makes of questions that are meant to hurt, of runs that lie, and of runs that change under its hands."""

import io
import json
import os
import shutil
from urllib.parse import quote

import numpy as np
import pytest
from contracts.readers import RUN, make_runs
from pydantic import ValidationError
from serving import ask

from ntkpipe.pipeline.query.stored import StoredRunReader
from ntkpipe.pipeline.server.app import create_app
from ntkpipe.pipeline.server.questions import MatrixForm
from ntkpipe.pipeline.server.settings import ServerSettings
from ntkpipe.storage import layout
from ntkpipe.storage.documents import seal_of
from ntkpipe.storage.ledger import Ledger
from ntkpipe.storage.objects import object_checksum
from ntkpipe.storage.stores.registry import open_store

BASE = f"/v1/runs/{quote(RUN)}"
BLOCK = "train-train/000001-000000"


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    folder = tmp_path_factory.mktemp("attacked")
    make_runs(folder)
    return folder


def make(root, **settings):
    return create_app(ServerSettings(root=str(root), access_log=False, **settings))


@pytest.fixture(scope="module")
def app(root):
    return make(root)


def npy(answer):
    assert answer.status_code == 200, answer.text
    return np.load(io.BytesIO(answer.content), allow_pickle=False)


def problem(answer, status, kind):
    found = answer.json()
    assert (answer.status_code, found["kind"]) == (status, kind), found
    return found


@pytest.mark.parametrize(
    "form",
    [
        {"rows": [0.5] * 1000},
        {"rows": [1] * 999 + ["x"]},
        {"cols": [None] * 1000},
        {"rows": [[1]] * 1000},
        {f"field-{number}": 1 for number in range(1000)},
    ],
    ids=["floats", "mixed", "nulls", "lists", "fields"],
)
def test_a_question_with_many_faults_is_refused_for_the_first_one(app, form):
    # Each fault that is told of takes time in which the service answers nobody; a request has room for a million.
    with pytest.raises(ValidationError) as found:
        MatrixForm.model_validate(form)
    assert found.value.error_count() == 1
    answer = ask(app, f"{BASE}/kernels/pntk", "POST", json=form)
    assert len(problem(answer, 422, "config")["detail"]) < 300


def test_names_that_are_long_are_not_repeated_whole_nor_compared_with_others(app):
    for path, form in (
        ("kernels/pntk", {"rows": [f"id:{'y' * 10**6}"]}),
        ("kernels/trntk0", {"layers": "[a-" * 10_000}),
        ("kernels/trntk0", {"layers": "x" * 100_000}),
        ("kernels/trntk0", {"transforms": "x" * 100_000}),
        ("kernels/trntk0", {"row_split": "x" * 100_000}),
    ):
        answer = ask(app, f"{BASE}/{path}", "POST", json=form)
        assert answer.status_code in (404, 422)
        assert len(answer.content) < 5000


@pytest.mark.parametrize(
    ("path", "status"),
    [
        ("events?after=99999999999999999999", 422),
        (f"receipts/kernel/{'a' * 1000}", 404),
        (f"receipts/kernel/{'a/' * 1000}a", 404),
        (f"receipts/{'a' * 1000}", 404),
        ("kernels/pntk?rows=1_0", 422),
        ("kernels/pntk?rows=%D9%A3", 422),
        ("kernels/pntk?rows=%D9%A3:", 422),
    ],
    ids=lambda value: str(value)[:30],
)
def test_numbers_and_names_beyond_all_bounds_are_refused(app, path, status):
    assert ask(app, f"{BASE}/{path}").status_code == status


def test_rows_without_columns_are_counted_too(root):
    app = make(root, max_cells=10, max_json_cells=10)
    assert npy(ask(app, f"{BASE}/kernels/pntk?cols=0:0&format=npy")).shape == (4, 0)
    rows = [0] * 11
    found = problem(ask(app, f"{BASE}/kernels/pntk", "POST", json={"rows": rows, "cols": []}), 413, "too-large")
    assert (found["limit"], found["asked"]) == (10, 11)


def test_neighbours_that_need_more_than_may_be_read_are_refused(root):
    app = make(root, max_read_bytes=3 * 4 * 8)
    assert ask(app, f"{BASE}/kernels/pntk/neighbors?rows=0").status_code == 200
    problem(ask(app, f"{BASE}/kernels/pntk/neighbors?rows=0&split=test&transforms=centred"), 413, "too-large")


def test_runs_behind_links_out_of_the_root_are_not_there(root, tmp_path):
    shutil.copytree(root / "plain", tmp_path / "inside")
    (tmp_path / "again").symlink_to("inside")
    (tmp_path / "outside").symlink_to(root / "plain")
    (tmp_path / "up").symlink_to(root)
    app = make(tmp_path)
    assert [item["run"] for item in ask(app, "/v1/runs").json()["runs"]] == ["again", "inside"]
    assert ask(app, "/v1/runs/again/status").status_code == 200
    for name in ("outside", "up", "up%2Fplain"):
        found = problem(ask(app, f"/v1/runs/{name}"), 404, "not-found")
        assert str(root) not in found["detail"]
    # A run that becomes a link while it is served is no longer there.
    shutil.rmtree(tmp_path / "inside")
    os.replace(tmp_path / "outside", tmp_path / "inside")
    problem(ask(app, "/v1/runs/inside"), 404, "not-found")
    # A root that is itself a link is a place that was chosen.
    (tmp_path / "root").symlink_to(root)
    assert ask(make(tmp_path / "root"), "/v1/runs/plain/status").status_code == 200


LIES = {
    "a split that predictions are of": lambda shape: shape["solution_splits"][0].append("nothing"),
    "no lists of splits": lambda shape: shape["solution_splits"].pop(),
    "targets of no solution": lambda shape: shape["solution_targets"].pop(),
    "no samples": lambda shape: shape["splits"]["train"].update(num_samples=0),
    "more samples than there are atoms": lambda shape: shape["splits"]["train"].update(num_samples=2**70),
    "negative classes": lambda shape: shape["splits"]["train"].update(num_targets=-1),
    "a wide kernel": lambda shape: shape["kernels"][0].update(width=10**9),
    "a kernel of no width": lambda shape: shape["kernels"][0].update(width=0),
    "no features": lambda shape: shape["kernels"][4].update(feature_dim=0),
    "two of a name": lambda shape: shape["kernels"][1].update(name="pntk"),
    "an orphan": lambda shape: shape["kernels"][6].update(parents=["nothing"]),
    "no parents": lambda shape: shape["kernels"][6].update(parents=[]),
    "its own parent": lambda shape: shape["kernels"][6].update(parents=["centred"]),
    "a parent of pairs": lambda shape: shape["kernels"][6].update(parents=["full"]),
    "no means": lambda shape: shape["kernels"][6].update(statistic_dim=None),
    "one of two members": lambda shape: shape["kernels"][0].update(cross=True),
    "blocks without end": lambda shape: shape.update(block_rows=2**70),
}


def reseal(run, change):
    document = json.loads((run / "run.json").read_text())
    change(document["geometry"])
    document["seal"] = seal_of(document)
    (run / "run.json").write_text(json.dumps(document))


@pytest.mark.parametrize("lie", LIES)
def test_a_manifest_that_cannot_be_true_is_unreadable(root, tmp_path, lie):
    shutil.copytree(root / RUN, tmp_path / "lie")
    reseal(tmp_path / "lie", LIES[lie])
    app = make(tmp_path)
    item = ask(app, "/v1/runs").json()["runs"][0]
    assert (item["state"], item["problem"].startswith("lie/run.json cannot be read (geometry")) == ("unreadable", True)
    problem(ask(app, "/v1/runs/lie/kernels/centred"), 503, "storage")


@pytest.mark.parametrize("num_samples", [5, 10**9, 2**40])
def test_more_samples_than_are_stored_take_no_memory(root, tmp_path, num_samples):
    shutil.copytree(root / RUN, tmp_path / "lie")
    reseal(tmp_path / "lie", lambda shape: shape["splits"]["train"].update(num_samples=num_samples))
    app = make(tmp_path)
    for path in (
        "kernels/pntk", "kernels/pntk?row_split=test", "kernels/pntk/neighbors?rows=0", "kernels/pntk/spectrum",
        "kernels/pntk/neighbors?rows=0&split=test", "kernels/pntk/diagonal", "kernels/pntk/overview",
        "kernels/pntk/order/stored", "kernels/trntk0?transforms=centred", "solutions/krr/attributions?split=test",
        "solutions/krr/attributions/summary?split=test&sample=0", "splits/train/outputs",
    ):  # fmt: skip
        answer = ask(app, f"/v1/runs/lie/{path}")
        assert answer.status_code in (404, 409, 413, 500), (path, answer.text)
        assert answer.json()["kind"] != "error", (path, answer.text)
    app.service.close()


def test_classes_that_the_run_does_not_have_are_damage(root, tmp_path):
    shutil.copytree(root / RUN, tmp_path / "lie")
    reseal(tmp_path / "lie", lambda shape: shape["splits"]["train"].update(num_targets=1))
    app = make(tmp_path)
    problem(ask(app, "/v1/runs/lie/splits/train/labels"), 500, "corrupt-chunk")
    problem(ask(app, "/v1/runs/lie/kernels/trntk0/spectrum"), 500, "corrupt-chunk")


def header(text):
    return b"\x93NUMPY\x01\x00" + len(text).to_bytes(2, "little") + text.encode()


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"no array",
        header("{'descr': '<f8', 'fortran_order': False, 'shape': (1000000000000,), }\n"),
        header("{'descr': '<f8', 'fortran_order': False, 'shape': (-1, -1), }\n") + bytes(8),
        header("{'descr': '|O', 'fortran_order': False, 'shape': (1,), }\n") + b"\x80\x04K*.",
    ],
    ids=["empty", "text", "giant", "negative", "pickle"],
)
def test_an_array_of_a_solution_that_is_none_is_damage(root, tmp_path, content):
    shutil.copytree(root / RUN, tmp_path / "lie")
    store = open_store(tmp_path / "lie")
    receipt = Ledger(store).receipt("solve", "krr")
    record = next(item for item in receipt.objects if item.key == layout.solution_record("krr"))
    document = json.loads(store.read(record.key))
    document["extras"] = ["path"]
    told = json.dumps(document).encode()
    extra = layout.solution_extra("krr", "path")
    objects = [
        item.model_copy(update={"crc32c": object_checksum(told), "nbytes": len(told)}) if item == record else item
        for item in receipt.objects
    ]
    added = record.model_copy(update={"key": extra, "crc32c": object_checksum(content), "nbytes": len(content)})
    store.put(record.key, told)
    store.put(extra, content)
    store.put("receipts/solve/krr.json", receipt.model_copy(update={"objects": (*objects, added)}).encode())
    problem(ask(make(tmp_path), "/v1/runs/lie/solutions/krr/extras/path"), 500, "corrupt-chunk")


def test_an_answer_that_tells_of_two_moments_has_no_etag(root, tmp_path, monkeypatch):
    shutil.copytree(root / "half", tmp_path / "half")
    app, path = make(tmp_path), "/v1/runs/half/kernels/pntk?format=npy&missing=nan"
    before = ask(app, path)
    reading = StoredRunReader.entries

    def committed_meanwhile(*arguments):
        task = f"receipts/kernel/{BLOCK}.json"
        shutil.copy(root / RUN / task, tmp_path / "half" / task)
        return reading(*arguments)

    monkeypatch.setattr(StoredRunReader, "entries", committed_meanwhile)
    between = ask(app, path)
    assert np.isfinite(npy(between)).all()
    assert "etag" not in between.headers
    assert between.headers["cache-control"] == "no-store"
    after = ask(app, path)
    assert after.content == between.content
    assert after.headers["etag"] != before.headers["etag"]
