"""Output functionals against their definition: gradients of the numbers that they stand for."""

import copy
import math

import golden
import models
import pytest
import torch
from torch import nn

import ntkpipe
from ntkpipe.configs.errors import ConfigError
from ntkpipe.workers.jacobians.coverage import plan_routes, probe_samples, select_parameters
from ntkpipe.workers.jacobians.engine import TRACE, JacobianEngine, Portion
from ntkpipe.workers.jacobians.functionals import Functional, probes
from ntkpipe.workers.reference import dense_jacobian, reference_components


def relative_error(found, expected):
    return float((found - expected).abs().max() / expected.abs().max().clamp_min(1e-300))


def golden_kernel(kernel, **options):
    options = {"y": torch.tensor(golden.LABELS), "dtype": torch.float64} | options
    return ntkpipe.kernel_matrix(golden.build_model(), torch.tensor(golden.INPUTS), kernel=kernel, **options)


def network(num_outputs=5):
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 6), nn.Tanh(), nn.Linear(6, num_outputs)).double()


def samples(num=7, num_outputs=5):
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(num, 4, generator=generator, dtype=torch.float64)
    return x, torch.randint(num_outputs, (num,), generator=generator)


def gradients_of(model, x, scalar):
    """Return (N, P) gradients of scalar(outputs of a sample, its number)."""
    parameters = list(model.parameters())
    rows = []
    for number, sample in enumerate(x):
        found = torch.autograd.grad(scalar(model(sample.unsqueeze(0))[0], number), parameters)
        rows.append(torch.cat([gradient.flatten() for gradient in found]))
    return torch.stack(rows)


def engine_of(model, x):
    return JacobianEngine(model, plan_routes(model, select_parameters(model), probe_samples(x)))


def stacked(factors):
    """Return the (B, V, P) gradients of all parameters."""
    return torch.cat([factor.dense() for factor in factors.values()], dim=2)


# Golden values


def test_golden_values_of_every_functional():
    assert relative_error(golden_kernel("lpntk"), torch.tensor(golden.LPNTK, dtype=torch.float64)) < 1e-12
    assert golden_kernel("trntk0").tolist() == golden.TRNTK0
    assert golden_kernel("pntk").tolist() == golden.PNTK
    assert golden_kernel("loss").diagonal().tolist() == pytest.approx(golden.LOSS_DIAGONAL, abs=5e-9)
    for many in ("probe:2", "probe:3", "probe:100"):
        assert relative_error(golden_kernel(many), torch.tensor(golden.TRNTK0).double()) < 1e-12
    classes = golden_kernel("class:0") + golden_kernel("class:1")
    assert relative_error(classes, torch.tensor(golden.TRNTK0).double()) < 1e-12


def test_golden_values_of_the_full_kernel():
    full = golden_kernel("full")
    assert full.shape == (8, 8)
    assert torch.linalg.eigvalsh(full).tolist() == pytest.approx(golden.FULL_EIGENVALUES, abs=5e-9)


@pytest.mark.parametrize("layerwise", [False, True])
def test_outputs_are_fastest_in_the_full_kernel(layerwise):
    model, (x, _), (x2, _) = network(3), samples(5, 3), samples(4, 3)
    x2 = x2 + 1
    rows, columns = dense_jacobian(model, x), dense_jacobian(model, x2)
    expected = {name: torch.einsum("ncp,mdp->ncmd", rows[name], columns[name]).reshape(15, 12) for name in rows}
    found = ntkpipe.kernel_matrix(model, x, x2, kernel="full", layerwise=layerwise, batch_size=2)
    if layerwise:
        assert list(found) == list(expected)
        for name, values in expected.items():
            assert relative_error(found[name], values) < 1e-12
        found = sum(found.values())
    assert relative_error(found, sum(expected.values())) < 1e-12
    traces = found.unflatten(0, (5, 3)).unflatten(2, (4, 3)).diagonal(dim1=1, dim2=3).sum(-1)
    assert relative_error(traces, ntkpipe.kernel_matrix(model, x, x2, kernel="trntk0")) < 1e-12


