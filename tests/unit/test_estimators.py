"""Estimators, against scikit-learn's own checks and its kernel and linear models."""

import importlib
import pickle
import sys

import numpy as np
import pytest
import torch
from sklearn.base import clone
from sklearn.datasets import make_blobs
from sklearn.exceptions import ConvergenceWarning, NotFittedError
from sklearn.kernel_ridge import KernelRidge
from sklearn.linear_model import LogisticRegression
from sklearn.metrics.pairwise import rbf_kernel
from sklearn.model_selection import GridSearchCV, cross_val_score
from sklearn.multioutput import MultiOutputClassifier
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from sklearn.utils.estimator_checks import parametrize_with_checks

import ntkpipe
from ntkpipe.configs.errors import ConfigError, NumericalError
from ntkpipe.workers import estimators
from ntkpipe.workers.estimators import kernels
from ntkpipe.workers.estimators.classifier import KernelClassifier
from ntkpipe.workers.estimators.regressor import KernelRegressor

GAUSSIAN = {"bandwidth": 2.0}
GAMMA = 1 / (2 * 2.0**2)


def asymmetric(estimator):
    """Checks that give a matrix of random numbers for a kernel matrix, which is refused."""
    if estimator.kernel != "precomputed":
        return {}
    return {"check_positive_only_tag_during_fit": "its kernel matrix is not symmetric"}


@parametrize_with_checks(
    [
        KernelRegressor(),
        KernelRegressor(kernel="precomputed", ridge_scale="mean-diagonal"),
        KernelRegressor(method="pcg", solver_options={"tolerance": 1e-8}),
        KernelClassifier(),
        KernelClassifier(kernel="precomputed", ridge_scale="mean-diagonal"),
        KernelClassifier(loss="logistic", ridge=0.01),
    ],
    expected_failed_checks=asymmetric,
)
def test_estimators_are_as_scikit_learn_wants_them(estimator, check):
    check(estimator)


def regression(size=60, columns=2):
    random = np.random.default_rng(0)
    x = random.standard_normal((size, 3))
    return x, np.sin(x @ random.standard_normal((3, columns))) + 0.1 * random.standard_normal((size, columns))


def classes(size=90, centers=3):
    x, labels = make_blobs(size, centers=centers, cluster_std=3.0, random_state=1)
    return x, np.array(["a", "b", "c"])[labels]


def test_regression_is_kernel_ridge_regression():
    x, y = regression()
    weights = np.random.default_rng(1).integers(0, 3, 60).astype(float)
    for sample_weight in (None, weights):
        ours = KernelRegressor(kernel_options=GAUSSIAN, ridge=0.1).fit(x, y, sample_weight=sample_weight)
        theirs = KernelRidge(kernel="rbf", gamma=GAMMA, alpha=0.1).fit(x, y, sample_weight=sample_weight)
        np.testing.assert_allclose(ours.predict(x[:7] + 0.3), theirs.predict(x[:7] + 0.3), rtol=1e-7, atol=1e-9)
        assert ours.score(x, y) == pytest.approx(theirs.score(x, y))
    assert ours.solution_.converged
    assert float(ours.solution_.residuals.max()) < 1e-10
    assert ours.n_features_in_ == 3


def test_one_target_has_one_prediction_for_a_sample():
    x, y = regression()
    both = KernelRegressor(kernel_options=GAUSSIAN).fit(x, y).predict(x)
    one = KernelRegressor(kernel_options=GAUSSIAN).fit(x, y[:, 0]).predict(x)
    column = KernelRegressor(kernel_options=GAUSSIAN).fit(x, y[:, :1]).predict(x)
    assert (one.shape, column.shape) == ((60,), (60, 1))
    np.testing.assert_allclose(both[:, 0], one, rtol=1e-9)


def test_kernels_by_name_function_and_matrix_are_the_same():
    x, y = regression()
    new = x[:9] - 0.2

    def function(x, x2, *, gamma):
        return rbf_kernel(x.numpy(), x2.numpy(), gamma=gamma)

    named = KernelRegressor("gaussian", kernel_options=GAUSSIAN).fit(x, y).predict(new)
    called = KernelRegressor(function, kernel_options={"gamma": GAMMA}).fit(x, y).predict(new)
    given = KernelRegressor("precomputed").fit(rbf_kernel(x, gamma=GAMMA), y)
    np.testing.assert_allclose(called, named, rtol=1e-7)
    np.testing.assert_allclose(given.predict(rbf_kernel(new, x, gamma=GAMMA)), named, rtol=1e-7)
    assert given.X_fit_ is None


