"""Every operation with a rule, in every way that it may be used, against dense float64 Jacobians; and their factors."""

import copy
from fnmatch import fnmatchcase

import models
import pytest
import torch
from torch import nn
from torch.nn import functional
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.checkpoint import checkpoint

import ntkpipe
from ntkpipe.configs.errors import ConfigError, CoverageError
from ntkpipe.workers.jacobians.coverage import plan_routes, probe_samples, select_parameters
from ntkpipe.workers.jacobians.engine import TRACE, JacobianEngine, Portion
from ntkpipe.workers.jacobians.factors.base import AbstractFactor, materialised_gram
from ntkpipe.workers.jacobians.factors.dense import DenseFactor
from ntkpipe.workers.jacobians.factors.outer import OuterFactor
from ntkpipe.workers.jacobians.factors.rows import RowFactor
from ntkpipe.workers.jacobians.factors.sum import SumFactor
from ntkpipe.workers.jacobians.functionals import Functional
from ntkpipe.workers.jacobians.operations.convolution import patches
from ntkpipe.workers.jacobians.routes import ParameterRoute
from ntkpipe.workers.reference import dense_jacobian

TOLERANCE = {torch.float64: 1e-10, torch.float32: 1e-5}


def relative_error(found, expected):
    return float((found - expected).abs().max() / expected.abs().max().clamp_min(1e-300))


def planned(model, x):
    return plan_routes(model, select_parameters(model), probe_samples(x))


def described(model, x):
    return {route.name: route.description for route in planned(model, x)}


def factors(engine, x, functional=TRACE, labels=None):
    return engine.run(x, Portion(frozenset({functional})), labels).factors[functional]


# Routes and gradients of every case


@pytest.fixture(scope="module")
def oracle():
    cache = {}

    def compute(name):
        if name not in cache:
            case = models.CASES[name]
            model, x = case.build(), case.samples(6)
            cache[name] = model, x, dense_jacobian(model, x)
        return cache[name]

    return compute


def converted(model, x, dtype):
    return copy.deepcopy(model).to(dtype), x.to(dtype) if x.is_floating_point() else x


@pytest.mark.filterwarnings("ignore:There is a performance drop because we have not yet implemented the batching rule")
@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize("name", models.CASES)
def test_an_operation_takes_its_route_and_equals_its_definition(name, dtype, oracle):
    model, x, jacobian = oracle(name)
    model, x = converted(model, x, dtype)
    routes = planned(model, x)
    for route in routes:
        patterns = models.CASES[name].routes.items()
        wanted = next((found for pattern, found in patterns if fnmatchcase(route.name, pattern)), "captured")
        assert route.description in wanted.split(" or "), route.name

    # Batches of one and of five samples: as many as there are positions, heads or channels in one or the other case.
    engine = JacobianEngine(model, routes)
    parts = [factors(engine, x[:1]), factors(engine, x[1:])]
    total = torch.zeros(6, 6, dtype=torch.float64)
    kernel = torch.zeros(6, 6, dtype=torch.float64)
    components = {}
    for parameter, expected_NCP in jacobian.items():
        components[parameter] = torch.einsum("ncp,mcp->nm", expected_NCP, expected_NCP)
        total += components[parameter]
    largest = max(float(values.abs().max()) for values in jacobian.values())
    for parameter, expected_NCP in jacobian.items():
        dense_NVP = torch.cat([part[parameter].dense() for part in parts])
        assert float((dense_NVP - expected_NCP).abs().max()) < TOLERANCE[dtype] * largest, parameter
        norms_N = torch.cat([part[parameter].squared_norms() for part in parts])
        gram = torch.cat([torch.cat([row[parameter].gram(column[parameter]) for column in parts], 1) for row in parts])
        scale = float(total.max())
        assert float((norms_N - components[parameter].diagonal()).abs().max()) < TOLERANCE[dtype] * scale, parameter
        assert float((gram - components[parameter]).abs().max()) < TOLERANCE[dtype] * scale, parameter
        kernel += gram
    assert relative_error(kernel, total) < TOLERANCE[dtype]


