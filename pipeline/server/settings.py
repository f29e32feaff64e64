"""What a service is told when it starts: what it shows, to whom, and how much it may spend on it."""

import os
import re
import stat
from dataclasses import dataclass
from ipaddress import ip_address
from pathlib import Path
from typing import Final, final

from ntkpipe.configs.errors import ConfigError
from ntkpipe.configs.secrets import TOKEN_VARIABLE
from ntkpipe.pipeline.server.certificates import check_certificate

MIN_TOKEN: Final = 16
"""Characters: shorter ones can be guessed."""

LOOPBACK_NAMES: Final = ("localhost", "127.0.0.1", "::1")

_TOKEN = re.compile(r"[\x21-\x7e]+")


@final
@dataclass(frozen=True, slots=True)
class ServerSettings:
    """Settings of a service; the defaults suit one machine with a few gigabytes to spare."""

    root: str
    """Folder or URL that holds runs, or a run."""
    host: str = "127.0.0.1"
    port: int = 8765
    """0 takes a free one."""
    token: str = ""
    """That whoever asks must have; empty for none, which is allowed on loopback only."""
    tls_cert: str = ""
    """File of the certificate with which connections are encrypted; empty for plain HTTP."""
    tls_key: str = ""
    """File of its private key."""
    allowed_hosts: tuple[str, ...] = ()
    """Names, beside its own, under which the service may be asked."""
    cache_bytes: int = 1 << 30
    """Of decoded tiles, shared by all runs."""
    max_cells: int = 1 << 24
    """Values in one answer."""
    max_json_cells: int = 1 << 20
    """Values in one answer as JSON, whose text takes several times their memory."""
    max_read_bytes: int = 8 << 30
    """Of all chunks that one question may make the service look at."""
    picture_read_bytes: int = 64 << 30
    """Of all chunks that are read for one picture, or one comparison, which is made in the background, once, and kept."""
    answer_bytes: int = 2 << 30
    """Of all answers that are being made or sent."""
    threads: int = 16
    """Answers that are made at once."""
    max_requests: int = 1024
    """Under way at once, those that wait for a thread included; more are told to come back."""
    answer_seconds: float = 120.0
    """In which an answer must be ready."""
    read_seconds: float = 20.0
    """In which a request must have arrived."""
    write_seconds: float = 30.0
    """In which a client must take each quarter of a megabyte."""
    keep_alive_seconds: float = 75.0
    """For which a connection is kept without a request: longer than balancers do, so that they never use a closed one."""
    drain_seconds: float = 30.0
    """For which requests under way may go on when the service is told to end."""
    max_head_bytes: int = 32 << 10
    """Of a request's line and headers."""
    max_body_bytes: int = 4 << 20
    """Of a request's content."""
    max_open_runs: int = 64
    """Whose manifests and ids are kept in memory."""
    look_seconds: float | None = None
    """Between two looks whether a run was replaced; by default 0 for local folders, and 2 for object stores."""
    trust_code: bool = False
    """Whether code that a stored configuration names may be run to show samples."""
    access_log: bool = True

    def __post_init__(self) -> None:
        if self.token:
            check_token(self.token, "the token")
        if not self.token and not is_loopback(self.host):
            raise ConfigError(
                f"{self.host} can be reached from other machines, and there is no token: everybody could read the runs. "
                f"Give --token-file FILE or set {TOKEN_VARIABLE}, or serve on 127.0.0.1."
            )
        if self.tls_cert or self.tls_key:
            check_certificate(self.tls_cert, self.tls_key)
        for name, least in _LEAST.items():
            if getattr(self, name) < least:
                raise ConfigError(f"{name.replace('_', '-')} is {getattr(self, name)}; expected at least {least}.")


_LEAST: Final = {
    "cache_bytes": 0,
    "max_cells": 1,
    "max_json_cells": 1,
    "max_read_bytes": 1,
    "picture_read_bytes": 1,
    "answer_bytes": 1 << 20,
    "threads": 1,
    "max_requests": 1,
    "answer_seconds": 0.01,
    "read_seconds": 0.01,
    "write_seconds": 0.01,
    "keep_alive_seconds": 0.01,
    "drain_seconds": 0,
    "max_head_bytes": 1024,
    "max_body_bytes": 1024,
    "max_open_runs": 1,
}


def is_loopback(host: str) -> bool:
    """Return whether a host can be reached from its own machine only."""
    if host.lower() == "localhost":
        return True
    try:
        return ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return False


def check_token(token: str, what: str) -> None:
    """Refuse a token that is easy to guess, or that no header can carry; the message does not repeat it."""
    if len(token) < MIN_TOKEN or _TOKEN.fullmatch(token) is None:
        raise ConfigError(
            f"{what} must have at least {MIN_TOKEN} printable ASCII characters and no spaces; it has {len(token)} "
            "characters. Make one with: python -c 'import secrets; print(secrets.token_urlsafe(32))'"
        )


def read_token(file: Path | None) -> str:
    """Return the token of a file, or else of the environment, empty if there is neither.

    Raises:
        ConfigError: The file cannot be read or can be read by every user of the machine, or the token is not acceptable.
    """
    if file is None:
        token, what = os.environ.get(TOKEN_VARIABLE, "").strip(), f"the token in {TOKEN_VARIABLE}"
    else:
        token, what = _content(file), f"the token in {file}"
    if token or file is not None:
        check_token(token, what)
    return token


def _content(file: Path) -> str:
    try:
        with file.open(encoding="utf-8") as opened:
            mode = os.fstat(opened.fileno()).st_mode
            text = opened.read(4096).strip()
    except OSError as error:
        raise ConfigError(f"the token file {file} cannot be read: {error.strerror}.") from None
    except UnicodeDecodeError:
        raise ConfigError(f"the token file {file} cannot be read: it is no text.") from None
    if mode & (stat.S_IROTH | stat.S_IWOTH):
        raise ConfigError(f"the token file {file} can be read or changed by every user here. Try: chmod 600 {file}")
    return text
