"""The contract of every reader of runs: storage itself, or a service before it.

A test module imports these tests and provides the fixture ``opened``, which returns the :class:`Run` of one of the runs that
:func:`make_runs` makes. What is expected is known by hand, or computed densely in float64 from what a run must hold.
"""

import shutil
from concurrent.futures import ThreadPoolExecutor
from functools import partial

import golden
import numpy as np
import pytest

import ntkpipe
from ntkpipe.configs.errors import ChunkNotReadyError, ConfigError, CorruptChunkError, NotFoundError
from ntkpipe.storage.ledger import Ledger
from ntkpipe.storage.stores.registry import open_store
from ntkpipe.workers.sources.samples import Samples

IDS = ["x,0", "id:x1", "ü/2?#%20&+=", "0:3"]
"""Of the training samples; they must come through texts, URLs and JSON as they are."""

SPLIT = {"kind": "python", "target": "golden:load"}
DATA = {"splits": {"train": SPLIT | {"options": {"ids": IDS}}, "test": SPLIT}}
MODEL = {"target": "golden:build_model"}
MEMBERS = {"target": "golden:build_member", "members": {"early": {}, "late": {"options": {"shift": 0.25}}}}
STORE = {"shard_rows": 2, "block_rows": 2, "dtype": "float64"}
KERNELS = [
    {"kind": "trntk0", "layerwise": True},
    {"kind": "trntk"},
    {"kind": "pntk"},
    {"kind": "full"},
    {"kind": "pntk", "name": "sketch", "projection": {"kind": "sjlt", "dim": 16}},
    {"kind": "trntk0", "name": "layers", "projection": {"kind": "rademacher", "dim": 4}, "layerwise": True},
    {"kind": "centred", "name": "centred", "of": "trntk0"},
]
SOLVE = [
    {"kind": "cholesky", "name": "krr", "kernel": "trntk0", "ridge": 1.0},
    {"kind": "cholesky", "name": "path", "kernel": "sketch", "ridge": 1.0},
]
EXACT = {"trntk0": golden.TRNTK0, "pntk": golden.PNTK}

RUN = "a run, 50% ü"
"""Its name is a part of the service's URLs."""


def make_runs(folder):
    """Make, in a folder, a finished run, one of an ensemble, one that is not finished, a damaged one, and one without labels."""
    document = golden.config(
        model=MODEL, data=DATA, kernels=KERNELS, solve=SOLVE, store=STORE, analyses=[{"kind": "fidelity"}]
    )
    ntkpipe.run(document, folder / RUN)
    shutil.copytree(folder / RUN, folder / "half")
    store = open_store(folder / "half")
    ledger = Ledger(store)
    for stage, task in (("kernel", "train-train/000001-000000"), ("solve", "krr"), ("features", "test/00000001")):
        assert task in ledger.committed(stage)
        store.delete(f"receipts/{stage}/{task}.json")
    shutil.copytree(folder / RUN, folder / "damaged")
    for chunk in (folder / "damaged/data.zarr/kernel/pntk/train-train/c").rglob("*"):
        if chunk.is_file():
            chunk.write_bytes(chunk.read_bytes()[:-9] + b"\0" * 9)
    kernels = [{"kind": "trntk0"}, {"kind": "trntk0", "name": "cross", "cross": ["early", "late"]}]
    kernels.append({"kind": "pntk", "name": "sketch", "projection": {"kind": "sjlt", "dim": 16}})
    ntkpipe.run(golden.config(model=MEMBERS, data=DATA, kernels=kernels, solve=[], store=STORE), folder / "members")
    kernels = [{"kind": "gaussian", "bandwidth": 2.0}]
    data = {"splits": {"train": {"kind": "python", "target": "contracts.readers:load_without_labels"}}}
    ntkpipe.run({"name": "plain", "data": data, "kernels": kernels, "store": STORE}, folder / "plain")


def load_without_labels():
    """The golden samples alone."""
    return Samples(golden.load().inputs, None, golden.IDS)


def whole(run, name, rows=None, columns=None, **options):
    return run.kernel(name, rows, columns, **options)[:, :]


def dense(run, name):
    """A kernel matrix in float64."""
    return np.asarray(whole(run, name), dtype=np.float64)


def test_a_run_says_what_it_is_and_how_far(opened):
    run = opened(RUN)
    assert run.manifest.name == "golden"
    assert run.config.kernels[0].kind == "trntk0"
    assert run.train_split == "train"
    status = run.status()
    assert status.state == "finished"
    assert {stage.stage: stage.done for stage in status.stages} == {stage.stage: stage.total for stage in status.stages}
    assert opened("half").status().state == "interrupted"


