"""Names of kernels and solutions as keys of a summary that has keys of its own."""

from collections.abc import Iterable, Mapping


def summary_keys(what: str, names: Iterable[str], reserved: Iterable[str]) -> Mapping[str, str]:
    """Return {name: key}; a name that a summary uses itself becomes ``"<what> <name>"``.

    Names hold no spaces, so that such a key is never another name.
    """
    taken = set(reserved)
    return {name: f"{what} {name}" if name in taken else name for name in names}