@pytest.mark.parametrize(
    "name",
    [
        "linear of three axes before an in-place activation",
        "embedding tied to a linear layer",
        "attention with padding and time first",
        "position ids",
        "transposed convolution of 2 axes with output padding",
    ],
)
def test_components_of_the_public_kernel_are_those_of_the_operation(name, oracle):
    model, x, jacobian = oracle(name)
    found = ntkpipe.kernel_matrix(model, x, kernel="trntk0", layerwise=True, dtype=torch.float64, batch_size=4)
    total = ntkpipe.kernel_matrix(model, x, kernel="trntk0", dtype=torch.float64, batch_size=5)
    expected = {key: torch.einsum("ncp,mcp->nm", value, value) for key, value in jacobian.items()}
    assert list(found) == list(expected)
    for parameter, values in expected.items():
        assert relative_error(found[parameter], values) < 1e-10, parameter
    assert relative_error(total, sum(expected.values())) < 1e-10


@pytest.mark.parametrize("batch_size", [1, 2, 3, 4, 5, 8])
@pytest.mark.parametrize(
    "name",
    [
        "linear with time first",
        "linear with time first in the batch",
        "linear of four axes with time first",
        "embedding with time first",
        "position ids",
        "position ids of one row",
        "position ids behind a layer",
        "positions added with time first",
        "queries with time first",
        "attention and time first",
        "attention with added keys",
        "transformer layer, norm last and time first",
        "convolution of 2 axes with time first in the batch",
    ],
)
def test_a_batch_may_be_as_long_as_anything_else(name, batch_size):
    """Sizes agree by chance: the layout of a parameter is known, never guessed from them."""
    case = models.CASES[name]
    model, x = converted(case.build(), case.samples(8), torch.float64)
    expected = dense_jacobian(model, x)
    engine = JacobianEngine(model, planned(model, x))
    for start in range(0, 8, batch_size):
        part = slice(start, start + batch_size)
        for parameter, factor in factors(engine, x[part]).items():
            assert relative_error(factor.dense(), expected[parameter][part]) < 1e-10, parameter


@pytest.mark.parametrize("num_positions", [2, 3, 4, 5])
@pytest.mark.parametrize("wrapper", [models.BatchSecond, models.BatchFolded, models.TimeFolded])
def test_a_layout_is_found_whatever_the_number_of_positions(wrapper, num_positions):
    torch.manual_seed(0)
    model = wrapper(nn.Linear(3, 4))
    x = torch.randn(4, num_positions, 3)
    model(x)
    model, x = model.double(), x.double()
    layout = "captured" if wrapper is models.BatchFolded else "captured, batch-second"
    assert described(model, x) == {
        "layer.weight": layout,
        "layer.bias": layout,
        "head.linear.weight": "captured",
        "head.linear.bias": "captured",
    }
    for name, factor in factors(JacobianEngine(model, planned(model, x)), x).items():
        assert relative_error(factor.dense(), dense_jacobian(model, x)[name]) < 1e-10


# Masks


class MaskedTokens(nn.Module):
    """An encoder layer with tokens of id 0 as padding, and the mean over the others."""

    def __init__(self):
        super().__init__()
        self.tokens = nn.Embedding(9, 4, padding_idx=0)
        self.positions = nn.Embedding(7, 4)
        self.encoder = nn.TransformerEncoderLayer(4, 2, 6, batch_first=True)
        self.head = nn.Linear(4, 3)

    def forward(self, ids):
        padding = ids == 0
        hidden = self.tokens(ids) + self.positions(torch.arange(ids.shape[1]))
        hidden = self.encoder(hidden, src_key_padding_mask=padding)
        kept = (~padding).unsqueeze(2)
        return self.head((hidden * kept).sum(1) / kept.sum(1))


def masked_tokens():
    torch.manual_seed(0)
    return MaskedTokens().double().eval()


def padded(ids, num):
    return functional.pad(ids, (0, num - ids.shape[1]))


def test_padded_positions_contribute_nothing():
    model = masked_tokens()
    short = torch.tensor([[3, 1, 4], [1, 5, 2]])
    assert set(described(model, padded(short, 6)).values()) <= {
        "captured",
        "captured, batch-second",
        "captured, shared",
    }
    found, other = (
        ntkpipe.kernel_matrix(model, ids, kernel="trntk0", layerwise=True, pseudo_gradient="allow")
        for ids in (short, padded(short, 6))
    )
    for name, values in found.items():
        assert relative_error(other[name], values) < 1e-12, name


