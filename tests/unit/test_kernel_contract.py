"""Every kernel of a model: the contract of kernels, and float64 formulas from plain Jacobians, written down independently."""

import math
from typing import ClassVar

import numpy as np
import pytest
import torch
from contracts.kernels import KernelContract
from torch import nn

import ntkpipe
from ntkpipe.configs.errors import ConfigError
from ntkpipe.workers.sources.samples import Samples

NUM_OUTPUTS = 3
KINDS = ["trntk0", "trntk", "pntk", "lpntk", "class:1", "true_class", "loss", "margin", "probe:2", "full"]
KINDS += ["signgd", "signgd_asym", "ck", "em", "nngp"]
SKETCHED = ["trntk0", "trntk", "lpntk", "class:1", "loss", "margin", "probe:2", "em"]
MAPS = ["tensorsketch", "sjlt", "rademacher", "srht"]


class Network(nn.Module):
    """A body and a linear head, so that the penultimate activations can be asked for."""

    def __init__(self, body, width):
        super().__init__()
        self.body = body
        self.head = nn.Linear(width, NUM_OUTPUTS)

    def forward(self, x):
        return self.head(self.body(x))


class Mean(nn.Module):
    def forward(self, x):
        return x.mean(dim=1)


def build(name, seed=0):
    torch.manual_seed(seed)
    if name == "mlp":
        model = Network(nn.Sequential(nn.Linear(4, 5), nn.ReLU(), nn.Linear(5, 4), nn.Tanh()), 4)
    elif name == "cnn":
        layers = (nn.Conv2d(1, 3, 3, padding=1), nn.ReLU(inplace=True), nn.GroupNorm(1, 3), nn.MaxPool2d(2))
        model = Network(nn.Sequential(*layers, nn.Conv2d(3, 2, 2), nn.Flatten()), 2)
    else:
        layer = nn.TransformerEncoderLayer(4, 2, 6, dropout=0.0, batch_first=True)
        model = Network(nn.Sequential(nn.Linear(2, 4), layer, Mean()), 4)
    return model.double().eval()


SHAPES = {"mlp": (4,), "cnn": (1, 4, 4), "transformer": (3, 2)}

SIGNED = {"transformer": ("body.0.*", "*weight", "*norm?.*", "*.linear?.*", "*out_proj.bias", "head.*")}
"""Parameters whose gradients have signs. A bias of attention keys has none: its gradient is zero but for rounding."""


