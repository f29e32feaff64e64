"""Kernels of every family in one run, against the library and against small dense formulas."""

import json

import golden
import numpy as np
import pytest
import torch
import zarr
from commands import ntkpipe_command

import ntkpipe
from ntkpipe.configs.errors import ConfigError, NotFoundError

X = torch.tensor(golden.INPUTS, dtype=torch.float64)
Y = torch.tensor(golden.LABELS)
PRECISE = {"target": "golden:build_member", "dtype": "float64"}
STORE = {"shard_rows": 3, "block_rows": 2, "dtype": "float64"}
MODEL_KINDS = [
    "trntk0",
    "trntk",
    "pntk",
    "lpntk",
    "class:1",
    "true_class",
    "loss",
    "margin",
    "probe:1",
    "full",
    "signgd",
    "signgd_asym",
    "ck",
    "em",
    "nngp",
]


def config(kernels, **changes):
    return golden.config(model=PRECISE, kernels=kernels, solve=[], store=STORE) | changes


def library(kind, shift=0.0, **options):
    model = golden.build_member(shift).double()
    return ntkpipe.kernel_matrix(model, X, kernel=kind, y=Y, **options).numpy()


def whole(run, name, rows="train", columns="train"):
    return run.kernel(name, rows, columns)[:, :]


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    """Every kernel of the model, and two with options."""
    kernels = [{"kind": kind} for kind in MODEL_KINDS]
    kernels += [
        {"kind": "trntk0", "name": "biases", "parameters": ["*.bias"]},
        {"kind": "trntk0", "name": "weighted", "parameters": {"fc1.*": 0.5, "fc2.weight": 2.0}, "layerwise": True},
        {"kind": "trntk0", "name": "last", "parameters": ["last:1"]},
        {"kind": "em", "name": "linear", "modules": ["fc*"], "layerwise": True},
        {"kind": "pntk", "name": "fisher", "precondition": {"kind": "fisher"}},
        {"kind": "trntk0", "name": "sketched", "parameters": {"fc1.*": 0.5, "*": 2}, "projection": {"dim": 64}},
        {"kind": "em", "name": "em-sketched", "projection": {"dim": 64}},
        {"kind": "pntk", "name": "fisher-sketched", "precondition": {"kind": "fisher"}, "projection": {"dim": 8192}},
    ]
    return ntkpipe.run(config(kernels), tmp_path_factory.mktemp("runs") / "models")


@pytest.mark.parametrize("kind", MODEL_KINDS)
@pytest.mark.parametrize("rows", ["train", "test"])
def test_a_run_stores_what_the_library_computes(models, kind, rows):
    np.testing.assert_allclose(whole(models, kind.replace(":", "-"), rows), library(kind), atol=1e-10)


@pytest.mark.parametrize(
    ("name", "kind", "options"),
    [
        ("biases", "trntk0", {"parameters": ["*.bias"]}),
        ("weighted", "trntk0", {"parameters": {"fc1.*": 0.5, "fc2.weight": 2.0}}),
        ("last", "trntk0", {"parameters": ["fc2.*"]}),
        ("linear", "em", {"modules": ["fc1", "fc2"]}),
        ("sketched", "trntk0", {"parameters": {"fc1.*": 0.5, "fc2.*": 2}, "projection": ntkpipe.Projection(dim=64)}),
        ("em-sketched", "em", {"projection": ntkpipe.Projection(dim=64)}),
    ],
)
def test_options_mean_in_a_run_what_they_mean_in_the_library(models, name, kind, options):
    np.testing.assert_allclose(whole(models, name), library(kind, **options), atol=1e-10)


