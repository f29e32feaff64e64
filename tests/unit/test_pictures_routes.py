"""Pictures as the service answers with them, asked inside the process."""

import io
import shutil
import threading
import time
from urllib.parse import quote

import numpy as np
import pictured
import pytest
from PIL import Image
from serving import ask

import ntkpipe
from ntkpipe.pipeline.pictures.colours import colours, indices
from ntkpipe.pipeline.pictures.gallery import Gallery
from ntkpipe.pipeline.pictures.samples import SampleShelf
from ntkpipe.pipeline.pictures.workshop import Building
from ntkpipe.pipeline.query.stored import StoredRunReader
from ntkpipe.pipeline.server.app import create_app
from ntkpipe.pipeline.server.settings import ServerSettings
from ntkpipe.storage.stores.registry import open_store

KERNEL = "/v1/runs/whole/kernels/wide"


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    """A finished run, the same one half finished, one of fewer samples, and one whose samples come from code."""
    folder = tmp_path_factory.mktemp("served")
    data = pictured.save(folder / "data")
    pictured.make_run(folder / "runs/whole", data)
    shutil.copytree(folder / "runs/whole", folder / "runs/half")
    open_store(folder / "runs/half").delete("receipts/kernel/train-train/000002-000001.json")
    pictured.make_run(folder / "runs/short", pictured.save(folder / "short", num=20))
    code = {"kind": "python", "target": "pictured:load_and_tell"}
    pictured.make_run(folder / "runs/code", {"splits": {"train": code}})
    return folder / "runs"


@pytest.fixture(scope="module")
def run(root):
    return ntkpipe.open_run(root / "whole")


@pytest.fixture(scope="module")
def app(root):
    made = create_app(ServerSettings(root=str(root), access_log=False))
    yield made
    made.service.close()


def ready(app, path, **options):
    """Ask until it is ready."""
    limit = time.monotonic() + 30
    while (answer := ask(app, path, **options)).status_code == 202:
        assert answer.json()["state"] == "building"
        assert answer.headers["retry-after"] == "1"
        assert time.monotonic() < limit
    return answer


def loaded(app, path):
    """Ask for a sample until its data set is loaded."""
    limit = time.monotonic() + 30
    while (answer := ask(app, path)).json()["shown_as"] == "loading":
        assert answer.headers["retry-after"] == "1"
        assert time.monotonic() < limit
    return answer.json()


def until_ready(ask_for):
    """Ask until it is ready."""
    limit = time.monotonic() + 30
    while isinstance(found := ask_for(), Building):
        assert time.monotonic() < limit
    return found


def problem(answer, status, kind):
    assert answer.status_code == status, answer.text
    assert answer.headers["content-type"] == "application/problem+json"
    assert answer.json()["kind"] == kind
    return answer.json()["detail"]


def pixels(answer):
    assert answer.status_code == 200, answer.text
    assert answer.headers["content-type"] == "image/png"
    with Image.open(io.BytesIO(answer.content)) as picture:
        return np.array(picture.convert("RGBA"))


@pytest.mark.parametrize("order", ["stored", "id", "class", "cluster"])
@pytest.mark.parametrize("split", ["train", "test"])
def test_a_tile_shows_the_entries_in_the_order_that_is_told(app, run, split, order):
    options = {"row_split": split, "order": order}
    overview = ready(app, f"{KERNEL}/overview", params=options).json()
    rows, columns = (
        ready(app, f"{KERNEL}/order/{order}", params={"row_split": split, "split": side}).json()["values"]
        for side in (split, "train")
    )
    scale = {"low": 0.1, "high": 0.9, "palette": "dusk"}

    drawn = pixels(ready(app, f"{KERNEL}/tiles/0/0/0.png", params=options | scale))

    assert sorted(rows) == list(range(len(run.ids(split))))
    entries = run.kernel("wide", split)[rows, columns]
    expected = colours("dusk")[indices(entries, 0.1, 0.9)]
    np.testing.assert_array_equal(drawn[: len(rows), : len(columns), :3], expected)
    assert (drawn[len(rows) :, :, 3] == 0).all()
    assert (overview["rows"], overview["columns"], overview["levels"]) == (len(rows), 30, 1)
    assert overview["orders"] == ["stored", "id", "class", "cluster"]
    covered = [place for group in overview["groups"] for place in range(group["start"], group["stop"])]
    assert covered == (list(range(len(rows))) if order in ("class", "cluster") else [])
    if order == "class":
        for group in overview["groups"]:
            assert {str(run.labels(split)[at]) for at in rows[group["start"] : group["stop"]]} == {group["label"]}


