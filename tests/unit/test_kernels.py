"""Kernels against their slow, obvious definition in float64, for every route and every kernel."""

import copy

import golden
import models
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

import ntkpipe
from ntkpipe.configs.errors import ConfigError, CoverageError, NumericalError
from ntkpipe.workers.jacobians.factors.base import materialised_gram
from ntkpipe.workers.jacobians.factors.outer import OuterFactor
from ntkpipe.workers.reference import dense_jacobian, reference_components

TOLERANCE = {torch.float64: 1e-10, torch.float32: 1e-5}
KINDS = ("trntk0", "trntk", "pntk")


def relative_error(found, expected):
    return float((found.double() - expected).abs().max() / expected.abs().max().clamp_min(1e-300))


@pytest.fixture(scope="module")
def oracle():
    cache = {}

    def compute(name):
        if name not in cache:
            model, shape = models.build(name)
            generator = torch.Generator().manual_seed(1)
            x, x2 = (torch.randn(n, *shape, generator=generator) for n in (5, 3))
            cache[name] = model, x, x2, dense_jacobian(model, x), dense_jacobian(model, x2)
        return cache[name]

    return compute


@pytest.mark.filterwarnings("ignore:Using padding='same' with even kernel lengths")
@pytest.mark.filterwarnings("ignore:There is a performance drop because we have not yet implemented the batching rule")
@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", models.MODELS)
def test_kernels_and_components_equal_their_definition(name, kind, dtype, oracle):
    model, x, x2, jacobian, jacobian2 = oracle(name)
    for others, columns in ((None, jacobian), (x2, jacobian2)):
        expected = reference_components(kind, jacobian, columns)
        scale = sum(expected.values()).abs().max()
        found = ntkpipe.kernel_matrix(model, x, others, kernel=kind, layerwise=True, dtype=dtype, batch_size=2)
        assert list(found) == list(expected)
        for parameter, values in expected.items():
            assert float((found[parameter].double() - values).abs().max() / scale) < TOLERANCE[dtype], parameter
        total = ntkpipe.kernel_matrix(model, x, others, kernel=kind, dtype=dtype, batch_size=5)
        assert relative_error(total, sum(expected.values())) < TOLERANCE[dtype]
        assert relative_error(sum(found.values()), total.double()) < TOLERANCE[dtype]


def test_golden_values():
    model, x = golden.build_model(), torch.tensor(golden.INPUTS)
    assert ntkpipe.kernel_matrix(model, x, kernel="trntk0").tolist() == golden.TRNTK0
    assert ntkpipe.kernel_matrix(model, x, kernel="pntk").tolist() == golden.PNTK
    assert ntkpipe.kernel_matrix(model, x, kernel="ck").tolist() == golden.CK
    components = ntkpipe.kernel_matrix(model, x, kernel="trntk0", layerwise=True)
    assert {name: part.tolist() for name, part in components.items()} == golden.TRNTK0_COMPONENTS
    cosine = ntkpipe.kernel_matrix(model, x, kernel="trntk", dtype=torch.float64)
    for (row, column), value in golden.TRNTK_UPPER.items():
        assert float(cosine[row, column]) == pytest.approx(value, abs=5e-9)


def test_the_spectrum_of_the_golden_kernel():
    kernel = ntkpipe.kernel_matrix(golden.build_model(), torch.tensor(golden.INPUTS), kernel="trntk0").double()
    expected = [1.40527330, 4.35235967, 32.18423679, 114.05813024]
    assert torch.linalg.eigvalsh(kernel).tolist() == pytest.approx(expected, abs=1e-8)


def test_the_ck_is_the_inner_product_of_penultimate_activations(oracle):
    model, x, x2, *_ = oracle("mlp")
    body = model[:2]
    expected = body(x).detach().double() @ body(x2).detach().double().T
    assert relative_error(ntkpipe.kernel_matrix(model, x, x2, kernel="ck"), expected) < 1e-6