def test_samples_of_different_lengths_share_a_batch_by_a_mask():
    model = masked_tokens()
    samples = [torch.tensor([ids]) for ids in ([3, 1, 4, 1, 5], [8, 2], [6, 5, 3])]
    together = torch.cat([padded(ids, 5) for ids in samples])
    found = ntkpipe.kernel_matrix(model, together, kernel="trntk0", pseudo_gradient="allow")
    jacobians = [dense_jacobian(model, ids) for ids in samples]
    for row, one in enumerate(jacobians):
        for column, other in enumerate(jacobians):
            expected = sum(torch.einsum("ncp,mcp->nm", one[name], other[name]) for name in one)
            assert float(found[row, column]) == pytest.approx(float(expected), rel=1e-10)


def test_the_row_of_the_padding_has_no_gradient():
    model = masked_tokens()
    ids = torch.tensor([[3, 1, 4], [1, 5, 0], [2, 0, 0]])
    engine = JacobianEngine(model, planned(model, ids))
    table_BVRQ = factors(engine, ids)["tokens.weight"].dense().unflatten(2, (9, 4))
    assert not table_BVRQ[:, :, 0].any()
    assert table_BVRQ[:, :, 1:].any()


# Paths that depend on the sample


class Experts(nn.Module):
    """Tokens go to one of two experts by the sign of their first number."""

    def __init__(self):
        super().__init__()
        self.one = nn.Linear(3, 4)
        self.other = nn.Linear(3, 4)
        self.head = nn.Linear(4, 2)

    def rows(self, x, mask):
        return x[mask]

    def forward(self, x):
        mask = x[..., 0] > 0
        out = x.new_zeros(*mask.shape, 4)
        out[mask] = torch.tanh(self.one(self.rows(x, mask)))
        out[~mask] = torch.tanh(self.other(self.rows(x, ~mask)))
        return self.head(out.sum(1))


class ExpertsByPosition(Experts):
    """The same, written with the positions of the selected rows."""

    def rows(self, x, mask):
        with torch.no_grad():
            sample, position = torch.where(mask)
        return x[sample, position]


