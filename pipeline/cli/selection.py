"""Samples named on the command line."""

from pathlib import Path

import numpy as np

from ntkpipe.configs.errors import ConfigError, StorageError
from ntkpipe.pipeline.query.names import Index
from ntkpipe.pipeline.query.selection import parse_selection


def read_selection(text: str) -> Index:
    """Turn a text into an index like :func:`parse_selection`; ``@FILE.npy`` names a file of positions, or a mask.

    Raises:
        ConfigError: The text is none of these, or the file holds something else.
        StorageError: The file cannot be read.
    """
    if not text.startswith("@"):
        return parse_selection(text)
    path = Path(text[1:])
    try:
        found = np.load(path, allow_pickle=False)
    except OSError as error:
        raise StorageError(f"{path} cannot be read: {error.strerror or error}.") from None
    except (ValueError, EOFError) as error:
        raise ConfigError(f"{path} is not an array of NumPy ({error}); expected positions, or a mask.") from None
    if not isinstance(found, np.ndarray) or found.ndim != 1 or found.dtype.kind not in "biu":
        what = f"{found.dtype} {found.shape}" if isinstance(found, np.ndarray) else "several arrays"
        raise ConfigError(f"{path} holds {what}; expected one axis of whole numbers, or of booleans for a mask.")
    return found
