"""Runs with random combinations of kernels, options, members and cuts, against dense float64 formulas."""

import json
import random
import shutil
from pathlib import Path

import golden
import numpy as np
import pytest
import torch
import yaml
from commands import ntkpipe_command
from interruptions import Killed, interrupt_after
from runs import chunk_hashes
from safetensors.torch import save_file
from torch import nn

import ntkpipe
from ntkpipe.configs.errors import ChunkNotReadyError, ConfigError, NotFoundError, NumericalError, RunMismatchError
from ntkpipe.workers.passes import PassPlan
from ntkpipe.workers.probing import memory_model
from ntkpipe.workers.sources.samples import Samples

NUM_OUTPUTS, NUM_TRAIN, NUM_TEST = 3, 6, 4


class Network(nn.Module):
    """Two layers, an activation that is called twice, and a factor whose logarithm is the parameter."""

    def __init__(self):
        super().__init__()
        self.log = nn.Parameter(torch.zeros(3))
        self.fc1, self.act, self.fc2 = nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, NUM_OUTPUTS)

    def forward(self, x):
        return self.fc2(self.act(self.act(self.fc1(x * self.log.exp()))))


SEEDS = {"": 0, "early": 1, "late": 2}
MEMBERS = {name: {"options": {"seed": seed}} for name, seed in SEEDS.items() if name}
NAMES = ("log", "fc1.weight", "fc1.bias", "fc2.weight", "fc2.bias")
CALLS = ("fc1", "act", "act#2", "fc2")


def build(seed=0):
    torch.manual_seed(seed)
    model = Network()
    with torch.no_grad():
        model.log.copy_(torch.randn(3) / 2)
    return model


def load(split="train", view="clean"):
    """Different samples of both splits but for a copy; adversarial and augmented views of all of them."""
    generator = torch.Generator().manual_seed(3)
    x = torch.randn(NUM_TRAIN + NUM_TEST, 3, generator=generator, dtype=torch.float64)
    x[-1] = x[2]
    y = torch.arange(len(x)) % NUM_OUTPUTS
    if view == "adversarial":
        x.requires_grad_()
        loss = nn.functional.cross_entropy(build().double()(x), y, reduction="sum")
        x = (x + 0.2 * torch.autograd.grad(loss, x)[0].sign()).detach()
    if view == "augmented":
        x = x.flip(1)
    part = slice(0, NUM_TRAIN) if split == "train" else slice(NUM_TRAIN, None)
    return Samples(x[part], y[part], tuple(f"{split}-{i}" for i in range(len(y[part]))))


def source(split, view="clean"):
    return {"kind": "python", "target": f"{__name__}:load", "options": {"split": split, "view": view}}


def config(kernels, **changes):
    document = {
        "name": "combinations",
        "model": {"target": f"{__name__}:build", "dtype": "float64"},
        "data": {"splits": {"train": source("train"), "test": source("test")}},
        "kernels": kernels,
        "store": {"shard_rows": 3, "block_rows": 2, "dtype": "float64"},
    }
    return document | changes


# --- Dense formulas on training and test samples together


class Dense:
    """Everything that plain autograd says of one member of the model."""

    def __init__(self, member, *views):
        self.model = build(SEEDS[member]).double()
        parts = [load(*view) for view in views or (("train",), ("test",))]
        x, self.y = torch.cat([part.inputs for part in parts]), torch.cat([part.labels for part in parts])
        parameters = [dict(self.model.named_parameters())[name] for name in NAMES]
        rows = []
        for sample in x:
            outputs = self.model(sample[None])[0]
            rows.append([torch.autograd.grad(output, parameters, retain_graph=True) for output in outputs])
        self.jacobian = {
            name: torch.stack([torch.stack([one[i].flatten() for one in row]) for row in rows]).numpy()
            for i, name in enumerate(NAMES)
        }
        with torch.no_grad():
            first = self.model.fc1(x * self.model.log.exp())
            values = [first, first.tanh(), first.tanh().tanh(), self.model(x)]
        self.activations = {call: value.numpy() for call, value in zip(CALLS, values, strict=True)}
        self.outputs = self.activations["fc2"]

    def gradients(self, kind):
        """Return {name: (N, V, P)}."""
        hot = np.eye(NUM_OUTPUTS)[self.y]
        chances = np.exp(self.outputs) / np.exp(self.outputs).sum(axis=1, keepdims=True)
        others = np.exp(self.outputs) * (1 - hot)
        vectors = {
            "lpntk": (2 * hot - 1) / np.sqrt(NUM_OUTPUTS),
            "class:2": np.eye(NUM_OUTPUTS)[[2] * len(hot)],
            "true_class": hot,
            "loss": chances - hot,
            "margin": hot - others / others.sum(axis=1, keepdims=True),
        }.get(kind, np.ones_like(hot))
        if kind in ("trntk0", "trntk", "probe:5", "full"):
            return self.jacobian
        return {name: np.einsum("nc,ncp->np", vectors, value)[:, None] for name, value in self.jacobian.items()}

    def moments(self, samples):
        at = np.arange(min(samples, NUM_TRAIN)) * NUM_TRAIN // min(samples, NUM_TRAIN)
        return {name: (value[at, 0] ** 2).mean(axis=0) for name, value in self.gradients("loss").items()}


