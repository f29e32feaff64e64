"""Which route covers which parameter, and what is refused instead of being silently wrong."""

import models
import pytest
import torch
from torch import nn

from ntkpipe.configs.errors import CoverageError
from ntkpipe.workers.jacobians.coverage import plan_routes, select_parameters
from ntkpipe.workers.jacobians.engine import TRACE, JacobianEngine, Portion


def routes(model, *shape):
    return {route.name: route.route for route in plan_routes(model, select_parameters(model), torch.randn(2, *shape))}


def routes_of(name):
    model, shape = models.build(name)
    return routes(model, *shape)


def descriptions_of(name):
    model, shape = models.build(name)
    planned = plan_routes(model, select_parameters(model), torch.randn(2, *shape))
    return {route.name: route.description for route in planned}


@pytest.mark.filterwarnings("ignore:Using padding='same' with even kernel lengths")
def test_linear_and_convolution_are_captured():
    assert set(routes_of("mlp").values()) == {"captured"}
    assert set(routes_of("conv with stride and padding").values()) == {"captured"}
    assert set(routes_of("conv with even kernel and same padding").values()) == {"captured"}
    assert set(routes_of("tied weights").values()) == {"captured"}


@pytest.mark.parametrize(
    "name",
    [
        "conv with groups",
        "depthwise conv",
        "conv of one axis",
        "conv of three axes",
        "positions",
        "batch norm in eval mode",
        "group norm",
        "layer norm over all axes",
        "layer norm without a shift",
        "rms norm",
        "instance norm",
        "conv with circular padding",
        "keyword arguments",
    ],
)
def test_convolutions_and_normalisations_are_captured(name):
    assert set(routes_of(name).values()) == {"captured"}


@pytest.mark.filterwarnings("ignore:There is a performance drop because we have not yet implemented the batching rule")
def test_everything_else_goes_through_torch_func():
    found = routes_of("weight normalisation")
    assert {name for name, route in found.items() if route == "vmap"} == {
        "0.bias",
        "0.parametrizations.weight.original0",
        "0.parametrizations.weight.original1",
    }
    assert found["2.weight"] == found["2.bias"] == "captured"


def test_all_uses_of_a_weight_are_captured():
    assert set(routes_of("reused layer").values()) == {"captured"}
    found = routes_of("hidden second use")
    assert {name for name, route in found.items() if route != "captured"} == {"spare.weight", "spare.bias"}


class OtherUse(nn.Module):
    def __init__(self):
        super().__init__()
        self.body = nn.Linear(4, 4)
        self.other = nn.Linear(4, 4)

    def forward(self, x):
        return torch.einsum("bi,oi->bo", torch.tanh(self.other(self.body(x))), self.other.weight)


def test_a_weight_with_another_use_is_not_captured():
    found = routes(OtherUse(), 4)
    assert found["other.weight"] == "vmap"
    assert found["other.bias"] == found["body.weight"] == found["body.bias"] == "captured"


@pytest.mark.parametrize(
    ("name", "route"),
    [
        ("leading dimension that is not the batch", "captured, batch-second"),
        ("positions folded into the batch", "captured"),
    ],
)
def test_a_layer_that_does_not_see_the_batch_is_captured_as_what_it_sees(name, route):
    found = descriptions_of(name)
    assert found["embed.weight"] == found["embed.bias"] == route
    assert found["head.weight"] == "captured"


def test_a_leading_dimension_that_happens_to_equal_the_batch_is_not_taken_for_it():
    model = models.build("leading dimension that is not the batch")[0]
    planned = plan_routes(model, select_parameters(model), torch.randn(2, 2, 3))
    assert {route.name: route.layout for route in planned if route.name.startswith("embed")} == {
        "embed.weight": "batch-second",
        "embed.bias": "batch-second",
    }


def test_what_cannot_be_vectorised_is_looped():
    found = routes_of("custom autograd function")
    assert found["bend"] == "loop"
    assert found["gain"] == found["head.weight"] == "captured"


class Asserting(nn.Module):
    """A model that checks shapes itself, with a head of zeros, as fresh vision transformers have."""

    def __init__(self):
        super().__init__()
        self.body = nn.Linear(4, 4)
        self.head = nn.Linear(4, 2)
        nn.init.zeros_(self.head.weight)

    def forward(self, x):
        hidden = self.body(x)
        assert hidden.dim() == 2, "hidden states should be vectors"
        return self.head(hidden)


