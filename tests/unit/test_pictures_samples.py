"""Samples as people look at them: those of the run or none, and no code that a run names."""

import io
import os
import shutil

import numpy as np
import pictured
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from PIL import Image
from runs import edit_manifest

import ntkpipe
from ntkpipe.configs.errors import ConfigError
from ntkpipe.configs.sources import ArrayData, PythonData
from ntkpipe.pipeline.pictures.images import as_pixels, brightness, draw_image
from ntkpipe.pipeline.pictures.samples import SampleShelf
from ntkpipe.storage.stores.registry import open_store
from ntkpipe.workers.sources.data import SplitSource
from ntkpipe.workers.sources.showing import KNOWN_TARGETS, mistrust

PATIENCE = 30
"""Seconds in which a source must be loaded."""


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    folder = tmp_path_factory.mktemp("pictured")
    data = pictured.save(folder / "data")
    pictured.make_run(folder / "run", data)
    code = {
        "splits": {
            "train": {"kind": "python", "target": "pictured:load_and_tell", "options": {"texts": list("abcdef")}}
        }
    }
    pictured.make_run(folder / "code", code)
    return folder


@pytest.fixture
def run(made, tmp_path):
    """The run, with data of its own, so that tests may change both."""
    shutil.copytree(made / "run", tmp_path / "run")
    shutil.copytree(made / "data", tmp_path / "data")

    def move(document):
        for split, section in document["config"]["data"]["splits"].items():
            section["inputs"] = str(tmp_path / "data" / f"{split}.npz")

    edit_manifest(tmp_path / "run", move)
    return tmp_path / "run"


def show(path, split="train", position=0, **options):
    shelf = SampleShelf(wait_seconds=PATIENCE, **options)
    try:
        return shelf.show(ntkpipe.open_run(path), open_store(path), split, position)
    finally:
        shelf.close()


def pixels_of(shown):
    with Image.open(io.BytesIO(shown.png)) as picture:
        return np.array(picture)


@pytest.mark.parametrize(("split", "position"), [("train", 0), ("train", 29), ("test", 10)])
def test_an_image_has_the_pixels_of_its_input(run, split, position):
    shown = show(run, split, position)

    assert shown.kind == "image"
    with np.load(run.parent / "data" / f"{split}.npz") as data:
        expected = np.round(255 * data["inputs"][position, 0]).astype(np.uint8)
    np.testing.assert_array_equal(pixels_of(shown), expected)


def test_a_source_is_loaded_once_and_dropped_for_others(run):
    shelf, opened, store = SampleShelf(max_bytes=3000, wait_seconds=PATIENCE), ntkpipe.open_run(run), open_store(run)

    first = shelf.show(opened, store, "train", 0)
    os.rename(run.parent / "data/train.npz", run.parent / "data/hidden.npz")
    again = shelf.show(opened, store, "train", 0)
    shelf.show(opened, store, "test", 0)
    gone = shelf.show(opened, store, "train", 0)

    assert first.png == again.png
    assert gone.kind == "none"


def test_other_data_than_those_of_the_run_are_not_shown(run):
    file = run.parent / "data/train.npz"
    with np.load(file) as data:
        contents = dict(data)
    secret = contents["inputs"].copy()
    secret[3] = 0.5
    np.savez(file, **(contents | {"inputs": secret}))

    changed, whole = show(run, position=3), show(run, position=29)
    trusted = show(run, position=3, trust_code=True)

    assert changed.kind == trusted.kind == "none"
    assert "their inputs differ" in changed.why
    assert whole.kind == "image"
    np.savez(file, **(contents | {"ids": contents["ids"][::-1]}))
    assert "their ids differ" in show(run).why


def test_data_that_are_gone_are_told_without_their_place(run):
    (run.parent / "data/train.npz").write_bytes(b"nothing")

    shown = show(run)

    assert shown.kind == "none"
    assert str(run.parent) not in shown.why


def test_a_shard_that_is_not_computed_yet_is_not_shown(run):
    store = open_store(run)
    store.delete("receipts/features/train/00000000.json")

    assert "not been computed yet" in show(run, position=0).why
    assert show(run, position=8).kind == "image"


def test_code_that_a_run_names_is_not_run_unless_the_run_is_trusted(made):
    before = len(pictured.RAN)

    shown = show(made / "code")
    assert len(pictured.RAN) == before
    trusted = show(made / "code", position=2, trust_code=True)

    assert shown.kind == "none"
    assert "--trust-code" in shown.why
    assert (trusted.kind, trusted.text) == ("text", "c")
    assert len(pictured.RAN) == before + 1


