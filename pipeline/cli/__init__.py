"""The ntkpipe command. Exit codes: 0 done, 1 a run failed, 2 bad input; every error is one readable message."""

import os
import sys

import typer

from ntkpipe.configs.errors import NtkPipeError
from ntkpipe.pipeline.cli import (
    doctor,
    inspecting,
    jobs,
    planning,
    predicting,
    report,
    running,
    serve,
    simulation,
    state,
    upkeep,
)
from ntkpipe.pipeline.cli.jobs import Detached
from ntkpipe.pipeline.cli.terminal import lost_output, warn, warn_of
from ntkpipe.pipeline.submission import check_version

INTERRUPTED = 130
"""Exit code of a program that was stopped with Ctrl-C."""

app = typer.Typer(
    help="Empirical Neural Tangent Kernels of any PyTorch model, as resumable and verifiable jobs.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
running.register(app)
planning.register(app)
simulation.register(app)
doctor.register(app)
upkeep.register(app)
state.register(app)
report.register(app)
jobs.register(app)
inspecting.register(app)
predicting.register(app)
serve.register(app)


def main() -> None:
    """Run the command line and turn errors into messages and exit codes."""
    # User code named in a configuration is found in the current folder, as with `python -m`.
    sys.path.append(os.getcwd())
    try:
        check_version()
        app()
    except NtkPipeError as error:
        warn(f"ntkpipe: {error.message}")
        sys.exit(error.exit_code)
    except OSError as error:
        lost = lost_output("\n")
        if lost is None:
            warn_of(error)
        else:
            warn(f"ntkpipe: {lost}")
        sys.exit(1)
    except Exception as error:  # noqa: BLE001 - a traceback must not show what an error's message may not
        warn_of(error)
        sys.exit(1)
    except SystemExit as end:
        # Typer ends the program without a word when it is interrupted.
        if end.code == INTERRUPTED and not isinstance(end, Detached):
            warn("ntkpipe: interrupted. What was committed is safe; go on with `ntkpipe resume`.")
        lost = None if end.code else lost_output()
        if lost is not None:
            warn(f"ntkpipe: {lost}")
            sys.exit(1)
        raise
