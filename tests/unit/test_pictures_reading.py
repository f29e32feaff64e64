"""What pictures may read: counted before anything is read, and limited by a setting of the service."""

import re
import time

import pictured
import pytest
import typer
from serving import ask

import ntkpipe
from ntkpipe.configs.errors import ConfigError, TooLargeError
from ntkpipe.pipeline.cli import app as command
from ntkpipe.pipeline.pictures.gallery import Gallery
from ntkpipe.pipeline.pictures.overview import PictureLimits
from ntkpipe.pipeline.pictures.workshop import Building
from ntkpipe.pipeline.server.app import create_app
from ntkpipe.pipeline.server.settings import ServerSettings
from ntkpipe.storage.kernel import StoredMatrix

TILE = 8 * 8 * 4
TRAIN = 10 * TILE
"""The triangle of four blocks of 8 of 30 samples."""
TEST = 2 * 4 * TILE
"""Of 11 samples and the training samples."""

COSTS = {
    "kernels/wide/overview": TRAIN,
    "kernels/wide/tiles/0/0/0.png": TRAIN,
    "kernels/wide/hover?row=0&column=0": TRAIN,
    "kernels/wide/overview?row_split=test": TEST,
    "kernels/wide/overview?order=cluster": 2 * TRAIN,
    "kernels/wide/order/cluster": TRAIN,
    "kernels/wide/order/cluster?split=test": TRAIN + TEST,
    "kernels/wide/overview?order=cluster&row_split=test": 2 * TEST + 2 * TRAIN,
    "kernels/wide/overview?transforms=centred": 2 * TRAIN,
    "kernels/wide/overview?transforms=centred&order=cluster": 3 * TRAIN,
    "kernels/wide/overview?transforms=cosine": TRAIN,
    "compare?one=wide&other=narrow": 2 * TRAIN,
    "compare?one=wide&other=narrow&transforms=centred": 4 * TRAIN,
}


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    """A run of two kernels and their sum, and the same with larger blocks."""
    folder = tmp_path_factory.mktemp("served")
    data = pictured.save(folder / "data")
    terms = [{"of": "wide"}, {"of": "narrow"}, {"of": "narrow", "weight": 0.5}]
    kernels = [*pictured.KERNELS, {"kind": "sum", "name": "all", "terms": terms}]
    pictured.make_run(folder / "runs/whole", data, kernels=kernels)
    pictured.make_run(folder / "runs/coarse", data, store={"shard_rows": 12, "block_rows": 12})
    return folder / "runs"


@pytest.fixture
def unread(monkeypatch):
    """Nothing may be read of a kernel."""

    def read(*_):
        raise AssertionError("a block of a kernel was read")

    for method in ("tile", "part"):
        monkeypatch.setattr(StoredMatrix, method, read)


def ready(root, path, limit):
    """Ask a service with a limit of its own until it is ready."""
    app, until = (
        create_app(ServerSettings(str(root), access_log=False, picture_read_bytes=limit)),
        time.monotonic() + 30,
    )
    try:
        while (answer := ask(app, f"/v1/runs/whole/{path}")).status_code == 202:
            assert time.monotonic() < until
        return answer
    finally:
        app.service.close()


@pytest.mark.parametrize("path", COSTS)
def test_a_picture_that_would_read_too_much_is_refused_before_it_does(root, unread, path):
    answer = ready(root, path, COSTS[path] - 1)

    assert answer.status_code == 413, answer.text
    found = answer.json()
    assert (found["kind"], found["limit"], found["asked"]) == ("too-large", COSTS[path] - 1, COSTS[path])
    options = [name for one in typer.main.get_command(command).commands["serve"].params for name in one.opts]
    assert set(re.findall(r"--[a-z-]+", found["detail"])) == {"--picture-read-bytes"} <= set(options)


@pytest.mark.parametrize("path", COSTS)
def test_a_picture_may_read_as_much_as_the_limit(root, path):
    assert ready(root, path, COSTS[path]).status_code == 200


@pytest.mark.parametrize("path", ["order/stored", "order/id", "order/class"])
def test_orders_that_read_nothing_of_a_kernel_have_no_limit(root, unread, path):
    assert ready(root, f"kernels/wide/{path}", 1).status_code == 200


def test_a_picture_of_a_derived_kernel_reads_what_it_is_made_of(root, unread):
    answer = ready(root, "kernels/all/overview", 1)

    assert (answer.status_code, answer.json()["asked"]) == (413, 3 * TRAIN)


def test_kernels_whose_blocks_do_not_divide_each_other_are_compared_within_the_limit(root, monkeypatch):
    one, other, read = ntkpipe.open_run(root / "whole"), ntkpipe.open_run(root / "coarse"), []
    first, second = (run.kernel("wide").name for run in (one, other))
    for method in ("tile", "part"):
        before = getattr(StoredMatrix, method)
        monkeypatch.setattr(
            StoredMatrix,
            method,
            lambda self, *given, before=before: read.append(self.tile_bytes) or before(self, *given),
        )

    def compared(limit):
        gallery = Gallery(limits=PictureLimits(max_read_bytes=limit), wait_seconds=30)
        try:
            return gallery.comparison(one, first, other, second)
        finally:
            gallery.close()

    with pytest.raises(TooLargeError) as caught:
        compared(1)
    assert not read
    found = compared(caught.value.asked)
    assert not isinstance(found, Building)
    assert found.relative_difference == pytest.approx(0, abs=1e-6)
    assert sum(read) <= caught.value.asked + sum({matrix.tile_bytes for matrix in map(_matrix, (one, other))})


def _matrix(run):
    return run.reader.matrix(run.kernel("wide").name)


def test_a_limit_below_one_is_refused():
    with pytest.raises(ConfigError, match="picture-read-bytes is 0; expected at least 1"):
        ServerSettings("runs", picture_read_bytes=0)
