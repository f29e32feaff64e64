"""Predictions in parts, for every solver, against the kernel and the coefficients in double precision."""

import golden
import numpy as np
import pytest
from runs import edit_object
from solving import LAPLACE, run_config

import ntkpipe
from ntkpipe.configs.errors import ChunkNotReadyError, ConfigError, NotFoundError
from ntkpipe.configs.solve.union import SECTIONS
from ntkpipe.storage import layout

SOLVES = [
    {"kind": "cholesky", "name": "cholesky"},
    {"kind": "cholesky", "name": "balanced", "class_weight": "balanced"},
    {"kind": "cholesky", "name": "labels-as-numbers", "targets": "values"},
    {"kind": "eigenpro2", "name": "eigenpro2", "epochs": 3},
    {"kind": "pcg", "name": "pcg", "ridges": [1.0]},
    {"kind": "pcg", "name": "stopped", "early_stopping": {"split": "test"}},
    {"kind": "gauss-seidel", "name": "gauss-seidel"},
    {"kind": "askotch", "name": "askotch", "epochs": 2},
    {"kind": "logistic", "name": "softmax"},
    {"kind": "logistic", "name": "sigmoid", "loss": "sigmoid"},
    {"kind": "logistic", "name": "linear", "penalty": "coefficients"},
    {"kind": "gram", "name": "gram", "kernel": "fourier_features"},
    {"kind": "filter", "name": "flow", "filter": "gradient-flow", "time": 3.0},
    {"kind": "filter", "name": "cutoff", "filter": "cutoff", "num_directions": 5},
    {"kind": "filter", "name": "transformed", "filter": "transformed", "powers": [0.5, 1.0]},
    {"kind": "falkon", "name": "falkon", "centres": 20},
    {"kind": "eigenpro3", "name": "eigenpro3", "centres": 20, "subsample": 20, "top": 5},
    {"kind": "eigenpro4", "name": "eigenpro4", "centres": 20, "subsample": 20, "top": 5},
    {"kind": "tile-cholesky", "name": "tile-cholesky", "tile_rows": 64},
    {"kind": "auto", "name": "auto"},
]
ROWS = [3, -1, 0]


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    return ntkpipe.run(run_config(SOLVES), tmp_path_factory.mktemp("runs") / "solved")


def test_every_solver_is_among_those_that_are_tested():
    assert {section["kind"] for section in SOLVES} == set(SECTIONS)


@pytest.mark.parametrize("name", [section["name"] for section in SOLVES])
@pytest.mark.parametrize("split", ["train", "test"])
def test_contributions_are_entries_times_coefficients_and_sum_to_the_prediction(run, name, split):
    coefficients = run.solution(name)
    entries = run.kernel(run.solution_record(name).kernel, split)[ROWS, :].astype(np.float64)
    found = run.attributions(name, ROWS, split)
    assert np.array_equal(found, entries[:, :, None] * coefficients)
    predictions = run.predictions(name, split)[ROWS]
    rounding = 1e-13 * np.abs(found).sum(axis=1)
    assert (np.abs(found.sum(axis=1) - predictions) <= rounding + 1e-14).all()
    for target in range(coefficients.shape[1]):
        assert np.array_equal(run.attributions(name, ROWS, split, target=target), found[..., target])
    assert np.array_equal(run.attributions(name, -1, split), found[1])


def test_centres_are_the_only_samples_that_contribute_to_a_model_of_centres(run):
    contributes = (run.attributions("falkon", 0, "test") != 0).any(axis=1)
    assert contributes.sum() == 20
    summary = run.attribution_summary("falkon", 0, "test", k=90)
    assert {found.position for found in (*summary.helpful, *summary.harmful)} == set(np.flatnonzero(contributes))


@pytest.mark.parametrize("name", ["cholesky", "softmax", "sigmoid"])
def test_a_summary_adds_up_and_names_the_samples_that_contribute_most(run, name):
    for sample in (0, 7):
        found, predictions = run.attribution_summary(name, sample, "test", k=4), run.predictions(name, "test")[sample]
        assert (found.target, found.sample_id) == (predictions.argmax(), run.ids("test")[sample])
        assert found.prediction == predictions.max()
        values = run.attributions(name, sample, "test", target=found.target)
        assert found.total == pytest.approx(found.prediction, abs=1e-12)
        assert sum(share.positive + share.negative for share in found.by_class) == pytest.approx(found.total, abs=1e-12)
        labels = run.labels("train")
        for share in found.by_class:
            inside = values[labels == share.label]
            assert share.num_samples == len(inside)
            assert (share.positive, share.negative) == (
                pytest.approx(inside.clip(0).sum()),
                pytest.approx(inside.clip(None, 0).sum()),
            )
        order = np.argsort(-values, kind="stable")
        assert [one.position for one in found.helpful] == order[:4].tolist()
        assert [one.position for one in found.harmful] == np.argsort(values, kind="stable")[:4].tolist()
        for one in (*found.helpful, *found.harmful):
            assert (one.sample_id, one.label) == (run.ids("train")[one.position], labels[one.position])
            assert one.value == values[one.position]