def expert_samples(*numbers):
    """Return samples of four tokens of which so many go to the first expert."""
    x = torch.randn(4, 4, 3, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    x[..., 0] = -x[..., 0].abs()
    for sample, number in enumerate(numbers):
        x[sample, :number, 0] *= -1
    return x


# As many rows as there are samples, and a multiple of it, but not the same number from all samples.
UNEVEN = [(4, 0, 0, 0), (4, 4, 4, 0), (3, 2, 2, 1)]
EVEN = [(1, 1, 1, 1), (4, 4, 4, 4), (0, 0, 0, 0)]


def experts(kind, *numbers):
    torch.manual_seed(0)
    model = kind().double()
    return model, JacobianEngine(model, planned(model, expert_samples(*numbers)))


def assert_right(engine, x):
    expected = dense_jacobian(engine.model, x)
    for name, factor in factors(engine, x).items():
        assert float((factor.dense() - expected[name]).abs().max()) < 1e-10, name


@pytest.mark.parametrize(
    ("kind", "numbers"), [(Experts, (3, 2, 2, 1)), (ExpertsByPosition, (3, 2, 2, 1)), (ExpertsByPosition, (4, 4, 4, 4))]
)
def test_layers_for_rows_that_are_selected_by_their_values_are_not_captured(kind, numbers):
    model, engine = experts(kind, *numbers)
    assert {r.route for r in planned(model, expert_samples(*numbers)) if r.name.startswith("one")} == {"loop"}
    for batch in UNEVEN + EVEN:
        assert_right(engine, expert_samples(*batch))


def test_rows_that_are_selected_unevenly_are_never_taken_for_those_of_other_samples():
    """All rows of the samples on which routes are proved go to the first expert, which then seems to see (B L, ...)."""
    _, engine = experts(Experts, 4, 4, 4, 4)
    for batch in EVEN[:2]:
        assert_right(engine, expert_samples(*batch))
    for batch in UNEVEN:
        with pytest.raises(CoverageError, match="the model's path depends on its input"):
            factors(engine, expert_samples(*batch))


class TimeFirstExperts(Experts):
    """The tokens of all samples, time first."""

    def forward(self, x):
        x = x.transpose(0, 1)
        mask = x[..., 0] > 0
        out = x.new_zeros(*mask.shape, 4)
        out[mask] = torch.tanh(self.one(x[mask]))
        return self.head(out.sum(0))


def test_rows_are_not_even_if_there_are_as_many_of_every_position():
    """With as many positions as samples, and two rows of each position, but not of each sample."""
    _, engine = experts(TimeFirstExperts, 4, 4, 4, 4)
    x = expert_samples(4, 4, 4, 4)
    assert_right(engine, x)
    x[2:, :, 0] *= -1
    assert_right(engine, x[:2])
    for sample in (1, 3):
        x[sample, 1:3, 0] *= -1
    assert ((x[..., 0] > 0).sum(dim=0) == 2).all()
    with pytest.raises(CoverageError, match="the model's path depends on its input"):
        factors(engine, x)


class LastToken(nn.Module):
    """The hidden state at the one token that ends a sequence, as models for sequence classification take it."""

    def __init__(self):
        super().__init__()
        self.table = nn.Embedding(9, 4)
        self.head = nn.Linear(4, 3)

    def forward(self, ids):
        hidden = torch.tanh(self.table(ids).cumsum(1))
        return self.head(hidden[ids == 8, :].view(len(ids), -1, 4)[:, -1])


def test_one_row_of_every_sample_may_be_selected_by_its_values():
    torch.manual_seed(0)
    model = LastToken().double()
    ids = torch.tensor([[1, 8, 2, 3], [4, 5, 8, 1], [8, 1, 1, 2], [3, 3, 7, 8], [1, 2, 8, 4]])
    assert set(described(model, ids).values()) == {"captured"}
    assert_right(JacobianEngine(model, planned(model, ids)), ids)


class Interactions(nn.Module):
    """Products of all pairs of features, by a mask that is the same for all samples."""

    def __init__(self):
        super().__init__()
        self.body = nn.Linear(3, 4)
        self.head = nn.Linear(6, 2)

    def forward(self, x):
        hidden = self.body(x)
        pairs = hidden.unsqueeze(1) * hidden.unsqueeze(2)
        return self.head(pairs[:, torch.ones(4, 4).triu(1).bool()])


def test_a_mask_that_is_the_same_for_all_samples_selects_evenly():
    torch.manual_seed(0)
    model, x = Interactions().double(), torch.randn(4, 3, dtype=torch.float64)
    assert set(described(model, x).values()) == {"captured"}
    assert_right(JacobianEngine(model, planned(model, x)), x)


class Branching(nn.Module):
    """A step whose weight is used in one way or in another."""

    def __init__(self, other):
        super().__init__()
        self.body = nn.Linear(4, 4)
        self.head = nn.Linear(4, 2)
        self.other = other

    def forward(self, x):
        return self.head(torch.tanh(self.body(x) if x[0, 0] > 0 else self.other(x, self.body.weight, self.body.bias)))


@pytest.mark.parametrize(
    ("other", "message"),
    [
        (lambda x, w, b: x, r"'body\.(weight|bias)' is not used"),
        (lambda x, w, b: torch.einsum("bi,oi->bo", x, w) + b, r"'body\.weight' is used in another way"),
        (lambda x, w, b: functional.linear(x, w * 2, b), "is used in another way|other than the batch"),
        (lambda x, w, b: x @ w[:, :2] @ w[:2] + b, r"'body\.weight' is used in another way"),
    ],
)
def test_a_path_that_was_not_there_when_routes_were_proved_is_refused(other, message):
    torch.manual_seed(0)
    model = Branching(other).double()
    positive = torch.rand(4, 4, dtype=torch.float64)
    engine = JacobianEngine(model, planned(model, positive))
    assert factors(engine, positive)
    with pytest.raises(CoverageError, match=message):
        factors(engine, -positive)


# Uses that contribute nothing on the samples on which routes are proved


def behind_an_in_place_addition(x, gate, p, w, b):
    hidden = functional.linear(x, w, b) + gate * torch.einsum("bi,oi->bo", x, w)
    hidden += p
    return hidden


def as_the_data_of_an_operation(x, gate, p, w, b):
    return x + p + gate * functional.linear(p, w, b)


def in_a_computed_weight(x, gate, p, w, b):
    return functional.linear(x, w) + gate * functional.linear(x, w.sin() + p, b)


def as_part_of_a_parameter(x, gate, p, w, b):
    return functional.linear(x, w) + gate * functional.linear(x[:, :2], w[:, :2], b)


@pytest.mark.parametrize(
    ("use", "hidden"),
    [
        (behind_an_in_place_addition, "w"),
        (as_the_data_of_an_operation, "p"),
        (in_a_computed_weight, "w"),
        (as_part_of_a_parameter, "w"),
    ],
)
def test_a_use_that_contributes_nothing_yet_is_found_wherever_it_hides(use, hidden):
    torch.manual_seed(0)
    parts = {"p": torch.randn(4), "w": torch.randn(4, 4), "b": torch.randn(4)}
    model = models.Calls(lambda x, **given: use(x, torch.relu(x[:, :1] - 1), **given), **parts).double()
    x = torch.rand(4, 4, dtype=torch.float64)
    routes = planned(model, x)
    assert {route.name for route in routes if route.name == hidden and route.route != "vmap"} == set()
    assert_right(JacobianEngine(model, routes), x + 1)


class Deepening(nn.Module):
    """A layer that is applied as often as the samples need it."""

    def __init__(self):
        super().__init__()
        self.body = nn.Linear(3, 3)
        self.head = nn.Linear(3, 2)

    def forward(self, x):
        for _ in range(1 + int(x[0, 0] > 0)):
            x = torch.tanh(self.body(x))
        return self.head(x)


def test_a_layer_may_be_used_more_often_than_when_routes_were_proved():
    torch.manual_seed(0)
    model = Deepening().double()
    x = torch.rand(4, 3, dtype=torch.float64)
    engine = JacobianEngine(model, planned(model, -x))
    for name, factor in factors(engine, x).items():
        assert relative_error(factor.dense(), dense_jacobian(model, x)[name]) < 1e-10


# Checkpoints


class Checkpointed(nn.Module):
    def __init__(self, *, reentrant):
        super().__init__()
        self.first = nn.Linear(3, 3)
        self.inside = nn.Linear(3, 3)
        self.head = nn.Linear(3, 2)
        self.reentrant = reentrant

    def forward(self, x):
        def block(hidden):
            return torch.tanh(self.inside(torch.sin(hidden)))

        return self.head(checkpoint(block, self.first(x), use_reentrant=self.reentrant))


def test_parameters_in_checkpoints_are_captured():
    torch.manual_seed(0)
    model, x = Checkpointed(reentrant=False).double(), torch.randn(4, 3, dtype=torch.float64)
    assert set(described(model, x).values()) == {"captured"}
    for name, factor in factors(JacobianEngine(model, planned(model, x)), x).items():
        assert relative_error(factor.dense(), dense_jacobian(model, x)[name]) < 1e-10


@pytest.mark.filterwarnings("ignore:None of the inputs have requires_grad=True")
def test_reentrant_checkpoints_are_refused_with_a_way_out():
    with pytest.raises((ConfigError, CoverageError), match="use_reentrant=False"):
        ntkpipe.kernel_matrix(Checkpointed(reentrant=True), torch.randn(4, 3))


# Factors

CONV = {"kernel": (2, 3), "stride": (1, 2), "dilation": (2, 1), "sides": ((1, 0), (0, 2))}


def random(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed + sum(shape)), dtype=torch.float64)