@pytest.fixture(scope="module")
def dense():
    return {member: Dense(member) for member in SEEDS}


PARAMETERS = [
    (None, dict.fromkeys(NAMES, 1.0)),
    (["*.bias"], {"fc1.bias": 1.0, "fc2.bias": 1.0}),
    ({"fc1.*": 0.5, "log": 0.0, "*": 2.0}, {"fc1.weight": 0.5, "fc1.bias": 0.5, "fc2.weight": 2.0, "fc2.bias": 2.0}),
    (["last:1"], {"fc2.weight": 1.0, "fc2.bias": 1.0}),
    ({"last:1": 3.0, "log": 0.25}, {"log": 0.25, "fc2.weight": 3.0, "fc2.bias": 3.0}),
]
MODULES = [(None, CALLS), (["fc*"], ("fc1", "fc2")), (["act"], ("act", "act#2"))]
GRADIENT_KINDS = ["trntk0", "trntk", "pntk", "lpntk", "class:2", "true_class", "loss", "margin", "probe:5"]
EXACT_KINDS = ["full", "signgd", "signgd_asym"]
ACTIVATION_KINDS = ["ck", "em", "nngp"]


class Truth:
    """A matrix over all samples, and what is known of it."""

    def __init__(self, matrix, *, symmetric=True, positive=True, width=1, diagonal=None, components=None):
        self.matrix, self.symmetric, self.positive, self.width = matrix, symmetric, positive, width
        self.diagonal = np.diagonal(matrix).copy() if diagonal is None and symmetric and width == 1 else diagonal
        self.components = components or {}


def empirical_truth(kernel, members, dense):
    """Return the matrix of an exact kernel of the model for members (rows, columns)."""
    kind = kernel["kind"]
    sides, scales = [], []
    for member in members:
        one = dense[member]
        if kind in ACTIVATION_KINDS:
            calls = {
                "ck": ("act#2",),
                "nngp": ("fc2",),
                "em": dict(map(_hashable, MODULES))[str(kernel.get("modules"))],
            }[kind]
            sides.append({call: one.activations[call][:, None] for call in calls})
            continue
        weights = dict(map(_hashable, PARAMETERS))[str(kernel.get("parameters"))]
        sides.append({name: one.gradients(kind)[name] for name in weights})
        given = kernel.get("precondition")
        moments = one.moments(given.get("samples", 1024)) if given else {}
        exponent = given.get("exponent", -0.5) if given else 0
        scales.append({name: (moments[name] + 1e-8) ** (exponent / 2) if given else 1.0 for name in weights})
    if kind in ACTIVATION_KINDS:
        weights, scales = dict.fromkeys(sides[0], 1.0), [dict.fromkeys(side, 1.0) for side in sides]

    def components(left, right):
        found = {}
        for name, weight in weights.items():
            one, other = sides[left][name] * scales[left][name], sides[right][name] * scales[right][name]
            if kind == "full":
                found[name] = weight * np.einsum("ncp,mdp->ncmd", one, other).reshape(one.shape[0] * NUM_OUTPUTS, -1)
                continue
            one = np.sign(one) if kind.startswith("signgd") else one
            other = np.sign(other) if kind == "signgd" else other
            found[name] = weight * np.einsum("nvp,mvp->nm", one, other)
        return found

    parts = components(0, 1)
    own = [np.diagonal(sum(components(side, side).values())) for side in (0, 1)]
    if kind == "trntk":
        parts = {name: part / np.sqrt(np.outer(*own)) for name, part in parts.items()}
    cross = members[0] != members[1]
    found = Truth(
        sum(parts.values()),
        symmetric=not cross and kind != "signgd_asym",
        positive=not cross and kind != "signgd_asym",
        width=NUM_OUTPUTS if kind == "full" else 1,
        components=parts if kernel.get("layerwise") else {},
    )
    found.stored_diagonals = [value.reshape(-1, NUM_OUTPUTS) if kind == "full" else value for value in own]
    return found


def _hashable(pair):
    return str(pair[0]), pair[1]


def derived_truth(kernel, known):
    """Return the matrix of a derived kernel, from those of its parents."""
    kind = kernel["kind"]
    if kind == "ensemble":
        terms = [(1 / len(MEMBERS), known[f"{kernel['of']}@{member}"], None) for member in MEMBERS]
    elif kind == "sum":
        terms = [(term.get("weight", 1.0), known[term["of"]], term.get("component")) for term in kernel["terms"]]
    elif kind == "product":
        terms = [(1.0, known[name], None) for name in kernel["of"]]
    else:
        terms = [(1.0, known[kernel["of"]], None)]
    parents = [parent for _, parent, _ in terms]
    matrices = [parent.matrix if part is None else parent.components[part] for _, parent, part in terms]
    first, train = matrices[0], slice(0, NUM_TRAIN * parents[0].width)
    symmetric = all(parent.symmetric for parent in parents)
    positive = all(parent.positive for parent in parents)
    if kind in ("sum", "ensemble"):
        matrix = sum(weight * part for (weight, _, _), part in zip(terms, matrices, strict=True))
        positive = positive and all(weight >= 0 for weight, _, _ in terms)
    elif kind == "product":
        matrix = np.prod(matrices, axis=0)
    elif kind == "power":
        matrix = first ** kernel["exponent"]
    elif kind == "scaled":
        matrix = first * (kernel["factor"] if "factor" in kernel else 1 / parents[0].diagonal[train].mean())
        positive = positive and kernel.get("factor", 1) >= 0
    elif kind == "normalised":
        roots = np.sqrt(parents[0].diagonal)
        matrix = first / np.outer(roots, roots)
    elif kind == "centred":
        means = first[:, train].mean(axis=1)
        matrix = first - means[:, None] - means[None, :] + means[train].mean()
    else:
        at = kernel.get("given") or NUM_TRAIN
        at = [int(name.split("-")[1]) for name in at] if isinstance(at, list) else range(at)
        seen = first[:, list(at)]
        matrix = first - seen @ np.linalg.solve(seen[list(at)] + kernel["noise"] * np.eye(len(seen.T)), seen.T)
    return Truth(matrix, symmetric=symmetric, positive=positive, width=parents[0].width)


