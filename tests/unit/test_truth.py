"""A backward pass that is not the derivative of the forward pass is found, and nothing else is accused of it."""

import models
import pytest
import torch
from torch import nn

import ntkpipe
from ntkpipe.configs.errors import CoverageError
from ntkpipe.workers.jacobians.coverage import select_parameters
from ntkpipe.workers.jacobians.truth import check_gradient


class Rounded(nn.Module):
    """A straight-through estimator: rounds forward, passes gradients as if it had not."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Linear(4, 3)
        self.head = nn.Linear(3, 2)

    def forward(self, x):
        hidden = self.body(x)
        return self.head(hidden + (torch.round(hidden) - hidden).detach())


class Detached(nn.Module):
    """A branch whose gradient is cut off."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Linear(4, 3)
        self.head = nn.Linear(3, 2)

    def forward(self, x):
        return self.head(torch.tanh(self.body(x)) + self.body(x).detach())


class HalfBackward(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        return x * 1

    @staticmethod
    def backward(ctx, gradient):
        return gradient / 2


class WrongBackward(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Linear(4, 3)

    def forward(self, x):
        return HalfBackward.apply(self.body(x))


class InsistsOnSingle(nn.Module):
    """Cannot be computed in double precision."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Linear(4, 3)

    def forward(self, x):
        return torch.tanh(self.body(x)) @ torch.ones(3, 2)


def error_of(model, x):
    return check_gradient(model.eval(), select_parameters(model), x)


@pytest.mark.filterwarnings("ignore:Using padding='same' with even kernel lengths")
@pytest.mark.parametrize("name", models.MODELS)
def test_no_ordinary_model_is_accused(name):
    model, shape = models.build(name)
    x = torch.randn(4, *shape, generator=torch.Generator().manual_seed(1))
    assert error_of(model, x).error < 1e-6


@pytest.mark.parametrize("make", [Rounded, Detached, WrongBackward])
def test_gradients_that_are_none_are_found(make):
    torch.manual_seed(0)
    model, x = make(), torch.randn(4, 4)
    found = error_of(model, x)
    assert found.error > 0.05
    assert not found.passed
    with pytest.raises(CoverageError, match=r"not the derivative .* pseudo_gradient='allow'"):
        ntkpipe.kernel_matrix(model, x)
    assert ntkpipe.kernel_matrix(model, x, pseudo_gradient="allow").shape == (4, 4)


def test_a_model_on_a_kink_is_not_accused():
    # Biases of zero behind inputs of zero: every ReLU sits exactly where it has no derivative.
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(1, 4, 3, padding=1), nn.ReLU(), nn.Flatten(), nn.Linear(64, 2))
    with torch.no_grad():
        model[0].bias.zero_()
    assert error_of(model, torch.zeros(2, 1, 4, 4)).error < 1e-6


def test_a_model_that_insists_on_single_precision_is_checked_in_it():
    torch.manual_seed(0)
    found = error_of(InsistsOnSingle(), torch.randn(2, 4))
    assert found.tolerance > 1e-3
    assert found.passed


def test_the_model_is_left_as_it_was():
    model, shape = models.build("batch norm in eval mode")
    before = {name: value.clone() for name, value in model.state_dict().items()}
    error_of(model, torch.randn(2, *shape))
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert all(parameter.dtype == torch.float32 and parameter.grad is None for parameter in model.parameters())


def test_the_padding_of_an_embedding_is_no_pseudo_gradient():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Embedding(7, 4, padding_idx=0), nn.Flatten(), nn.Linear(12, 2))
    assert error_of(model, torch.tensor([[0, 1, 1], [6, 2, 0]])).error < 1e-6