@pytest.mark.filterwarnings("ignore:There is a performance drop because we have not yet implemented the batching rule")
@pytest.mark.parametrize(
    "name",
    ["embedding tied to a linear layer", "attention with padding", "convolution of 2 axes with groups", "weight norm"],
)
def test_the_full_kernel_of_every_kind_of_factor(name):
    case = models.CASES[name]
    model, x = case.build(), case.samples(4)
    jacobian = dense_jacobian(model, x)
    found = ntkpipe.kernel_matrix(model, x, kernel="full", layerwise=True, dtype=torch.float64, batch_size=3)
    for parameter, values_NCP in jacobian.items():
        flat = values_NCP.flatten(0, 1)
        assert float((found[parameter] - flat @ flat.T).abs().max()) < 1e-10 * float(sum(found.values()).max())


# Definitions


def logit_margin(outputs, label):
    others = torch.cat([outputs[:label], outputs[label + 1 :]])
    return outputs[label] - others.logsumexp(0)


def log_odds(outputs, label):
    probability = outputs.softmax(0)[label]
    return torch.log(probability / (1 - probability))


SCALARS = {
    "pntk": lambda f, y: f.sum(),
    "lpntk": lambda f, y: (2 * f[y] - f.sum()) / math.sqrt(len(f)),
    "class:3": lambda f, y: f[3],
    "true_class": lambda f, y: f[y],
    "loss": lambda f, y: nn.functional.cross_entropy(f, y),
    "margin": logit_margin,
}


@pytest.mark.parametrize("batch_size", [3, 7])
@pytest.mark.parametrize("kernel", SCALARS)
def test_a_kernel_is_the_inner_product_of_gradients_of_its_scalar(kernel, batch_size):
    model, (x, y) = network(), samples()
    gradients = gradients_of(model, x, lambda outputs, number: SCALARS[kernel](outputs, y[number]))
    found = ntkpipe.kernel_matrix(model, x, kernel=kernel, y=y, batch_size=batch_size)
    assert relative_error(found, gradients @ gradients.T) < 1e-12
    parts = ntkpipe.kernel_matrix(model, x, kernel=kernel, y=y, layerwise=True)
    assert relative_error(sum(parts.values()), gradients @ gradients.T) < 1e-12
    other = ntkpipe.kernel_matrix(model, x, x[2:5], kernel=kernel, y=y, y2=y[2:5], batch_size=batch_size)
    assert relative_error(other, gradients @ gradients[2:5].T) < 1e-12


def test_the_margin_is_the_log_odds_of_the_class():
    model, (x, y) = network(), samples()
    gradients = gradients_of(model, x, lambda outputs, number: log_odds(outputs, y[number]))
    assert relative_error(ntkpipe.kernel_matrix(model, x, kernel="margin", y=y), gradients @ gradients.T) < 1e-10


def test_the_margin_of_a_certain_class_is_finite():
    outputs = torch.tensor([[200.0, 0.0, -200.0], [-300.0, 300.0, 0.0]])
    vectors = Functional("margin").cotangents(outputs, torch.tensor([0, 0]))[0]
    assert vectors.tolist() == [[1.0, -1.0, 0.0], [1.0, -1.0, 0.0]]