# --- Random configurations


def draw_empirical(rng, number, members):
    kind = rng.choice([*GRADIENT_KINDS, *GRADIENT_KINDS, *EXACT_KINDS, *ACTIVATION_KINDS])
    kernel = {"kind": kind, "name": f"k{number}"}
    if kind not in ACTIVATION_KINDS and (parameters := rng.choice(PARAMETERS)[0]) is not None:
        kernel["parameters"] = parameters
    if kind == "em" and rng.random() < 0.6 and (modules := rng.choice(MODULES)[0]) is not None:
        kernel["modules"] = modules
    if kind not in ACTIVATION_KINDS and rng.random() < 0.3:
        options = {"exponent": rng.choice([-0.5, -1.0]), "samples": rng.choice([3, 1024])}
        kernel["precondition"] = {"kind": "fisher", **options}
    if members and rng.random() < 0.35:
        kernel["cross"] = rng.sample(sorted(members), 2)
    elif kind not in ("full", "ck", "nngp") and rng.random() < 0.4:
        kernel["layerwise"] = True
    if kind in (*GRADIENT_KINDS, "em") and rng.random() < 0.25:
        kernel["projection"] = {"kind": rng.choice(["tensorsketch", "sjlt", "rademacher"]), "dim": 16}
    return kernel


def draw_derived(rng, number, known):
    """Return a derived kernel that can be made of known matrices, None if the draw cannot be."""
    kind = rng.choice(["sum", "product", "power", "scaled", "normalised", "centred", "posterior", "ensemble"])
    kernel = {"kind": kind, "name": f"d{number}"}
    name = rng.choice(sorted(known))
    one = known[name]
    alike = [other for other in sorted(known) if known[other].width == one.width]
    if kind == "sum":
        weight = rng.choice([0.5, 2.0, -0.25])
        terms = [{"of": name, "weight": weight}, {"of": rng.choice(alike), "weight": 1.5}]
        if one.components:
            terms[0]["component"] = rng.choice(sorted(one.components))
        return {**kernel, "terms": terms}
    if kind == "product":
        return {**kernel, "of": [name, rng.choice(alike)]}
    if kind == "ensemble":
        return {**kernel, "of": name.partition("@")[0]} if "@" in name else None
    kernel["of"] = name
    if kind == "power":
        return {**kernel, "exponent": rng.choice([1, 2, 3])}
    variances = one.symmetric and one.width == 1 and one.diagonal is not None and one.positive
    if kind == "scaled":
        return kernel if variances and rng.random() < 0.5 else {**kernel, "factor": -0.75}
    if not variances:
        return None
    if kind == "posterior":
        given = rng.choice([None, 3, ["train-5", "train-0", "train-2"]])
        noise = 0.5 * float(one.diagonal.mean())
        return {**kernel, "noise": noise} | ({} if given is None else {"given": given})
    return kernel


PAIRS = [
    None,
    [["train", "train"], ["test", "train"], ["test", "test"]],
    [["test", "test"], ["train", "test"], ["test", "train"], ["train", "train"]],
]


def draw(seed, dense):
    """Return a configuration, and the truth of every matrix that is exact; projected kernels are known by their features."""
    rng = random.Random(seed)
    members = MEMBERS if rng.random() < 0.6 else {}
    kernels = [draw_empirical(rng, number, members) for number in range(rng.randint(3, 6))]
    known = {}
    for kernel in kernels:
        if "projection" in kernel:
            continue
        if "cross" in kernel:
            known[kernel["name"]] = empirical_truth(kernel, kernel["cross"], dense)
        else:
            names = [(f"{kernel['name']}@{m}", m) for m in members] or [(kernel["name"], "")]
            known |= {name: empirical_truth(kernel, (member, member), dense) for name, member in names}
    derived = []
    for number in range(8):
        if known and (kernel := draw_derived(rng, number, known)) is not None:
            derived.append(kernel)
            found = derived_truth(kernel, known)
            by_component = kernel["kind"] == "sum" and any("component" in term for term in kernel["terms"])
            if by_component or not all(known[name].diagonal is not None for name in _parents(kernel, members)):
                found.diagonal = None
            known[kernel["name"]] = found
    solvable = [name for name, truth in known.items() if truth.symmetric and truth.positive]
    solve = []
    if solvable and rng.random() < 0.8:
        chosen = {"kernel": rng.choice(solvable), "ridge_scale": "mean-diagonal", "ridge": 0.1}
        solve.append({"kind": "cholesky", "name": "ridge", **chosen})
    data = config([])["data"]
    if (pairs := rng.choice(PAIRS)) is not None:
        data = data | {"pairs": pairs}
    shards, blocks = rng.choice([1, 3, 4, 8]), rng.choice([2, 4, 5, 8])
    document = config([*kernels, *derived], data=data, solve=solve)
    document["store"] |= {"shard_rows": shards, "block_rows": blocks}
    if members:
        document["model"] |= {"members": members}
    whole = any(kernel["kind"] == "full" for kernel in kernels)
    vectors = 99 if whole else rng.choice([1, 2, 99])
    return document, known, PassPlan(rng.choice([1, 2, 4]), vectors, rng.choice([1, 3]), rng.choice([1, 2, 3, 9]))


