"""Running a service: its socket, its signals and its end."""

import functools
import logging
import os
import signal
import socket
import sys
import threading
from collections.abc import Callable
from typing import Final

import uvicorn

from ntkpipe.configs.errors import ConfigError
from ntkpipe.pipeline.pictures.workshop import THREAD_NAME
from ntkpipe.pipeline.server.app import create_app
from ntkpipe.pipeline.server.connections import GuardedConnection
from ntkpipe.pipeline.server.settings import ServerSettings

BACKLOG: Final = 2048
"""Connections that wait to be accepted."""

READING: Final = ("AnyIO", THREAD_NAME)
"""With which the names of threads begin that answer requests, or make what is asked for in the background."""

ENDING: Final = (signal.SIGTERM, signal.SIGINT)


def serve(settings: ServerSettings, started: Callable[[str], None] = lambda _: None) -> None:
    """Answer requests until SIGTERM or SIGINT, then finish those under way.

    Args:
        settings: Of the service.
        started: Is told the URL once connections are accepted.

    Raises:
        ConfigError: The settings are not acceptable, or the address cannot be had.
        StorageError: The root cannot be read.
    """
    app = create_app(settings)
    listener = listening(settings)
    config = uvicorn.Config(
        app,
        http=functools.partial(  # type: ignore[arg-type]
            GuardedConnection, read_seconds=settings.read_seconds, max_head_bytes=settings.max_head_bytes
        ),
        ssl_certfile=settings.tls_cert or None,
        ssl_keyfile=settings.tls_key or None,
        ws="none",
        interface="asgi3",
        lifespan="on",
        log_config=None,
        access_log=False,
        server_header=False,
        proxy_headers=False,
        timeout_keep_alive=settings.keep_alive_seconds,  # type: ignore[arg-type]
        timeout_graceful_shutdown=settings.drain_seconds,  # type: ignore[arg-type]
        backlog=BACKLOG,
    )
    logging.getLogger("uvicorn").setLevel(logging.ERROR)
    _log_to_stderr()
    # uvicorn sends itself the signal again once it is done, so that it would end by it and not with 0.
    before = {number: signal.signal(number, lambda *_: None) for number in ENDING}
    try:
        started(url_of(settings, listener))
        uvicorn.Server(config).run(sockets=[listener])
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
        listener.close()
    _leave_reads_behind()


def listening(settings: ServerSettings) -> socket.socket:
    """Return a socket that accepts connections.

    Raises:
        ConfigError: The address cannot be had.
    """
    host, port = settings.host.strip("[]"), settings.port
    if not 0 <= port <= 65535:
        raise ConfigError(f"port {port} is none; expected 0 to 65535.")
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(
            host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
        listener = socket.socket(family, kind, protocol)
    except (OSError, UnicodeError) as error:
        raise ConfigError(f"{settings.host} is no address of this machine: {error}.") from None
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        # A client that takes nothing any more is given up by the system; connections inherit this.
        if hasattr(socket, "TCP_USER_TIMEOUT"):
            milliseconds = int(settings.write_seconds * 2000)
            listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, milliseconds)
        listener.bind(address)
        listener.listen(BACKLOG)
    except OSError as error:
        listener.close()
        raise ConfigError(
            f"the service cannot listen on {settings.host}, port {port}: {error.strerror}. Is another one there? "
            "--port 0 takes a free port."
        ) from None
    listener.setblocking(False)
    return listener


def url_of(settings: ServerSettings, listener: socket.socket) -> str:
    """Return where a service is asked."""
    host = settings.host.strip("[]")
    scheme = "https" if settings.tls_cert else "http"
    return f"{scheme}://{f'[{host}]' if ':' in host else host}:{listener.getsockname()[1]}"


def _log_to_stderr() -> None:
    """Write lines of the service as they are: each is a JSON document."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(logging.Formatter("%(message)s"))
    for name in ("ntkpipe.access", "ntkpipe.serve"):
        logger = logging.getLogger(name)
        logger.handlers = [handler]
        logger.setLevel(logging.INFO)
        logger.propagate = False


def _leave_reads_behind() -> None:
    """End the process although a thread still reads, after the time that requests were given to end."""
    if any(thread.name.startswith(READING) and thread.is_alive() for thread in threading.enumerate()):
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(0)