def test_transforms_and_the_colours_of_the_picture_are_those_that_are_told(app, run):
    options = {"transforms": "centred"}
    overview = ready(app, f"{KERNEL}/overview", params=options).json()

    drawn = pixels(ready(app, f"{KERNEL}/tiles/0/0/0.png", params=options))

    entries = run.kernel("wide", transforms=["centred"])[:, :]
    assert (overview["palette"], overview["missing"]) == ("balance", 0)
    bound = max(-overview["low"], overview["high"])
    np.testing.assert_array_equal(drawn[:30, :30, :3], colours("balance")[indices(entries, -bound, bound)])
    assert overview["palettes"]["balance"][0] == "#" + colours("balance")[0].tobytes().hex()
    np.testing.assert_allclose(overview["quantiles"]["0.5"], np.median(entries), rtol=1e-5)


def test_what_a_pixel_shows_is_the_entry_under_it(app, run):
    order = ready(app, f"{KERNEL}/order/class").json()["values"]

    told = ready(app, f"{KERNEL}/hover", params={"row": 7, "column": 19, "order": "class"}).json()

    row, column = order[7], order[19]
    assert told["value"] == run.kernel("wide")[row, column]
    assert told["of"] == 1
    assert told["row"] == {
        "id": run.sample_ids[row],
        "position": row,
        "label": run.labels("train")[row],
        "output": None,
    }
    assert told["column"]["id"] == run.sample_ids[column]
    assert told["error"] == 0


def test_a_picture_has_an_etag_until_it_changes(app):
    path = f"{KERNEL}/tiles/0/0/0.png"
    first = ready(app, path)

    again = ask(app, path, headers={"if-none-match": first.headers["etag"]})
    other = ask(app, f"{path}?low=0&high=2", headers={"if-none-match": first.headers["etag"]})

    assert (again.status_code, again.content) == (304, b"")
    assert other.status_code == 200
    assert first.headers["ntkpipe-exact"] == "true"
    assert first.headers["ntkpipe-entries"] == "1"
    overview = ask(app, f"{KERNEL}/overview")
    assert ask(app, f"{KERNEL}/overview", headers={"if-none-match": overview.headers["etag"]}).status_code == 304


def test_two_services_draw_the_same_pictures_with_the_same_etags(app, root):
    other = create_app(ServerSettings(root=str(root), access_log=False))
    try:
        path = f"{KERNEL}/tiles/0/0/0.png?order=cluster"
        one, two = ready(app, path), ready(other, path)
    finally:
        other.service.close()
    assert one.headers["etag"] == two.headers["etag"]
    assert one.content == two.content


def test_blocks_that_are_not_committed_are_hatched_and_the_picture_is_not_kept_by_clients(app):
    base = "/v1/runs/half/kernels/wide"
    overview = ready(app, f"{base}/overview")
    tile = ready(app, f"{base}/tiles/0/0/0.png")

    assert overview.json()["incomplete"]
    assert overview.json()["missing"] == 2 * 8 * 8
    assert overview.headers["cache-control"] == tile.headers["cache-control"] == "no-store"
    alphas = pixels(tile)[:30, :30, 3]
    expected = np.zeros((30, 30), bool)
    expected[16:24, 8:16] = expected[8:16, 16:24] = True
    np.testing.assert_array_equal(alphas < 255, expected)
    hover = ready(app, f"{base}/hover?row=17&column=9").json()
    assert hover["value"] is None
    problem(ready(app, f"{base}/overview?order=cluster"), 409, "chunk-not-ready")