def samples(name):
    """Six different samples, one of them zero, and the first one again."""
    x = torch.randn(7, *SHAPES[name], generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    x[3] = 0
    x[-1] = x[0]
    return x


def labels(x):
    """Classes that belong to samples, wherever they are."""
    return (10 * x.flatten(1).sum(dim=1)).floor().long() % NUM_OUTPUTS


class Cached(KernelContract):
    """Blocks are computed once for all tests of a case."""

    cache: ClassVar[dict]

    def block(self, x, x2=None):
        key = (self.case, x.numpy().tobytes(), None if x2 is None else x2.numpy().tobytes())
        if key not in self.cache:
            self.cache[key] = self.compute(x, x2)
        return self.cache[key]


def options_of(name, kind):
    return {"parameters": SIGNED[name]} if kind.startswith("signgd") and name in SIGNED else {}


class TestExactKernels(Cached):
    cache: ClassVar[dict] = {}

    cases: ClassVar[list] = [("mlp", kind) for kind in KINDS if kind != "full"]
    cases += [("cnn", kind) for kind in ("trntk", "signgd", "ck", "em")]
    cases += [("transformer", kind) for kind in ("trntk", "signgd", "em")]

    @pytest.fixture(autouse=True, params=cases, ids=str)
    def _case(self, request):
        self.case = request.param
        self.symmetric = self.positive = self.case[1] != "signgd_asym"

    def samples(self):
        return samples(self.case[0])

    def compute(self, x, x2):
        name, kind = self.case
        y2 = None if x2 is None else labels(x2)
        return ntkpipe.kernel_matrix(build(name), x, x2, kernel=kind, y=labels(x), y2=y2, **options_of(name, kind))


class TestPairsWithOutputs(KernelContract):
    """Rows of a full kernel are pairs: each sample's block is folded to one number by fixed output vectors."""

    def samples(self):
        return samples("mlp")

    def block(self, x, x2=None):
        full = ntkpipe.kernel_matrix(build("mlp"), x, x2, kernel="full")
        vector = torch.tensor([1.0, -2.0, 0.5], dtype=torch.float64)
        folded = full.view(len(x), NUM_OUTPUTS, -1, NUM_OUTPUTS)
        found = torch.einsum("icjd,c,d->ij", folded, vector, vector)
        assert x2 is not None or torch.equal(full, full.T)
        return (found + found.T) / 2 if x2 is None else found


class TestSketchedKernels(Cached):
    cache: ClassVar[dict] = {}
    cases: ClassVar[list] = [("mlp", kind, "tensorsketch") for kind in SKETCHED]
    cases += [("mlp", "trntk", projection) for projection in MAPS]
    cases += [(name, "margin", "tensorsketch") for name in ("cnn", "transformer")]

    @pytest.fixture(autouse=True, params=dict.fromkeys(cases), ids=str)
    def _case(self, request):
        self.case = request.param

    def samples(self):
        return samples(self.case[0])

    def compute(self, x, x2):
        name, kind, projection = self.case
        y2 = None if x2 is None else labels(x2)
        sketch = ntkpipe.Projection(kind=projection, dim=16)
        return ntkpipe.kernel_matrix(build(name), x, x2, kernel=kind, y=labels(x), y2=y2, projection=sketch)


BETWEEN = [("mlp", kind) for kind in ("trntk0", "trntk", "loss", "signgd", "signgd_asym", "ck", "em")] + [
    ("cnn", "trntk")
]


class TestKernelsBetweenCheckpoints(Cached):
    symmetric = positive = False
    cache: ClassVar[dict] = {}

    @pytest.fixture(autouse=True, params=BETWEEN, ids=str)
    def _case(self, request):
        self.case = request.param

    def samples(self):
        return samples(self.case[0])

    def compute(self, x, x2):
        name, kind = self.case
        models, y2 = (build(name), build(name, seed=5)), None if x2 is None else labels(x2)
        return ntkpipe.kernel_matrix(models[0], x, x2, model2=models[1], kernel=kind, y=labels(x), y2=y2)


# --- Kernels that are made of others, as a run reads them


def build_mlp():
    return build("mlp")


def load_samples():
    x = samples("mlp")
    return Samples(x, labels(x), tuple(f"s{i}" for i in range(len(x))))


MADE = [
    {"kind": "sum", "terms": [{"of": "trntk0", "weight": 0.5}, {"of": "laplace", "weight": 2.0}]},
    {"kind": "product", "of": ["trntk0", "laplace", "trntk0"]},
    {"kind": "power", "of": "trntk0", "exponent": 3},
    {"kind": "scaled", "of": "trntk0"},
    {"kind": "normalised", "of": "trntk0"},
    {"kind": "centred", "of": "trntk0"},
    {"kind": "posterior", "of": "trntk0", "noise": 0.1, "given": 3},
    {"kind": "normalised", "name": "chain", "of": "posterior"},
    {"kind": "centred", "name": "centred-sketch", "of": "sketch"},
    {"kind": "posterior", "name": "posterior-sketch", "of": "cosine-sketch", "noise": 0.5},
]


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    source = {"kind": "python", "target": f"{__name__}:load_samples"}
    document = {
        "name": "made",
        "model": {"target": f"{__name__}:build_mlp", "dtype": "float64"},
        "data": {"splits": {"train": source}},
        "kernels": [
            {"kind": "trntk0"},
            {"kind": "laplace", "bandwidth": 2.0},
            {"kind": "trntk0", "name": "sketch", "projection": {"dim": 8}, "layerwise": True},
            {"kind": "trntk", "name": "cosine-sketch", "projection": {"dim": 8}},
            *MADE,
        ],
        "store": {"shard_rows": 3, "block_rows": 2, "dtype": "float64"},
    }
    return ntkpipe.run(document, tmp_path_factory.mktemp("runs") / "made")


@pytest.mark.parametrize("label", [kernel.get("name", kernel["kind"]) for kernel in MADE])
class TestMadeKernels:
    def matrix(self, run, label):
        return torch.from_numpy(run.kernel(label)[:, :])

    def test_a_matrix_is_symmetric_to_the_last_bit_and_positive(self, made, label):
        matrix = self.matrix(made, label)
        assert torch.equal(matrix, matrix.T)
        assert float(torch.linalg.eigvalsh(matrix)[0]) >= -1e-10 * max(1.0, float(matrix.abs().max()))

    def test_any_part_of_it_is_a_slice(self, made, label):
        matrix, query = self.matrix(made, label), made.kernel(label)
        for rows, columns in (([4, 1], [6, 0, 3]), (slice(2, 5), slice(0, 7)), (["s3"], slice(None))):
            at = [made.positions(index, "train") for index in (rows, columns)]
            np.testing.assert_array_equal(query[rows, columns], matrix.numpy()[np.ix_(*at)])

    def test_equal_samples_have_equal_rows(self, made, label):
        matrix = self.matrix(made, label)
        torch.testing.assert_close(matrix[0], matrix[-1], rtol=1e-9, atol=1e-10)

    def test_the_diagonal_is_that_of_the_matrix(self, made, label):
        matrix = self.matrix(made, label)
        np.testing.assert_allclose(made.diagonal(label), matrix.diagonal(), rtol=1e-9, atol=1e-10)


# --- Formulas


def jacobians(model, x):
    """Return {name: (N, C, P)} by autograd, one sample and one output at a time."""
    names, parameters = zip(*model.named_parameters(), strict=True)
    rows = []
    for sample in x:
        outputs = model(sample[None])[0]
        rows.append([torch.autograd.grad(output, parameters, retain_graph=True) for output in outputs])
    return {
        name: torch.stack([torch.stack([row[i].flatten() for row in sample]) for sample in rows])
        for i, name in enumerate(names)
    }


def output_vectors(kind, outputs, y):
    """Return (N, V, C), by loops over samples."""
    rows = []
    for f, label in zip(outputs, y.tolist(), strict=True):
        hot = torch.zeros(NUM_OUTPUTS, dtype=torch.float64)
        hot[label] = 1
        if kind in ("trntk0", "trntk"):
            rows.append(torch.eye(NUM_OUTPUTS, dtype=torch.float64))
        elif kind in ("pntk", "signgd", "signgd_asym"):
            rows.append(torch.ones(1, NUM_OUTPUTS, dtype=torch.float64))
        elif kind == "lpntk":
            rows.append(torch.tensor([[1.0 if c == label else -1.0 for c in range(NUM_OUTPUTS)]]).double())
            rows[-1] /= math.sqrt(NUM_OUTPUTS)
        elif kind == "class:1":
            rows.append(torch.tensor([[0.0, 1.0, 0.0]]).double())
        elif kind == "true_class":
            rows.append(hot[None])
        elif kind == "loss":
            rows.append((torch.exp(f) / torch.exp(f).sum() - hot)[None])
        else:
            others = torch.exp(f) * (1 - hot)
            rows.append((hot - others / others.sum())[None])
    return torch.stack(rows)


def gradients(kind, model, x):
    """Return {name: (N, V, P)}."""
    vectors = output_vectors(kind, model(x).detach(), labels(x))
    return {name: torch.einsum("nvc,ncp->nvp", vectors, value) for name, value in jacobians(model, x).items()}


def product(kind, rows, columns, scales=None):
    """Return {name: (N, M)} components before any normalisation."""
    found = {}
    for name, left in rows.items():
        right = columns[name]
        if scales is not None:
            root = scales[name].flatten().sqrt()
            left, right = left * root, right * root
        left = left.sign() if kind.startswith("signgd") else left
        right = right.sign() if kind == "signgd" else right
        found[name] = torch.einsum("nvp,mvp->nm", left, right)
    return found


def total(kind, one, other, weights=None, scales=None):
    """Return the kernel between the gradients of rows and columns, normalised by their norms for the cosine."""
    weights = dict.fromkeys(one, 1.0) if weights is None else weights

    def combined(rows, columns):
        parts = product(kind, rows, columns, scales)
        return sum(weight * parts[name] for name, weight in weights.items())

    if kind != "trntk":
        return combined(one, other)
    roots = [combined(side, side).diagonal().sqrt() for side in (one, other)]
    return combined(one, other) / torch.outer(*roots)


def close(found, expected):
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-9 * max(1.0, float(expected.abs().max())))