@settings(max_examples=25, deadline=None)
@given(batch_size=st.integers(1, 9), name=st.sampled_from(["mlp", "conv", "reused layer", "positions"]))
def test_the_batch_size_does_not_matter(batch_size, name):
    model, shape = models.build(name)
    x = torch.randn(7, *shape, generator=torch.Generator().manual_seed(2))
    whole = ntkpipe.kernel_matrix(model, x, kernel="trntk0", dtype=torch.float64, batch_size=7)
    assert (
        relative_error(
            ntkpipe.kernel_matrix(model, x, kernel="trntk0", dtype=torch.float64, batch_size=batch_size), whole
        )
        < 1e-12
    )


@pytest.mark.parametrize("positions", [1, 3, 40])
def test_position_pairs_and_materialised_gradients_agree(positions):
    generator = torch.Generator().manual_seed(3)

    def factor(num):
        inputs = torch.randn(num, positions, 4, generator=generator, dtype=torch.float64)
        return OuterFactor(inputs, torch.randn(num, 2, positions, 3, generator=generator, dtype=torch.float64))

    one, other = factor(5), factor(4)
    gradients = []
    for f in (one, other):
        stacked = torch.zeros(f.num_samples, 2 * 12, dtype=torch.float64)
        for offset, part in f.slices(7):
            stacked[:, offset : offset + part.shape[1]] += part
        gradients.append(stacked.unflatten(1, (2, 12)))
    expected = torch.einsum("bvp,cvp->bc", *gradients)
    for found in (one.gram(other), one.ghost_gram(other), materialised_gram(one, other)):
        assert relative_error(found, expected) < 1e-13
    assert relative_error(one.squared_norms(), gradients[0].square().sum(dim=(1, 2))) < 1e-13


def test_kernels_are_symmetric_and_positive_semidefinite(oracle):
    for name in ("conv", "reused layer"):
        model, x, *_ = oracle(name)
        for kind in KINDS:
            kernel = ntkpipe.kernel_matrix(model, x, kernel=kind, dtype=torch.float64)
            assert torch.equal(kernel, kernel.T)
            assert float(torch.linalg.eigvalsh(kernel)[0]) > -1e-10 * float(kernel.diagonal().max())


def test_the_cosine_kernel_has_a_unit_diagonal_and_ignores_the_scale_of_gradients(oracle):
    model, x, *_ = oracle("mlp")
    kernel = ntkpipe.kernel_matrix(model, x, kernel="trntk")
    assert torch.allclose(kernel.diagonal(), torch.ones(len(x)), atol=1e-6)
    scaled = nn.Sequential(model, Scale(1e6))
    assert relative_error(ntkpipe.kernel_matrix(scaled, x, kernel="trntk"), kernel.double()) < 1e-5


class Scale(nn.Module):
    def __init__(self, factor):
        super().__init__()
        self.factor = factor

    def forward(self, x):
        return x * self.factor


@pytest.mark.parametrize("factor", [1e6, 1e-7])
def test_large_and_small_gradients_survive(factor, oracle):
    model, x, *_ = oracle("mlp")
    plain = ntkpipe.kernel_matrix(model, x, kernel="trntk0").double()
    scaled = ntkpipe.kernel_matrix(nn.Sequential(model, Scale(factor)), x, kernel="trntk0").double()
    assert relative_error(scaled / factor**2, plain) < 1e-5


def test_a_model_in_half_precision_is_computed_in_single(oracle):
    model, x, *_ = oracle("mlp")
    half = copy.deepcopy(model).to(torch.bfloat16)
    found = ntkpipe.kernel_matrix(half, x.to(torch.bfloat16), kernel="trntk0")
    assert found.dtype == torch.float32
    expected = ntkpipe.kernel_matrix(half.double(), x.to(torch.bfloat16).double(), kernel="trntk0")
    assert relative_error(found, expected) < 1e-5


def test_integer_inputs_reach_an_embedding():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Embedding(7, 4), nn.Flatten(), nn.Linear(12, 2))
    x = torch.tensor([[0, 1, 1], [6, 2, 1], [3, 3, 3]])
    jacobian = dense_jacobian(model, x)
    expected = reference_components("trntk0", jacobian, jacobian)
    found = ntkpipe.kernel_matrix(model, x, kernel="trntk0", layerwise=True, dtype=torch.float64)
    for name, values in expected.items():
        assert relative_error(found[name], values) < 1e-10


