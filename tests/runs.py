"""Looking at runs from the outside, and changing what they are, for tests that compare whole runs."""

import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from ntkpipe.storage import layout
from ntkpipe.storage.documents import seal_of
from ntkpipe.storage.ledger import Ledger
from ntkpipe.storage.objects import put_object
from ntkpipe.storage.stores.registry import open_store


def chunk_hashes(run: Path) -> dict[str, str]:
    """Return {relative path: SHA-256} of all array metadata and chunks, solutions and analyses of a run."""
    found = {}
    for folder in ("data.zarr", "solutions", "analyses"):
        for file in sorted((run / folder).rglob("*")):
            if file.is_file():
                found[str(file.relative_to(run))] = hashlib.sha256(file.read_bytes()).hexdigest()
    return found


def stored_hashes(url: str) -> dict[str, str]:
    """Return the same of a run in any store."""
    store = open_store(url)
    keys = [key for folder in ("data.zarr", "solutions", "analyses") for key in store.names(folder)]
    return {key: hashlib.sha256(data or b"").hexdigest() for key, data in store.get_many(keys)}


def edit_manifest(run: Path, edit: Callable[[dict[str, Any]], None]) -> None:
    """Change what a run says it is, as an earlier version or other code would have written it, and seal it again."""
    path = run / "run.json"
    document = json.loads(path.read_text())
    edit(document)
    path.write_text(json.dumps(document | {"seal": seal_of(document)}))


def edit_object(run: Path, stage: str, task: str, key: str, edit: Callable[[dict[str, Any]], None]) -> None:
    """Change a document that a task has written, and its receipt, as other code would have written them."""
    document = json.loads((run / key).read_text())
    edit(document)
    store = open_store(run)
    written, receipt = put_object(store, key, json.dumps(document).encode()), Ledger(store).receipt(stage, task)
    objects = tuple(written if record.key == key else record for record in receipt.objects)
    store.put(layout.receipt(stage, task), receipt.model_copy(update={"objects": objects}).encode())
