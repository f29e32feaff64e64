"""A Newton step: a direction by conjugate gradients, and how far to follow it."""

import torch

from ntkpipe.workers.solvers.glm.objective import Objective

LOOSEST = 0.5
"""Directions are solved for to the square root of the relative gradient, at most to this."""

INDEFINITE = 1e-6
"""A squared norm below minus this share of its bound is no rounding error."""

MAX_HALVINGS = 40

DECREASE = 1e-4
"""Share of the decrease that the slope promises, of which Armijo's rule is content."""

FLATTENED = 0.8
"""Share of the slope that is left where a step may end, if rounding hides whether the objective decreased."""

ROUNDING = 1e-12
"""Of the objective, relative."""


def direction(
    objective: Objective,
    probabilities_NT: torch.Tensor,
    gradient_NT: torch.Tensor,
    image_NT: torch.Tensor,
    scales: torch.Tensor,
    max_steps: int,
    bound: float,
) -> torch.Tensor | None:
    """Return an approximate solution D of (second derivative) D = -gradient; None if M is not positive semi-definite.

    Conjugate gradients in the inner product of M, of every problem on its own; those that are solved stand still.

    Args:
        objective: What is minimised.
        probabilities_NT: Where the second derivative is taken.
        gradient_NT: There.
        image_NT: M times the gradient.
        scales: Squared norms of gradients that count as 1, one for every problem.
        max_steps: Whatever was found after as many is a direction of descent, too.
        bound: On the diagonal of M.
    """
    residual_NT, image_NT = -gradient_NT, -image_NT
    found_NT, search_NT, search_image_NT = torch.zeros_like(gradient_NT), residual_NT, image_NT
    square = objective.sums(residual_NT * image_NT)
    forcing = (square.clamp(min=0) / scales).sqrt().sqrt().clamp(max=LOOSEST)
    allowed = square * forcing.square()
    for _ in range(max_steps):
        if negative(objective, residual_NT, square, bound):
            return None
        active = (square > allowed) & (square > 0)
        if not active.any():
            break
        curved_NT = objective.curvature(probabilities_NT, search_NT, search_image_NT)
        bend = objective.sums(search_image_NT * curved_NT)
        if bool((bend[active] <= 0).any()):
            return None
        rate = (square / bend).where(active, 0.0)
        found_NT = found_NT + rate * search_NT
        residual_NT = residual_NT - rate * curved_NT
        image_NT = objective.quick_metric(residual_NT)
        last, square = square, objective.sums(residual_NT * image_NT)
        share = (square / last).where(active, 0.0)
        search_NT, search_image_NT = residual_NT + share * search_NT, image_NT + share * search_image_NT
    return found_NT


def negative(objective: Objective, vectors_NT: torch.Tensor, square: torch.Tensor, bound: float) -> bool:
    """Return whether the squared norm of some vectors is below what rounding could make of a positive one."""
    return bool((square < -INDEFINITE * bound * objective.sums(vectors_NT.square())).any())


def step_length(
    objective: Objective,
    alpha_NT: torch.Tensor,
    logits_NT: torch.Tensor,
    slope: torch.Tensor,
    direction_NT: torch.Tensor,
    change_NT: torch.Tensor,
) -> torch.Tensor:
    """Return how far to follow a direction, one number for every problem: 1, 1/2, 1/4, ... or 0 if nothing helps.

    A step is taken if it decreases the objective enough (Armijo), or if the objective is equal up to rounding and the slope
    has become smaller (Hager and Zhang, "A new conjugate gradient method with guaranteed descent", SIAM J. Optim. 2005).
    Needs no product with K.

    Args:
        objective: What is minimised.
        alpha_NT: Where to start.
        logits_NT: K times that.
        slope: Of the objective along the direction at the start.
        direction_NT: The direction.
        change_NT: K times that.
    """
    image_NT = change_NT if objective.functions else direction_NT
    start = objective.value(alpha_NT, logits_NT)
    length = torch.ones_like(start)
    for _ in range(MAX_HALVINGS):
        moved_NT, moved_logits_NT = alpha_NT + length * direction_NT, logits_NT + length * change_NT
        value = objective.value(moved_NT, moved_logits_NT)
        pull = objective.sums(objective.errors(moved_logits_NT) * change_NT)
        moved_slope = pull + objective.ridge * objective.sums(moved_NT * image_NT)
        decreased = value <= start + DECREASE * length * slope
        level = (value <= start + ROUNDING * start.abs()) & (moved_slope <= FLATTENED * slope.abs())
        fails = ~(decreased | level)
        if not fails.any():
            return length
        length = torch.where(fails, length / 2, length)
    return length.where(~fails, 0.0)