def test_groups_of_parameters_add_up_with_their_weights(models):
    parts = {name: np.array(values) for name, values in golden.TRNTK0_COMPONENTS.items()}
    expected = 0.5 * (parts["fc1.weight"] + parts["fc1.bias"]) + 2 * parts["fc2.weight"]
    np.testing.assert_allclose(whole(models, "weighted"), expected, atol=1e-10)
    np.testing.assert_allclose(whole(models, "biases"), parts["fc1.bias"] + parts["fc2.bias"], atol=1e-10)
    np.testing.assert_allclose(
        models.kernel("weighted", component="fc1.bias")[:, :], 0.5 * parts["fc1.bias"], atol=1e-10
    )
    np.testing.assert_allclose(models.diagonal("weighted"), np.diagonal(expected), atol=1e-10)


def test_the_modules_of_a_kernel_are_recorded(models):
    geometry = models.manifest.geometry
    assert geometry.kernel("em").modules == ("fc1", "relu", "fc2")
    assert geometry.kernel("linear").modules == ("fc1", "fc2")
    array = zarr.open_group(models.url + "/data.zarr", mode="r")["kernel/linear/train-train"]
    assert array.attrs["modules"] == ["fc1", "fc2"]
    np.testing.assert_allclose(whole(models, "linear"), golden.EM, atol=1e-10)
    parts = sum(models.kernel("linear", component=name)[:, :] for name in ("fc1", "fc2"))
    np.testing.assert_allclose(parts, golden.EM, atol=1e-10)


def squares(shift=0.0):
    """Mean squared gradients of the loss by plain autograd, and the gradients of the summed output."""
    model = golden.build_member(shift).double()
    names = [name for name, _ in model.named_parameters()]
    second, gradients = 0.0, []
    for x, y in zip(X, Y, strict=True):
        loss = torch.nn.functional.cross_entropy(model(x[None]), y[None])
        flat = torch.cat([g.flatten() for g in torch.autograd.grad(loss, list(model.parameters()))])
        second = second + flat**2 / len(X)
        gradients.append(
            torch.cat([g.flatten() for g in torch.autograd.grad(model(x[None]).sum(), list(model.parameters()))])
        )
    assert names == ["fc1.weight", "fc1.bias", "fc2.weight", "fc2.bias"]
    return second, torch.stack(gradients)


def test_a_fisher_preconditioned_kernel_scales_every_coordinate(models):
    second, gradients = squares()
    stored = models.reader.samples.moments("fisher")
    np.testing.assert_allclose(stored, second, rtol=1e-12)
    expected = (gradients * (second + 1e-8) ** -0.5) @ gradients.T
    np.testing.assert_allclose(whole(models, "fisher"), expected, rtol=1e-9)
    np.testing.assert_allclose(models.diagonal("fisher"), expected.diagonal(), rtol=1e-9)
    moments = ntkpipe.second_moments(golden.build_member().double(), X, Y)
    scales = {name: (value + 1e-8) ** -0.5 for name, value in moments.items()}
    np.testing.assert_allclose(library("pntk", preconditioner=scales), expected, rtol=1e-9)
    norms = np.sqrt(np.outer(expected.diagonal(), expected.diagonal()))
    assert (np.abs(whole(models, "fisher-sketched") - expected.numpy()) / norms).max() < 4 * np.sqrt(2 / 8192)


def test_a_kernel_of_pairs_is_queried_by_sample(models):
    full = models.kernel("full", "test")
    assert full.shape == (8, 8)
    np.testing.assert_allclose(full["x1", 2], library("full")[2:4, 4:6], atol=1e-10)
    np.testing.assert_allclose(models.diagonal("full"), np.diagonal(library("full")).reshape(4, 2), atol=1e-10)
    with pytest.raises(ConfigError, match="pairs are no samples"):
        models.neighbors("x0", kernel="full")
    answer = ntkpipe_command("query", models.url, "kernel/full/test-train", "--rows", "0:1", "--cols", "id:x2")
    assert answer.returncode == 0
    assert "x0/1" in answer.stdout
    assert "x2/1" in answer.stdout