def test_ids_labels_and_outputs_are_those_of_the_data(opened):
    run = opened(RUN)
    assert run.sample_ids == IDS
    assert run.ids("test") == list(golden.IDS)
    assert run.labels("train").tolist() == golden.LABELS
    assert run.labels("train").dtype == np.int64
    assert run.outputs("train").tolist() == golden.OUTPUTS
    assert run.outputs("train", index=[3, 0, 3]).tolist() == [golden.OUTPUTS[at] for at in (3, 0, 3)]
    assert run.outputs("train", index=[]).shape == (0, 2)


@pytest.mark.parametrize("name", EXACT)
def test_a_kernel_has_the_values_that_are_known_in_the_precision_of_the_run(opened, name):
    found = whole(opened(RUN), name)
    assert found.dtype == np.float64
    np.testing.assert_allclose(found, EXACT[name], atol=1e-12)


@pytest.mark.parametrize(
    ("rows", "columns"),
    [
        (slice(None), slice(None)),
        (slice(1, 3), slice(0, 2)),
        (slice(None, None, -1), slice(0, 4, 2)),
        ([3, 0, 3], [2, 2, 1]),
        (np.array([True, False, False, True]), [-1]),
        (IDS, IDS[::-1]),
        (IDS[2], 1),
        (2, IDS),
        ([], slice(None)),
    ],
    ids=str,
)
def test_entries_are_asked_for_in_any_way_an_array_is_indexed(opened, rows, columns):
    expected = np.array(golden.TRNTK0, dtype=np.float64)
    at = [
        [IDS.index(item) if isinstance(item, str) else item for item in (rows if isinstance(rows, list) else [rows])],
        [
            IDS.index(item) if isinstance(item, str) else item
            for item in (columns if isinstance(columns, list) else [columns])
        ],
    ]
    sides = []
    for index, items in ((rows, at[0]), (columns, at[1])):
        sides.append(
            np.arange(4)[index] if isinstance(index, slice | np.ndarray) else np.arange(4)[np.array(items, dtype=int)]
        )
    values = expected[np.ix_(*sides)]
    if isinstance(rows, int | str):
        values = values[0]
    if isinstance(columns, int | str):
        values = values[..., 0]
    found = opened(RUN).kernel("trntk0")[rows, columns]
    assert found.shape == values.shape
    np.testing.assert_allclose(found, values, atol=1e-12)


def test_a_rectangle_between_splits_is_read_by_its_own_ids(opened):
    run = opened(RUN)
    np.testing.assert_allclose(run.kernel("pntk", "test")["x1", IDS], golden.PNTK[1], atol=1e-12)


def test_components_are_read_alone_and_summed(opened):
    run = opened(RUN)
    for name, expected in golden.TRNTK0_COMPONENTS.items():
        np.testing.assert_allclose(whole(run, "trntk0", component=name), expected, atol=1e-12)
    names = ["fc2.bias", "fc1.weight"]
    expected = np.sum([golden.TRNTK0_COMPONENTS[name] for name in names], axis=0)
    np.testing.assert_allclose(whole(run, "trntk0", layers=names), expected, atol=1e-12)


def test_transforms_are_those_of_the_dense_matrix(opened):
    run, kernel = opened(RUN), np.array(golden.TRNTK0, dtype=np.float64)
    scale = np.sqrt(np.diag(kernel))
    np.testing.assert_allclose(whole(run, "trntk0", transforms=["cosine"]), kernel / np.outer(scale, scale), rtol=1e-12)
    centre = np.eye(4) - 0.25
    np.testing.assert_allclose(whole(run, "trntk0", transforms=["centred"]), centre @ kernel @ centre, atol=1e-11)
    np.testing.assert_allclose(whole(run, "centred"), centre @ kernel @ centre, atol=1e-11)


def test_rows_of_a_kernel_of_pairs_are_samples_and_outputs(opened):
    run = opened(RUN)
    full = whole(run, "full")
    assert full.shape == (8, 8)
    np.testing.assert_allclose(np.linalg.eigvalsh(full), golden.FULL_EIGENVALUES, atol=1e-7)
    assert np.array_equal(run.kernel("full")[[2, 0], 3], full[[4, 5, 0, 1]][:, 6:8])
    name = run.kernel("full").name
    some = run.reader.entries(name, np.array([5, 0, 5, 2]), np.array([7, 1]), "raise")
    assert np.array_equal(some, full[np.ix_([5, 0, 5, 2], [7, 1])])
    np.testing.assert_allclose(run.diagonal("full"), np.diagonal(full).reshape(4, 2), atol=1e-12)


def test_diagonals_are_those_before_any_normalisation(opened):
    run = opened(RUN)
    np.testing.assert_allclose(run.diagonal("trntk"), np.diag(golden.TRNTK0), atol=1e-12)
    np.testing.assert_allclose(run.diagonal("trntk", "test"), np.diag(golden.TRNTK0), atol=1e-12)