@pytest.mark.parametrize("centers", [2, 3])
def test_squared_losses_predict_the_largest_of_one_hot_targets(centers):
    x, y = classes(centers=centers)
    model = KernelClassifier("laplace", kernel_options={"bandwidth": 3.0}, ridge=0.2).fit(x, y)
    kernel = ntkpipe.closed_form("laplace", torch.from_numpy(x), bandwidth=3.0)
    solution = ntkpipe.solve(kernel, (y[:, None] == np.unique(y)), ridge=0.2)
    assert model.predict(x).tolist() == np.unique(y)[solution.fitted.argmax(dim=1)].tolist()
    found = model.decision_function(x)
    expected = solution.fitted if centers > 2 else solution.fitted[:, 1] - solution.fitted[:, 0]
    np.testing.assert_allclose(found, expected, rtol=1e-7, atol=1e-9)
    assert not hasattr(model, "predict_proba")


@pytest.mark.parametrize("centers", [2, 3])
def test_logistic_losses_have_the_probabilities_of_logistic_regression(centers):
    x, y = classes(centers=centers)
    kernel = rbf_kernel(x, gamma=GAMMA) + 1e-9 * np.eye(len(x))
    features = np.linalg.cholesky(kernel)
    theirs = LogisticRegression(C=5.0, fit_intercept=False, tol=1e-10, solver="newton-cg").fit(features, y)
    options = {"loss": "logistic", "ridge": 0.2, "solver_options": {"tolerance": 1e-9}}
    for ours, samples in (
        (KernelClassifier(kernel_options=GAUSSIAN, **options), x),
        (KernelClassifier("precomputed", **options), kernel),
    ):
        ours.fit(samples, y)
        np.testing.assert_allclose(ours.predict_proba(samples), theirs.predict_proba(features), rtol=0, atol=1e-6)
        np.testing.assert_allclose(ours.predict_proba(samples).sum(axis=1), 1.0)
        assert ours.predict(samples).tolist() == theirs.predict(features).tolist()
        assert ours.solution_.certificate.equation == "logistic"


@pytest.mark.parametrize("loss", ["squared", "logistic"])
def test_a_class_without_weight_is_no_class(loss):
    x, y = classes()
    kept = y != "b"
    options = {"kernel_options": GAUSSIAN, "loss": loss, "ridge": 0.1, "solver_options": None}
    if loss == "logistic":
        options["solver_options"] = {"tolerance": 1e-9}
    weighted = KernelClassifier(**options).fit(x, y, sample_weight=kept.astype(float))
    without = KernelClassifier(**options).fit(x[kept], y[kept])
    assert weighted.classes_.tolist() == ["a", "c"]
    np.testing.assert_allclose(weighted.decision_function(x), without.decision_function(x), rtol=1e-6, atol=1e-7)
    with pytest.raises(ConfigError, match=r"at least two classes, found 1 class.*\['b'\]"):
        KernelClassifier().fit(x, y, sample_weight=(~kept).astype(float))


def test_hyperparameters_are_found_by_grid_search():
    x, y = classes()
    grid = {"kernelclassifier__ridge": [1e-3, 1.0], "kernelclassifier__kernel_options": [GAUSSIAN, {"bandwidth": 0.5}]}
    search = GridSearchCV(make_pipeline(StandardScaler(), KernelClassifier()), grid, cv=3).fit(x, y)
    assert search.best_score_ > 0.6
    assert set(search.best_params_) == set(grid)


def test_folds_of_a_precomputed_kernel_are_cut_out_of_rows_and_columns():
    x, y = regression()
    given = cross_val_score(KernelRegressor("precomputed", ridge=0.1), rbf_kernel(x, gamma=GAMMA), y, cv=4)
    named = cross_val_score(KernelRegressor(kernel_options=GAUSSIAN, ridge=0.1), x, y, cv=4)
    np.testing.assert_allclose(given, named, rtol=1e-6)


def test_several_labels_go_through_scikit_learn():
    x, _ = regression()
    labels = (x[:, :2] > 0).astype(int)
    model = MultiOutputClassifier(KernelClassifier(kernel_options=GAUSSIAN, loss="logistic", ridge=0.01)).fit(x, labels)
    assert model.score(x, labels) > 0.9


def test_fitted_estimators_survive_pickling():
    x, y = classes()
    model = KernelClassifier(kernel_options=GAUSSIAN, loss="logistic", ridge=0.1).fit(x, y)
    again = pickle.loads(pickle.dumps(model))
    assert np.array_equal(again.predict_proba(x), model.predict_proba(x))
    assert again.solution_.certificate.steps == model.solution_.certificate.steps


