"""What schemathesis is told of a run: names that exist, so that its cases get beyond "there is no such run"."""

import os
from random import Random
from typing import Any

import schemathesis

NAMES: dict[str, dict[str, str]] = {
    "whole": {"kernel": "trntk0", "split": "train", "order": "class", "sample": "id:x1"},
    "half": {"kernel": "sketch", "split": "test", "order": "stored", "sample": "0"},
}
"""Of parts of paths, by run."""

ALWAYS: dict[str, str] = {
    "solution": "krr",
    "analysis": "fidelity",
    "file": "summary.json",
    "stage": "kernel",
    "task": "train-train/000000-000000",
    "what": "path_ridges",
    "level": "0",
    "row": "0",
    "column": "0",
}

TEXTS: dict[str, list[Any]] = {
    "rows": [":", "0:2", "3", "1,2", "id:x0", "-1"],
    "cols": [":", "0:2", "3", "id:x3,id:x1"],
    "row_split": ["train", "test"],
    "column_split": ["train", "test"],
    "split": ["train", "test"],
    "layers": ["", "fc1.*", "fc2.bias"],
    "transforms": ["", "cosine", "centred,cosine"],
    "order": ["stored", "class"],
    "sample": ["0", "id:x1"],
    "one": ["trntk0", "pntk"],
    "other": ["sketch", "pntk"],
    "with": ["half"],
    "member": [""],
}
_chance = Random(int(os.environ.get("NTKPIPE_FUZZ_SEED", "0")))


def _known(found: dict[str, Any] | None, names: dict[str, list[Any]], share: float) -> dict[str, Any] | None:
    for name in found or ():
        if name in names and isinstance(found, dict) and _chance.random() < share:
            found[name] = _chance.choice(names[name])
    return found


def configuration(run: str) -> str:
    """Return the configuration with which every case asks a run for something that exists."""
    names = ALWAYS | NAMES[run] | {"run": run}
    return "[parameters]\n" + "".join(f'"path.{name}" = "{known}"\n' for name, known in names.items())


@schemathesis.hook
def map_query(context: Any, query: dict[str, Any] | None) -> dict[str, Any] | None:
    """Select what exists in most cases."""
    return _known(query, TEXTS, 0.6)
