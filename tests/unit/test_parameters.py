"""Which parameters a kernel is made of, and with what weights."""

import pytest
import torch
from torch import nn

import ntkpipe
from ntkpipe.configs.errors import ConfigError
from ntkpipe.workers.kernels.parameters import parameter_weights


class Backwards(nn.Module):
    """Layers that are called in another order than they are registered in, and a parameter of its own."""

    def __init__(self):
        super().__init__()
        self.scale = nn.Parameter(torch.ones(3))
        self.third, self.first, self.second = nn.Linear(4, 3), nn.Linear(2, 4), nn.Linear(4, 4)

    def forward(self, x):
        return self.third(self.second(self.first(x).tanh()).tanh()) * self.scale


def samples(*shape, num=5):
    return torch.randn(num, *shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)


def build(model_type=Backwards, *arguments):
    torch.manual_seed(0)
    return model_type(*arguments).double().eval()


def weights_of(model, patterns, x=None):
    return parameter_weights(model, patterns, samples(2) if x is None else x)


def names_of(model, patterns, x=None):
    return list(weights_of(model, patterns, x))


def jacobian(model, x):
    """Return {name: (N, C, P)} of the trainable parameters by plain autograd."""
    trainable = {name: value for name, value in model.named_parameters() if value.requires_grad}
    rows = []
    for sample in x:
        outputs = model(sample[None])[0]
        rows.append([torch.autograd.grad(output, list(trainable.values()), retain_graph=True) for output in outputs])
    return {
        name: torch.stack([torch.stack([gradients[i].flatten() for gradients in row]) for row in rows])
        for i, name in enumerate(trainable)
    }


def component(rows):
    return torch.einsum("ncp,mcp->nm", rows, rows)


def close(found, expected):
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-10 * max(1.0, float(expected.abs().max())))


# --- Patterns and weights


def test_all_trainable_parameters_count_alike_by_default():
    model = build()
    assert weights_of(model, None) == {name: 1.0 for name, _ in model.named_parameters()}


@pytest.mark.parametrize(
    ("patterns", "expected"),
    [
        (["*.bias"], ["third.bias", "first.bias", "second.bias"]),
        ("first.*", ["first.weight", "first.bias"]),
        (["second.bias", "first.*"], ["first.weight", "first.bias", "second.bias"]),
        (["[fs]*.weight"], ["first.weight", "second.weight"]),
        (["????e"], ["scale"]),
        (
            ["*", "scale"],
            ["scale", "third.weight", "third.bias", "first.weight", "first.bias", "second.weight", "second.bias"],
        ),
    ],
    ids=str,
)
def test_patterns_choose_in_the_order_of_the_model(patterns, expected):
    assert names_of(build(), patterns) == expected


def test_the_first_pattern_that_matches_gives_the_weight():
    found = weights_of(build(), {"first.bias": 0.5, "first.*": 2, "*.bias": 3.0, "third.*": 4})
    assert found == {"third.weight": 4, "third.bias": 3, "first.weight": 2, "first.bias": 0.5, "second.bias": 3}
    found = weights_of(build(), {"*.bias": 3.0, "first.*": 2, "first.bias": 0.5})
    assert found["first.bias"] == 3


def test_weight_zero_leaves_a_parameter_out_even_if_a_later_pattern_matches():
    found = weights_of(build(), {"first.*": 0, "*.weight": 1.0})
    assert list(found) == ["third.weight", "second.weight"]


def test_names_are_case_sensitive():
    with pytest.raises(ConfigError, match=r"unknown parameter 'First\.\*'; did you mean"):
        weights_of(build(), ["First.*"])


@pytest.mark.parametrize(
    ("patterns", "message"),
    [
        ([], "parameters is empty"),
        ({}, "parameters is empty"),
        (["*.bias", "fc9.*"], r"unknown parameter 'fc9\.\*'"),
        ({"first.weight": -1.0}, "-1.0 of parameter 'first.weight' is negative"),
        ({"*": 0.0}, "all weights of parameters are 0"),
        (["last:0"], "unknown parameter 'last:0'"),
        (["last:-1"], "unknown parameter 'last:-1'"),
        (["last:two"], "unknown parameter 'last:two'"),
        (["last"], "unknown parameter 'last'"),
    ],
    ids=str,
)
def test_what_cannot_be_meant_is_refused(patterns, message):
    with pytest.raises(ConfigError, match=message):
        weights_of(build(), patterns)


def test_negative_weights_that_do_not_apply_do_no_harm():
    assert names_of(build(), {"first.*": 1.0, "first.bias": -1.0}) == ["first.weight", "first.bias"]


# --- The last modules


