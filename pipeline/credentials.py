"""The token of a user, and the clusters that they have named: a token is sent to no others.

A run tells on which cluster its job is, but whoever can write to the run can write anything there. An address is trusted
once its user has given it to a command; it is then kept in a file of the user's, as the known hosts of ssh are.
"""

import os
from contextlib import suppress
from pathlib import Path

from ntkpipe.configs.errors import ConfigError


def token() -> str:
    """Return the token of this user as Ray would find it, empty if there is none or tokens are turned off.

    Raises:
        ConfigError: The file that is to hold it cannot be read.
    """
    if os.environ.get("RAY_AUTH_MODE", "").lower() == "disabled":
        return ""
    given = os.environ.get("RAY_AUTH_TOKEN", "").strip()
    if given:
        return given
    named = os.environ.get("RAY_AUTH_TOKEN_PATH", "")
    try:
        path = Path(named).expanduser() if named else Path.home() / ".ray" / "auth_token"
        return path.read_text("utf-8").strip()
    except (OSError, RuntimeError, UnicodeDecodeError) as error:
        if not named:
            return ""
        reason = error.strerror if isinstance(error, OSError) else "it is no text"
        raise ConfigError(f"the file that RAY_AUTH_TOKEN_PATH names cannot be read: {reason}.") from None


def is_known(address: str) -> bool:
    """Return whether the user has used a cluster before."""
    return address in _read()


def remember(address: str) -> None:
    """Note a cluster that the user has named; where nothing can be kept, it is to be named each time."""
    if is_known(address):
        return
    with suppress(OSError, RuntimeError):
        _file().parent.mkdir(parents=True, exist_ok=True)
        with _file().open("a", encoding="utf-8") as file:
            file.write(f"{address}\n")


def _read() -> list[str]:
    with suppress(OSError, RuntimeError, UnicodeDecodeError):
        return _file().read_text("utf-8").splitlines()
    return []


def _file() -> Path:
    folder = os.environ.get("XDG_CONFIG_HOME") or Path.home() / ".config"
    return Path(folder) / "ntkpipe" / "clusters"