def outer(num, num_vectors, positions, *, transposed=False, lazy=False, seed=0):
    """Return a factor of a (4, 6) parameter and its dense gradients."""
    num_in, num_out = (4, 6) if transposed else (6, 4)
    deltas = random(num, num_vectors, positions, num_out, seed=seed)
    if not lazy:
        inputs = random(num, positions, num_in, seed=seed)
        factor = OuterFactor(inputs, deltas, transposed=transposed)
    else:
        # Patches of one channel and a 2 x 3 kernel.
        images = random(num, 1, 4, 4, seed=seed)

        def unfold(part):
            return patches(part, **CONV)

        inputs = unfold(images)
        deltas = random(num, num_vectors, inputs.shape[1], num_out, seed=seed)
        factor = OuterFactor(images, deltas, unfold=unfold)
    equation = "bti,bvto->bvio" if transposed else "bti,bvto->bvoi"
    return factor, torch.einsum(equation, inputs, deltas).flatten(2)


def rows(num, num_vectors, positions, seed=0):
    ids = torch.randint(4, (num, positions), generator=torch.Generator().manual_seed(seed + num))
    deltas = random(num, num_vectors, positions, 6, seed=seed + 1)
    hot = functional.one_hot(ids, 4).double()
    return RowFactor(ids, deltas, 4), torch.einsum("btr,bvtq->bvrq", hot, deltas).flatten(2)