def test_a_second_use_that_is_inactive_on_the_probes_is_seen():
    model, _ = models.build("hidden second use")
    x = torch.cat([-torch.rand(8, 4), 2 + torch.rand(8, 4)])
    for rows in (x, x[:8], torch.cat([torch.zeros(8, 4), x])):
        jacobian, columns = dense_jacobian(model, rows), dense_jacobian(model, x)
        expected = sum(reference_components("trntk0", jacobian, columns).values())
        assert (
            relative_error(ntkpipe.kernel_matrix(model, rows, x, kernel="trntk0", dtype=torch.float64), expected) < 1e-9
        )


def test_a_norm_that_underflows_is_no_silent_zero():
    model = nn.Sequential(golden.build_model(), Scale(1e-24))
    x = torch.tensor(golden.INPUTS)
    with pytest.raises(NumericalError, match="squared norm is lost in float32"):
        ntkpipe.kernel_matrix(model, x)
    exact = ntkpipe.kernel_matrix(golden.build_model(), x, dtype=torch.float64)
    assert relative_error(ntkpipe.kernel_matrix(model, x, dtype=torch.float64), exact) < 1e-12


def test_a_sample_without_gradient_has_a_zero_cosine_kernel():
    model = nn.Sequential(nn.Linear(2, 2, bias=False), nn.ReLU(), nn.Linear(2, 1, bias=False))
    with torch.no_grad():
        model[0].weight.fill_(1.0)
    x = torch.tensor([[1.0, 2.0], [-1.0, -1.0]])
    kernel = ntkpipe.kernel_matrix(model, x, kernel="trntk")
    assert kernel.tolist() == [[pytest.approx(1.0), 0.0], [0.0, 0.0]]


def test_only_the_named_parameters_are_differentiated(oracle):
    model, x, _, jacobian, _ = oracle("mlp")
    expected = reference_components("trntk0", jacobian, jacobian)
    found = ntkpipe.kernel_matrix(model, x, kernel="trntk0", parameters=["*.bias"], dtype=torch.float64)
    assert relative_error(found, expected["0.bias"] + expected["2.bias"]) < 1e-12
    with pytest.raises(ConfigError, match=r"unknown parameter 'head\.\*'"):
        ntkpipe.kernel_matrix(model, x, parameters=["head.*"])


def test_frozen_parameters_are_left_out():
    model = golden.build_model()
    model.fc1.requires_grad_(False)
    found = ntkpipe.kernel_matrix(model, torch.tensor(golden.INPUTS), kernel="trntk0", layerwise=True)
    assert list(found) == ["fc2.weight", "fc2.bias"]
    assert found["fc2.weight"].tolist() == golden.TRNTK0_COMPONENTS["fc2.weight"]


def test_the_model_is_left_as_it_was(oracle):
    model, x, *_ = oracle("conv")
    before = copy.deepcopy(model.state_dict())
    ntkpipe.kernel_matrix(model, x, dtype=torch.float64)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert all(parameter.grad is None and parameter.requires_grad for parameter in model.parameters())
    assert not any(module._forward_hooks for module in model.modules())


@pytest.mark.parametrize("kind", ["sjlt", "rademacher"])
def test_projected_kernels_approach_the_exact_one(kind, oracle):
    model, x, x2, *_ = oracle("conv")
    for kernel in KINDS:
        exact = ntkpipe.kernel_matrix(model, x, x2, kernel=kernel, dtype=torch.float64)
        norms = [ntkpipe.kernel_matrix(model, v, kernel=kernel, dtype=torch.float64).diagonal().sqrt() for v in (x, x2)]
        projection = ntkpipe.Projection(kind=kind, dim=4096, seed=5)
        found = ntkpipe.kernel_matrix(model, x, x2, kernel=kernel, projection=projection, dtype=torch.float64)
        error = (found - exact) / torch.outer(*norms)
        # The standard deviation in cosine units is at most sqrt(2 / K); the largest of 15 entries stays below 4 of them.
        assert float(error.abs().max()) < 4 * (2 / 4096) ** 0.5


