"""Starting ntkpipe, and finding the processes that it starts."""

import os
import subprocess
import sys
import time
from contextlib import contextmanager
from pathlib import Path

from commands import PROGRAM, TESTS

PATIENCE_SECONDS = 180.0
"""For what takes seconds. A busy machine may take a minute to start Ray; who waits for nothing waits no longer for that."""


def start(*arguments, folder=TESTS, environment=None, program=PROGRAM):
    if environment is None:
        environment = {key: value for key, value in os.environ.items() if not key.startswith("RAY_AUTH")}
    return subprocess.Popen(
        [sys.executable, "-c", program, *map(str, arguments)],
        cwd=folder,
        env=environment,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    )


@contextmanager
def ending():
    """Yield :func:`start`; what it has started and is still there in the end is killed."""
    started = []

    def start_one(*arguments, **options):
        started.append(start(*arguments, **options))
        return started[-1]

    try:
        yield start_one
    finally:
        for process in started:
            process.kill()
            process.wait()
            process.stderr.close()


def children(process):
    """Return the ids of the processes whose parent is ``process``."""
    found = []
    for path in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = path.read_text().rpartition(")")[2].split()
        except (FileNotFoundError, ProcessLookupError):
            continue
        if int(fields[1]) == process:
            found.append(int(path.parent.name))
    return found


def command_of(process):
    """Return the command line of a process; empty if it is gone."""
    try:
        return Path(f"/proc/{process}/cmdline").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return ""


def workers_of(driver):
    """Return the ids of the actor processes of a driver, or of a node: children of its raylet."""
    processes = [process for child in children(driver) for process in children(child)]
    return [process for process in processes if "ray::Actor" in command_of(process)]


def raylet_of(node):
    """Return the id of the process that runs the workers of a node; None if it is gone."""
    return next((process for process in children(node) if "raylet/raylet" in command_of(process)), None)


def wait_for(condition, seconds=PATIENCE_SECONDS, pause=0.02):
    """Wait until something is true, and return it."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        found = condition()
        if found:
            return found
        time.sleep(pause)
    raise AssertionError(f"not true after {seconds:g} s")
