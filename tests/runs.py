"""Looking at runs from the outside, for tests that compare whole runs."""

import hashlib
from pathlib import Path


def chunk_hashes(run: Path) -> dict[str, str]:
    """Return {relative path: SHA-256} of all array metadata and chunks, solutions and analyses of a run."""
    found = {}
    for folder in ("data.zarr", "solutions", "analyses"):
        for file in sorted((run / folder).rglob("*")):
            if file.is_file():
                found[str(file.relative_to(run))] = hashlib.sha256(file.read_bytes()).hexdigest()
    return found
