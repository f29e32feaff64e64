"""Kernels with one output vector each through one layer: together as alone, with less unfolding."""

import pytest
import torch
from torch import nn

from ntkpipe.workers.jacobians.coverage import plan_routes, select_parameters
from ntkpipe.workers.jacobians.engine import JacobianEngine, Portion
from ntkpipe.workers.jacobians.factors.outer import OuterFactor
from ntkpipe.workers.jacobians.functionals import Functional

FUNCTIONALS = [Functional(kind) for kind in ("sum", "signs", "loss", "margin")]
LABELS = torch.tensor([0, 1, 2, 1, 0, 2])


@pytest.fixture(scope="module")
def engine():
    torch.manual_seed(0)
    layers = (nn.Conv2d(2, 4, 3), nn.ReLU(), nn.Conv2d(4, 5, 3), nn.Flatten(), nn.Linear(5 * 36, 7), nn.ReLU())
    model = nn.Sequential(*layers, nn.Linear(7, 3)).double().eval()
    return JacobianEngine(model, plan_routes(model, select_parameters(model), torch.randn(4, 2, 10, 10).double()))


@pytest.fixture(scope="module")
def batches():
    torch.manual_seed(1)
    return torch.randn(6, 2, 10, 10).double().split([3, 3])


def factors(engine, inputs, labels, functionals):
    return engine.run(inputs, Portion(frozenset(functionals)), labels).factors


@pytest.mark.parametrize("others", [FUNCTIONALS, [*FUNCTIONALS[:2], Functional("trace")], FUNCTIONALS[:2]])
def test_products_and_norms_together_are_those_alone(engine, batches, others):
    labels = LABELS.split([3, 3])
    together = [factors(engine, x, y, others) for x, y in zip(batches, labels, strict=True)]
    for functional in others:
        alone = [factors(engine, x, y, [functional])[functional] for x, y in zip(batches, labels, strict=True)]
        for name in engine.names:
            mine, theirs = (one[functional][name] for one in together)
            one, other = (each[name] for each in alone)
            torch.testing.assert_close(mine.gram(theirs), one.gram(other), rtol=1e-12, atol=1e-12)
            torch.testing.assert_close(mine.gram(mine), one.gram(one), rtol=1e-12, atol=1e-12)
            torch.testing.assert_close(mine.squared_norms(), one.squared_norms(), rtol=1e-12, atol=1e-12)
            joined, expected = mine.joined([theirs]), one.joined([other])
            torch.testing.assert_close(joined.gram(joined), expected.gram(expected), rtol=1e-12, atol=1e-12)
            torch.testing.assert_close(joined.dense(), expected.dense(), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("way", ["gram", "squared_norms"])
def test_materialised_gradients_of_all_vectors_are_computed_once(engine, batches, monkeypatch, way):
    found = factors(engine, batches[0], LABELS[:3], FUNCTIONALS)
    layers = [found[functional]["2.weight"] for functional in FUNCTIONALS]
    # Whatever the sizes of this test would choose: gradients, not position pairs.
    monkeypatch.setattr(OuterFactor, "gram_seconds", lambda *_: (1.0, 0.0))
    monkeypatch.setattr(OuterFactor, "norm_seconds", lambda *_: (1.0, 0.0))
    calls = []
    original = OuterFactor.inputs
    monkeypatch.setattr(OuterFactor, "inputs", lambda self, *at: calls.append(self) or original(self, *at))
    values = [layer.gram(layer) if way == "gram" else layer.squared_norms() for layer in layers]
    assert len(calls) == 1
    for layer, value in zip(layers, values, strict=True):
        gradients = layer.dense()[:, 0]
        expected = gradients @ gradients.T
        expected = expected if way == "gram" else expected.diagonal()
        torch.testing.assert_close(value, expected, rtol=1e-12, atol=1e-12)


def test_products_with_another_batch_replace_the_ones_that_are_kept(engine, batches):
    one, other = (factors(engine, x, LABELS[:3], FUNCTIONALS) for x in batches)
    functional = FUNCTIONALS[1]
    first = one[functional]["2.weight"].gram(one[functional]["2.weight"])
    across = one[functional]["2.weight"].gram(other[functional]["2.weight"])
    again = one[functional]["2.weight"].gram(one[functional]["2.weight"])
    assert torch.equal(first, again)
    gradients, others = (each[functional]["2.weight"].dense()[:, 0] for each in (one, other))
    torch.testing.assert_close(across, gradients @ others.T, rtol=1e-12, atol=1e-12)