def _parents(kernel, members):
    if kernel["kind"] == "ensemble":
        return [f"{kernel['of']}@{member}" for member in members]
    if kernel["kind"] == "sum":
        return [term["of"] for term in kernel["terms"]]
    return kernel["of"] if isinstance(kernel["of"], list) else [kernel["of"]]


def close(found, expected, message=""):
    limit = 1e-9 * max(1e-3, float(np.abs(expected).max()))
    np.testing.assert_allclose(found, expected, rtol=0, atol=limit, err_msg=message)


def spans(width):
    return {"train": slice(0, NUM_TRAIN * width), "test": slice(NUM_TRAIN * width, None)}


def check_truth(run, reference, truth):
    at, single = spans(truth.width), spans(1)
    for rows, columns in run.manifest.geometry.pairs:
        where = f"{reference} {rows} x {columns}"
        close(run.kernel(reference, rows, columns)[:, :], truth.matrix[at[rows], at[columns]], where)
        for name, part in truth.components.items():
            found = run.kernel(reference, rows, columns, component=name)[:, :]
            close(found, part[at[rows], at[columns]], f"{where}, {name}")
    shape, _ = run.manifest.geometry.matrix(reference)
    for split in ("train", "test"):
        if hasattr(truth, "stored_diagonals"):
            sides = [f"{reference}@{member}" for member in shape.members] if shape.cross else [reference]
            for name, expected in zip(sides, truth.stored_diagonals, strict=False):
                close(run.diagonal(name, split), expected[single[split]], f"diagonal of {name} {split}")
        elif truth.diagonal is not None:
            close(run.diagonal(reference, split), truth.diagonal[single[split]], f"diagonal of {reference} {split}")


def check_projected(run, kernel, dense):
    """A projected kernel is the product of its stored features; its diagonal and norms are exact."""
    shape = run.manifest.geometry.kernel(kernel["name"])
    plain = {name: value for name, value in kernel.items() if name != "projection"}
    for member in [(one, one) for one in shape.members] or [("", "")]:
        member = tuple(kernel["cross"]) if "cross" in kernel else member
        names = [f"{shape.name}@{one}" if one else shape.name for one in member]
        truth = empirical_truth(plain, member, dense)
        features = [{split: run.features[name, split][:] for split in ("train", "test")} for name in names]
        for rows, columns in run.manifest.geometry.pairs:
            left, right = features[0][rows], features[-1][columns]
            expected = left @ np.swapaxes(right, -1, -2)
            if shape.cosine:
                at = spans(1)
                norms = [truth.stored_diagonals[0][at[rows]], truth.stored_diagonals[1][at[columns]]]
                expected = expected / np.sqrt(np.outer(*norms))
            reference = shape.name if "cross" in kernel else names[0]
            total = expected.sum(axis=0) if expected.ndim == 3 else expected
            close(run.kernel(reference, rows, columns)[:, :], total, f"projected {reference}")
            for group, name in enumerate(shape.groups):
                close(run.kernel(reference, rows, columns, component=name)[:, :], expected[group])
        for name, expected in zip(names, truth.stored_diagonals, strict=True):
            close(run.diagonal(name, "test"), expected[NUM_TRAIN:], f"diagonal of {name}")


def check_run(run, document, known, dense):
    for reference, truth in known.items():
        check_truth(run, reference, truth)
    for kernel in document["kernels"]:
        if "projection" in kernel:
            check_projected(run, kernel, dense)
    for member in document["model"].get("members") or {"": {}}:
        close(run.outputs("test", member or None), dense[member].outputs[NUM_TRAIN:])
    for solve in document["solve"]:
        truth = known[solve["kernel"]]
        at = spans(truth.width)
        hot = np.eye(NUM_OUTPUTS)[dense[""].y[:NUM_TRAIN]]
        right = hot.reshape(-1, 1) if truth.width > 1 else hot
        gram = truth.matrix[at["train"], at["train"]]
        alpha = np.linalg.solve(gram + 0.1 * np.trace(gram) / len(gram) * np.eye(len(gram)), right)
        close(run.solution("ridge"), alpha.reshape(hot.shape))
        for split in ("train", "test"):
            predicted = truth.matrix[at[split], at["train"]] @ alpha
            close(run.predictions("ridge", split), predicted.reshape(-1, NUM_OUTPUTS))
    assert not any(checked.findings for checked in ntkpipe.verify(run.url))