def test_the_loss_of_real_targets_is_half_the_squared_error():
    model, (x, _) = network(), samples()
    targets = torch.randn(7, 5, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    gradients = gradients_of(model, x, lambda outputs, number: (outputs - targets[number]).square().sum() / 2)
    assert relative_error(ntkpipe.kernel_matrix(model, x, kernel="loss", y=targets), gradients @ gradients.T) < 1e-12


@pytest.mark.parametrize("num_vectors", [1, 2, 9])
def test_cotangents_may_be_anything(num_vectors):
    model, (x, _) = network(), samples()
    given = torch.randn(7, num_vectors, 5, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    jacobian = torch.cat(list(dense_jacobian(model, x).values()), dim=2)
    gradients = torch.einsum("nvc,ncp->nvp", given, jacobian).flatten(1)
    found = ntkpipe.kernel_matrix(model, x, kernel="cotangents", y=given, batch_size=3)
    assert relative_error(found, gradients @ gradients.T) < 1e-12


def test_labels_of_any_integer_type_will_do():
    model, (x, y) = network(), samples()
    expected = ntkpipe.kernel_matrix(model, x, kernel="true_class", y=y)
    for dtype in (torch.int32, torch.int16, torch.uint8):
        assert torch.equal(ntkpipe.kernel_matrix(model, x, kernel="true_class", y=y.to(dtype)), expected)


@pytest.mark.parametrize("kind", ["sum", "signs", "true_class", "class", "loss", "margin", "probes", "trace"])
def test_output_vectors_have_the_type_of_the_outputs(kind):
    for dtype in (torch.float32, torch.float64):
        vectors = Functional(kind, index=2).cotangents(torch.randn(3, 4, dtype=dtype), torch.tensor([0, 3, 1]))
        assert vectors.dtype == dtype
        assert vectors.shape == (Functional(kind, index=2).num_vectors(4), 3, 4)


def test_one_vector_of_many_outputs_takes_no_square_matrix(monkeypatch):
    def refuse(*sizes, **options):
        raise AssertionError("a C x C matrix")

    monkeypatch.setattr(torch, "eye", refuse)
    outputs, labels = torch.randn(2, 50_000), torch.tensor([3, 7])
    for kind in ("sum", "signs", "true_class", "loss", "margin", "class"):
        assert Functional(kind, index=5).cotangents(outputs, labels).shape == (1, 2, 50_000)
    assert Functional("probes", index=2).cotangents(outputs, labels).shape == (2, 2, 50_000)


# Probes


@pytest.mark.parametrize("num_outputs", [2, 10, 16, 7])
def test_all_probes_together_are_exact(num_outputs):
    found = probes(num_outputs, num_outputs, seed=3)
    assert found.shape == (num_outputs, num_outputs)
    identity = torch.eye(num_outputs, dtype=torch.float64)
    # sum_j v_j v_j^T is the identity, with each v_j over sqrt(m).
    assert float((found.T @ found - identity).abs().max()) < 1e-13
    assert torch.equal(probes(num_outputs, num_outputs + 5, seed=3), found)


@pytest.mark.parametrize(("num_outputs", "num"), [(2, 1), (10, 3), (16, 4), (7, 5)])
def test_probes_are_orthogonal_and_differ_between_seeds(num_outputs, num):
    for seed in range(20):
        found = probes(num_outputs, num, seed)
        assert found.shape == (num, num_outputs)
        expected = torch.eye(num, dtype=torch.float64) * num_outputs / num
        assert float((found @ found.T - expected).abs().max()) < 1e-12
        assert torch.equal(found, probes(num_outputs, num, seed))
    distinct = {tuple(probes(num_outputs, num, seed).flatten().tolist()) for seed in range(50)}
    assert len(distinct) > (2 if num_outputs == 2 else 40)


@pytest.mark.parametrize(("num_outputs", "num"), [(2, 1), (10, 3), (16, 4), (7, 5), (7, 1)])
def test_probes_are_unbiased(num_outputs, num):
    generator = torch.Generator().manual_seed(4)
    matrix = torch.randn(num_outputs, num_outputs, generator=generator, dtype=torch.float64)
    estimates = []
    for seed in range(400):
        vectors = probes(num_outputs, num, seed)
        estimates.append(float(torch.einsum("mc,cd,md->", vectors, matrix, vectors)))
    values = torch.tensor(estimates)
    standard_error = float(values.std()) / 20
    assert abs(float(values.mean()) - float(matrix.trace())) < 4 * standard_error


def test_the_kernel_of_probes_is_unbiased():
    model, (x, _) = network(7), samples(4, 7)
    exact = ntkpipe.kernel_matrix(model, x, kernel="trntk0")
    engine = engine_of(model, x)
    wanted = [Functional("probes", index=2, seed=seed) for seed in range(300)]
    found = engine.run(x, Portion(frozenset(wanted))).factors
    kernels = []
    for functional in wanted:
        values = stacked(found[functional])
        kernels.append(torch.einsum("nvp,mvp->nm", values, values))
    kernels = torch.stack(kernels)
    standard_error = kernels.std(dim=0) / math.sqrt(len(wanted))
    assert float(((kernels.mean(dim=0) - exact) / standard_error).abs().max()) < 4.5


@pytest.mark.parametrize("num_outputs", [2, 10, 16, 7])
def test_the_kernel_of_as_many_probes_as_outputs_is_exact(num_outputs):
    model, (x, _) = network(num_outputs), samples(4, num_outputs)
    exact = ntkpipe.kernel_matrix(model, x, kernel="trntk0")
    for num in (num_outputs, num_outputs + 1, 1000):
        assert relative_error(ntkpipe.kernel_matrix(model, x, kernel=f"probe:{num}"), exact) < 1e-12


# Several functionals in one pass


ALL = frozenset(
    {
        TRACE,
        Functional("sum"),
        Functional("signs"),
        Functional("true_class"),
        Functional("class", index=1),
        Functional("loss"),
        Functional("margin"),
        Functional("probes", index=2),
    }
)
FEW = frozenset({Functional("sum"), Functional("margin")})


@pytest.mark.filterwarnings("ignore:There is a performance drop because we have not yet implemented the batching rule")
@pytest.mark.parametrize("wanted", [ALL, ALL - {TRACE}, FEW])
@pytest.mark.parametrize(
    "name",
    [
        "linear with time first",
        "embedding tied to a linear layer",
        "attention with padding",
        "position ids",
        "convolution of 2 axes with groups",
        "layer norm before an in-place activation",
        "weight norm",
        "lstm",
    ],
)
def test_functionals_together_equal_functionals_alone(name, wanted):
    case = models.CASES[name]
    model, x = copy.deepcopy(case.build()).double(), case.samples(5)
    x = x.double() if x.is_floating_point() else x
    labels = torch.tensor([0, 1, 1, 0, 1])
    engine = engine_of(model, x)
    together = engine.run(x, Portion(wanted), labels).factors
    assert set(together) == wanted
    jacobian = dense_jacobian(model, x)
    outputs = model(x).detach()
    for functional in wanted:
        (alone,) = engine.run(x, Portion(frozenset({functional})), labels).factors.values()
        vectors_VBC = functional.cotangents(outputs, labels)
        assert list(together[functional]) == list(alone) == list(jacobian)
        for parameter, values_NCP in jacobian.items():
            expected = torch.einsum("vbc,bcp->bvp", vectors_VBC, values_NCP)
            scale = float(values_NCP.abs().max())
            for found in (together[functional], alone):
                assert float((found[parameter].dense() - expected).abs().max()) < 1e-10 * scale


@pytest.mark.parametrize(
    ("wanted", "num_backward"),
    [
        ({TRACE}, 5),
        ({Functional("sum")}, 1),
        ({Functional("probes", index=3)}, 3),
        ({Functional("sum"), Functional("loss")}, 2),
        ({Functional("sum"), TRACE}, 5),
        (ALL, 5),
        (ALL - {TRACE}, 5),
    ],
)
def test_one_forward_pass_and_no_more_backward_passes_than_needed(wanted, num_backward, monkeypatch):
    model, (x, y) = network(), samples()
    engine = engine_of(model, x)
    forward, backward, num_vectors = [], [], []
    model.register_forward_hook(lambda *_: forward.append(1))
    real = torch.autograd.grad

    def counted(outputs, inputs, *arguments, **options):
        backward.append(inputs)
        num_vectors.append(len(arguments[0]) if options.get("is_grads_batched") else 1)
        return real(outputs, inputs, *arguments, **options)

    monkeypatch.setattr(torch.autograd, "grad", counted)
    engine.run(x, Portion(frozenset(wanted)), y)
    assert len(forward) == 1
    assert sum(num_vectors) == num_backward
    # No backward pass computes the gradient of a parameter.
    assert not any(isinstance(edge, torch.Tensor) for inputs in backward for edge in inputs)


def test_without_functionals_there_is_no_backward_pass(monkeypatch):
    model, (x, _) = network(), samples()
    engine = engine_of(model, x)
    monkeypatch.setattr(torch.autograd, "grad", None)
    found = engine.run(x, Portion(frozenset()))
    assert found.factors == {}
    assert torch.equal(found.outputs_BC, model(x))


def test_a_functional_in_several_passes_adds_up():
    model, (x, _) = network(), samples()
    engine = engine_of(model, x)
    whole = stacked(engine.run(x, Portion(frozenset({TRACE}))).factors[TRACE])
    parts = [
        stacked(engine.run(x, Portion(frozenset({TRACE}), vectors)).factors[TRACE])
        for vectors in ((0, 2), (2, 4), (4, 5))
    ]
    assert relative_error(torch.cat(parts, dim=1), whole) < 1e-13


# What is refused


@pytest.mark.parametrize("kernel", ["lpntk", "true_class", "loss", "margin", "cotangents"])
def test_missing_labels_are_named(kernel):
    model, (x, y) = network(), samples()
    with pytest.raises(ConfigError, match=f"kernel '{kernel}' depends on labels; give y"):
        ntkpipe.kernel_matrix(model, x, kernel=kernel)
    if kernel != "cotangents":
        with pytest.raises(ConfigError, match="give y, and y2 for x2"):
            ntkpipe.kernel_matrix(model, x, x, kernel=kernel, y=y)
        with pytest.raises(ConfigError, match="there are 7 samples but 6 labels"):
            ntkpipe.kernel_matrix(model, x, kernel=kernel, y=y[:6])
        with pytest.raises(ConfigError, match="needs labels, and there are none"):
            engine_of(model, x).run(x, Portion(frozenset({Functional("signs")})))


@pytest.mark.parametrize("kernel", ["lpntk", "true_class", "loss", "margin"])
def test_labels_that_are_no_classes_of_the_model_are_described(kernel):
    model, (x, y) = network(), samples()
    with pytest.raises(ConfigError, match=r"classes from 0 to 4.*found values from \d to 7"):
        ntkpipe.kernel_matrix(model, x, kernel=kernel, y=torch.where(y == y[3], 7, y))
    with pytest.raises(ConfigError, match=r"found values from -1 to"):
        ntkpipe.kernel_matrix(model, x, kernel=kernel, y=torch.where(y == y[3], -1, y))
    with pytest.raises(ConfigError, match=r"needs labels of shape \(7,?\), found \(7, 2\)"):
        ntkpipe.kernel_matrix(model, x, kernel=kernel, y=torch.stack([y, y], dim=1))


def test_real_labels_are_targets_of_the_loss_only():
    model, (x, y) = network(), samples()
    with pytest.raises(ConfigError, match=r"found numbers of type torch\.float64"):
        ntkpipe.kernel_matrix(model, x, kernel="margin", y=y.double())
    with pytest.raises(ConfigError, match=r"shape \(7, 5\), found \(7,\)"):
        ntkpipe.kernel_matrix(model, x, kernel="loss", y=y.double())
    with pytest.raises(ConfigError, match=r"shape \(7, 5\), found \(7, 3\)"):
        ntkpipe.kernel_matrix(model, x, kernel="loss", y=torch.randn(7, 3))


def test_cotangents_of_another_shape_are_described():
    model, (x, _) = network(), samples()
    for shape in ((7, 5), (7, 2, 4)):
        with pytest.raises(ConfigError, match=r"shape \(7, V, 5\), found"):
            ntkpipe.kernel_matrix(model, x, kernel="cotangents", y=torch.randn(shape), batch_size=7)


def test_classes_and_margins_that_do_not_exist_are_refused():
    model, (x, y) = network(), samples()
    with pytest.raises(ConfigError, match="there is no class 5; the model has 5 outputs"):
        ntkpipe.kernel_matrix(model, x, kernel="class:5")
    with pytest.raises(ConfigError, match="a margin needs at least two outputs; the model has one"):
        ntkpipe.kernel_matrix(network(1), x, kernel="margin", y=torch.zeros_like(y))
    with pytest.raises(ConfigError, match="'full' has no features"):
        ntkpipe.features(model, x, kernel="full")
    for kernel in ("class", "class:x", "class:-1", "probe:0", "probe", "loss:2"):
        with pytest.raises(ConfigError):
            ntkpipe.kernel_matrix(model, x, kernel=kernel, y=y)


def test_one_output_is_enough_for_everything_else():
    model, (x, y) = network(1), samples()
    trace = ntkpipe.kernel_matrix(model, x, kernel="trntk0")
    for kernel in ("pntk", "lpntk", "class:0", "true_class", "probe:1", "probe:4"):
        assert relative_error(ntkpipe.kernel_matrix(model, x, kernel=kernel, y=torch.zeros_like(y)), trace) < 1e-12


def test_reference_components_and_functionals_agree():
    model, (x, _) = network(), samples()
    jacobian = dense_jacobian(model, x)
    for kernel in ("trntk0", "trntk", "pntk"):
        expected = sum(reference_components(kernel, jacobian, jacobian).values())
        assert relative_error(ntkpipe.kernel_matrix(model, x, kernel=kernel), expected) < 1e-12