@pytest.mark.parametrize(
    "target",
    [
        "ntkpipe.workers.sources.imports:call",
        "ntkpipe.workers.examples.train:main",
        "os:system",
        "ntkpipe.workers.examples.digits:build_model",
    ],
)
def test_only_known_loaders_of_ntkpipe_are_called(target):
    assert "not run just for looking" in mistrust(PythonData(target=target), "/runs/a", 10**9)
    assert all(mistrust(PythonData(target=known), "/runs/a", 10**9) is None for known in KNOWN_TARGETS)


@pytest.mark.parametrize(
    ("location", "run_url", "trusted"),
    [
        ("package://ntkpipe.workers.examples/digits_cnn.safetensors", "/runs/a", True),
        ("package://evil.package/x.npy", "/runs/a", False),
        ("s3://bucket/data/x.npy", "s3://bucket/runs/a", True),
        ("s3://other/data/x.npy", "s3://bucket/runs/a", False),
        ("http://169.254.169.254/latest/meta-data", "/runs/a", False),
        ("http://169.254.169.254/latest/meta-data", "s3://bucket/runs/a", False),
        ("simplecache::http://other/x.npy", "http://other/runs/a", False),
        ("file:///dev/zero", "/runs/a", False),
        ("/dev/zero", "/runs/a", False),
        ("/nothing/here.npy", "/runs/a", False),
        (__file__, "/runs/a", True),
        (f"file://{__file__}", "/runs/a", True),
    ],
)
def test_only_plain_files_and_places_beside_the_run_are_opened(location, run_url, trusted):
    assert (mistrust(ArrayData(inputs=location), run_url, 10**9) is None) == trusted
    data = ArrayData(inputs=__file__, labels=location)
    assert (mistrust(data, run_url, 10**9) is None) == trusted


def test_a_pipe_or_a_huge_file_is_not_opened(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "large").write_bytes(b"0" * 101)

    assert mistrust(ArrayData(inputs=str(tmp_path / "pipe")), "/runs/a", 100) is not None
    assert mistrust(ArrayData(inputs=str(tmp_path / "large")), "/runs/a", 100) is not None
    assert mistrust(ArrayData(inputs=str(tmp_path / "large")), "/runs/a", 101) is None


def test_texts_are_carried_by_samples_and_change_no_digest():
    plain, told = (
        SplitSource("a", PythonData(target="pictured:load_and_tell", options={"texts": texts}))
        for texts in (None, list("uvwxyz"))
    )

    assert told.texts == tuple("uvwxyz")
    assert plain.texts is None
    assert plain.fingerprint(plain.digests(4)) == told.fingerprint(told.digests(4))


@pytest.mark.parametrize("texts", ["abcdef", ["a"], [1, 2, 3, 4, 5, 6]])
def test_texts_must_be_one_for_each_sample(texts):
    with pytest.raises(ConfigError, match="as many texts"):
        SplitSource("a", PythonData(target="pictured:load_and_tell", options={"texts": texts}))


@pytest.mark.parametrize(
    ("shape", "pixels"),
    [
        ((5, 4), (5, 4)),
        ((1, 5, 4), (5, 4)),
        ((5, 4, 1), (5, 4)),
        ((3, 5, 4), (5, 4, 3)),
        ((5, 4, 3), (5, 4, 3)),
        ((3, 5, 3), (5, 3, 3)),
        ((7,), None),
        ((), None),
        ((1, 1), None),
        ((2, 5, 4), None),
        ((2, 3, 4, 5), None),
        ((0, 4), None),
        ((1, 4000), None),
    ],
)
def test_what_is_an_image_is_told_by_its_shape(shape, pixels):
    values = np.arange(int(np.prod(shape)), dtype=np.float32).reshape(shape)

    found = as_pixels(values)

    assert (None if found is None else found.shape) == pixels
    if shape == (3, 5, 4):
        np.testing.assert_array_equal(found[2, 1], values[:, 2, 1])


def test_brightness_follows_what_the_numbers_mean():
    assert brightness(np.zeros((2, 3, 3), np.uint8)) == (0.0, 255.0)
    assert brightness(np.zeros((2, 3, 3), bool)) == (0.0, 1.0)
    assert brightness(np.array([[[0.1, 0.9]]])) == (0.0, 1.0)
    assert brightness(np.array([[[-2.0, 6.0]]])) == (-2.0, 6.0)
    assert brightness(np.array([[[3.0, 3.0]]])) == (3.0, 4.0)


@given(arrays.arrays(np.float32, (3, 4), elements=st.floats(-100, 100, width=32)))
def test_every_image_is_drawn(pixels):
    low, high = brightness(pixels[None])
    with Image.open(io.BytesIO(draw_image(pixels, low, high))) as picture:
        drawn = np.array(picture).astype(float)

    np.testing.assert_allclose(low + drawn / 255 * (high - low), pixels, atol=(high - low) / 509)