def run_drawn(seed, dense, folder, monkeypatch):
    document, known, passes = draw(seed, dense)
    monkeypatch.setattr(memory_model, "plan_passes", lambda *_, **__: passes)
    check_run(ntkpipe.run(document, folder / "run"), document, known, dense)


@pytest.mark.parametrize("seed", range(8))
def test_any_combination_equals_its_dense_formulas(seed, dense, tmp_path, monkeypatch):
    run_drawn(seed, dense, tmp_path, monkeypatch)


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(8, 68))
def test_any_other_combination_equals_its_dense_formulas(seed, dense, tmp_path, monkeypatch):
    run_drawn(seed, dense, tmp_path, monkeypatch)


# --- Adversarial copies and augmented views

VIEWS = ("train", "adversarial", "augmented")


@pytest.fixture(scope="module")
def views(tmp_path_factory):
    splits = {view: source("train", "clean" if view == "train" else view) for view in VIEWS}
    pairs = [[view, other] for view in VIEWS for other in ("train", view)]
    kernels = [
        {"kind": "trntk0"},
        {"kind": "loss", "parameters": ["*.weight"]},
        {"kind": "em"},
        {"kind": "margin", "name": "sketch", "projection": {"dim": 16}},
    ]
    document = config(kernels, data={"splits": splits, "pairs": [list(p) for p in dict.fromkeys(map(tuple, pairs))]})
    return ntkpipe.run(document, tmp_path_factory.mktemp("runs") / "views")


def mixed(run, kernel, view, share):
    clean, cross, other = (run.kernel(kernel, *pair)[:, :] for pair in (("train",) * 2, (view, "train"), (view, view)))
    return (1 - share) ** 2 * clean + share * (1 - share) * (cross + cross.T) + share**2 * other


@pytest.mark.parametrize("share", [0.0, 0.3, 0.5, 1.0])
@pytest.mark.parametrize("view", VIEWS[1:])
def test_mixed_kernels_of_two_views_are_gram_matrices_of_mixed_gradients(views, view, share):
    clean, other = Dense("", ("train",)), Dense("", ("train", view))

    def gram(one, two, names):
        return sum(np.einsum("nvp,mvp->nm", *[(1 - share) * one[name] + share * two[name]] * 2) for name in names)

    expected = {
        "trntk0": gram(clean.jacobian, other.jacobian, NAMES),
        "loss": gram(clean.gradients("loss"), other.gradients("loss"), ["fc1.weight", "fc2.weight"]),
        "em": gram(
            *({call: value[:, None] for call, value in one.activations.items()} for one in (clean, other)), CALLS
        ),
    }
    sketches = [views.features["sketch", split][:] for split in ("train", view)]
    features = (1 - share) * sketches[0] + share * sketches[1]
    expected["sketch"] = features @ features.T
    for kernel, matrix in expected.items():
        found = mixed(views, kernel, view, share)
        close(found, matrix, kernel)
        assert np.linalg.eigvalsh(found)[0] > -1e-10 * np.trace(found)
    if share == 0:
        close(mixed(views, "trntk0", view, share), views.kernel("trntk0")[:, :])


def test_views_differ_and_keep_the_labels(views):
    for view in VIEWS[1:]:
        assert np.abs(views.kernel("trntk0", view, view)[:, :] - views.kernel("trntk0")[:, :]).max() > 1e-3
        np.testing.assert_array_equal(views.labels(view), views.labels("train"))
    assert not any(checked.findings for checked in ntkpipe.verify(views.url))


# --- Interrupted, damaged and changed runs


def everything(**changes):
    """A run with every stage there is: moments, features, kernel, two passes over matrices, solve, analyze."""
    kernels = [
        {"kind": "trntk0", "layerwise": True},
        {"kind": "pntk", "name": "fisher", "precondition": {"kind": "fisher"}},
        {
            "kind": "pntk",
            "name": "moved",
            "precondition": {"kind": "fisher", "exponent": -1},
            "cross": ["late", "early"],
        },
        {"kind": "trntk", "name": "sketch", "projection": {"dim": 16}, "parameters": {"fc1.*": 0.5, "*": 2.0}},
        {"kind": "em", "name": "first", "modules": ["fc1"]},
        {"kind": "em", "name": "second", "modules": ["fc2"]},
        {"kind": "em", "name": "both", "modules": ["fc*"], "cross": ["late", "early"]},
        {"kind": "signgd_asym"},
        {"kind": "full"},
        {"kind": "laplace", "bandwidth": 2.0},
        {"kind": "fourier_features", "bandwidth": 2.0, "dim": 16},
        {"kind": "centred", "of": "trntk0@late"},
        {"kind": "posterior", "of": "centred", "noise": 1.0},
        {"kind": "sum", "terms": [{"of": "posterior"}, {"of": "laplace"}, {"of": "sketch@early", "weight": 0.5}]},
    ]
    model = {"target": "golden:build_member", "members": {"early": {}, "late": {"options": {"shift": 0.25}}}}
    solve = [{"kind": "cholesky", "name": "ridge", "kernel": "sum", "ridge": 0.5}]
    analyses = [{"kind": "spectrum", "kernels": ["posterior", "fisher@late"]}]
    store = {"shard_rows": 3, "block_rows": 3}
    return golden.config(model=model, kernels=kernels, solve=solve, analyses=analyses, store=store) | changes


