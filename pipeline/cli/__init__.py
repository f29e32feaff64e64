"""The ntkpipe command. Exit codes: 0 done, 1 a run failed, 2 bad input; every error is one readable message."""

import os
import sys

import typer

from ntkpipe.configs.errors import NtkPipeError
from ntkpipe.pipeline.cli import inspecting, running

INTERRUPTED = 130
"""Exit code of a program that was stopped with Ctrl-C."""

app = typer.Typer(
    help="Empirical Neural Tangent Kernels of any PyTorch model, as resumable and verifiable jobs.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
running.register(app)
inspecting.register(app)


def main() -> None:
    """Run the command line and turn errors into messages and exit codes."""
    # User code named in a configuration is found in the current folder, as with `python -m`.
    sys.path.append(os.getcwd())
    try:
        app()
    except NtkPipeError as error:
        typer.echo(f"ntkpipe: {error.message}", err=True)
        sys.exit(error.exit_code)
    except SystemExit as end:
        # Typer ends the program without a word when it is interrupted.
        if end.code == INTERRUPTED:
            typer.echo("ntkpipe: interrupted. What was committed is safe; go on with `ntkpipe resume`.", err=True)
        raise