def dense(num, num_vectors, positions, seed=0):
    values = random(num, num_vectors, 24, seed=seed + positions)
    return DenseFactor(values, (4, 2, 3)), values


def tied(num, num_vectors, positions, seed=0):
    (one, values), (other, others) = rows(num, num_vectors, positions, seed), outer(num, num_vectors, 2, seed=seed)
    return SumFactor(one, other), values + others


KINDS = {
    "dense": dense,
    "outer": outer,
    "transposed outer": lambda *args, **kwargs: outer(*args, transposed=True, **kwargs),
    "unfolded outer": lambda *args, **kwargs: outer(*args, lazy=True, **kwargs),
    "rows": rows,
    "sum": tied,
}

each_kind = pytest.mark.parametrize("kind", KINDS)
each_shape = pytest.mark.parametrize(("num_vectors", "positions"), [(1, 1), (3, 1), (1, 4), (3, 4)])


@each_shape
@each_kind
def test_a_factor_stands_for_its_dense_gradients(kind, num_vectors, positions):
    factor, expected_BVP = KINDS[kind](5, num_vectors, positions)
    assert (factor.num_samples, factor.num_vectors, factor.num_rows, factor.num_columns) == (5, num_vectors, 4, 6)
    assert factor.numel == 24
    assert relative_error(factor.dense(), expected_BVP) < 1e-13
    assert relative_error(factor.squared_norms(), expected_BVP.square().sum(dim=(1, 2))) < 1e-13
    assert relative_error(sum(part.dense() for part in factor.parts()), expected_BVP) < 1e-13
    assert sum(tensor.numel() for part in factor.tensors() for tensor in part) > 0


@each_shape
@each_kind
def test_slices_of_any_width_add_up_to_all_stacked_coordinates(kind, num_vectors, positions):
    factor, expected_BVP = KINDS[kind](5, num_vectors, positions)
    for width in (1, 7, 12, 1000):
        found = torch.zeros(5, num_vectors * 24, dtype=torch.float64)
        for offset, part in factor.slices(width):
            assert part.shape[1] <= max(width, factor.num_columns)
            found[:, offset : offset + part.shape[1]] += part
        assert relative_error(found, expected_BVP.flatten(1)) < 1e-13


@each_shape
@each_kind
def test_some_rows_of_a_factor_are_those_of_its_dense_gradients(kind, num_vectors, positions):
    factor, expected_BVP = KINDS[kind](5, num_vectors, positions)
    for chosen in ([0], [1, 3], [0, 1, 2, 3]):
        found = factor.rows_at(torch.tensor(chosen))
        assert found.shape == (5, num_vectors, len(chosen), 6)
        assert relative_error(found, expected_BVP.unflatten(2, (4, 6))[:, :, chosen]) < 1e-13