GRADIENT_KINDS = [kind for kind in KINDS if kind not in ("full", "probe:2", "ck", "em", "nngp")]
each_kind = pytest.mark.parametrize("kind", GRADIENT_KINDS)
each_model = pytest.mark.parametrize("name", SHAPES)


def chosen(name, kind, model):
    """Return the names of the parameters that a test is about."""
    if kind.startswith("signgd") and name in SIGNED:
        return [parameter for parameter, _ in model.named_parameters() if parameter != "body.1.self_attn.in_proj_bias"]
    return [parameter for parameter, _ in model.named_parameters()]


@each_model
@each_kind
def test_kernels_are_their_formulas(kind, name):
    model, x = build(name), samples(name)
    one = {n: v for n, v in gradients(kind, model, x).items() if n in chosen(name, kind, model)}
    y, options = labels(x), {"kernel": kind, **options_of(name, kind)}
    close(ntkpipe.kernel_matrix(model, x, y=y, **options), total(kind, one, one))
    few = {parameter: value[2:5] for parameter, value in one.items()}
    close(ntkpipe.kernel_matrix(model, x, x[2:5], y=y, y2=y[2:5], **options), total(kind, one, few))
    parts = ntkpipe.kernel_matrix(model, x, y=y, layerwise=True, **options)
    assert list(parts) == list(one)
    if kind != "trntk":
        for parameter, expected in product(kind, one, one).items():
            close(parts[parameter], expected)


