"""What kernel ``em`` sees of a model: the output of every call of every leaf module, sample by sample."""

import copy

import pytest
import torch
from torch import nn

import ntkpipe
from ntkpipe.configs.errors import ConfigError, CoverageError
from ntkpipe.workers.jacobians.activations import ActivationRecorder, called_modules, leaf_modules


def seeded(model, seed=0):
    """Give a model's parameters other values than those of a fresh one."""
    generator = torch.Generator().manual_seed(seed)
    model = model.double().eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator, dtype=torch.float64) / 2)
    return model


def samples(*shape, num=6):
    return torch.randn(num, *shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)


def em(model, x, x2=None, **options):
    return ntkpipe.kernel_matrix(model, x, x2, kernel="em", **options)


def gram(*values):
    return sum(value.flatten(1) @ value.flatten(1).T for value in values)


def close(found, expected):
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-10 * max(1.0, float(expected.detach().abs().max())))


class Called(nn.Module):
    """Layers of width 4 and a head, called by a function of (layers, inputs)."""

    def __init__(self, body, **layers):
        super().__init__()
        self.layers = nn.ModuleDict(layers)
        self.head = nn.Linear(4, 2)
        self.body = body

    def forward(self, x):
        return self.head(self.body(self.layers, x))


# --- Calls


@pytest.mark.parametrize("activation", [nn.ReLU(inplace=True), nn.SiLU(inplace=True), nn.Hardtanh(inplace=True)])
def test_an_activation_in_place_does_not_change_what_is_recorded_before_it(activation):
    model, x = seeded(nn.Sequential(nn.Linear(4, 4), activation, nn.Linear(4, 2))), samples(4)
    with torch.no_grad():
        first = model[0](x)
        second = model[1](first.clone())
        last = model[2](second)
    parts = em(model, x, layerwise=True)
    for name, value in (("0", first), ("1", second), ("2", last)):
        close(parts[name], gram(value))


def test_inputs_that_are_overwritten_stay_what_they_were():
    model, x = seeded(nn.Sequential(nn.Identity(), nn.ReLU(inplace=True), nn.Linear(4, 2))), samples(4)

    class Copies(nn.Module):
        def __init__(self):
            super().__init__()
            self.model = model

        def forward(self, inputs):
            return self.model(inputs.clone())

    close(em(Copies(), x, layerwise=True)["model.0"], gram(x))


def test_a_module_that_is_called_again_has_an_output_for_each_call():
    def body(layers, x):
        for _ in range(3):
            x = layers["relu"](layers["map"](x))
        return x

    model, x = seeded(Called(body, relu=nn.ReLU(), map=nn.Linear(4, 4))), samples(4)
    parts = em(model, x, layerwise=True)
    calls = [f"layers.{name}{call}" for call in ("", "#2", "#3") for name in ("map", "relu")]
    assert list(parts) == [*calls, "head"]
    value = x
    for call in ("", "#2", "#3"):
        value = model.layers["map"](value).detach()
        close(parts[f"layers.map{call}"], gram(value))
        value = value.relu()
        close(parts[f"layers.relu{call}"], gram(value))
    close(em(model, x), sum(parts.values()))
    close(em(model, x, modules=["*relu"]), sum(parts[name] for name in calls if "relu" in name))


def test_a_module_with_two_names_goes_by_the_first():
    shared = nn.Linear(4, 4)
    model = seeded(Called(lambda layers, x: layers["two"](layers["one"](x)), one=shared, two=shared))
    assert list(em(model, samples(4), layerwise=True)) == ["layers.one", "layers.one#2", "head"]


def test_modules_that_are_never_called_do_not_count():
    model = seeded(Called(lambda layers, x: layers["used"](x), used=nn.Linear(4, 4), idle=nn.Linear(4, 4)))
    assert list(em(model, samples(4), layerwise=True)) == ["layers.used", "head"]
    with pytest.raises(ConfigError, match="calls none of the leaf modules"):
        em(model, samples(4), modules=["*idle"])


def test_outputs_that_are_thrown_away_count():
    def body(layers, x):
        layers["probe"](x)
        return layers["used"](x)

    model, x = seeded(Called(body, used=nn.Linear(4, 4), probe=nn.Linear(4, 3))), samples(4)
    close(em(model, x, modules=["*probe"]), gram(model.layers["probe"](x).detach()))


# --- Forms of outputs


def test_of_several_outputs_the_first_is_meant():
    class Last(nn.Module):
        def __init__(self):
            super().__init__()
            self.lstm = nn.LSTM(3, 4, batch_first=True)
            self.head = nn.Linear(4, 2)

        def forward(self, x):
            return self.head(self.lstm(x)[0][:, -1])

    model, x = seeded(Last()), samples(5, 3)
    parts = em(model, x, layerwise=True)
    assert list(parts) == ["lstm", "head"]
    close(parts["lstm"], gram(model.lstm(x)[0].detach()))