@each_shape
@each_kind
def test_samples_and_outputs_of_a_factor_can_be_taken_apart(kind, num_vectors, positions):
    factor, expected_BVP = KINDS[kind](5, num_vectors, positions)
    part = factor.samples(1, 4)
    assert part.num_samples == 3
    assert relative_error(part.dense(), expected_BVP[1:4]) < 1e-13
    single = factor.per_output()
    assert (single.num_samples, single.num_vectors) == (5 * num_vectors, 1)
    # Output vectors are fastest.
    assert relative_error(single.dense(), expected_BVP.flatten(0, 1).unsqueeze(1)) < 1e-13
    flat = expected_BVP.flatten(0, 1)
    assert relative_error(single.gram(single), flat @ flat.T) < 1e-13


@each_shape
@pytest.mark.parametrize("other", KINDS)
@each_kind
def test_factors_of_any_two_kinds_have_a_gram_matrix_and_a_sum(kind, other, num_vectors, positions):
    one, one_BVP = KINDS[kind](5, num_vectors, positions)
    two, two_BVP = KINDS[other](3, num_vectors, positions + 1, seed=9)
    expected = torch.einsum("bvp,cvp->bc", one_BVP, two_BVP)
    assert relative_error(one.gram(two), expected) < 1e-12
    assert relative_error(two.gram(one), expected.T) < 1e-12
    two, two_BVP = KINDS[other](5, num_vectors, positions + 1, seed=9)
    joined = one.plus(two)
    assert relative_error(joined.dense(), one_BVP + two_BVP) < 1e-13
    assert relative_error(joined.squared_norms(), (one_BVP + two_BVP).square().sum(dim=(1, 2))) < 1e-12
    third, third_BVP = KINDS[kind](5, num_vectors, positions, seed=17)
    assert relative_error(joined.plus(third).dense(), one_BVP + two_BVP + third_BVP) < 1e-13
    assert relative_error(third.plus(joined).dense(), one_BVP + two_BVP + third_BVP) < 1e-13
    total = one_BVP + two_BVP
    assert relative_error(joined.gram(joined), torch.einsum("bvp,cvp->bc", total, total)) < 1e-12


@each_shape
@each_kind
def test_the_gram_matrix_of_a_factor_with_itself_is_symmetric(kind, num_vectors, positions):
    factor, expected_BVP = KINDS[kind](5, num_vectors, positions)
    gram = factor.gram(factor)
    assert relative_error(gram, torch.einsum("bvp,cvp->bc", expected_BVP, expected_BVP)) < 1e-13
    assert relative_error(gram, gram.T) < 1e-13


@pytest.mark.parametrize("transposed", [False, True])
@each_shape
def test_position_pairs_and_materialised_gradients_give_one_gram_matrix(
    num_vectors, positions, transposed, monkeypatch
):
    one, one_BVP = outer(5, num_vectors, positions, transposed=transposed)
    two, two_BVP = outer(7, num_vectors, positions + 2, transposed=transposed, seed=3)
    # Slices that hold less than one sample, some of them, and all.
    for slice_bytes in (4, 400, 2**24):
        monkeypatch.setattr("ntkpipe.workers.jacobians.factors.base.SLICE_BYTES", slice_bytes)
        for left, right, expected in (
            (one, two, torch.einsum("bvp,cvp->bc", one_BVP, two_BVP)),
            (one, one, torch.einsum("bvp,cvp->bc", one_BVP, one_BVP)),
        ):
            assert relative_error(left.ghost_gram(right), expected) < 1e-13
            assert relative_error(materialised_gram(left, right), expected) < 1e-13
            assert relative_error(left.gram(right), expected) < 1e-13
        assert relative_error(one.squared_norms(), one_BVP.square().sum(dim=(1, 2))) < 1e-13


@each_kind
def test_small_slices_change_no_number(kind, monkeypatch):
    monkeypatch.setattr("ntkpipe.workers.jacobians.factors.base.SLICE_BYTES", 64)
    factor, expected_BVP = KINDS[kind](5, 3, 4)
    assert relative_error(factor.squared_norms(), expected_BVP.square().sum(dim=(1, 2))) < 1e-13
    assert relative_error(factor.gram(factor), torch.einsum("bvp,cvp->bc", expected_BVP, expected_BVP)) < 1e-13


