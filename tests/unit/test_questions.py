"""Questions in a word: what goes with which, and the same answers as from the methods of a run."""

import golden
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from solving import run_config

import ntkpipe
from ntkpipe.configs.errors import ConfigError, NotFoundError, StorageError, TooLargeError
from ntkpipe.pipeline.cli.selection import read_selection
from ntkpipe.pipeline.query import questions
from ntkpipe.pipeline.query.limits import Limits
from ntkpipe.pipeline.query.run import Run
from ntkpipe.pipeline.query.selection import parse_selection
from ntkpipe.pipeline.query.stored import StoredRunReader
from ntkpipe.storage.stores.registry import open_store


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    sections = [
        {"kind": "cholesky", "name": "a"},
        {"kind": "gram", "name": "path", "kernel": "fourier_features", "ridges": [0.1, 1.0], "leave_one_out": True},
    ]
    return ntkpipe.run(run_config(sections), tmp_path_factory.mktemp("runs") / "stored")


def test_answers_are_those_of_the_run_with_the_ids_of_their_rows(run):
    rows = [5, 2]
    for what, expected, split in (
        ("features/fourier_features/test", run.features["fourier_features", "test"][rows], "test"),
        ("diagonal/laplace/test", run.diagonal("laplace", "test")[rows], "test"),
        ("solution/a", run.solution("a")[rows], "train"),
        ("prediction/a/test", run.predictions("a", "test")[rows], "test"),
        ("labels/test", run.labels("test")[rows], "test"),
        ("ids", np.array(rows), "train"),
        ("attribution/a/test", run.attributions("a", rows, "test"), "test"),
    ):
        found = run.ask(what, rows=rows)
        assert np.array_equal(found.values, expected), what
        assert found.row_ids == [run.ids(split)[5], run.ids(split)[2]]


def test_kernels_can_be_transformed_and_attributions_narrowed(run):
    found = run.ask("kernel/fourier_features/test-train", rows=[1], columns=slice(3, 5), transforms=("cosine",))
    assert np.array_equal(found.values, run.kernel("fourier_features", "test").cosine()[[1], 3:5])
    assert (found.row_ids, found.column_ids) == ([run.ids("test")[1]], run.ids("train")[3:5])
    found = run.ask("attribution/a/test", rows=0, columns=[7, 1], target=2)
    assert np.array_equal(found.values, run.attributions("a", [0], "test", target=2)[:, [7, 1]])
    assert found.column_ids == [run.ids("train")[7], run.ids("train")[1]]


def test_neighbors_and_spectra_are_tables(run):
    found = run.ask("neighbors/laplace/test", rows=[3, 0], k=2, opposed=True, label=1)
    expected = run.kernel("laplace", "test").neighbors([3, 0], 2, opposed=True, label=1)
    assert found.values == [[one.sample_id, one.value] for row in expected for one in row]
    assert found.row_ids == [run.ids("test")[i] for i in (3, 3, 0, 0)]
    found = run.ask("spectrum/laplace", max_samples=20)
    spectrum = run.spectrum("laplace", max_samples=20)
    assert (found.row_kind, found.row_ids[0], found.column_ids) == ("rank", "1", ["eigenvalue", "label_energy"])
    assert np.array_equal(found.values, np.stack([spectrum.eigenvalues, spectrum.label_energy], axis=1))


def test_rows_of_what_a_solver_leaves_are_numbered(run):
    errors = run.solution_extra("path", "path_loo")
    masks = [(kind([True, False]), [0]) for kind in (np.array, list)]
    for rows, at in ((slice(1, None), [1]), ([-1, 0], [1, 0]), *masks, (np.array([1]), [1]), (1, [1])):
        found = run.ask("extra/path/path_loo", rows=rows)
        assert np.array_equal(found.values, errors[at])
        assert (found.row_ids, found.row_kind) == ([str(i) for i in at], "row")
    with pytest.raises(NotFoundError, match="position 2 is outside of the 2 rows of 'path_loo'"):
        run.ask("extra/path/path_loo", rows=[2])
    with pytest.raises(ConfigError, match="a mask of 3 values cannot select from 2 rows"):
        run.ask("extra/path/path_loo", rows=np.ones(3, bool))
    with pytest.raises(NotFoundError, match="'a' is none of the 2 rows"):
        run.ask("extra/path/path_loo", rows=["a"])


@pytest.mark.parametrize(
    ("index", "error"),
    [
        (np.array(3), ConfigError),
        (np.zeros((2, 2), int), ConfigError),
        (1.5, ConfigError),
        ([1.0], ConfigError),
        (np.array([0.5]), ConfigError),
        (None, ConfigError),
        (b"ab", ConfigError),
        ({"a": 1}, ConfigError),
        ({1, 2}, ConfigError),
        (np.bool_(True), ConfigError),
        (slice("a", "b"), ConfigError),
        (slice(None, None, 0), ConfigError),
        (np.array([], bool), ConfigError),
        ([True, 3], ConfigError),
        (np.array([2**64 - 1], np.uint64), NotFoundError),
        (np.array([-91]), NotFoundError),
        ([10**30], NotFoundError),
    ],
    ids=repr,
)
def test_what_is_no_index_is_refused_in_a_word(run, index, error):
    with pytest.raises(error, match=r"samples of split 'train'|no slice of positions"):
        run.positions(index, "train")


def test_every_form_of_an_index_gives_positions(run):
    for index, at in (
        (range(3), [0, 1, 2]),
        ((2, np.int8(-1)), [2, 89]),
        (np.array([-1, 3], np.int8), [89, 3]),
        (np.array([7], np.uint8), [7]),
        (np.array(run.ids("train")[4:6], object), [4, 5]),
        ([], []),
    ):
        found = run.positions(index, "train")
        assert (found.tolist(), found.dtype) == (at, np.int64)


