"""Opening a run of a service: whom to ask, and whether a token may go there."""

import os
from typing import TYPE_CHECKING, Any, Final
from urllib.parse import quote

from ntkpipe.configs.errors import ConfigError, NotFoundError, NtkPipeError, StorageError
from ntkpipe.configs.secrets import TOKEN_VARIABLE
from ntkpipe.pipeline.client.address import EXPECTED, RunAddress
from ntkpipe.pipeline.client.remote import RemoteRunReader
from ntkpipe.pipeline.query.run import Run

if TYPE_CHECKING:
    from ntkpipe.pipeline.client.connection import Connection

LISTING_SECONDS: Final = 60.0
"""For which a service may be silent that is asked for its runs."""

NUM_RUNS: Final = 20
"""That are named to whoever has named none."""


def connect(
    url: str,
    token: str | None = None,
    *,
    timeout_seconds: float = 130.0,
    cache_bytes: int = 64 << 20,
    plain_http: bool = False,
) -> Run:
    """Open a run of a service (`ntkpipe serve`), to be asked like one that :func:`ntkpipe.open_run` has opened.

    Answers are arrays and numbers, bit for bit those of the run itself. What is larger than the service gives at once is
    asked for in pieces. Connections are closed when the run is no longer used, or by ``run.reader.close()``.

    Args:
        url: ``http(s)://HOST:PORT/v1/runs/NAME``; special characters of the name are percent-encoded.
        token: Of the service; NTKPIPE_TOKEN by default. It is sent to this service only, and never shown.
        timeout_seconds: For which the service may be silent; its own limit for an answer is 120 by default.
        cache_bytes: Of answers that are kept, and asked for again only if they have changed.
        plain_http: Whether a token may be sent to another machine without encryption.

    Raises:
        ConfigError: The URL is none of a run, the token is missing or wrong, or it would be sent in the clear.
        NotFoundError: The service has no such run.
        StorageError: The service cannot be reached.
    """
    address = RunAddress.parse(url)
    connection = _open(address, token, timeout_seconds, cache_bytes, plain_http)
    try:
        if not address.run:
            raise ConfigError(_without_run(address, connection))
        return Run(RemoteRunReader(address.url, f"/v1/runs/{quote(address.run, safe='')}", connection))
    except BaseException:
        connection.close()
        raise


def runs_of(url: str, token: str | None = None, *, plain_http: bool = False) -> list[dict[str, Any]]:
    """Return what a service says of its runs: dictionaries with ``run``, ``name``, ``state``, ``stages`` and ``problem``.

    Args:
        url: ``http(s)://HOST:PORT``.
        token: As of :func:`connect`, like ``plain_http``.
        plain_http: As of :func:`connect`.

    Raises:
        ConfigError: As of :func:`connect`.
        StorageError: The service cannot be reached, or is none of ntkpipe.
    """
    address = RunAddress.parse(url)
    connection, found, after = _open(address, token, LISTING_SECONDS, 0, plain_http), [], None
    try:
        while True:
            page = connection.document("/v1/runs", {} if after is None else {"after": after})
            found += page["runs"]
            after = page.get("next")
            if after is None:
                return [dict(item) for item in found]
    except (TypeError, KeyError, ValueError) as error:
        if isinstance(error, NtkPipeError):
            raise
        raise StorageError(f"{address.service} does not list its runs as a service of ntkpipe does.") from None
    finally:
        connection.close()


def _open(
    address: RunAddress, token: str | None, timeout_seconds: float, cache_bytes: int, plain_http: bool
) -> "Connection":
    try:
        from ntkpipe.pipeline.client.connection import Connection
    except ImportError:
        raise ConfigError("asking a service needs a package: pip install 'ntkpipe[client]'") from None
    if token is None:
        token = os.environ.get(TOKEN_VARIABLE) or None
    _check_token(address, token, plain_http)
    if not timeout_seconds > 0 or cache_bytes < 0:
        raise ConfigError(
            f"timeout_seconds = {timeout_seconds} must be above 0, and cache_bytes = {cache_bytes} not below."
        )
    return Connection(address, token, timeout_seconds=timeout_seconds, cache_bytes=cache_bytes)


def _check_token(address: RunAddress, token: str | None, plain_http: bool) -> None:
    if token is None:
        return
    if not token.isascii() or not token.isprintable() or " " in token:
        raise ConfigError("a token is made of printable ASCII characters without blanks; is the end of a line in it?")
    if not address.is_private and not plain_http:
        raise ConfigError(
            f"the token would be sent to {address.service} without encryption. Connect by https, or through a tunnel to this "
            "machine; plain_http=True sends it all the same."
        )


def _without_run(address: RunAddress, connection: "Connection") -> str:
    """Say which runs there are, to whoever has named none."""
    try:
        found = connection.document("/v1/runs", {"limit": str(NUM_RUNS)}).get("runs", [])
        names = [str(item["run"]) for item in found]
    except (NotFoundError, TypeError, KeyError, AttributeError):
        return f"{address.service} names no run, and is no service of ntkpipe; {EXPECTED}."
    if not names:
        return f"{address.service} names no run, and the service has none."
    return f"{address.service} names no run. It has {', '.join(names)}. Connect to {address.url_of(names[0])}, for example."