def test_features_are_those_of_the_projected_kernel(oracle):
    model, x, x2, *_ = oracle("mlp")
    projection = ntkpipe.Projection(kind="sjlt", dim=512, seed=1)
    for kernel in ("trntk0", "trntk", "pntk"):
        rows, columns = (ntkpipe.features(model, v, kernel=kernel, projection=projection) for v in (x, x2))
        assert rows.shape == (5, 512)
        expected = ntkpipe.kernel_matrix(model, x, x2, kernel=kernel, projection=projection)
        assert relative_error(rows @ columns.T, expected.double()) < 1e-5
    assert ntkpipe.features(model, x).shape == (5, 2048)


def test_projected_components_sum_to_the_projected_kernel(oracle):
    model, x, *_ = oracle("conv")
    projection = ntkpipe.Projection(kind="rademacher", dim=64)
    parts = ntkpipe.kernel_matrix(model, x, kernel="trntk", projection=projection, layerwise=True, dtype=torch.float64)
    exact = ntkpipe.kernel_matrix(model, x, kernel="trntk", layerwise=True, dtype=torch.float64)
    assert list(parts) == list(exact)
    for name in parts:
        assert float((parts[name] - exact[name]).abs().max()) < 4 * (2 / 64) ** 0.5


def test_bad_arguments_are_refused():
    model, x = golden.build_model(), torch.tensor(golden.INPUTS)
    with pytest.raises(ConfigError, match="unknown kernel 'trntk1'; did you mean"):
        ntkpipe.kernel_matrix(model, x, kernel="trntk1")
    with pytest.raises(ConfigError, match="has no parameters"):
        ntkpipe.kernel_matrix(model, x, kernel="ck", layerwise=True)
    with pytest.raises(ConfigError, match=r"samples of shape \(2,\), x2 of shape \(3,\)"):
        ntkpipe.kernel_matrix(model, x, torch.ones(2, 3))
    with pytest.raises(ConfigError, match="sample 1 of the inputs is NaN"):
        ntkpipe.kernel_matrix(model, torch.tensor([[1.0, 1.0], [float("nan"), 0.0]]))
    with pytest.raises(ConfigError, match="dtype must be"):
        ntkpipe.kernel_matrix(model, x, dtype=torch.float16)
    with pytest.raises(ConfigError, match="batch_size = 0"):
        ntkpipe.kernel_matrix(model, x, batch_size=0)
    with pytest.raises(ConfigError, match="parameters is empty"):
        ntkpipe.kernel_matrix(model, x, parameters=[])
    with pytest.raises(ConfigError, match=r"cannot process samples of shape \(3,\)"):
        ntkpipe.kernel_matrix(model, torch.ones(2, 3))
    with pytest.raises(ConfigError, match="no samples"):
        ntkpipe.kernel_matrix(model, x[:0])
    with pytest.raises(ConfigError, match="no trainable parameter"):
        ntkpipe.kernel_matrix(golden.build_model().requires_grad_(False), x)
    with pytest.raises(ConfigError, match="kind 'none' maps nothing"):
        ntkpipe.features(model, x, projection=ntkpipe.Projection(kind="none"))


def test_an_overflow_is_reported_with_its_sample():
    model = golden.build_overflowing_model()
    with pytest.raises(NumericalError, match="not finite for sample 2"):
        ntkpipe.kernel_matrix(model, torch.tensor(golden.INPUTS), kernel="trntk0")


def test_the_ck_of_a_model_that_does_not_end_in_a_linear_layer_is_refused():
    model = nn.Sequential(nn.Linear(2, 3), nn.Sigmoid())
    with pytest.raises(CoverageError, match="final Linear layer"):
        ntkpipe.kernel_matrix(model, torch.rand(3, 2), kernel="ck")
    # A ReLU changes nothing where all outputs are positive, but the model does not end in a Linear layer all the same.
    positive = nn.Sequential(nn.Linear(2, 3), nn.ReLU())
    with torch.no_grad():
        positive[0].bias.fill_(10.0)
    with pytest.raises(CoverageError, match="final Linear layer"):
        ntkpipe.kernel_matrix(positive, torch.rand(3, 2), kernel="ck")