def test_an_asymmetric_kernel_is_stored_whole(models):
    expected = np.array(golden.SIGNGD_ASYM)
    np.testing.assert_allclose(whole(models, "signgd_asym"), expected, atol=1e-10)
    np.testing.assert_allclose(models.kernel("signgd_asym")[3, 0], expected[3, 0])
    np.testing.assert_allclose(models.diagonal("signgd_asym"), np.diagonal(expected), atol=1e-10)
    assert all(checked.findings == () for checked in ntkpipe.verify(models.url))


@pytest.mark.parametrize(("kind", "what"), [("signgd", "always exact"), ("full", "always exact")])
def test_what_cannot_be_sketched_is_refused(kind, what):
    with pytest.raises(ConfigError, match=what):
        ntkpipe.load_config(config([{"kind": kind, "projection": {"dim": 8}}]))
    with pytest.raises(ConfigError, match="random features"):
        library(kind, projection=ntkpipe.Projection(dim=8))


def test_solutions_of_pairs_are_those_of_the_flattened_system(tmp_path):
    solve = [{"kind": "cholesky", "name": "flat", "kernel": "full", "ridge": 0.5}]
    run = ntkpipe.run(config([{"kind": "full"}], solve=solve), tmp_path / "run")
    system = library("full") + 0.5 * np.eye(8)
    alpha = np.linalg.solve(system, np.eye(2)[golden.LABELS].ravel())
    np.testing.assert_allclose(run.solution("flat").ravel(), alpha, rtol=1e-8)
    np.testing.assert_allclose(run.predictions("flat", "test").ravel(), library("full") @ alpha, rtol=1e-8)


def test_systems_without_symmetry_are_refused():
    solve = [{"kind": "cholesky", "name": "s", "kernel": "signgd_asym", "ridge": 0.5}]
    with pytest.raises(ConfigError, match="not symmetric"):
        ntkpipe.load_config(config([{"kind": "signgd_asym"}], solve=solve))


# --- Members of a model


MEMBERS = {"early": {}, "late": {"options": {"shift": 0.25}}}


@pytest.fixture(scope="module")
def ensemble(tmp_path_factory):
    kernels = [
        {"kind": "trntk0", "layerwise": True},
        {"kind": "pntk", "projection": {"dim": 32}},
        {"kind": "trntk"},
        {"kind": "ck"},
        {"kind": "trntk0", "name": "cross", "cross": ["early", "late"]},
        {"kind": "trntk", "name": "cross-cosine", "cross": ["early", "late"]},
        {"kind": "pntk", "name": "cross-sketched", "cross": ["late", "early"], "projection": {"dim": 32}},
        {"kind": "ck", "name": "cross-ck", "cross": ["early", "late"]},
        {"kind": "signgd", "name": "cross-signs", "cross": ["early", "late"]},
        {"kind": "pntk", "name": "fisher", "precondition": {"kind": "fisher"}},
        {"kind": "ensemble", "of": "trntk0"},
        {"kind": "gaussian", "bandwidth": 2.0},
    ]
    solve = [{"kind": "cholesky", "name": "late", "kernel": "trntk0@late", "ridge": 1.0}]
    model = PRECISE | {"members": MEMBERS}
    return ntkpipe.run(config(kernels, model=model, solve=solve), tmp_path_factory.mktemp("runs") / "ensemble")


def cross(kind, one=0.0, other=0.25, **options):
    models = [golden.build_member(shift).double() for shift in (one, other)]
    return ntkpipe.kernel_matrix(models[0], X, model2=models[1], kernel=kind, y=Y, y2=Y, **options).numpy()


def test_members_are_a_leading_axis(ensemble):
    for name, kind in (("trntk0", "trntk0"), ("trntk", "trntk"), ("ck", "ck")):
        for member, shift in (("early", 0.0), ("late", 0.25)):
            np.testing.assert_allclose(whole(ensemble, f"{name}@{member}"), library(kind, shift), atol=1e-10)
    group = zarr.open_group(ensemble.url + "/data.zarr", mode="r")
    assert group["kernel/trntk0/test-train"].shape == (2, 4, 4)
    assert group["component/trntk0/test-train"].shape == (2, 4, 4, 4)
    assert group["features/pntk/train"].shape == (2, 4, 32)
    assert group["output/train"].shape == (2, 4, 2)
    assert group["kernel/trntk0/test-train"].metadata.dimension_names[0] == "member"
    assert group["kernel/trntk0/test-train"].attrs["members"] == ["early", "late"]
    assert group["kernel/gaussian/test-train"].shape == (4, 4)
    with torch.no_grad():
        expected = golden.build_member(0.25).double()(X)
    np.testing.assert_allclose(ensemble.outputs("train", "late"), expected, rtol=1e-12)


