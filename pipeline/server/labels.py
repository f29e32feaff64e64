"""Labels in documents."""

from typing import Any

from ntkpipe.storage.arrays import Array


def label_of(labels: Array | None, position: int) -> Any:
    """Return the class or the targets of a sample as JSON has them, None without labels."""
    return None if labels is None else labels[position].tolist()
