"""The command that serves runs over HTTP: serve."""

from pathlib import Path
from typing import Annotated

import typer

from ntkpipe.configs.errors import ConfigError
from ntkpipe.pipeline.cli.terminal import printable


def register(app: typer.Typer) -> None:
    """Add the command to the application."""
    app.command()(serve)


def serve(
    root: Annotated[str, typer.Argument(metavar="ROOT", help="Folder or URL that holds runs, or a run.")],
    host: Annotated[str, typer.Option(help="Address to listen on; beyond loopback only with a token.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(help="0 takes a free one.")] = 8765,
    token_file: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE", help="With the token that whoever asks must have; else NTKPIPE_TOKEN of the environment."
        ),
    ] = None,
    tls_cert: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="With the certificate that connections are encrypted with, in PEM."),
    ] = None,
    tls_key: Annotated[
        Path | None, typer.Option(metavar="FILE", help="With its private key, without a password.")
    ] = None,
    allow_host: Annotated[
        list[str] | None,
        typer.Option(metavar="NAME", help="Under which the service may be asked, too; may be given more than once."),
    ] = None,
    cache_bytes: Annotated[int, typer.Option(help="Memory for decoded tiles of all runs.")] = 1 << 30,
    max_cells: Annotated[int, typer.Option(help="Values in one answer.")] = 1 << 24,
    max_read_bytes: Annotated[int, typer.Option(help="Of all chunks that a question may touch.")] = 8 << 30,
    picture_read_bytes: Annotated[
        int, typer.Option(help="Of all chunks that a picture of a kernel, made once in the background, is read from.")
    ] = 64 << 30,
    answer_bytes: Annotated[int, typer.Option(help="Memory for answers that are being made or sent.")] = 2 << 30,
    threads: Annotated[int, typer.Option(help="Answers that are made at once.")] = 16,
    max_requests: Annotated[int, typer.Option(help="Requests under way at once; more are told to come back.")] = 1024,
    answer_seconds: Annotated[float, typer.Option(help="In which an answer must be ready.")] = 120.0,
    read_seconds: Annotated[float, typer.Option(help="In which a request must have arrived.")] = 20.0,
    write_seconds: Annotated[
        float, typer.Option(help="In which a client must take each quarter of a megabyte of an answer.")
    ] = 30.0,
    drain_seconds: Annotated[float, typer.Option(help="For requests under way when the service is to end.")] = 30.0,
    trust_code: Annotated[
        bool, typer.Option("--trust-code", help="Run code that stored configurations name, to show samples.")
    ] = False,
    access_log: Annotated[bool, typer.Option(help="Write a line for every request to the standard error.")] = True,
) -> None:
    """Serve stored runs: an HTTP interface, and a web page to explore them. Nothing is ever written."""
    try:
        from ntkpipe.pipeline.server.serving import serve as run_service
        from ntkpipe.pipeline.server.settings import ServerSettings, read_token
    except ImportError as error:
        raise ConfigError(f"serving needs a package: {error}. Try: pip install 'ntkpipe[serve]'") from None
    settings = ServerSettings(
        root=root,
        host=host,
        port=port,
        token=read_token(token_file),
        tls_cert=str(tls_cert or ""),
        tls_key=str(tls_key or ""),
        allowed_hosts=tuple(allow_host or ()),
        cache_bytes=cache_bytes,
        max_cells=max_cells,
        max_json_cells=min(max_cells, 1 << 20),
        max_read_bytes=max_read_bytes,
        picture_read_bytes=picture_read_bytes,
        answer_bytes=answer_bytes,
        threads=threads,
        max_requests=max_requests,
        answer_seconds=answer_seconds,
        read_seconds=read_seconds,
        write_seconds=write_seconds,
        drain_seconds=drain_seconds,
        trust_code=trust_code,
        access_log=access_log,
    )
    run_service(settings, lambda url: typer.echo(printable(f"serving {root} on {url}")))