def test_a_matrix_with_members_must_be_named_with_one(ensemble):
    with pytest.raises(NotFoundError, match="did you mean 'trntk0@"):
        ensemble.kernel("trntk0")
    with pytest.raises(NotFoundError, match="unknown member"):
        ensemble.outputs("train")


def test_kernels_between_members_are_not_symmetric(ensemble):
    for name, kind in (("cross", "trntk0"), ("cross-cosine", "trntk"), ("cross-ck", "ck"), ("cross-signs", "signgd")):
        expected = cross(kind)
        np.testing.assert_allclose(whole(ensemble, name), expected, atol=1e-10)
        np.testing.assert_allclose(whole(ensemble, name, "test"), expected, atol=1e-10)
        if kind != "signgd":
            assert np.abs(expected - expected.T).max() > 1e-3
    sketched = cross("pntk", 0.25, 0.0, projection=ntkpipe.Projection(kind="none"))
    estimate, error = whole(ensemble, "cross-sketched"), ensemble.standard_errors("cross-sketched")[:, :]
    assert 0 < np.abs(estimate - sketched).max() < 8 * error.max()
    np.testing.assert_allclose(ensemble.diagonal("cross@late"), np.diagonal(library("trntk0", 0.25)), atol=1e-10)


def test_cross_kernels_of_two_checkpoints_are_the_inner_products_of_their_gradients():
    def jacobian(shift):
        model = golden.build_member(shift).double()
        rows = []
        for x in X:
            outputs = model(x[None])[0]
            rows.append(
                [
                    torch.cat(
                        [g.flatten() for g in torch.autograd.grad(o, list(model.parameters()), retain_graph=True)]
                    )
                    for o in outputs
                ]
            )
        return torch.stack([torch.stack(row) for row in rows])

    one, other = jacobian(0.0), jacobian(0.25)
    np.testing.assert_allclose(cross("trntk0"), torch.einsum("icp,jcp->ij", one, other), atol=1e-10)
    expected = one.sum(dim=1).sign() @ other.sum(dim=1).sign().T
    np.testing.assert_allclose(cross("signgd"), expected, atol=1e-10)


def test_the_ensemble_is_the_mean_over_members(ensemble):
    expected = (library("trntk0") + library("trntk0", 0.25)) / 2
    np.testing.assert_allclose(whole(ensemble, "ensemble", "test"), expected, atol=1e-10)
    np.testing.assert_allclose(ensemble.diagonal("ensemble"), np.diagonal(expected), atol=1e-10)


def test_preconditioners_belong_to_their_member(ensemble):
    for member, shift in (("early", 0.0), ("late", 0.25)):
        second, gradients = squares(shift)
        expected = (gradients * (second + 1e-8) ** -0.5) @ gradients.T
        np.testing.assert_allclose(whole(ensemble, f"fisher@{member}"), expected, rtol=1e-8)


def test_solutions_name_the_member(ensemble):
    alpha = np.linalg.solve(library("trntk0", 0.25) + np.eye(4), np.eye(2)[golden.LABELS])
    np.testing.assert_allclose(ensemble.solution("late"), alpha, rtol=1e-8)


def test_members_with_another_architecture_are_refused(tmp_path):
    model = {"target": "golden:build_wide", "members": {"a": {"options": {"width": 2}}, "b": {"options": {"width": 3}}}}
    with pytest.raises(ConfigError, match="differs from 'a' in parameter"):
        ntkpipe.run(config([{"kind": "pntk"}], model=model), tmp_path / "run")