def test_the_picture_of_a_run_that_goes_on_follows_it(root, tmp_path):
    shutil.copytree(root / "half", tmp_path / "going")
    run, gallery = ntkpipe.open_run(tmp_path / "going"), Gallery(refresh_seconds=0.0)
    try:
        query = run.kernel("wide")
        before = until_ready(lambda: gallery.overview(run, query, "stored"))
        task = "receipts/kernel/train-train/000002-000001.json"
        shutil.copy(root / "whole" / task, tmp_path / "going" / task)
        limit = time.monotonic() + 30
        while (after := until_ready(lambda: gallery.overview(run, query, "stored"))).num_missing_entries:
            assert time.monotonic() < limit
            time.sleep(0.02)
    finally:
        gallery.close()
    assert before.num_missing_entries == 2 * 8 * 8
    np.testing.assert_array_equal(after.draw(0, 0, 0).means, query[:, :])
    assert after.version != before.version


def test_two_kernels_are_compared_and_other_samples_refused(app, run):
    told = ready(app, "/v1/runs/whole/compare?one=wide&other=narrow").json()

    one, other = (run.kernel(name)[:, :].astype(np.float64) for name in ("wide", "narrow"))
    assert told["correlation"] == pytest.approx(np.corrcoef(one.ravel(), other.ravel())[0, 1], abs=1e-9)
    assert told["relative_difference"] == pytest.approx(np.linalg.norm(one - other) / np.linalg.norm(one))
    assert (told["samples"], told["num_samples"], told["sampled"]) == (30, 30, False)
    copied = ready(app, "/v1/runs/whole/compare?one=wide&other=wide&with=half")
    problem(copied, 409, "chunk-not-ready")
    assert "20" in problem(ask(app, "/v1/runs/whole/compare?one=wide&other=wide&with=short"), 409, "run-mismatch")
    problem(ask(app, "/v1/runs/whole/compare?one=wide&other=wide&with=none"), 404, "not-found")


@pytest.mark.parametrize(
    ("path", "status", "kind"),
    [
        ("tiles/0/0/1.png", 404, "not-found"),
        ("tiles/1/0/0.png", 404, "not-found"),
        ("tiles/65/0/0.png", 422, "config"),
        ("tiles/a/0/0.png", 422, "config"),
        ("tiles/-1/0/0.png", 422, "config"),
        ("tiles/0/0/0.png?low=2&high=1", 422, "config"),
        ("tiles/0/0/0.png?low=nan", 422, "config"),
        ("tiles/0/0/0.png?palette=rainbow", 422, "config"),
        ("tiles/0/0/0.png?colour=red", 422, "config"),
        ("tiles/0/0/0.jpg", 404, "not-found"),
        ("overview?order=random", 422, "config"),
        ("overview?transforms=log", 422, "config"),
        ("overview?row_split=none", 404, "not-found"),
        ("overview?layers=a", 404, "not-found"),
        ("order/random", 422, "config"),
        ("order/class?split=none", 404, "not-found"),
        ("hover?row=30&column=0", 404, "not-found"),
        ("hover?row=0&column=30", 404, "not-found"),
        ("hover?row=0&column=0&level=1", 404, "not-found"),
        ("hover?row=0&column=0&level=1000", 404, "not-found"),
        ("hover?row=0&column=0&level=-1", 422, "config"),
        ("hover?row=0&column=-1", 422, "config"),
        ("hover?row=0", 422, "config"),
    ],
)
def test_what_cannot_be_drawn_is_refused(app, path, status, kind):
    problem(ready(app, f"{KERNEL}/{path}"), status, kind)


@pytest.mark.parametrize("path", ["overview", "tiles/0/0/0.png", "hover", "order/class", "compare"])
def test_a_question_with_many_fields_is_refused_as_a_whole(app, path):
    path = "/v1/runs/whole/compare" if path == "compare" else f"{KERNEL}/{path}"

    answer = ask(app, path, params={f"field-{number}": "" for number in range(51)})

    assert "51 fields were given; no question has more than 50" in problem(answer, 422, "config")


