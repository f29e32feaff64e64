"""Which names of objects and which URLs of runs are acceptable: one rule for all stores."""

from pathlib import Path

from ntkpipe.configs.errors import ConfigError, StorageError

SCHEMES = ("file", "memory", "s3", "gs", "gcs", "s3+obstore", "gs+obstore")
"""Kinds of stores whose way of creating an object only if it does not exist was found to let one of several writers win."""

CREDENTIALS = (
    "Credentials and endpoints come from the environment (AWS_ACCESS_KEY_ID, AWS_ENDPOINT_URL, GOOGLE_APPLICATION_CREDENTIALS "
    "and so on), never from a URL, which is shown and stored."
)


def checked_key(key: str) -> str:
    """Return the relative name of an object.

    Raises:
        StorageError: It could mean something outside the run: it is absolute, has empty, ``.`` or ``..`` parts, or
            characters that are not the same everywhere.
    """
    problem = _problem(key)
    if problem:
        raise StorageError(
            f"{key!r} is not the name of an object of a run: it {problem}. The run may have been tampered with."
        )
    return key


def checked_prefix(prefix: str) -> str:
    """Return the name of a folder of objects; empty for all.

    Raises:
        StorageError: As for a key.
    """
    return checked_key(prefix) if prefix else prefix


def check_name(name: str) -> None:
    """Refuse a name that would not be one part of the name of an object.

    Raises:
        StorageError: As for a key, or it has a slash.
    """
    if "/" in checked_key(name):
        raise StorageError(
            f"{name!r} is not the name of a part of a run: it has a slash. The run may have been tampered with."
        )


def split_url(text: str) -> tuple[str, str]:
    """Return scheme and path of where a run lives; the scheme of a plain path is empty, and a leading ``~`` is expanded.

    Raises:
        ConfigError: It carries credentials or options, or does not name one place. The message does not repeat secrets.
    """
    scheme, separator, rest = text.partition("://")
    if not separator:
        return "", _local_path(text)
    if not scheme.replace("+", "").isalnum():
        raise ConfigError("the URL of the run does not begin with a scheme such as s3://")
    authority = rest.partition("/")[0]
    if "@" in authority or ":" in authority:
        raise ConfigError(
            f"the {scheme} URL of the run has a user, password or port; expected {scheme}://bucket/folder. {CREDENTIALS}"
        )
    if "?" in rest or "#" in rest:
        raise ConfigError(
            f"the {scheme} URL of the run has a query or fragment ('?' or '#'); expected {scheme}://bucket/folder. {CREDENTIALS}"
        )
    if "::" in rest:
        raise ConfigError(
            f"{text} chains file systems ('::'); expected a single place such as {scheme}://bucket/folder"
        )
    if scheme == "file":
        return scheme, _file_path(text, authority, rest)
    path = rest.strip("/")
    problem = _problem(path) if path else None
    if problem:
        raise ConfigError(f"{text!r} is not the URL of a run: its path {problem}.")
    return scheme, path


def _problem(key: str) -> str | None:
    if "\\" in key:
        return "has a backslash"
    if not key.isprintable() and any(ord(character) < 32 or ord(character) == 127 for character in key):
        return "has control characters"
    for part in key.split("/"):
        if part in ("", ".", ".."):
            return f"has the part {part!r}"
    return None


def _local_path(text: str) -> str:
    if "\0" in text:
        raise ConfigError(f"{text!r} is not the path of a run: it has a NUL character.")
    start, colon, _ = text.partition(":/")
    if colon and start in SCHEMES:
        raise ConfigError(
            f"{text} looks like a URL but is not one; expected {start}://... Write ./{text} for a local folder."
        )
    if not text.startswith("~"):
        return text
    try:
        return str(Path(text).expanduser())
    except RuntimeError as error:
        raise ConfigError(f"{text}: {error}. Write ./{text} for a folder of that name.") from None


def _file_path(text: str, authority: str, rest: str) -> str:
    if authority not in ("", "localhost"):
        raise ConfigError(
            f"{text}: a file URL holds an absolute path, as in file:///data/run; relative paths are given without file://"
        )
    path = rest.removeprefix("localhost")
    if "\0" in path or not path.strip("/"):
        raise ConfigError(f"{text!r} names no folder; expected something like file:///data/run")
    return path
