"""Which route covers which parameter, and what is refused instead of being silently wrong."""

import models
import pytest
import torch
from torch import nn

from ntkpipe.configs.errors import CoverageError
from ntkpipe.workers.jacobians.coverage import plan_routes, select_parameters


def routes(model, *shape):
    return {route.name: route.route for route in plan_routes(model, select_parameters(model), torch.randn(2, *shape))}


def routes_of(name):
    model, shape = models.build(name)
    return routes(model, *shape)


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
    ],
)
def test_convolutions_and_normalisations_are_captured(name):
    assert set(routes_of(name).values()) == {"captured"}


def test_everything_else_goes_through_torch_func():
    found = routes_of("instance norm")
    assert {name for name, route in found.items() if route == "vmap"} == {"1.weight", "1.bias"}
    found = routes_of("conv with circular padding")
    assert {name for name, route in found.items() if route == "vmap"} == {"0.weight", "0.bias"}


def test_a_weight_with_another_use_is_not_captured():
    found = routes_of("reused layer")
    assert found["other.weight"] == "vmap"
    assert found["other.bias"] == found["body.weight"] == found["body.bias"] == "captured"


@pytest.mark.parametrize("name", ["leading dimension that is not the batch", "positions folded into the batch"])
def test_a_layer_that_does_not_see_the_batch_is_not_captured(name):
    found = routes_of(name)
    assert found["embed.weight"] == "vmap"
    assert found["head.weight"] == "captured"


def test_a_leading_dimension_that_happens_to_equal_the_batch_is_not_captured():
    assert routes(models.build("leading dimension that is not the batch")[0], 2, 3)["embed.weight"] == "vmap"


def test_what_cannot_be_vectorised_is_looped():
    found = routes_of("custom autograd function")
    assert found["gain"] == "loop"
    assert found["head.weight"] == "captured"


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
    from ntkpipe.workers.jacobians.engine import JacobianEngine

    model, positive = Branching(), torch.rand(3, 4)
    engine = JacobianEngine(model, plan_routes(model, select_parameters(model), positive))
    engine.run(positive, {"trace"})
    with pytest.raises(CoverageError, match=r"parameter 'body\.weight' is not used"):
        engine.run(-positive, {"trace"})
    with pytest.raises(CoverageError, match="change with the other samples"):
        plan_routes(model, select_parameters(model), torch.cat([positive, -positive]))