@pytest.mark.parametrize(
    ("number", "owners"),
    [
        (1, {"third"}),
        (2, {"second", "third"}),
        (3, {"first", "second", "third"}),
        (4, {"", "first", "second", "third"}),
    ],
)
def test_the_last_modules_are_those_called_last(number, owners):
    for pattern in ([f"last:{number}"], f"last:{number}", {f"last:{number}": 1.0}):
        assert {name.rpartition(".")[0] for name in names_of(build(), pattern)} == owners


def test_more_modules_than_there_are_take_all():
    assert names_of(build(), "last:99") == [name for name, _ in build().named_parameters()]


def test_the_last_modules_mix_with_names_and_weights():
    found = weights_of(build(), {"third.bias": 0.25, "last:2": 2.0, "scale": 1.0})
    assert found == {"scale": 1, "third.weight": 2, "third.bias": 0.25, "second.weight": 2, "second.bias": 2}


class Recalled(nn.Module):
    def __init__(self):
        super().__init__()
        self.twice, self.once, self.idle = nn.Linear(2, 2), nn.Linear(2, 2), nn.Linear(2, 2)

    def forward(self, x):
        return self.twice(self.once(self.twice(x).tanh()).tanh())


def test_of_several_calls_the_last_one_counts():
    assert names_of(build(Recalled), "last:1") == ["twice.weight", "twice.bias"]
    assert names_of(build(Recalled), "last:2") == ["twice.weight", "twice.bias", "once.weight", "once.bias"]


def test_modules_that_are_never_called_come_first():
    names = names_of(build(Recalled), {"last:2": 0.0, "*": 1.0})
    assert names == ["idle.weight", "idle.bias"]


class Inside(nn.Module):
    """A block that uses its layer's weight without calling the layer."""

    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(2, 2)

    def forward(self, x):
        return nn.functional.linear(x, self.layer.weight).sin()


class Around(nn.Module):
    def __init__(self):
        super().__init__()
        self.head, self.block = nn.Linear(2, 2), Inside()

    def forward(self, x):
        return self.head(self.block(x))


def test_a_layer_whose_weight_is_used_by_its_block_goes_with_the_block():
    assert names_of(build(Around), "last:1") == ["head.weight", "head.bias"]
    assert names_of(build(Around), "last:2") == ["head.weight", "head.bias", "block.layer.weight", "block.layer.bias"]


class Encoder(nn.Module):
    def __init__(self, num_layers=2):
        super().__init__()
        layer = nn.TransformerEncoderLayer(4, 2, 6, dropout=0.0, batch_first=True)
        self.head = nn.Linear(4, 2)
        self.encoder = nn.TransformerEncoder(layer, num_layers, enable_nested_tensor=False)

    def forward(self, x):
        return self.head(self.encoder(x).mean(dim=1))


def test_attention_counts_as_one_module_in_a_transformer():
    model, x = build(Encoder), samples(3, 4)
    owners = ["head", *(f"encoder.layers.1.{name}" for name in ("norm2", "linear2", "linear1", "norm1", "self_attn"))]
    for number, owner in enumerate(owners, start=1):
        before = set(names_of(model, f"last:{number - 1}", x)) if number > 1 else set()
        added = set(names_of(model, f"last:{number}", x)) - before
        assert added == {name for name, _ in model.named_parameters() if name.startswith(f"{owner}.")}
    assert {name.rpartition(".")[2] for name in added} == {"in_proj_weight", "in_proj_bias", "weight", "bias"}
    following = set(names_of(model, "last:7", x)) - set(names_of(model, "last:6", x))
    assert following == {"encoder.layers.0.norm2.weight", "encoder.layers.0.norm2.bias"}


def test_looking_for_the_order_leaves_nothing_behind():
    model = build()
    weights_of(model, "last:1")
    with pytest.raises(RuntimeError):
        weights_of(model, "last:1", samples(7))
    assert all(not module._forward_pre_hooks and not module._forward_hooks for module in model.modules())
    assert all(parameter.grad is None for parameter in model.parameters())


# --- Frozen, tied and low-rank parameters


class LowRank(nn.Module):
    """W x + B A x with a frozen W."""

    def __init__(self, inputs, outputs):
        super().__init__()
        self.base = nn.Linear(inputs, outputs)
        self.lora_A = nn.Parameter(torch.randn(2, inputs))
        self.lora_B = nn.Parameter(torch.randn(outputs, 2))
        self.base.requires_grad_(False)

    def forward(self, x):
        return self.base(x) + x @ self.lora_A.T @ self.lora_B.T


class Adapted(nn.Module):
    def __init__(self):
        super().__init__()
        self.body, self.head = LowRank(2, 4), nn.Linear(4, 3)

    def forward(self, x):
        return self.head(self.body(x).tanh())


