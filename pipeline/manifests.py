"""What a run is, as its manifest says, and how that differs from a run that is asked for."""

import platform
import time
import uuid
from collections.abc import Iterable
from importlib.metadata import version
from typing import Any

from ntkpipe.configs.canonical import differences
from ntkpipe.configs.errors import RunMismatchError
from ntkpipe.configs.run import RunConfig
from ntkpipe.configs.secrets import redacted
from ntkpipe.storage.records import ChosenSolver, Manifest
from ntkpipe.workers.probing.probe import Probe

RECORDED_VERSIONS = ("numpy", "ray", "torch", "zarr")

MAX_LINES = 20
"""Differences that are named one by one."""

EXPLANATIONS = {
    "numerics_version": "this version of ntkpipe computes other numbers",
    "fingerprints.weights": "the weights of the model",
    "fingerprints.routes": "how gradients of the model are found",
    "fingerprints.data": "the samples, labels or ids of the split",
    "fingerprints.projection": "the random map of the kernel",
    "fingerprints.moments": "the second moments of the kernel",
}
"""What a difference is of, where its path is no field of a configuration."""


def make_manifest(config: RunConfig, probe: Probe, *, origin: str = "") -> Manifest:
    """Return what a run is.

    Args:
        config: As the user wrote it.
        probe: What was found out about its model and data.
        origin: URL of the run that it takes finished tasks from.
    """
    return Manifest(
        run_id=uuid.uuid4().hex,
        name=config.name,
        created_at=time.time(),
        config=config.document(),
        semantic=config.semantic(),
        fingerprints=probe.fingerprints,
        geometry=probe.geometry,
        solvers={
            name: ChosenSolver(section=choice.section.model_dump(mode="json"), why=choice.why)
            for name, choice in probe.solvers.items()
            if choice.why
        },
        num_parameters=probe.num_parameters,
        versions={"python": platform.python_version()} | {name: version(name) for name in RECORDED_VERSIONS},
        origin=origin,
    )


def check_same(url: str, stored: Manifest, asked: Manifest) -> None:
    """Refuse to go on with a run that would give other numbers.

    Raises:
        RunMismatchError: Names every difference, field by field, and what can be done.
    """
    found = list(differences(stored.identity(), asked.identity()))
    if found:
        raise RunMismatchError(
            f"{url} cannot be resumed: it would mix different numbers. Differences:{describe(found)}\n"
            f"Restore what changed, or start a new run that takes over what is still valid: `ntkpipe resume {url} --fork OUT` "
            "with the same --set options."
        )


def describe(found: Iterable[tuple[str, Any, Any]]) -> str:
    """Return differences as indented lines, the geometry's last because it follows from the others; then their number."""
    ordered = sorted(found, key=lambda difference: difference[0].startswith("geometry"))
    lines = [_line(*difference) for difference in ordered[:MAX_LINES]]
    if len(ordered) > MAX_LINES:
        lines.append(f"and {len(ordered) - MAX_LINES:,} more")
    return "".join(f"\n  {line}" for line in lines)


def _line(path: str, stored: Any, asked: Any) -> str:
    text = f"{path}: stored {_short(stored)}, now {_short(asked)}"
    for prefix, meaning in EXPLANATIONS.items():
        if path == prefix or path.startswith(f"{prefix}."):
            return f"{text} ({meaning})"
    return text


def _short(value: Any) -> str:
    text = redacted(repr(value))
    return text if len(text) <= 64 else f"{text[:61]}..."