class LargestTensor(TorchDispatchMode):
    """Keeps the size of the largest tensor that any operation returns."""

    def __init__(self):
        super().__init__()
        self.numel = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        output = func(*args, **(kwargs or {}))
        for tensor in output if isinstance(output, (tuple, list)) else (output,):
            # Views and expansions hold no memory of their own.
            if isinstance(tensor, torch.Tensor):
                self.numel = max(self.numel, tensor.untyped_storage().nbytes() // tensor.element_size())
        return output


class LanguageModel(nn.Module):
    def __init__(self, vocabulary, width, head=None):
        super().__init__()
        self.table = nn.Embedding(vocabulary, width)
        self.head = head

    def forward(self, ids):
        hidden = torch.tanh(self.table(ids)).mean(1)
        return functional.linear(hidden, self.table.weight) if self.head is None else self.head(hidden)


@pytest.mark.parametrize(("vocabulary", "width", "is_tied"), [(200_000, 64, False), (50_000, 16, True)])
def test_gradients_of_a_large_embedding_are_never_dense(vocabulary, width, is_tied, monkeypatch):
    torch.manual_seed(0)
    model = LanguageModel(vocabulary, width, None if is_tied else nn.Linear(width, 3)).double()
    ids = torch.randint(vocabulary, (4, 6))
    ids[:, 0] = 7
    ids[2] = ids[1]
    routes = [ParameterRoute(name, tuple(value.shape), "captured") for name, value in model.named_parameters()]

    def refuse(self):
        raise AssertionError("a factor was made dense")

    for kind in (RowFactor, SumFactor, OuterFactor, AbstractFactor):
        monkeypatch.setattr(kind, "dense", refuse)
    contraction = Functional("sum") if is_tied else TRACE
    with LargestTensor() as watch:
        factor = factors(JacobianEngine(model, routes), ids, contraction)["table.weight"]
        gram, norms = factor.gram(factor), factor.squared_norms()
        single = factor.per_output()
        flat_gram = single.gram(single)
    numel = vocabulary * width
    # The parameter itself is among them, and nothing is larger.
    assert watch.numel <= numel
    monkeypatch.undo()
    expected = []
    for sample in ids:
        outputs = model(sample.unsqueeze(0))[0]
        for vector in [outputs.sum()] if is_tied else outputs:
            (gradient,) = torch.autograd.grad(vector, model.table.weight, retain_graph=True)
            expected.append(gradient if is_tied else gradient[ids.unique()])
    flat = torch.stack(expected).unflatten(0, (4, -1)).flatten(2)
    assert relative_error(gram, torch.einsum("bvp,cvp->bc", flat, flat)) < 1e-11
    assert relative_error(norms, flat.square().sum(dim=(1, 2))) < 1e-11
    flat = flat.flatten(0, 1)
    assert relative_error(flat_gram, flat @ flat.T) < 1e-11


def test_a_wide_linear_layer_is_never_dense(monkeypatch):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(400, 300), nn.Tanh(), nn.Linear(300, 5))
    x = torch.randn(6, 400)
    routes = [ParameterRoute(name, tuple(value.shape), "captured") for name, value in model.named_parameters()]
    monkeypatch.setattr("ntkpipe.workers.jacobians.factors.base.SLICE_BYTES", 2**16)
    with LargestTensor() as watch:
        factor = factors(JacobianEngine(model, routes), x)["0.weight"]
        factor.gram(factor)
        factor.squared_norms()
        materialised_gram(factor, factor)
    assert watch.numel < 2 * factor.numel < 6 * 5 * factor.numel


def test_a_factor_keeps_its_place_in_passes_over_some_output_vectors():
    torch.manual_seed(0)
    model, x = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 5)).double(), torch.randn(4, 3).double()
    engine = JacobianEngine(model, planned(model, x))
    whole = factors(engine, x)
    for name, factor in whole.items():
        parts = [
            engine.run(x, Portion(frozenset({TRACE}), vectors)).factors[TRACE][name] for vectors in ((0, 2), (2, 5))
        ]
        assert [part.first_vector for part in parts] == [0, 2]
        assert relative_error(torch.cat([part.dense() for part in parts], dim=1), factor.dense()) < 1e-13
        assert relative_error(sum(part.gram(part) for part in parts), factor.gram(factor)) < 1e-12