# --- Formulas and random features


@pytest.fixture(scope="module")
def formulas(tmp_path_factory):
    kernels = [
        {"kind": "laplace", "bandwidth": 2.0},
        {"kind": "ntk", "depth": 2, "activation": "relu"},
        {"kind": "fourier_features", "bandwidth": 2.0, "dim": 4096},
        {"kind": "universal_features", "function": "sine", "dim": 4096},
        {"kind": "product", "of": ["laplace", "ntk"]},
    ]
    solve = [{"kind": "cholesky", "name": "ridge", "kernel": "ntk", "ridge": 0.1}]
    document = config(kernels, solve=solve)
    del document["model"]
    return ntkpipe.run(document, tmp_path_factory.mktemp("runs") / "formulas")


def test_a_run_needs_no_model_for_formulas(formulas):
    laplace = ntkpipe.closed_form("laplace", X, bandwidth=2.0).numpy()
    ntk = ntkpipe.closed_form("ntk", X, depth=2, activation="relu").numpy()
    for rows in ("train", "test"):
        np.testing.assert_allclose(whole(formulas, "laplace", rows), laplace, atol=1e-12)
        np.testing.assert_allclose(whole(formulas, "ntk", rows), ntk, atol=1e-12)
        np.testing.assert_allclose(whole(formulas, "product", rows), laplace * ntk, atol=1e-12)
    np.testing.assert_allclose(formulas.diagonal("laplace"), np.ones(4))
    alpha = np.linalg.solve(ntk + 0.1 * np.eye(4), np.eye(2)[golden.LABELS])
    np.testing.assert_allclose(formulas.solution("ridge"), alpha, rtol=1e-8)
    with pytest.raises(NotFoundError, match="without a model"):
        formulas.outputs("train")


def test_random_features_are_stored_and_multiplied(formulas):
    mapped = ntkpipe.random_features("fourier_features", X, bandwidth=2.0, dim=4096).numpy()
    np.testing.assert_allclose(formulas.features["fourier_features"][:], mapped, atol=1e-12)
    np.testing.assert_allclose(whole(formulas, "fourier_features"), mapped @ mapped.T, atol=1e-12)
    exact = ntkpipe.closed_form("gaussian", X, bandwidth=2.0).numpy()
    assert np.abs(mapped @ mapped.T - exact).max() < 0.1
    with pytest.raises(NotFoundError, match="not known"):
        formulas.standard_errors("fourier_features")


def test_features_that_count_negatively_are_subtracted(formulas):
    mapped = ntkpipe.random_features("universal_features", X, function="sine", dim=4096).numpy()
    negative = formulas.manifest.geometry.kernel("universal_features").num_negative
    assert negative == 2048
    plus, minus = mapped[:, :-negative], mapped[:, -negative:]
    expected = plus @ plus.T - minus @ minus.T
    np.testing.assert_allclose(whole(formulas, "universal_features"), expected, atol=1e-10)
    np.testing.assert_allclose(formulas.diagonal("universal_features"), np.diagonal(expected), atol=1e-10)


def test_kernels_of_a_model_without_a_model_are_refused():
    document = config([{"kind": "pntk"}])
    del document["model"]
    with pytest.raises(ConfigError, match="model is missing"):
        ntkpipe.load_config(document)


# --- Derived kernels


DERIVED = [
    {"kind": "trntk0", "layerwise": True},
    {"kind": "pntk"},
    {"kind": "gaussian", "bandwidth": 2.0},
    {
        "kind": "sum",
        "terms": [
            {"of": "trntk0", "component": "fc1.weight", "weight": 0.25},
            {"of": "pntk", "weight": 2.0},
            {"of": "gaussian", "weight": -1.0},
        ],
    },
    {"kind": "product", "of": ["trntk0", "gaussian"]},
    {"kind": "power", "of": "gaussian", "exponent": 3},
    {"kind": "scaled", "of": "trntk0"},
    {"kind": "scaled", "name": "half", "of": "trntk0", "factor": 0.5},
    {"kind": "normalised", "of": "trntk0"},
    {"kind": "centred", "of": "trntk0"},
    {"kind": "posterior", "of": "trntk0", "noise": 1.0, "given": ["x0"]},
    {"kind": "posterior", "name": "posterior-all", "of": "normalised", "noise": 0.1},
    {"kind": "centred", "name": "twice", "of": "posterior"},
    {"kind": "normalised", "name": "correlation", "of": "posterior"},
]