NUM_TASKS = {"moments": 2, "features": 4, "kernel": 7, "derive-1": 4, "derive-2": 4, "solve": 1, "analyze": 1}


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory):
    return Path(ntkpipe.run(everything(), tmp_path_factory.mktemp("runs") / "whole").url)


def test_every_stage_has_its_tasks(uninterrupted):
    status = ntkpipe.open_run(uninterrupted).status()
    assert {stage.stage: stage.total for stage in status.stages} == NUM_TASKS
    assert status.state == "finished"
    assert not any(checked.findings for checked in ntkpipe.verify(uninterrupted))


@pytest.mark.parametrize("num_tasks", [1, 9, 15, 19, 22])
def test_a_resumed_run_equals_an_uninterrupted_one(num_tasks, uninterrupted, tmp_path, monkeypatch):
    with monkeypatch.context() as patch:
        interrupt_after(patch, num_tasks)
        with pytest.raises(Killed):
            ntkpipe.run(everything(), tmp_path / "run")
    run = ntkpipe.open_run(tmp_path / "run")
    assert sum(stage.done for stage in run.status().stages) == num_tasks
    if num_tasks < 21:
        with pytest.raises(ChunkNotReadyError, match="is not committed"):
            run.kernel("posterior", "test")[:, :]
    resumed = ntkpipe.resume(tmp_path / "run")
    assert resumed.status().state == "finished"
    assert chunk_hashes(tmp_path / "run") == chunk_hashes(uninterrupted)
    assert not any(checked.findings for checked in ntkpipe.verify(run.url))


@pytest.mark.parametrize(
    ("chunk", "task"),
    [
        ("moments/fisher/c/1/0", "fisher"),
        ("statistic/centred/test/c/1/0", "centred/test/00000001"),
        ("kernel/moved/train-train/c/0/1", "train-train/000001-000000"),
        ("kernel/signgd_asym/train-train/c/1/0/1", "train-train/000001-000000"),
        ("features/sketch/train/c/1/0/0", "train/00000000"),
        ("diagonal/full/test/c/0/1/0", "test/00000001"),
    ],
)
def test_damage_to_any_array_is_found_and_repaired(chunk, task, uninterrupted, tmp_path):
    shutil.copytree(uninterrupted, tmp_path / "run")
    path = tmp_path / "run/data.zarr" / chunk
    path.write_bytes(path.read_bytes()[:-5] + b"wrong")
    findings = [finding for checked in ntkpipe.verify(tmp_path / "run", repair=True) for finding in checked.findings]
    assert [finding.task for finding in findings] == [task]
    ntkpipe.resume(tmp_path / "run")
    assert chunk_hashes(tmp_path / "run") == chunk_hashes(uninterrupted)


@pytest.mark.slow
def test_ray_writes_the_same_bytes(uninterrupted, local_ray, tmp_path):
    ntkpipe.run(everything(resources={"executor": "ray", "workers": 2}), tmp_path / "run")
    assert chunk_hashes(tmp_path / "run") == chunk_hashes(uninterrupted)


def test_second_moments_from_a_file_may_move_but_not_change(tmp_path):
    model = golden.build_member().double()
    moments = {name: value.detach().square() for name, value in model.named_parameters()}
    for file, factor in (("one", 1.0), ("moved", 1.0), ("changed", 2.0)):
        save_file({name: factor * value for name, value in moments.items()}, tmp_path / f"{file}.safetensors")
    given = {"kind": "adam", "moments": str(tmp_path / "one.safetensors")}
    document = golden.config(kernels=[{"kind": "pntk", "precondition": given}], solve=[])
    document["model"] = {"target": "golden:build_member", "dtype": "float64"}
    run = ntkpipe.run(document, tmp_path / "run")
    scales = {name: (value + 1e-8) ** -0.5 for name, value in moments.items()}
    x = torch.tensor(golden.INPUTS, dtype=torch.float64)
    expected = ntkpipe.kernel_matrix(model, x, kernel="pntk", preconditioner=scales)
    np.testing.assert_allclose(run.kernel("pntk")[:, :], expected, rtol=1e-6)
    place = "kernels.0.precondition.moments"
    ntkpipe.resume(run.url, overrides=[f"{place}={tmp_path / 'moved.safetensors'}"])
    with pytest.raises(RunMismatchError, match=r"fingerprints\.moments\.pntk"):
        ntkpipe.resume(run.url, overrides=[f"{place}={tmp_path / 'changed.safetensors'}"])
    with pytest.raises(RunMismatchError, match=r"precondition\.exponent: stored -0\.5, now -1"):
        ntkpipe.resume(run.url, overrides=["kernels.0.precondition.exponent=-1"])
    save_file({name: 2 * value for name, value in moments.items()}, tmp_path / "one.safetensors")
    with pytest.raises(RunMismatchError, match=r"fingerprints\.moments\.pntk"):
        ntkpipe.resume(run.url)


def load_nodes():
    return Samples(torch.arange(5), torch.arange(5) % 2, tuple(f"node-{i}" for i in range(5)))


