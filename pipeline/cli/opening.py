"""Opening what a user names: a run in a store, or one behind a service."""

from pathlib import Path
from typing import Annotated

import typer

from ntkpipe.configs.errors import ConfigError, StorageError
from ntkpipe.pipeline.query.run import Run, open_run

TokenFile = Annotated[
    Path | None,
    typer.Option(metavar="FILE", help="Holds the token of a service; the variable NTKPIPE_TOKEN by default."),
]


def is_service(url: str) -> bool:
    """Return whether a URL is one of a service: no store is asked by HTTP."""
    return url.startswith(("http://", "https://"))


def opened(url: str, token_file: Path | None = None) -> Run:
    """Open a run of a store, or of a service.

    Raises:
        ConfigError: The URL is not acceptable, or a token is given for a store.
        NotFoundError: There is no run.
        StorageError: The service, or the file of the token, cannot be read.
    """
    if not is_service(url):
        check_no_token(url, token_file)
        return open_run(url)
    from ntkpipe.pipeline.client.connecting import connect

    return connect(url, read_token(token_file))


def check_no_token(url: str, token_file: Path | None) -> None:
    """Refuse a token for what is no service.

    Raises:
        ConfigError: There is one.
    """
    if token_file is not None:
        raise ConfigError(f"--token-file belongs to services, such as http://HOST:8080/v1/runs/NAME, not to {url}.")


def read_token(file: Path | None) -> str | None:
    """Return the token that a file holds; None without a file.

    Raises:
        ConfigError: There is none in it.
        StorageError: It cannot be read.
    """
    if file is None:
        return None
    try:
        token = file.read_text(encoding="utf-8").strip()
    except OSError as error:
        raise StorageError(f"{file} cannot be read: {error.strerror}.") from None
    except ValueError:
        raise ConfigError(f"{file} holds no text; expected a token.") from None
    if not token:
        raise ConfigError(f"{file} is empty; expected a token.")
    return token