@pytest.mark.parametrize("form", [list, tuple])
def test_lists_and_tuples_are_alike(form):
    class Pair(nn.Module):
        def forward(self, x):
            return form([2 * x, x])

    model, x = seeded(Called(lambda layers, x: layers["pair"](x)[1], pair=Pair())), samples(4)
    close(em(model, x, modules=["*pair"]), 4 * gram(x))


@pytest.mark.parametrize(
    ("output", "found"),
    [
        ({"x": 1.0}, "dict"),
        (None, "NoneType"),
        ((), "tuple"),
        (torch.tensor(1.0), r"\(\)"),
        (torch.ones(3, 1), r"\(3, 1\)"),
    ],
    ids=str,
)
def test_outputs_without_an_axis_of_samples_are_refused_and_can_be_left_out(output, found):
    class Odd(nn.Module):
        def forward(self, x):
            return output

    def body(layers, x):
        layers["odd"](x)
        return layers["map"](x)

    model, x = seeded(Called(body, odd=Odd(), map=nn.Linear(4, 4))), samples(4)
    with pytest.raises(CoverageError, match=f"'layers.odd' returns {found} for"):
        em(model, x)
    close(em(model, x, modules=["*map"]), gram(model.layers["map"](x).detach()))


class TimeFirst(nn.Module):
    """A layer that sees (T, B, D), as recurrent layers and attention do by default."""

    def __init__(self):
        super().__init__()
        self.embed = nn.Linear(3, 4)
        self.head = nn.Linear(4, 2)

    def forward(self, x):
        return self.head(self.embed(x.transpose(0, 1)).mean(dim=0))


@pytest.mark.parametrize("num_positions", [2, 3, 4, 6])
def test_another_first_axis_is_noticed_whatever_the_sizes(num_positions):
    model, x = seeded(TimeFirst()), samples(num_positions, 3)
    with pytest.raises(CoverageError, match="'embed'"):
        em(model, x)
    close(em(model, x, modules=["head"]), gram(model(x).detach()))


def test_activations_are_flattened_over_channels_and_positions():
    model = seeded(nn.Sequential(nn.Conv2d(1, 2, 3), nn.Flatten(), nn.Linear(8, 2)))
    x = samples(1, 4, 4)
    close(em(model, x, layerwise=True)["0"], gram(model[0](x).detach()))
    close(em(model, x, layerwise=True)["1"], gram(model[0](x).detach()))


def test_the_layers_of_a_transformer_are_seen_although_it_has_a_fast_path():
    layer = nn.TransformerEncoderLayer(4, 2, 6, dropout=0.1, batch_first=True)
    model, x = seeded(Called(lambda layers, x: layers["layer"](x).mean(dim=1), layer=layer)), samples(3, 4)
    parts = em(model, x, layerwise=True)
    names = ["dropout1", "norm1", "linear1", "dropout", "linear2", "dropout2", "norm2"]
    assert list(parts) == [*(f"layers.layer.{name}" for name in names), "head"]
    inside = model.layers["layer"]
    with torch.no_grad():
        attended = inside.self_attn(x, x, x)[0]
        normed = inside.norm1(x + attended)
        wide = inside.linear1(normed)
    for name, value in (("dropout1", attended), ("norm1", normed), ("linear1", wide), ("dropout", wide.relu())):
        close(parts[f"layers.layer.{name}"], gram(value))


# --- Samples that are not on their own


class Branch(nn.Module):
    """Calls one layer or another, depending on all samples of the batch or on the first of them."""

    def __init__(self):
        super().__init__()
        self.one, self.two = nn.Linear(4, 4), nn.Linear(4, 4)
        self.head = nn.Linear(4, 2)

    def forward(self, x):
        rows = [(self.one if row[0, 0] < 2 else self.two)(row) for row in x.split(1)]
        return self.head(torch.cat(rows))


class Skip(nn.Module):
    """Calls a layer in vain, once more or not at all for batches with a large sample."""

    def __init__(self, usual, large):
        super().__init__()
        self.one, self.two, self.head = nn.Linear(4, 4), nn.Linear(4, 4), nn.Linear(4, 2)
        self.usual, self.large = usual, large

    def forward(self, x):
        hidden = self.one(x)
        for _ in range(self.large if bool((x[:, 0] > 2).any()) else self.usual):
            self.two(x)
        return self.head(hidden)


def test_a_path_that_depends_on_the_probed_samples_is_refused():
    x = samples(4).clamp(-1, 1)
    x[0, 0] = 3
    with pytest.raises(CoverageError, match="depends on its input"):
        em(seeded(Skip(usual=0, large=1)), x)


