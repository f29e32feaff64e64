"""Learned Gram matrices: the objective and its optimum, propagation to other samples, and the kernel they make."""

import functools
import math
import types

import numpy as np
import pytest
import torch
from contracts.kernels import KernelContract
from pydantic import ValidationError
from scipy import stats

from ntkpipe.configs.errors import ConfigError, NumericalError
from ntkpipe.configs.kernels.structured import DeepKernelMachineConfig
from ntkpipe.workers.kernels.closed_form.deep_kernel_machine import DeepKernelMachineKernel
from ntkpipe.workers.kernels.closed_form.gram_layers import (
    arc_cosine_map,
    deep_kernel_objective,
    fit_gram_layers,
    gram_divergence,
    label_evidence,
    layer_kernel,
)

OPTIONS = {"noise": 0.1, "jitter": 1e-4}
UNFITTED = {"steps": 0, "tolerance": 1.0}
FITTED = {"steps": 1000, "tolerance": 1e-5}


def inputs(num=12, dim=4, seed=0):
    return torch.randn(num, dim, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def gram(x):
    return x @ x.T / x.shape[1]


def labels_of(x):
    """A parity of signs, which no linear function of the inputs imitates."""
    return (x[:, 0] * x[:, 1] > 0).long()


def one_hot(x):
    return torch.eye(2, dtype=torch.float64)[labels_of(x)]


def random_gram(num, seed):
    root = inputs(num, num + 2, seed)
    return root @ root.T / num


def arc_cosine_by_loops(matrix):
    found = np.zeros(matrix.shape)
    for i in range(len(matrix)):
        for j in range(len(matrix)):
            norm = math.sqrt(matrix[i, i] * matrix[j, j])
            angle = math.acos(max(-1.0, min(1.0, matrix[i, j] / norm))) if norm else 0.0
            found[i, j] = norm * (math.sin(angle) + (math.pi - angle) * math.cos(angle)) / math.pi
    return found


@pytest.fixture
def files(tmp_path):
    """Write inducing inputs and labels; returns the fields that name them."""

    return functools.partial(write, tmp_path)


def write(folder, x=None, labels=None):
    x = inputs() if x is None else x
    np.save(folder / "inducing.npy", np.asarray(x))
    np.save(folder / "labels.npy", labels_of(x).numpy() if labels is None else labels)
    return {"inducing": str(folder / "inducing.npy"), "labels": str(folder / "labels.npy")}


def machine(files, **options):
    return DeepKernelMachineKernel(DeepKernelMachineConfig(**files, **options))


# The layer map


def test_the_map_of_a_gram_matrix_is_that_of_cho_and_saul():
    matrix = gram(inputs(8, 3))
    np.testing.assert_allclose(arc_cosine_map(matrix), arc_cosine_by_loops(matrix.numpy()), atol=1e-14)
    table = {-1: 0, -0.5: 0.10899778, 0: 0.31830989, 0.5: 0.60899778, 1: 1}
    for u, expected in table.items():
        pair = torch.tensor([[1.0, u], [u, 1.0]], dtype=torch.float64)
        assert float(arc_cosine_map(pair)[0, 1]) == pytest.approx(expected, abs=5e-9)


def test_the_map_keeps_the_diagonal_and_is_defined_for_zeros_duplicates_and_opposites():
    x = inputs(5, 3)
    x = torch.cat([x, x[:1], -x[1:2], torch.zeros(1, 3, dtype=torch.float64)])
    matrix = gram(x).requires_grad_()
    found = arc_cosine_map(matrix)
    torch.testing.assert_close(found.diagonal(), matrix.diagonal(), rtol=1e-14, atol=0)
    assert float(found[0, 5].detach()) == pytest.approx(float(matrix[0, 0].detach()), rel=1e-14)
    assert abs(float(found[1, 6].detach())) < 1e-15
    assert not found[7].detach().any()
    found.sum().backward()
    assert torch.isfinite(matrix.grad).all()


def test_the_gradient_of_the_map_is_right():
    assert torch.autograd.gradcheck(arc_cosine_map, (gram(inputs(6, 4)).requires_grad_(),))


def test_normalisation_makes_the_mean_of_the_diagonal_one_before_the_jitter():
    matrix = 7 * gram(inputs())
    kernel, unit = layer_kernel(matrix, jitter=0.25, normalisation="mean-diagonal")
    assert float(unit) == pytest.approx(float(matrix.diagonal().mean()), rel=1e-14)
    assert float(kernel.diagonal().mean()) == pytest.approx(1.25, rel=1e-14)
    kernel, unit = layer_kernel(matrix, jitter=0.25, normalisation="none")
    assert float(unit) == 1
    jitter = 0.25 * float(matrix.diagonal().mean())
    np.testing.assert_allclose(kernel, arc_cosine_by_loops(matrix.numpy()) + jitter * np.eye(12), atol=1e-13)


# The objective


def test_the_divergence_is_that_of_two_normal_distributions():
    first, second = random_gram(5, 1), random_gram(5, 2)
    samples = stats.multivariate_normal(cov=first.numpy(), seed=0).rvs(200_000)
    estimate = np.mean(
        stats.multivariate_normal(cov=first.numpy()).logpdf(samples)
        - stats.multivariate_normal(cov=second.numpy()).logpdf(samples)
    )
    ratio = np.linalg.solve(second, first)
    expected = (np.trace(ratio) - np.linalg.slogdet(ratio)[1] - 5) / 2
    assert float(gram_divergence(first, second)) == pytest.approx(expected, rel=1e-12)
    assert expected == pytest.approx(estimate, rel=0.02)
    assert abs(float(gram_divergence(first, first))) < 1e-12


def test_the_evidence_is_the_density_of_scipy():
    matrix, targets = random_gram(6, 3), inputs(6, 3, seed=4)
    law = stats.multivariate_normal(cov=matrix.numpy() + 0.2 * np.eye(6))
    expected = sum(law.logpdf(targets[:, target]) for target in range(3))
    assert float(label_evidence(matrix, targets, noise=0.2)) == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize("normalisation", ["none", "mean-diagonal"])
def test_without_labels_the_optimum_is_the_map_itself_and_zero(normalisation):
    grams, before = [], gram(inputs())
    for _ in range(3):
        before, _ = layer_kernel(before, jitter=1e-4, normalisation=normalisation)
        grams.append(before)
    options = {"nu": 2.0, "noise": 0.1, "jitter": 1e-4, "normalisation": normalisation}
    best = float(deep_kernel_objective(grams, gram(inputs()), None, **options))
    assert abs(best) < 1e-9
    for seed in range(5):
        changed = [matrix + 0.05 * random_gram(12, seed) for matrix in grams]
        assert float(deep_kernel_objective(changed, gram(inputs()), None, **options)) < best


def test_the_gradient_of_the_objective_is_right():
    x = inputs(5, 3)
    roots = torch.stack([random_gram(5, 5), random_gram(5, 6)]).requires_grad_()

    def objective(roots):
        grams = [root @ root.T for root in roots]
        return deep_kernel_objective(grams, gram(x) + 0.1 * torch.eye(5), one_hot(x), nu=1.5, **OPTIONS)

    assert torch.autograd.gradcheck(objective, (roots,))


@pytest.mark.parametrize("normalisation", ["none", "mean-diagonal"])
def test_the_fit_is_a_stationary_point_and_better_than_where_it_started(normalisation):
    x, options = inputs(), OPTIONS | {"nu": 3.0, "normalisation": normalisation}
    start = fit_gram_layers(gram(x), one_hot(x), depth=2, **UNFITTED, **options)
    found = fit_gram_layers(gram(x), one_hot(x), depth=2, **FITTED, **options)

    def value(layers, change=0.0):
        grams = [layer.gram_PP for layer in layers]
        grams[0] = grams[0] + change
        return float(deep_kernel_objective(grams, gram(x), one_hot(x), **options))

    assert value(found) > value(start) + 1
    for seed in range(4):
        direction = random_gram(12, seed) - torch.eye(12, dtype=torch.float64)
        # At an optimum differences are of second order on both sides: symmetric, and downwards.
        up, down = value(found, 1e-4 * direction), value(found, -1e-4 * direction)
        assert max(up, down) < value(found)
        assert abs(up - down) < 0.05 * (2 * value(found) - up - down) + 1e-6


def test_a_fit_is_the_same_twice_to_the_last_bit():
    x, options = inputs(), OPTIONS | FITTED | {"nu": 1.0, "depth": 2}
    first, again = (fit_gram_layers(gram(x), one_hot(x), **options) for _ in range(2))
    assert all(torch.equal(one.gram_PP, two.gram_PP) for one, two in zip(first, again, strict=True))


def test_the_tolerance_bounds_the_derivatives_of_the_objective_and_more_steps_than_needed_are_not_taken():
    x, nu = inputs(), 3.0
    errors, best = [], fit_gram_layers(gram(x), one_hot(x), depth=2, nu=nu, steps=5000, tolerance=1e-7, **OPTIONS)
    for tolerance in (1e-1, 1e-3, 1e-5):
        layers = fit_gram_layers(gram(x), one_hot(x), depth=2, nu=nu, steps=5000, tolerance=tolerance, **OPTIONS)
        roots = torch.stack([layer.learned_PP for layer in layers]).requires_grad_()
        grams, before = [], gram(x)
        for root in roots:
            factor = torch.linalg.cholesky(layer_kernel(before, jitter=1e-4, normalisation="none")[0])
            before = factor @ root @ root.T @ factor.T
            grams.append(before)
        deep_kernel_objective(grams, gram(x), one_hot(x), nu=nu, **OPTIONS).backward()
        # The diagonal is fitted by its logarithm: df / d log a = a df / da.
        slopes = (roots.grad * (1 + (roots.detach() - 1) * torch.eye(12))).tril().abs()
        assert float(slopes.max()) <= tolerance * nu * (1 + 1e-6)
        errors.append(max(float((a.learned_PP - b.learned_PP).abs().max()) for a, b in zip(layers, best, strict=True)))
        assert errors[-1] < 10 * tolerance
    assert errors[0] > 10 * errors[1] > 100 * errors[2]


def test_a_fit_that_does_not_reach_its_tolerance_is_an_error_that_says_what_to_do():
    x, options = inputs(), OPTIONS | {"nu": 0.5, "depth": 2}
    with pytest.raises(NumericalError, match=r"after 3 of at most 3 steps.*more than tolerance = 1\.0e-05.*more steps"):
        fit_gram_layers(gram(x), one_hot(x), steps=3, tolerance=1e-5, **options)
    with pytest.raises(NumericalError, match=r"of at most 5000 steps.*Give it a larger nu or noise"):
        fit_gram_layers(gram(x), one_hot(x), steps=5000, tolerance=1e-14, **options)
    few = fit_gram_layers(gram(x), one_hot(x), steps=3, tolerance=100.0, **options)
    start = fit_gram_layers(gram(x), one_hot(x), **UNFITTED, **options)
    assert torch.equal(few[0].gram_PP, start[0].gram_PP), "a start within the tolerance is where the fit ends"


def test_a_kernel_whose_fit_does_not_converge_is_refused_by_every_entry_point(files):
    kernel = machine(files(), nu=0.5, steps=3)
    for entry in (kernel.block, kernel.diagonal):
        with pytest.raises(NumericalError, match="ended after 3 of at most 3 steps"):
            entry(inputs(2))
    with pytest.raises(ValidationError, match=r"tolerance = 0\.1 has no meaning without a fit"):
        DeepKernelMachineConfig(**files(), steps=0, tolerance=0.1)


def test_labels_bring_samples_of_one_class_together():
    x = inputs(30, 5)
    options = OPTIONS | {"nu": 1.0, "depth": 2}
    same = labels_of(x)[:, None] == labels_of(x)
    alignments = []
    for effort in (UNFITTED, {"steps": 1000, "tolerance": 1e-3}):
        last = fit_gram_layers(gram(x), one_hot(x), **effort, **options)[-1].gram_PP
        cosines = last / last.diagonal().sqrt().outer(last.diagonal().sqrt())
        off = ~torch.eye(30, dtype=torch.bool)
        alignments.append(float(cosines[same & off].mean() - cosines[~same].mean()))
    assert alignments[1] > alignments[0] + 0.2


# Other samples


def nngp(x, depth):
    matrix = (x @ x.T / x.shape[1]).numpy()
    for _ in range(depth):
        matrix = arc_cosine_by_loops(matrix)
    return matrix


@pytest.mark.parametrize("options", [{"nu": 1e9}, {"steps": 0}])
@pytest.mark.parametrize("depth", [1, 3])
def test_without_learning_the_kernel_is_that_of_an_infinitely_wide_network(files, options, depth):
    x = inputs(9, seed=5)
    found = machine(files(), depth=depth, **options).block(x)
    np.testing.assert_allclose(found, nngp(x, depth), rtol=0, atol=1e-8)


def test_other_samples_follow_from_the_conditional_given_the_inducing_ones(files):
    kernel = machine(files(), depth=2, nu=2.0)
    inducing, layers = kernel.fitted
    x = inputs(7, seed=6)
    joint = gram(torch.cat([inducing, x])).numpy()
    for layer in layers:
        mapped = arc_cosine_by_loops(joint)
        k_ii = mapped[:12, :12] + 1e-4 * np.diagonal(mapped[:12, :12]).mean() * np.eye(12)
        to_inducing = np.linalg.solve(k_ii, mapped[:12, 12:]).T
        g_ii, g_ti = layer.gram_PP.numpy(), to_inducing @ layer.gram_PP.numpy()
        g_tt = mapped[12:, 12:] - to_inducing @ mapped[:12, 12:] + to_inducing @ g_ii @ to_inducing.T
        joint = np.block([[g_ii, g_ti.T], [g_ti, g_tt]])
    np.testing.assert_allclose(kernel.block(x), joint[12:, 12:], atol=1e-10)


def test_inducing_inputs_as_samples_have_the_fitted_gram_matrix(files):
    x = inputs()
    kernel = machine(files(), nu=2.0, jitter=1e-8)
    np.testing.assert_allclose(kernel.block(x), kernel.fitted[1][-1].gram_PP, atol=1e-5)


def test_what_was_learned_reaches_new_samples(files):
    test = inputs(80, 5, seed=9)
    same, off = labels_of(test)[:, None] == labels_of(test), ~torch.eye(80, dtype=torch.bool)
    fields, alignments = files(inputs(60, 5)), []
    for effort in ({"steps": 0}, {"tolerance": 1e-2}):
        matrix = machine(fields, depth=2, nu=1.0, **effort).block(test)
        cosines = matrix / matrix.diagonal().sqrt().outer(matrix.diagonal().sqrt())
        alignments.append(float(cosines[same & off].mean() - cosines[~same].mean()))
    assert alignments[1] > 2 * alignments[0] > 0


def test_images_are_taken_as_vectors_and_labels_may_be_values(files):
    x = inputs(12, 6)
    values = inputs(12, 2, seed=3).numpy()
    flat = machine(files(x, values), depth=1).block(x)
    images = machine(files(x.reshape(12, 1, 2, 3), values), depth=1).block(x.reshape(12, 1, 2, 3))
    assert torch.equal(flat, images)
    column = machine(files(x, values[:, 0]), depth=1).block(x)
    assert float((column - flat).abs().max()) > 1e-3


def test_classes_are_taken_one_hot(files):
    x = inputs()
    assert torch.equal(machine(files(x)).block(x), machine(files(x, one_hot(x).numpy())).block(x))


def test_duplicates_and_zeros_among_inducing_inputs_do_no_harm(files):
    x = inputs()
    x[3], x[5] = x[2], 0
    found = machine(files(x), nu=1.0).block(x)
    assert torch.isfinite(found).all()
    assert float(torch.linalg.eigvalsh(found)[0]) > -1e-10


def test_the_fit_happens_once_and_only_when_it_is_needed(files, tmp_path):
    fields = files()
    kernel = machine(fields)
    first = kernel.block(inputs(3))
    (tmp_path / "inducing.npy").unlink()
    assert torch.equal(kernel.block(inputs(3)), first)
    with pytest.raises(ConfigError, match=r"inducing\.npy does not exist"):
        machine(fields).block(inputs(3))


def test_files_and_samples_of_the_wrong_shape_are_refused(files, tmp_path):
    x = inputs()
    with pytest.raises(ConfigError, match=r"as many labels; found \(12, 4\) and 11"):
        machine(files(labels=np.zeros(11))).block(x)
    with pytest.raises(ConfigError, match="class -1"):
        machine(files(labels=np.full(12, -1))).block(x)
    with pytest.raises(ConfigError, match="finite numbers"):
        machine(files(labels=np.full(12, np.nan))).block(x)
    with pytest.raises(ConfigError, match=r"found shape \(12, 1, 1\)"):
        machine(files(labels=np.zeros((12, 1, 1)))).block(x)
    with pytest.raises(ConfigError, match=r"samples have the shape \(3,\)"):
        machine(files()).block(inputs(5, 3))
    fields = files()
    for content in (b"", b"no array", b"PK\x03\x04 no archive"):
        (tmp_path / "labels.npy").write_bytes(content)
        with pytest.raises(ConfigError, match="not an npy file"):
            machine(fields).block(x)


def test_inducing_inputs_that_are_all_zero_are_refused(files):
    with pytest.raises(NumericalError, match="not positive definite"):
        machine(files(torch.zeros(4, 3, dtype=torch.float64), np.arange(4))).block(inputs(2, 3))


# Contracts


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("machine")


@functools.cache
def fitted(suite, folder):
    """The machine of a suite, whose fit all of its tests share."""
    return machine(write(folder), **suite.options)


class MachineContract(KernelContract):
    options = types.MappingProxyType({})

    @pytest.fixture(autouse=True)
    def fit(self, folder):
        self.kernel = fitted(type(self), folder)

    def samples(self):
        x = torch.cat([inputs(6, seed=7), torch.zeros(1, 4, dtype=torch.float64), inputs()[:2]])
        return torch.cat([x, x[:1]])

    def block(self, x, x2=None):
        return self.kernel.block(x, x2)

    def diagonal(self, x):
        return self.kernel.diagonal(x)

    def test_the_diagonal_of_a_matrix_is_that_of_its_samples_to_the_last_bit(self):
        x = self.samples()
        assert torch.equal(self.block(x).diagonal(), self.diagonal(x))


class TestDeepKernelMachine(MachineContract):
    options = types.MappingProxyType({"nu": 1.0})


class TestNormalisedDeepKernelMachine(MachineContract):
    options = types.MappingProxyType({"depth": 3, "nu": 0.3, "normalisation": "mean-diagonal", "tolerance": 1e-3})


class TestUnfittedDeepKernelMachine(MachineContract):
    options = types.MappingProxyType({"depth": 1, "steps": 0})