def test_graphs_from_a_file_may_move_but_not_change(tmp_path):
    ring = np.roll(np.eye(5), 1, axis=1)
    for file, weight in (("one", 1.0), ("moved", 1.0), ("changed", 2.0)):
        adjacency = ring + ring.T
        adjacency[0, 1] = adjacency[1, 0] = weight
        np.savez(tmp_path / f"{file}.npz", adjacency=adjacency)
    kernels = [{"kind": "graph_walk_features", "graph": str(tmp_path / "one.npz")}]
    document = golden.config(
        kernels=kernels, solve=[], data={"splits": {"train": {"kind": "python", "target": f"{__name__}:load_nodes"}}}
    )
    del document["model"]
    run = ntkpipe.run(document, tmp_path / "run")
    assert run.features["graph_walk_features"][:].shape == (5, 10)
    ntkpipe.resume(run.url, overrides=[f"kernels.0.graph={tmp_path / 'moved.npz'}"])
    with pytest.raises(RunMismatchError, match=r"fingerprints\.graph\.graph_walk_features"):
        ntkpipe.resume(run.url, overrides=[f"kernels.0.graph={tmp_path / 'changed.npz'}"])


def test_the_order_of_weights_is_part_of_what_a_run_is(tmp_path):
    def document(weights):
        return golden.config(kernels=[{"kind": "trntk0", "parameters": weights}], solve=[])

    one, other = {"fc1.*": 0.5, "*": 2.0}, {"*": 2.0, "fc1.*": 0.5}
    assert ntkpipe.load_config(document(one)).digest() != ntkpipe.load_config(document(other)).digest()
    run = ntkpipe.run(document(one), tmp_path / "run")
    assert ntkpipe.resume(run.url).kernel("trntk0")[0, 0] == 0.5 * (6 + 6) + 2 * (4 + 2)
    with pytest.raises(RunMismatchError, match=r"config\.kernels\[0\]\.parameters\[0\]"):
        ntkpipe.resume(run.url, overrides=["kernels.0.parameters={'*': 2.0, 'fc1.*': 0.5}"])


# --- What cannot be meant, and what is not known


@pytest.mark.parametrize(
    ("kernels", "message"),
    [
        ([{"kind": "pntk", "cross": ["early", "early"]}], "names member 'early' twice"),
        ([{"kind": "pntk", "cross": ["early", "later"]}], "unknown member 'later'; did you mean 'late'"),
        ([{"kind": "pntk", "parameters": {"*": float("nan")}}], "finite number"),
        ([{"kind": "pntk"}, {"kind": "ensemble", "of": "pntk", "members": []}], "names none"),
        ([{"kind": "pntk"}, {"kind": "ensemble", "of": "pntk", "members": ["late", "late"]}], "one twice"),
        ([{"kind": "pntk"}, {"kind": "ensemble", "of": "pntk", "members": ["never"]}], "unknown kernel 'pntk@never'"),
        ([{"kind": "pntk"}, {"kind": "sum", "terms": [{"of": "pntk@late", "weight": float("inf")}]}], "finite number"),
        ([{"kind": "pntk"}, {"kind": "scaled", "of": "pntk@late", "factor": float("nan")}], "finite number"),
        ([{"kind": "pntk"}, {"kind": "scaled", "of": "pntk"}], "unknown kernel 'pntk'; did you mean 'pntk@"),
    ],
)
def test_what_cannot_be_meant_is_refused(kernels, message):
    with pytest.raises(ConfigError, match=message):
        ntkpipe.load_config(everything(kernels=kernels, solve=[], analyses=[]))


@pytest.mark.parametrize(
    ("analysis", "message"),
    [
        ({"kind": "spectrum"}, "finds no symmetric kernel"),
        ({"kind": "student-t"}, "finds no symmetric kernel"),
        ({"kind": "heatmap", "kernel": "full@late"}, r"is of \(sample, output\) pairs"),
    ],
)
def test_analyses_without_a_kernel_are_refused(analysis, message):
    kernels = [{"kind": "full"}, {"kind": "signgd_asym"}]
    with pytest.raises(ConfigError, match=message):
        ntkpipe.load_config(everything(kernels=kernels, solve=[], analyses=[analysis]))


PARTS = [
    {"kind": "trntk0", "layerwise": True},
    {"kind": "sum", "terms": [{"of": "trntk0", "component": "fc1.bias"}, {"of": "trntk0", "component": "fc2.weight"}]},
    {"kind": "scaled", "of": "sum", "factor": 2.0},
]


def test_the_diagonal_of_components_is_read_from_their_matrix(tmp_path):
    run = ntkpipe.run(golden.config(kernels=PARTS, solve=[]), tmp_path / "run")
    expected = np.diagonal(sum(np.array(golden.TRNTK0_COMPONENTS[name]) for name in ("fc1.bias", "fc2.weight")))
    assert run.diagonal("sum").tolist() == expected.tolist()
    assert run.diagonal("scaled").tolist() == (2 * expected).tolist()
    with pytest.raises(NotFoundError, match=r"Add the pair \[test, test\]"):
        run.diagonal("sum", "test")


def test_student_t_needs_variances_that_are_known():
    document = golden.config(kernels=PARTS, solve=[], analyses=[{"kind": "student-t"}])
    with pytest.raises(ConfigError, match=r"needs the pair \[test, test\]"):
        ntkpipe.load_config(document)
    pairs = [["train", "train"], ["test", "train"], ["test", "test"]]
    ntkpipe.load_config(document | {"data": document["data"] | {"pairs": pairs}})