@pytest.fixture(scope="module")
def derived(tmp_path_factory):
    solve = [
        {"kind": "cholesky", "name": "centred", "kernel": "centred", "ridge": 0.5},
        {"kind": "eigenpro2", "name": "product", "kernel": "product", "ridge": 5.0, "epochs": 200},
    ]
    analyses = [{"kind": "spectrum", "kernels": ["centred", "posterior"]}]
    document = config(DERIVED, solve=solve, analyses=analyses)
    document["data"] = json.loads(json.dumps(document["data"]))
    document["data"]["splits"]["test"]["options"] = {"ids": ["a", "b", "c", "d"], "shift": 0.5}
    document["data"]["pairs"] = [["train", "train"], ["test", "train"], ["test", "test"]]
    return ntkpipe.run(document, tmp_path_factory.mktemp("runs") / "derived")


def dense(run):
    """All derived kernels on train and test samples together, by dense formulas."""
    both = torch.cat([X, X + 0.5])
    model = golden.build_member().double()
    trace = ntkpipe.kernel_matrix(model, both, kernel="trntk0").numpy()
    part = ntkpipe.kernel_matrix(model, both, kernel="trntk0", parameters=["fc1.weight"]).numpy()
    pntk = ntkpipe.kernel_matrix(model, both, kernel="pntk").numpy()
    gaussian = ntkpipe.closed_form("gaussian", both, bandwidth=2.0).numpy()
    roots = np.sqrt(np.diagonal(trace))
    normalised = trace / np.outer(roots, roots)

    def centred(matrix):
        means = matrix[:, :4].mean(axis=1)
        return matrix - means[:, None] - means[None] + means[:4].mean()

    def posterior(matrix, given, noise):
        seen = matrix[:, given]
        return matrix - seen @ np.linalg.solve(matrix[np.ix_(given, given)] + noise * np.eye(len(given)), seen.T)

    one = posterior(trace, [0], 1.0)
    deviations = np.sqrt(np.diagonal(one))
    return {
        "sum": 0.25 * part + 2 * pntk - gaussian,
        "product": trace * gaussian,
        "power": gaussian**3,
        "scaled": trace / np.diagonal(trace)[:4].mean(),
        "half": trace / 2,
        "normalised": normalised,
        "centred": centred(trace),
        "posterior": one,
        "posterior-all": posterior(normalised, [0, 1, 2, 3], 0.1),
        "twice": centred(one),
        "correlation": one / np.outer(deviations, deviations),
    }


def test_derived_kernels_are_their_dense_formulas(derived):
    for name, expected in dense(derived).items():
        pairs = {
            ("train", "train"): expected[:4, :4],
            ("test", "train"): expected[4:, :4],
            ("test", "test"): expected[4:, 4:],
        }
        for (rows, columns), part in pairs.items():
            np.testing.assert_allclose(whole(derived, name, rows, columns), part, atol=1e-9, err_msg=f"{name} {rows}")
        if name != "sum":
            np.testing.assert_allclose(derived.diagonal(name), np.diagonal(expected)[:4], atol=1e-9, err_msg=name)
            np.testing.assert_allclose(
                derived.diagonal(name, "test"), np.diagonal(expected)[4:], atol=1e-9, err_msg=name
            )


def test_the_posterior_has_its_golden_diagonal(derived):
    expected = [0.94736842, 24.63157895, 53.63157895, 1.78947368]
    np.testing.assert_allclose(np.diagonal(whole(derived, "posterior")), expected, atol=1e-8)


