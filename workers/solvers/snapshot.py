"""Solver states as plain arrays and numbers, which is how they are stored between steps."""

import math
from dataclasses import fields
from typing import Any, TypeVar

import numpy as np
import torch

from ntkpipe.workers.solvers.base import SolverState

Arrays = dict[str, "np.ndarray[Any, np.dtype[Any]]"]
State = TypeVar("State", bound=SolverState)

NAN = "nan"


def split_state(state: SolverState) -> tuple[Arrays, Arrays, dict[str, Any]]:
    """Return the tensors that no step changes, the other tensors, and numbers and texts as JSON values."""
    constant: Arrays = {}
    changing: Arrays = {}
    values: dict[str, Any] = {}
    for field in fields(state):
        value = getattr(state, field.name)
        if isinstance(value, torch.Tensor):
            (constant if field.name in state.constants else changing)[field.name] = value.cpu().numpy()
        elif isinstance(value, float) and math.isnan(value):
            values[field.name] = NAN
        else:
            assert value is None or isinstance(value, bool | int | float | str), f"{field.name} cannot be stored"
            values[field.name] = value
    return constant, changing, values


def join_state(state_type: type[State], arrays: Arrays, values: dict[str, Any]) -> State:
    """Return the state that :func:`split_state` took apart."""
    found: dict[str, Any] = {name: torch.from_numpy(np.array(array)) for name, array in arrays.items()}
    found |= {name: math.nan if value == NAN else value for name, value in values.items()}
    return state_type(**found)