def test_a_solution_that_did_not_converge_is_a_warning():
    x, y = regression()
    model = KernelRegressor(method="eigenpro2", ridge=1e-6, solver_options={"epochs": 1, "tolerance": 1e-12})
    with pytest.warns(ConvergenceWarning, match="eigenpro2 ended as 'budget'"):
        model.fit(x, y)
    assert not model.solution_.converged
    assert np.isfinite(model.predict(x)).all()


def test_random_states_are_seeds_of_methods_that_take_one():
    x, y = regression()

    def alpha(random_state, **options):
        options = {"epochs": 40, "tolerance": 1e-3, "subsample": 20} | options
        model = KernelRegressor(method="eigenpro2", ridge=1.0, solver_options=options, random_state=random_state)
        return model.fit(x, y).solution_.alpha

    assert torch.equal(alpha(3), alpha(3))
    assert torch.equal(alpha(0, seed=3), alpha(3))
    assert not torch.equal(alpha(4), alpha(3))
    assert torch.equal(alpha(np.random.RandomState(5)), alpha(np.random.RandomState(5)))


def test_large_problems_are_predicted_and_solved_in_blocks(monkeypatch):
    x, y = regression()
    model = KernelRegressor(kernel_options=GAUSSIAN, ridge=0.1)
    whole = model.fit(x, y).predict(x)
    monkeypatch.setattr(kernels, "BLOCK_ROWS", 7)
    monkeypatch.setattr(kernels, "DENSE_LIMIT", 10)
    operators = []
    make = kernels.closed_form_operator
    monkeypatch.setattr(
        kernels, "closed_form_operator", lambda *a, **k: operators.append(make(*a, **k)) or operators[0]
    )
    np.testing.assert_allclose(clone(model).fit(x, y).predict(x), whole, rtol=1e-9, atol=1e-12)
    assert len(operators) == 1


def test_samples_may_be_images():
    random = np.random.default_rng(0)
    images, y = random.standard_normal((12, 1, 4, 4)).astype(np.float32), random.standard_normal(12)
    model = KernelRegressor("cntk", kernel_options={"depth": 2}, ridge_scale="mean-diagonal").fit(images, y)
    assert model.score(images, y) > 0.9
    assert model.X_fit_.dtype == np.float32


@pytest.mark.parametrize(
    ("model", "error", "message"),
    [
        (KernelRegressor("gausian"), ConfigError, "gausian"),
        (KernelRegressor(kernel_options={"bandwith": 1.0}), ConfigError, "bandwith"),
        (KernelRegressor("precomputed", kernel_options=GAUSSIAN), ConfigError, "has no options"),
        (KernelRegressor("precomputed"), ConfigError, "square"),
        (KernelRegressor(3), ConfigError, "name or a function, found int"),
        (KernelRegressor(lambda x, x2: torch.ones(2, 2)), ConfigError, r"returned shape \(2, 2\), expected \(60, 60\)"),
        (KernelRegressor(lambda x, x2: x @ torch.ones(3, 60).double()), NumericalError, "not symmetric"),
        (KernelRegressor(ridge=-1.0), ConfigError, "ridge"),
        (KernelRegressor(method="cholesy"), ConfigError, "did you mean 'cholesky'"),
        (KernelRegressor(method="logistic"), ConfigError, "does not solve for loss 'squared'"),
        (KernelRegressor(solver_options={"epochs": 3}), ConfigError, "unknown option"),
    ],
)
def test_parameters_that_cannot_be_meant_are_refused_at_the_fit(model, error, message):
    x, y = regression()
    if model.kernel_options == GAUSSIAN:
        x = rbf_kernel(x)
    with pytest.raises(error, match=message):
        model.fit(x, y)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"loss": "hinge"}, "must be 'squared' or 'logistic'"),
        ({"loss": "logistic", "method": "cholesky"}, "does not solve for loss 'logistic'"),
        ({"method": "logistic"}, "does not solve for loss 'squared'"),
        ({"loss": "logistic", "ridge": 0.0}, "positive ridge"),
    ],
)
def test_losses_and_methods_that_do_not_go_together_are_refused(options, message):
    with pytest.raises(ConfigError, match=message):
        KernelClassifier(**options).fit(*classes())


def test_nothing_is_predicted_before_the_fit():
    with pytest.raises(NotFittedError):
        KernelRegressor().predict(np.zeros((2, 2)))
    with pytest.raises(NotFittedError):
        KernelClassifier().predict(np.zeros((2, 2)))


def test_without_scikit_learn_the_message_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "sklearn", None)
    with pytest.raises(ConfigError, match=r"ntkpipe\[estimators\]"):
        importlib.reload(estimators)