@pytest.mark.parametrize("large", [0, 2])
def test_a_path_that_depends_on_later_samples_is_refused_when_they_come(large):
    x = samples(4, num=40).clamp(-1, 1)
    x[37, 0] = 3
    assert not any(torch.equal(x[37], x[round(i * 39 / 15)]) for i in range(16)), "this sample must not be probed"
    with pytest.raises(CoverageError, match="calls other modules than for those that were looked at before"):
        em(seeded(Skip(usual=1, large=large)), x)
    model = seeded(Skip(usual=1, large=large))
    close(em(model, x, modules=["one"]), gram(model.one(x).detach()))


def test_calls_for_single_samples_are_refused():
    with pytest.raises(CoverageError, match="'one'"):
        em(seeded(Branch()), samples(4).clamp(-1, 1))


def test_statistics_of_the_batch_inside_of_a_model_are_noticed_although_its_outputs_are_independent():
    class Centre(nn.Module):
        def forward(self, x):
            return x - x.mean(dim=0)

    def body(layers, x):
        layers["centre"](x)
        return layers["map"](x)

    model = seeded(Called(body, centre=Centre(), map=nn.Linear(4, 4)))
    with pytest.raises(CoverageError, match="depends on the other samples of the batch"):
        em(model, samples(4))


def test_batch_norm_counts_in_eval_mode_and_is_refused_in_training():
    model, x = seeded(nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4), nn.Linear(4, 2))), samples(4)
    model[1].running_mean.fill_(0.3)
    model[1].running_var.fill_(2.0)
    normed = (model[0](x) - 0.3) / (2.0 + model[1].eps) ** 0.5 * model[1].weight + model[1].bias
    close(em(model, x, layerwise=True)["1"], gram(normed.detach()))
    with pytest.raises(CoverageError, match="normalises with the statistics of the batch"):
        em(model.train(), x)


def test_the_batch_size_and_other_samples_do_not_matter():
    model, x = seeded(nn.Sequential(nn.Linear(4, 4), nn.Tanh(), nn.Linear(4, 2))), samples(4)
    whole = em(model, x)
    for batch_size in (1, 2, 5):
        close(em(model, x, batch_size=batch_size), whole)
    close(em(model, x[:1], x[1:]), whole[:1, 1:])
    assert torch.equal(
        em(model, torch.zeros_like(x), layerwise=True)["0"][0], em(model, torch.zeros_like(x), layerwise=True)["0"][1]
    )


# --- Choosing modules


def test_patterns_choose_leaf_modules_in_the_order_of_registration():
    model = nn.Sequential(nn.Sequential(nn.Linear(4, 4), nn.ReLU()), nn.Linear(4, 2))
    assert leaf_modules(model, None) == ["0.0", "0.1", "1"]
    assert leaf_modules(model, ["1", "0.*"]) == ["0.0", "0.1", "1"]
    assert leaf_modules(model, ["*.0"]) == ["0.0"]


@pytest.mark.parametrize(("pattern", "message"), [("0", "Valid: 0.0, 0.1, 1"), ("fc*", "matches 'fc\\*'")])
def test_patterns_without_a_leaf_module_are_named(pattern, message):
    model = seeded(nn.Sequential(nn.Sequential(nn.Linear(4, 4), nn.ReLU()), nn.Linear(4, 2)))
    with pytest.raises(ConfigError, match=message):
        em(model, samples(4), modules=["1", pattern])


def test_modules_are_an_option_of_em_only():
    model = seeded(nn.Sequential(nn.Linear(4, 2)))
    for kind in ("ck", "nngp", "pntk"):
        with pytest.raises(ConfigError, match="an option of em"):
            ntkpipe.kernel_matrix(model, samples(4), kernel=kind, modules=["0"])


# --- The model stays as it was


def num_hooks(model):
    return sum(len(module._forward_hooks) + len(module._forward_pre_hooks) for module in model.modules())


def test_nothing_is_left_on_the_model():
    model, x = seeded(nn.Sequential(nn.Linear(4, 4), nn.ReLU(inplace=True), nn.Linear(4, 2))), samples(4)
    before = copy.deepcopy(model.state_dict())
    em(model, x)
    with pytest.raises(ConfigError):
        em(model, x, modules=["nothing"])
    with pytest.raises(RuntimeError), ActivationRecorder(model, ["0"], 6):
        model(samples(3))
    assert num_hooks(model) == 0
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_what_is_recorded_has_no_history():
    model, x = seeded(nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 2))), samples(4)
    assert called_modules(model, ["0"], x) == ("0",)
    with ActivationRecorder(model, ["0"], len(x)) as recorder:
        model(x)
    assert not recorder.outputs["0"].requires_grad