def test_features_are_rows_whose_products_are_the_kernel(opened):
    run = opened(RUN)
    rows = run.features["sketch"][:]
    assert rows.shape == (4, 16)
    np.testing.assert_allclose(rows @ rows.T, whole(run, "sketch"), atol=1e-12)
    assert np.array_equal(run.features["sketch", "test"][["x3", "x1"]], run.features["sketch", "test"][:][[3, 1]])
    layers = run.features["layers"][[2, 0]]
    assert layers.shape == (4, 2, 4)
    assert np.array_equal(layers, run.features["layers"][:][:, [2, 0]])
    assert run.features["sketch"][[]].shape == (0, 16)


def test_standard_errors_are_half_the_difference_of_two_sketches(opened):
    run = opened(RUN)
    one, other = (run.features["sketch"][:][:, part] for part in (slice(8), slice(8, None)))
    np.testing.assert_allclose(run.standard_errors("sketch")[:, :], np.abs(one @ one.T - other @ other.T), atol=1e-12)
    found = run.standard_errors("sketch", "test")[["x1"], [3, 0]]
    assert found.shape == (1, 2)
    assert found.dtype == np.float64
    assert not run.standard_errors("trntk0")[:, :].any()


@pytest.mark.parametrize("opposed", [False, True])
@pytest.mark.parametrize("label", [None, 1])
def test_neighbors_are_found_by_sorting_rows(opened, opposed, label):
    run = opened(RUN)
    kernel, name = np.array(golden.PNTK, dtype=np.float64), run.kernel("pntk").name
    for rows in ([0], [3, 1]):
        found = run.reader.nearest(name, np.array(rows), 2, opposed=opposed, label=label)
        for at, row in enumerate(rows):
            allowed = [i for i in range(4) if i != row and (label is None or golden.LABELS[i] == label)]
            expected = sorted(allowed, key=lambda i: (kernel[row, i] * (1 if opposed else -1), i))[:2]
            positions, values = found.positions[at], found.values[at]
            assert positions[positions >= 0].tolist() == expected
            np.testing.assert_allclose(values[positions >= 0], kernel[row, expected], atol=1e-12)
    assert [one.sample_id for one in run.neighbors(IDS[1], 2, kernel="pntk")] == [IDS[2], IDS[0]]


def test_a_spectrum_is_that_of_the_dense_matrix(opened):
    found = opened(RUN).reader.spectrum(opened(RUN).kernel("trntk0").name, 4)
    np.testing.assert_allclose(found.eigenvalues, np.linalg.eigvalsh(np.array(golden.TRNTK0, float))[::-1], atol=1e-9)
    assert found.num_samples == 4
    assert found.label_energy.shape == (4,)
    np.testing.assert_allclose(found.label_energy[-1], 1.0)
    fewer = opened(RUN).reader.spectrum(opened(RUN).kernel("trntk0").name, 2)
    assert fewer.eigenvalues.shape == (2,)


def test_solutions_their_records_and_predictions_solve_the_dense_system(opened):
    run = opened(RUN)
    kernel, labels = np.array(golden.TRNTK0, dtype=np.float64), np.eye(2)[golden.LABELS]
    alpha = run.solution("krr")
    assert alpha.shape == (4, 2)
    record = run.solution_record("krr")
    assert (record.name, record.method, record.classes) == ("krr", "cholesky", True)
    np.testing.assert_allclose(run.predictions("krr", "train"), kernel @ alpha, atol=1e-10)
    np.testing.assert_allclose(run.predictions("krr", "test"), kernel @ alpha, atol=1e-10)
    np.testing.assert_allclose(kernel @ alpha + record.ridge * alpha, labels, atol=1e-9)


def test_attributions_are_rows_times_coefficients_and_sum_to_predictions(opened):
    run = opened(RUN)
    found = run.reader.attributions("krr", "test", np.array([2, 0]))
    expected = np.array(golden.TRNTK0, dtype=np.float64)[[2, 0], :, None] * run.solution("krr")
    np.testing.assert_allclose(found, expected, atol=1e-10)
    np.testing.assert_allclose(found.sum(axis=1), run.predictions("krr", "test")[[2, 0]], atol=1e-9)


def test_what_analyses_left_is_told(opened):
    run = opened(RUN)
    assert run.analysis("fidelity").startswith(b"{")
    assert "analyses/fidelity/summary.json" in run.analysis_files("fidelity")