def test_low_rank_adapters_are_chosen_by_name():
    model, x = build(Adapted), samples(2)
    assert names_of(model, ["*lora_*"]) == ["body.lora_A", "body.lora_B"]
    rows = jacobian(model, x)
    found = ntkpipe.kernel_matrix(model, x, kernel="trntk0", parameters=["*lora_*"])
    close(found, component(rows["body.lora_A"]) + component(rows["body.lora_B"]))


def test_frozen_parameters_do_not_exist():
    model = build(Adapted)
    assert names_of(model, None) == ["body.lora_A", "body.lora_B", "head.weight", "head.bias"]
    assert names_of(model, "last:9") == names_of(model, None)
    with pytest.raises(ConfigError, match=r"unknown parameter 'body\.base\.\*'"):
        weights_of(model, ["body.base.*"])
    model.head.requires_grad_(False)
    assert names_of(model, "last:1") == ["body.lora_A", "body.lora_B"]
    model.requires_grad_(False)
    with pytest.raises(ConfigError, match="no trainable parameter"):
        weights_of(model, None)


class Tied(nn.Module):
    def __init__(self):
        super().__init__()
        self.embed, self.head = nn.Linear(2, 2), nn.Linear(2, 2)
        self.head.weight = self.embed.weight

    def forward(self, x):
        return self.head(self.embed(x).tanh())


def test_a_shared_parameter_counts_once_under_its_first_name():
    model, x = build(Tied), samples(2)
    assert names_of(model, None) == ["embed.weight", "embed.bias", "head.bias"]
    rows = jacobian(model, x)
    close(ntkpipe.kernel_matrix(model, x, kernel="trntk0"), sum(component(part) for part in rows.values()))
    found = ntkpipe.kernel_matrix(model, x, kernel="trntk0", parameters=["*.weight"])
    close(found, component(rows["embed.weight"]))
    with pytest.raises(ConfigError, match=r"unknown parameter 'head\.weight'"):
        weights_of(model, ["head.weight"])


def test_a_shared_parameter_belongs_to_the_module_of_its_first_name():
    assert names_of(build(Tied), "last:1") == ["head.bias"]


# --- Kernels


@pytest.mark.parametrize("kind", ["trntk0", "pntk", "class:1", "full"])
def test_a_weighted_kernel_is_the_weighted_sum_of_components(kind):
    model, x = build(), samples(2)
    parts = ntkpipe.kernel_matrix(model, x, kernel=kind, layerwise=True)
    weights = {"scale": 0.5, "last:1": 3.0, "*.bias": 1.0}
    found = ntkpipe.kernel_matrix(model, x, kernel=kind, parameters=weights)
    expected = 0.5 * parts["scale"] + 3 * (parts["third.weight"] + parts["third.bias"])
    close(found, expected + parts["first.bias"] + parts["second.bias"])
    apart = ntkpipe.kernel_matrix(model, x, kernel=kind, parameters=weights, layerwise=True)
    assert list(apart) == ["scale", "third.weight", "third.bias", "first.bias", "second.bias"]
    close(apart["third.weight"], 3 * parts["third.weight"])


def test_a_weighted_cosine_is_normalised_after_weighting():
    model, x = build(), samples(2)
    plain = ntkpipe.kernel_matrix(model, x, kernel="trntk0", parameters={"first.*": 4.0, "last:1": 0.1})
    roots = plain.diagonal().sqrt()
    found = ntkpipe.kernel_matrix(model, x, kernel="trntk", parameters={"first.*": 4.0, "last:1": 0.1})
    close(found, plain / torch.outer(roots, roots))


@pytest.mark.parametrize("projection", ["tensorsketch", "sjlt", "rademacher"])
def test_weights_scale_features_by_their_roots(projection):
    model, x = build(), samples(2)
    options = {"kernel": "trntk0", "projection": ntkpipe.Projection(kind=projection, dim=32)}
    apart = {name: ntkpipe.features(model, x, parameters=[name], **options) for name in ("first.*", "third.*")}
    found = ntkpipe.features(model, x, parameters={"first.*": 4.0, "third.*": 0.25}, **options)
    close(found, 2 * apart["first.*"] + 0.5 * apart["third.*"])
    close(ntkpipe.features(model, x, parameters={"first.*": 4.0}, **options), 2 * apart["first.*"])


def test_second_moments_are_those_of_the_chosen_parameters():
    model, x, y = build(), samples(2), torch.tensor([0, 1, 2, 1, 0])
    every = ntkpipe.second_moments(model, x, y)
    some = ntkpipe.second_moments(model, x, y, parameters={"last:1": 5.0})
    assert list(some) == ["third.weight", "third.bias"]
    rows, outputs = jacobian(model, x), model(x).detach()
    errors = outputs.softmax(dim=1) - torch.eye(3, dtype=torch.float64)[y]
    for name, value in every.items():
        close(value.flatten(), torch.einsum("nc,ncp->np", errors, rows[name]).square().mean(dim=0))
        if name in some:
            close(some[name], value)