@pytest.mark.parametrize("sample", ["0", quote(f"id:{pictured.HOSTILE}", safe="")])
def test_a_sample_is_told_and_drawn(app, run, root, sample):
    base = f"/v1/runs/whole/splits/train/samples/{sample}"

    told, picture = loaded(app, base), ready(app, f"{base}/picture")

    assert told["id"] == pictured.HOSTILE
    assert (told["position"], told["label"]) == (0, int(run.labels("train")[0]))
    assert (told["outputs"], told["predictions"]) == (None, {})
    assert (told["shown_as"], told["text"], told["why"]) == ("image", None, None)
    with np.load(root.parent / "data/train.npz") as data:
        grey = np.round(255 * data["inputs"][0, 0]).astype(np.uint8)
    np.testing.assert_array_equal(pixels(picture)[:, :, 0], grey)
    same = ask(app, f"{base}/picture", headers={"if-none-match": picture.headers["etag"]})
    assert same.status_code == 304


def test_a_sample_is_told_while_its_data_set_is_loaded(root, run, monkeypatch):
    go, opened = threading.Event(), SampleShelf._opened
    monkeypatch.setattr(SampleShelf, "_opened", lambda *given: go.wait(30) and opened(*given))
    app, base = create_app(ServerSettings(root=str(root), access_log=False)), "/v1/runs/whole/splits/train/samples/2"
    try:
        told, picture = ask(app, base), ask(app, f"{base}/picture")
        assert (told.status_code, told.json()["shown_as"], told.headers["retry-after"]) == (200, "loading", "1")
        assert told.json()["label"] == int(run.labels("train")[2])
        assert (picture.status_code, picture.json()["state"]) == (202, "building")
        go.set()
        assert loaded(app, base)["shown_as"] == "image"
        assert ready(app, f"{base}/picture").headers["content-type"] == "image/png"
    finally:
        go.set()
        app.service.close()


def test_a_spectrum_is_made_once_in_the_background_for_who_would_ask_again(app, run, monkeypatch):
    go, made, spectrum = threading.Event(), [], StoredRunReader.spectrum

    def slow(*given):
        made.append(given)
        assert go.wait(30)
        return spectrum(*given)

    monkeypatch.setattr(StoredRunReader, "spectrum", slow)
    path, early = f"{KERNEL}/spectrum?max_samples=7", {"headers": {"prefer": "wait=9, Respond-Async"}}

    first = ask(app, path, **early)
    go.set()
    found, waited = ready(app, path, **early), ask(app, path)

    assert (first.status_code, first.json()["state"]) == (202, "building")
    assert "etag" not in first.headers
    assert len(made) == 1
    np.testing.assert_array_equal(found.json()["eigenvalues"], run.spectrum("wide", max_samples=7).eigenvalues)
    assert (waited.json(), waited.headers["etag"]) == (found.json(), found.headers["etag"])


def test_a_sample_of_code_is_not_shown_and_says_why(app):
    before = len(pictured.RAN)

    told = loaded(app, "/v1/runs/code/splits/train/samples/3")

    assert told["shown_as"] == "none"
    assert "--trust-code" in told["why"]
    assert "--trust-code" in problem(ask(app, "/v1/runs/code/splits/train/samples/3/picture"), 404, "not-found")
    assert len(pictured.RAN) == before


@pytest.mark.parametrize(
    ("sample", "status"),
    [("30", 404), ("-1", 422), ("one", 422), ("id:none", 404), ("1" * 400, 422), ("%00", 422), ("id:..%2F..", 404)],
)
def test_a_sample_that_does_not_exist_is_not_found(app, sample, status):
    answer = ask(app, f"/v1/runs/whole/splits/train/samples/{sample}")

    problem(answer, status, {404: "not-found", 422: "config"}[status])