def test_a_model_that_refuses_other_shapes_in_its_own_way_has_routes():
    found = routes(Asserting(), 4)
    assert found["head.weight"] == "captured"
    assert found["body.weight"] == "vmap"


class Positions(nn.Module):
    """Position embeddings, looked up without a batch, that get one axis more before they are added."""

    def __init__(self):
        super().__init__()
        self.body = nn.Linear(3, 4)
        self.positions = nn.Embedding(5, 4)
        self.head = nn.Linear(4, 2)

    def forward(self, x):
        positions = self.positions(torch.arange(x.shape[1])).unsqueeze(0)
        return self.head(torch.tanh(self.body(x) + positions).mean(1))


@pytest.mark.parametrize("num_positions", [2, 4, 5])
def test_an_expansion_that_breaks_the_model_is_no_reason_to_refuse_it(num_positions):
    found = routes(Positions(), num_positions, 3)
    assert found.pop("positions.weight") == "vmap"
    assert set(found.values()) == {"captured"}


def test_a_parameter_without_influence_has_a_route():
    class Spare(nn.Module):
        def __init__(self):
            super().__init__()
            self.used = nn.Linear(2, 2)
            self.spare = nn.Linear(2, 2)

        def forward(self, x):
            return self.used(x)

    assert routes(Spare(), 2)["spare.weight"] in ("vmap", "loop")


@pytest.mark.parametrize(
    ("model", "named"),
    [
        (nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4)), r"'1' \(BatchNorm1d\)"),
        (nn.Sequential(nn.Linear(4, 4), nn.Dropout(0.1)), r"'1' \(Dropout, p=0\.1\)"),
    ],
)
def test_modules_in_train_mode_that_mix_samples_or_are_random_are_named(model, named):
    with pytest.raises(CoverageError, match=named):
        routes(model.train(), 4)
    assert routes(model.eval(), 4)


def test_batch_norm_without_running_statistics_is_refused_even_in_eval_mode():
    model = nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4, track_running_stats=False)).eval()
    with pytest.raises(CoverageError, match="statistics of the batch"):
        routes(model, 4)


class Centring(nn.Module):
    def forward(self, x):
        return x - x.mean(0)


class Noise(nn.Module):
    def forward(self, x):
        return x + torch.randn_like(x)


def test_functions_that_mix_samples_or_are_random_are_refused():
    with pytest.raises(CoverageError, match="change with the other samples"):
        routes(nn.Sequential(nn.Linear(4, 4), Centring()), 4)
    with pytest.raises(CoverageError, match="must be deterministic"):
        routes(nn.Sequential(nn.Linear(4, 4), Noise()), 4)


class BatchDependentBackward(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        return x.clone()

    @staticmethod
    def backward(ctx, gradient):
        return gradient * torch.rand(())


class Random(nn.Module):
    def __init__(self):
        super().__init__()
        self.body = nn.Linear(4, 4)

    def forward(self, x):
        return BatchDependentBackward.apply(self.body(x))


def test_a_random_backward_pass_names_the_parameter():
    with pytest.raises(CoverageError, match=r"parameter 'body\.weight' has no route"):
        routes(Random(), 4)


class Pair(nn.Module):
    def forward(self, x):
        return x, x


@pytest.mark.parametrize("last", [Pair(), nn.Unflatten(1, (2, 2))])
def test_outputs_that_are_no_vectors_are_refused(last):
    with pytest.raises(CoverageError, match="expected"):
        routes(nn.Sequential(nn.Linear(4, 4), last), 4)


class Branching(nn.Module):
    def __init__(self):
        super().__init__()
        self.body = nn.Linear(4, 4)
        self.head = nn.Linear(4, 2)

    def forward(self, x):
        return self.head(self.body(x) if x.sum() > 0 else x)


def test_a_path_that_depends_on_the_samples_is_refused():
    model, positive = Branching(), torch.rand(3, 4)
    engine = JacobianEngine(model, plan_routes(model, select_parameters(model), positive))
    engine.run(positive, Portion(frozenset({TRACE})))
    with pytest.raises(CoverageError, match=r"parameter 'body\.weight' is not used"):
        engine.run(-positive, Portion(frozenset({TRACE})))
    with pytest.raises(CoverageError, match="change with the other samples"):
        plan_routes(model, select_parameters(model), torch.cat([positive, -positive]))