def test_outputs_of_some_rows_are_read_alone(run, tmp_path):
    network = ntkpipe.run(golden.config(solve=[]), tmp_path / "run")
    reader = StoredRunReader(open_store(tmp_path / "run"), limits=Limits(max_cells=3))
    expected = network.outputs("train")[[1]]
    assert np.array_equal(Run(reader).ask("outputs/train", rows=[1]).values, expected)
    with pytest.raises(TooLargeError):
        Run(reader).ask("outputs/train")


def test_standard_errors_of_pairs_have_a_name_for_each_row(tmp_path):
    run = ntkpipe.run(golden.config(kernels=[{"kind": "full"}], solve=[]), tmp_path / "run")
    found = run.ask("error/full", rows=[1], columns=[0, 2])
    assert (found.values.shape, len(found.row_ids), len(found.column_ids)) == ((2, 4), 2, 4)
    assert found.row_ids == run.ask("kernel/full", rows=[1]).row_ids


@pytest.mark.parametrize(
    ("what", "detail"),
    [
        ("kernel/laplace", {"label": 1}),
        ("neighbors/laplace", {"missing": "nan"}),
        ("neighbors/laplace", {"columns": [0]}),
        ("prediction/a/test", {"target": 0}),
        ("error/laplace", {"transforms": ("cosine",)}),
        ("component/laplace/x", {"layers": ("x",)}),
        ("features/fourier_features", {"opposed": True}),
        ("kernel/laplace", {"max_samples": 5}),
        ("spectrum/laplace", {"rows": [0]}),
        ("kernel/laplace", {"k": 7}),
    ],
)
def test_a_detail_that_would_be_ignored_is_refused(run, what, detail):
    with pytest.raises(ConfigError, match=f"{next(iter(detail))} belongs to .*, not to {what.partition('/')[0]}"):
        run.ask(what, **detail)


@pytest.mark.parametrize(
    "what",
    ["", "kernl/laplace", "kernel", "kernel/laplace/train-train/x", "spectrum", "attribution/a/test/x", "extra/a"],
)
def test_a_question_of_no_known_form_is_answered_with_those_that_there_are(run, what):
    with pytest.raises(ConfigError, match=r"Ask for kernel/NAME|is not of the form .*; splits: "):
        run.ask(what)


def test_an_unknown_detail_is_answered_with_the_nearest_one(run):
    with pytest.raises(ConfigError, match="did you mean 'columns'"):
        run.ask("kernel/laplace", colums=[0])


def test_an_answer_that_is_too_large_is_refused_before_it_is_read(run, monkeypatch):
    monkeypatch.setattr(questions, "LIMITS", Limits(max_cells=100))
    monkeypatch.setattr(type(run.reader), "entries", lambda *_: pytest.fail("entries are read"))
    for what, details in (("kernel/laplace", {"rows": [0, 1]}), ("attribution/a", {"rows": [0]})):
        with pytest.raises(TooLargeError, match="ask for at most 100") as caught:
            run.ask(what, **details)
        assert (caught.value.limit, caught.value.asked) == (100, 180 if what.startswith("k") else 270)


@settings(deadline=None)
@given(st.text(alphabet="0123456789:,-id @.ü²", max_size=12))
def test_any_text_is_a_selection_or_is_refused(text):
    try:
        found = parse_selection(text)
    except ConfigError:
        return
    if isinstance(found, slice):
        assert len(range(10)[found]) <= 10
    else:
        assert found
        assert len({type(item) for item in found}) == 1


def test_texts_select_what_they_say():
    assert parse_selection("2:10:3") == slice(2, 10, 3)
    assert parse_selection("-3:") == slice(-3, None, None)
    assert parse_selection("1,-5") == [1, -5]
    assert parse_selection("id:a:b,id:") == ["a:b", ""]
    for text in ("-:", "9" * 40, f"{'9' * 40}:", "0:1:0", "1,id:a", "@mask.npy"):
        with pytest.raises(ConfigError):
            parse_selection(text)


def test_files_select_by_mask_and_by_position(run, tmp_path):
    mask = np.arange(30) % 7 == 0
    for name, values in (("mask", mask), ("at", np.array([0, 29], np.int32))):
        np.save(tmp_path / f"{name}.npy", values)
    assert run.positions(read_selection(f"@{tmp_path}/mask.npy"), "test").tolist() == [0, 7, 14, 21, 28]
    assert run.positions(read_selection(f"@{tmp_path}/at.npy"), "test").tolist() == [0, 29]
    with pytest.raises(ConfigError, match="mask of 30 values cannot select from 90 samples"):
        run.positions(read_selection(f"@{tmp_path}/mask.npy"), "train")


def test_files_that_are_no_selection_are_refused(tmp_path):
    np.save(tmp_path / "floats.npy", np.zeros(3))
    np.save(tmp_path / "square.npy", np.zeros((3, 3), int))
    np.save(tmp_path / "objects.npy", np.array([print]), allow_pickle=True)
    np.savez(tmp_path / "several.npy.npz", a=np.zeros(3, int))
    (tmp_path / "text.npy").write_text("0,1,2")
    (tmp_path / "empty.npy").write_text("")
    for name in ("floats.npy", "square.npy", "objects.npy", "several.npy.npz", "text.npy", "empty.npy"):
        with pytest.raises(ConfigError, match=name):
            read_selection(f"@{tmp_path / name}")
    for name in ("nothing.npy", ""):
        with pytest.raises(StorageError, match="cannot be read"):
            read_selection(f"@{tmp_path / name}")