def test_centred_kernels_have_rows_that_sum_to_zero(derived):
    matrix = whole(derived, "centred")
    centre = np.eye(4) - 0.25
    np.testing.assert_allclose(matrix, centre @ np.array(golden.TRNTK0) @ centre, atol=1e-10)
    np.testing.assert_allclose(matrix.sum(axis=1), 0, atol=1e-9)


def test_derived_kernels_are_not_stored(derived):
    group = zarr.open_group(derived.url + "/data.zarr", mode="r")
    assert set(group["kernel"]) == {"trntk0", "pntk", "gaussian"}
    assert set(group["statistic"]) == {"centred", "posterior", "posterior-all", "twice"}
    assert group["statistic/posterior-all/test"].shape == (4, 4)
    assert group["statistic/posterior/test"].shape == (4, 1)


def test_derived_kernels_are_solved_and_analysed_like_any(derived):
    matrices = dense(derived)
    labels = np.eye(2)[golden.LABELS]
    alpha = np.linalg.solve(matrices["centred"][:4, :4] + 0.5 * np.eye(4), labels)
    np.testing.assert_allclose(derived.solution("centred"), alpha, rtol=1e-7)
    np.testing.assert_allclose(derived.predictions("centred", "test"), matrices["centred"][4:, :4] @ alpha, rtol=1e-7)
    alpha = np.linalg.solve(matrices["product"][:4, :4] + 5 * np.eye(4), labels)
    np.testing.assert_allclose(derived.solution("product"), alpha, rtol=1e-3, atol=1e-4)
    summary = json.loads(derived.analysis("spectrum"))
    assert set(summary) >= {"centred", "posterior"}


def test_derived_kernels_answer_queries(derived):
    answer = ntkpipe_command("query", derived.url, "kernel/correlation/test-train", "--rows", "0:2")
    assert answer.returncode == 0
    assert len(answer.stdout.splitlines()) == 3
    neighbors = derived.neighbors("a", 2, kernel="correlation")
    row = dense(derived)["correlation"][4, :4]
    assert [n.position for n in neighbors] == list(np.argsort(-row)[:2])
    assert all(checked.findings == () for checked in ntkpipe.verify(derived.url))


@pytest.mark.parametrize(
    ("kernels", "message"),
    [
        ([{"kind": "centred", "of": "pntk"}], "unknown kernel 'pntk'"),
        ([{"kind": "full"}, {"kind": "pntk"}, {"kind": "product", "of": ["full", "pntk"]}], "pairs"),
        ([{"kind": "signgd_asym"}, {"kind": "normalised", "of": "signgd_asym"}], "not symmetric"),
        ([{"kind": "pntk"}, {"kind": "ensemble", "of": "pntk"}], "members"),
        ([{"kind": "pntk"}, {"kind": "sum", "terms": [{"of": "pntk", "component": "fc1.bias"}]}], "layerwise"),
        (
            [
                {"kind": "pntk", "layerwise": True},
                {"kind": "sum", "terms": [{"of": "pntk", "component": "fc1.bias"}]},
                {"kind": "normalised", "of": "sum"},
            ],
            "not stored",
        ),
        (
            [{"kind": "pntk"}, {"kind": "posterior", "of": "pntk", "noise": 1, "given": ["nobody"]}],
            "no sample 'nobody'",
        ),
    ],
)
def test_derived_kernels_that_cannot_be_made_are_refused(kernels, message, tmp_path):
    with pytest.raises(ConfigError, match=message):
        ntkpipe.run(config(kernels), tmp_path / "run")


def test_a_pass_that_needs_another_pair_of_splits_is_refused():
    document = config([{"kind": "pntk"}, {"kind": "centred", "of": "pntk"}])
    document["data"] = document["data"] | {"pairs": [["train", "train"], ["test", "test"]]}
    with pytest.raises(ConfigError, match="needs the pair"):
        ntkpipe.load_config(document)
