"""Where a run is on a service, from the URL that a user gives."""

import ipaddress
import re
from dataclasses import dataclass
from typing import Final, Self, final
from urllib.parse import SplitResult, quote, unquote, urlsplit

from ntkpipe.configs.errors import ConfigError

EXPECTED: Final = "expected http(s)://HOST:PORT/v1/runs/NAME"

_PATH = re.compile(r"^(?P<prefix>.*?)(?:/v1(?:/runs(?:/(?P<run>[^/]+))?)?)?/*$")


@final
@dataclass(frozen=True, slots=True)
class RunAddress:
    """A run of a service."""

    service: str
    """``http(s)://HOST:PORT`` and what a proxy may have put before the service's own paths; no slash at the end."""
    run: str
    """Its name, not encoded; empty where the URL names none."""
    is_private: bool
    """Whether what is sent cannot be read on its way: it is encrypted, or stays on this machine."""
    is_local: bool
    """Whether the service listens on this machine's loopback interface."""

    @classmethod
    def parse(cls, url: str) -> Self:
        """Read a URL.

        Raises:
            ConfigError: It is none of a run, or carries a password.
        """
        try:
            parts = urlsplit(url)
            host, _ = parts.hostname, parts.port
        except ValueError as error:
            raise ConfigError(f"{url!r} is not a URL ({error}); {EXPECTED}.") from None
        if parts.scheme not in ("http", "https") or not host:
            raise ConfigError(
                f"{url!r} is not the URL of a run of a service; {EXPECTED}. `open_run` opens stored runs."
            )
        _refuse_extras(parts)
        found = _PATH.fullmatch(parts.path)
        run = unquote(found["run"] or "") if found else ""
        local = _is_loopback(host)
        return cls(
            service=f"{parts.scheme}://{parts.netloc}{found['prefix'] if found else ''}".rstrip("/"),
            run=run,
            is_private=local or parts.scheme == "https",
            is_local=local,
        )

    @property
    def is_encrypted(self) -> bool:
        """Whether what is sent is."""
        return self.service.startswith("https:")

    @property
    def url(self) -> str:
        """Of the run."""
        return self.url_of(self.run)

    def url_of(self, run: str) -> str:
        """Return the URL of a run of the same service."""
        return f"{self.service}/v1/runs/{quote(run, safe='')}"


def _refuse_extras(parts: SplitResult) -> None:
    if "@" in parts.netloc:
        raise ConfigError("the URL of a service holds no user name, password or token: give `token`, or NTKPIPE_TOKEN.")
    if parts.query or parts.fragment:
        raise ConfigError(
            f"the URL of a run ends with its name, not with ?{parts.query or parts.fragment}; {EXPECTED}."
        )


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"