def test_kernels_have_members_and_are_between_them(opened):
    run = opened("members")
    np.testing.assert_allclose(whole(run, "trntk0@early"), golden.TRNTK0, atol=1e-12)
    assert np.abs(whole(run, "trntk0@late") - golden.TRNTK0).max() > 1
    cross = whole(run, "cross")
    assert np.abs(cross - cross.T).max() > 1e-3
    np.testing.assert_allclose(run.diagonal("cross@early"), np.diag(golden.TRNTK0), atol=1e-12)
    assert run.outputs("train", "early").tolist() == golden.OUTPUTS
    rows = run.features["sketch@late"][:]
    np.testing.assert_allclose(rows @ rows.T, whole(run, "sketch@late"), atol=1e-12)


def test_a_run_without_labels_has_none(opened):
    run = opened("plain")
    assert run.labels("train") is None
    np.testing.assert_allclose(np.diagonal(whole(run, "gaussian")), 1)
    with pytest.raises(NotFoundError, match="without a model"):
        run.outputs("train")


def test_what_is_not_committed_is_refused_by_name_or_marked(opened):
    run = opened("half")
    kernel = run.kernel("trntk0")
    np.testing.assert_allclose(kernel[0:2, 0:2], np.array(golden.TRNTK0)[:2, :2], atol=1e-12)
    with pytest.raises(ChunkNotReadyError, match="000001-000000"):
        _ = kernel[:, :]
    with pytest.raises(ChunkNotReadyError, match="krr"):
        run.solution("krr")
    with pytest.raises(ChunkNotReadyError):
        _ = run.features["sketch", "test"][:]
    found = kernel.read(slice(None), slice(None), missing="nan")
    expected = np.array(golden.TRNTK0, dtype=np.float64)
    expected[2:, :2] = expected[:2, 2:] = np.nan
    np.testing.assert_allclose(found, expected, atol=1e-12)


def test_damage_is_told(opened):
    run = opened("damaged")
    with pytest.raises(CorruptChunkError, match="pntk"):
        whole(run, "pntk")
    assert whole(run, "trntk0").shape == (4, 4)


@pytest.mark.parametrize(
    ("question", "error", "text"),
    [
        (lambda run: run.kernel("trntk1"), NotFoundError, "did you mean 'trntk'"),
        (lambda run: run.kernel("trntk0")[0, "nobody"], NotFoundError, "nobody"),
        (lambda run: run.kernel("trntk0")[0, 4], NotFoundError, "position 4"),
        (lambda run: run.kernel("trntk0")[[True, False], 0], ConfigError, "mask"),
        (lambda run: run.kernel("trntk0", "valid"), NotFoundError, "valid"),
        (lambda run: run.labels("valid"), NotFoundError, "valid"),
        (lambda run: run.solution("none"), NotFoundError, "none"),
        (lambda run: run.solution_extra("krr", "path_ridges"), NotFoundError, "path_ridges"),
        (lambda run: run.analysis("fidelity", "nothing.csv"), NotFoundError, "nothing.csv"),
        (lambda run: run.analysis_files("spectrum"), NotFoundError, "spectrum"),
        (lambda run: run.features["trntk0"], NotFoundError, "exactly"),
        (lambda run: run.neighbors(0, 0), ConfigError, "k = 0"),
    ],
)
def test_what_does_not_exist_is_refused_by_name(opened, question, error, text):
    with pytest.raises(error, match=text):
        question(opened(RUN))


def test_many_threads_ask_one_run(opened):
    run = opened(RUN)
    questions = [
        partial(whole, run, "trntk0"),
        partial(whole, run, "pntk"),
        partial(run.solution, "krr"),
        partial(run.outputs, "train"),
    ]
    alone = [question() for question in questions]
    with ThreadPoolExecutor(8) as threads:
        answers = [threads.submit(questions[at % 4]) for at in range(48)]
    for at, answer in enumerate(answers):
        assert np.array_equal(answer.result(), alone[at % 4])


def test_an_answer_is_the_callers_own(opened):
    run = opened(RUN)
    found = run.kernel("trntk0")[:, :]
    found[:] = -1
    assert run.kernel("trntk0")[0, 0] == 18


def test_scattered_selections_of_any_length_are_asked_for(opened):
    run, rows = opened(RUN), np.tile([2, 0, 3, 1], 120)
    exact = whole(run, "pntk")
    found = run.kernel("pntk").neighbors(rows, 2, label=1)
    once = run.kernel("pntk").neighbors([2, 0, 3, 1], 2, label=1)
    assert [[one.sample_id for one in row] for row in found] == [[one.sample_id for one in row] for row in once] * 120
    assert run.kernel("pntk")[rows, :].tolist() == exact[rows].tolist()
    assert run.outputs("train", index=rows).tolist() == run.outputs("train")[rows].tolist()
    contributions = run.attributions("krr", rows, "train", target=0)
    assert contributions.tolist() == run.attributions("krr", split="train", target=0)[rows].tolist()