def test_negative_variances_cannot_be_normalised_but_rounding_can(tmp_path):
    kernels = [
        {"kind": "trntk0"},
        {"kind": "sum", "terms": [{"of": "trntk0", "weight": -1.0}]},
        {"kind": "normalised", "of": "sum"},
        {"kind": "posterior", "of": "trntk0", "noise": 1e-9},
        {"kind": "power", "of": "posterior", "exponent": 1},
        {"kind": "gaussian", "bandwidth": 1e9},
        {"kind": "centred", "of": "gaussian"},
        {"kind": "normalised", "name": "flat", "of": "centred"},
    ]
    run = ntkpipe.run(golden.config(kernels=kernels, solve=[]), tmp_path / "run")
    with pytest.raises(NumericalError, match="K\\(x, x\\) of 'sum' is -72 at position 1"):
        run.kernel("normalised")[:, :]
    assert not run.kernel("flat")[:, :].any()


def test_variances_of_a_posterior_are_those_of_its_estimated_matrix(tmp_path):
    kernels = [
        {"kind": "trntk0", "projection": {"dim": 4}},
        {"kind": "posterior", "of": "trntk0", "noise": 1e-3},
        {"kind": "normalised", "of": "posterior"},
    ]
    model = {"target": "golden:build_member", "dtype": "float64"}
    store = {"shard_rows": 3, "block_rows": 2, "dtype": "float64"}
    run = ntkpipe.run(golden.config(kernels=kernels, solve=[], model=model, store=store), tmp_path / "run")
    variances = np.diagonal(run.kernel("posterior")[:, :])
    assert (variances > 0).all()
    np.testing.assert_allclose(run.diagonal("posterior"), variances, rtol=1e-6)
    np.testing.assert_allclose(np.diagonal(run.kernel("normalised")[:, :]), 1, rtol=1e-6)
    assert run.diagonal("trntk0").tolist() == np.diagonal(golden.TRNTK0).tolist()


def test_errors_of_a_kernel_of_pairs_have_its_shape(uninterrupted):
    run = ntkpipe.open_run(uninterrupted)
    errors, full = run.standard_errors("full@late", "test"), run.kernel("full@late", "test")
    assert errors.shape == full.shape == (8, 8)
    assert errors[:, 1:3].shape == full[:, 1:3].shape == (8, 4)
    assert not errors[:, :].any()


def test_unknown_components_are_refused_before_anything_is_computed(tmp_path):
    kernels = [{"kind": "pntk", "layerwise": True}, {"kind": "sum", "terms": [{"of": "pntk", "component": "fc9.bias"}]}]
    with pytest.raises(ConfigError, match=r"unknown component 'fc9\.bias'"):
        ntkpipe.run(golden.config(kernels=kernels, solve=[]), tmp_path / "run").kernel("sum")


# --- From the command line


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    folder = tmp_path_factory.mktemp("configs")
    (folder / "model.yaml").write_text(yaml.safe_dump(everything()))
    formulas = [kernel for kernel in everything()["kernels"] if kernel["kind"] in ("laplace", "fourier_features")]
    formulas.append({"kind": "posterior", "of": "laplace", "noise": 0.5})
    document = everything(kernels=formulas, solve=[], analyses=[])
    del document["model"]
    (folder / "formulas.yaml").write_text(yaml.safe_dump(document))
    return folder


def test_a_plan_lists_stages_and_kernels(written):
    found = ntkpipe_command("plan", written / "model.yaml", "--explain")
    assert (found.returncode, found.stderr) == (0, "")
    for stage, number in NUM_TASKS.items():
        row = next(line for line in found.stdout.splitlines() if line.startswith(f"\u2502 {stage} "))
        assert row.split("\u2502")[2].strip() == str(number)
    for text in ("kernel fisher", "kernel moved", "kernel both", "kernel posterior", "kernel fourier_features"):
        assert text in found.stdout
    assert "fc1.weight" in found.stdout


def test_a_plan_needs_no_model(written):
    found = ntkpipe_command("plan", written / "formulas.yaml", "--explain")
    assert (found.returncode, found.stderr) == (0, "")
    assert "kernel laplace" in found.stdout
    assert "derive-1" in found.stdout
    assert "moments" not in found.stdout


def test_status_and_queries_know_every_kernel(uninterrupted):
    found = ntkpipe_command("status", uninterrupted, "--json")
    assert found.returncode == 0, found.stderr
    assert {stage["stage"]: stage["done"] for stage in json.loads(found.stdout)["stages"]} == NUM_TASKS
    found = ntkpipe_command("query", uninterrupted, "kernel/moved/test-train", "--rows", "0:2")
    assert (found.stderr, len(found.stdout.splitlines())) == ("", 3)


def test_the_schema_knows_every_kernel():
    found = ntkpipe_command("schema")
    assert found.returncode == 0, found.stderr
    text = json.dumps(json.loads(found.stdout))
    for word in ("precondition", "EnsembleConfig", "PosteriorConfig", "GraphWalkFeaturesConfig", "members", "cross"):
        assert word in text