@pytest.mark.parametrize("name", ["mlp", "cnn"])
@each_kind
def test_kernels_between_checkpoints_are_their_formulas(kind, name):
    models, x = (build(name), build(name, seed=5)), samples(name)
    one, other = (gradients(kind, model, x) for model in models)
    y = labels(x)
    found = ntkpipe.kernel_matrix(models[0], x, model2=models[1], kernel=kind, y=y)
    close(found, total(kind, one, other))
    few = {parameter: value[1:4] for parameter, value in other.items()}
    found = ntkpipe.kernel_matrix(models[0], x, x[1:4], model2=models[1], kernel=kind, y=y, y2=y[1:4])
    close(found, total(kind, one, few))


@each_kind
def test_weighted_and_preconditioned_kernels_are_their_formulas(kind):
    model, x = build("mlp"), samples("mlp")
    one, y = gradients(kind, model, x), labels(x)
    weights = {name: 0.25 if name.endswith("bias") else 3.0 for name in one if not name.startswith("body.2")}
    found = ntkpipe.kernel_matrix(model, x, kernel=kind, y=y, parameters={"body.2.*": 0, "*.bias": 0.25, "*": 3.0})
    close(found, total(kind, one, one, weights))
    generator = torch.Generator().manual_seed(2)
    scales = {
        name: torch.rand(value.shape, generator=generator, dtype=torch.float64)
        for name, value in model.named_parameters()
    }
    scales["head.weight"][0] = 0
    found = ntkpipe.kernel_matrix(model, x, kernel=kind, y=y, preconditioner=scales)
    close(found, total(kind, one, one, scales=scales))
    found = ntkpipe.kernel_matrix(
        model, x, kernel=kind, y=y, preconditioner=scales, parameters={"body.2.*": 0, "*.bias": 0.25, "*": 3.0}
    )
    close(found, total(kind, one, one, weights, scales))


@each_model
def test_the_full_kernel_is_its_formula(name):
    models, x = (build(name), build(name, seed=5)), samples(name)
    flat = [torch.cat(list(jacobians(model, x).values()), dim=2).flatten(0, 1) for model in models]
    close(ntkpipe.kernel_matrix(models[0], x, kernel="full"), flat[0] @ flat[0].T)
    close(ntkpipe.kernel_matrix(models[0], x, kernel="full", model2=models[1]), flat[0] @ flat[1].T)
    parts = ntkpipe.kernel_matrix(models[0], x, x[:2], kernel="full", layerwise=True)
    for parameter, rows in jacobians(models[0], x).items():
        close(parts[parameter], rows.flatten(0, 1) @ rows[:2].flatten(0, 1).T)


@each_model
def test_as_many_probes_as_outputs_are_the_trace(name):
    model, x = build(name), samples(name)
    one = gradients("trntk0", model, x)
    close(ntkpipe.kernel_matrix(model, x, kernel="probe:9"), total("trntk0", one, one))


def hooked(model, x):
    """Return {module: (N, D)} outputs of the leaf modules, recorded by hand."""
    found = {}
    handles = [
        module.register_forward_hook(
            lambda module, given, output, name=name: found.update({name: output.detach().flatten(1).clone()})
        )
        for name, module in model.named_modules()
        if not list(module.children())
    ]
    with torch.no_grad():
        model(x)
    for handle in handles:
        handle.remove()
    return found


@each_model
def test_kernels_of_activations_are_their_formulas(name):
    models, x = (build(name), build(name, seed=5)), samples(name)
    one, other = (hooked(model, x) for model in models)
    parts = ntkpipe.kernel_matrix(models[0], x, kernel="em", layerwise=True)
    assert list(parts) == list(one)
    for module, values in one.items():
        close(parts[module], values @ values.T)
    close(ntkpipe.kernel_matrix(models[0], x, kernel="em"), sum(values @ values.T for values in one.values()))
    found = ntkpipe.kernel_matrix(models[0], x, x[1:3], kernel="em", model2=models[1])
    close(found, sum(values @ other[module][1:3].T for module, values in one.items()))
    with torch.no_grad():
        penultimate, outputs = (
            [part(x) for part in parts] for parts in zip(*((m.body, m) for m in models), strict=True)
        )
    for kind, (first, second) in (("ck", penultimate), ("nngp", outputs)):
        close(ntkpipe.kernel_matrix(models[0], x, kernel=kind), first @ first.T)
        close(ntkpipe.kernel_matrix(models[0], x, kernel=kind, model2=models[1]), first @ second.T)


