"""Running the ntkpipe command as a user would, from the folder that holds the golden network."""

import subprocess
import sys
from pathlib import Path

TESTS = Path(__file__).parent
PROGRAM = """
import signal
from ntkpipe.pipeline.cli import main

# A shell that starts the tests in the background makes them, and all they start, ignore interrupts.
signal.signal(signal.SIGINT, signal.default_int_handler)
main()
"""
COMMAND = [sys.executable, "-c", PROGRAM]


def ntkpipe_command(*arguments: object, before: str = "") -> "subprocess.CompletedProcess[str]":
    """Run a command to its end, in a process that begins with a program."""
    return subprocess.run(
        [sys.executable, "-c", before + PROGRAM, *map(str, arguments)],
        cwd=TESTS,
        capture_output=True,
        text=True,
        check=False,
        timeout=300,
    )