def test_a_summary_is_of_the_sample_and_the_target_that_are_asked_for(run):
    sample = run.ids("test")[5]
    found = run.attribution_summary("cholesky", sample, "test", target=2, k=1)
    assert (found.sample_id, found.position, found.target) == (sample, 5, 2)
    assert found.prediction == run.predictions("cholesky", "test")[5, 2]
    assert (len(found.helpful), len(found.harmful)) == (1, 1)
    nobody = run.attribution_summary("cholesky", 5, "test", k=0)
    assert (nobody.helpful, nobody.harmful) == ((), ())


def test_what_is_no_target_no_sample_and_no_solution_is_refused(run):
    for target in (3, -1):
        with pytest.raises(NotFoundError, match=f"no target {target}; its targets are 0 to 2"):
            run.attributions("cholesky", 0, target=target)
    with pytest.raises(ConfigError, match="must be the number"):
        run.attributions("cholesky", 0, target="first")
    with pytest.raises(NotFoundError, match="did you mean 'falkon'"):
        run.attributions("falcon", 0)
    with pytest.raises(NotFoundError, match=r"position 90 is outside of the .* samples of split 'train'"):
        run.attribution_summary("cholesky", 90)
    with pytest.raises(ConfigError, match="k = -1"):
        run.attribution_summary("cholesky", 0, k=-1)


def test_a_solution_whose_kernel_is_not_stored_says_what_to_add(tmp_path):
    document = run_config([{"kind": "gram", "name": "a", "kernel": "fourier_features"}])
    document["data"]["pairs"] = [["test", "train"]]
    run = ntkpipe.run(document, tmp_path / "run")
    assert run.attributions("a", 0, "test").shape == (90, 3)
    with pytest.raises(NotFoundError, match=r"Add the pair \[train, train\] to data.pairs"):
        run.attributions("a", 0)


def test_real_targets_have_no_classes_and_the_first_of_them_is_summarised(tmp_path):
    section = {"kind": "cholesky", "name": "a", "targets": "values"}
    document = run_config([section], train={"labels": "values"}, test={"labels": "values"}, kernels=[LAPLACE])
    run = ntkpipe.run(document, tmp_path / "run")
    found = run.attribution_summary("a", 2, "test")
    assert (found.target, found.by_class) == (0, ())
    assert found.prediction == run.predictions("a", "test")[2, 0]
    assert all(one.label is None for one in found.helpful)
    with pytest.raises(ConfigError, match="no classes"):
        run.neighbors(0, label=1)


def test_of_a_kernel_of_pairs_all_outputs_of_a_training_sample_contribute(tmp_path):
    document = golden.config(
        kernels=[{"kind": "full"}],
        solve=[{"kind": "cholesky", "name": "a", "kernel": "full", "ridge": 1.0}],
    )
    run = ntkpipe.run(document, tmp_path / "run")
    for split in ("train", "test"):
        found = run.attributions("a", slice(None), split)
        entries, coefficients = run.kernel("full", split)[:, :].astype(float), run.solution("a")
        for sample in range(4):
            for target in range(2):
                row = entries[2 * sample + target].reshape(4, 2)
                assert found[sample, :, target] == pytest.approx((row * coefficients).sum(axis=1))
        np.testing.assert_allclose(found.sum(axis=1), run.predictions("a", split), atol=1e-6)
        assert np.array_equal(run.attributions("a", slice(None), split, target=1), found[..., 1])


def test_a_record_that_names_an_unknown_kernel_is_refused(tmp_path):
    run = ntkpipe.run(run_config([{"kind": "cholesky", "name": "a"}]), tmp_path / "run")
    key = layout.solution_record("a")
    edit_object(tmp_path / "run", "solve", "a", key, lambda document: document.update(kernel="../../etc"))
    with pytest.raises(NotFoundError, match=r"is of kernel '../../etc', which the run does not have"):
        ntkpipe.open_run(tmp_path / "run").attributions("a", 0)
    assert run.ids("train")


def test_what_is_not_solved_yet_is_not_attributed(tmp_path):
    ntkpipe.run(run_config([{"kind": "cholesky", "name": "a"}]), tmp_path / "run")
    for receipt in (tmp_path / "run" / "receipts" / "solve").rglob("*"):
        if receipt.is_file():
            receipt.unlink()
    with pytest.raises(ChunkNotReadyError):
        ntkpipe.open_run(tmp_path / "run").attributions("a", 0)