# --- Degenerate input


class Bare(nn.Module):
    """A linear map without a bias: the gradient of a zero sample is zero."""

    def __init__(self):
        super().__init__()
        self.map = nn.Linear(4, NUM_OUTPUTS, bias=False)

    def forward(self, x):
        return self.map(x)


def bare():
    torch.manual_seed(0)
    return Bare().double()


@pytest.mark.parametrize(
    ("kind", "sketched"), [*((kind, False) for kind in KINDS), *((kind, True) for kind in SKETCHED)]
)
def test_samples_without_gradient_have_a_zero_kernel(kind, sketched):
    x = torch.zeros(3, 4, dtype=torch.float64)
    x[1] = torch.tensor([1.0, 0.0, -2.0, 3.0])
    projection = ntkpipe.Projection(dim=16) if sketched else None
    found = ntkpipe.kernel_matrix(bare(), x, kernel=kind, y=labels(x), projection=projection)
    width = NUM_OUTPUTS if kind == "full" else 1
    found = found.view(3, width, 3, width)
    assert torch.isfinite(found).all()
    for row, column in ((0, 0), (0, 1), (2, 0), (1, 2), (2, 2)):
        assert not found[row, :, column].any()
    assert found[1, :, 1].any()


def test_signs_count_the_coordinates_that_are_not_zero():
    x = torch.zeros(3, 4, dtype=torch.float64)
    x[1], x[2] = torch.tensor([1.0, 0.0, -2.0, 3.0]), torch.tensor([-1.0, 1.0, -1.0, 0.0])
    found = ntkpipe.kernel_matrix(bare(), x, kernel="signgd")
    assert found.diagonal().tolist() == [0, 3 * NUM_OUTPUTS, 3 * NUM_OUTPUTS]
    assert float(found[1, 2]) == 0
    one_norms = ntkpipe.kernel_matrix(bare(), x, kernel="signgd_asym").diagonal()
    assert one_norms.tolist() == [0, 6 * NUM_OUTPUTS, 3 * NUM_OUTPUTS]


def test_equal_samples_make_the_cosine_one():
    model, x = build("cnn"), samples("cnn")
    assert abs(float(ntkpipe.kernel_matrix(model, x, kernel="trntk")[0, -1]) - 1) < 1e-12
    x = x[:1].repeat(4, 1, 1, 1)
    close(ntkpipe.kernel_matrix(model, x, kernel="trntk"), torch.ones(4, 4, dtype=torch.float64))


def test_kernels_of_one_set_depend_on_nothing_else():
    model, x = build("mlp"), samples("mlp")
    one = ntkpipe.kernel_matrix(model, x, kernel="signgd_asym")
    assert not torch.allclose(one, one.T)
    close(ntkpipe.kernel_matrix(model, x, kernel="signgd_asym", batch_size=2), one)
    close(ntkpipe.kernel_matrix(model, x, x, kernel="signgd_asym"), one)


# --- What cannot be combined


@pytest.mark.parametrize("kind", ["pntk", "em", "ck", "nngp"])
def test_checkpoints_of_other_shapes_are_refused(kind):
    models = [nn.Sequential(nn.Linear(4, width), nn.ReLU(), nn.Linear(width, width)).double() for width in (2, 3)]
    with pytest.raises(ConfigError, match="differ in their parameters or modules"):
        ntkpipe.kernel_matrix(models[0], samples("mlp"), model2=models[1], kernel=kind)


@pytest.mark.parametrize("kind", ["em", "ck", "nngp"])
def test_kernels_of_activations_have_no_parameters_to_choose(kind):
    with pytest.raises(ConfigError, match="no parameters to choose"):
        ntkpipe.kernel_matrix(build("mlp"), samples("mlp"), kernel=kind, parameters=["head.*"])


def test_signs_of_rounding_do_not_depend_on_the_batch():
    model, x = build("transformer"), samples("transformer")
    whole = ntkpipe.kernel_matrix(model, x, kernel="signgd")
    close(ntkpipe.kernel_matrix(model, x[:2], x[2:], kernel="signgd"), whole[:2, 2:])
