"""Starting ntkpipe, and finding the processes that it starts."""

import os
import subprocess
from pathlib import Path

from commands import COMMAND, TESTS


def start(*arguments):
    environment = {key: value for key, value in os.environ.items() if not key.startswith("RAY_AUTH")}
    return subprocess.Popen(
        [*COMMAND, *map(str, arguments)],
        cwd=TESTS,
        env=environment,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    )


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


def workers_of(driver):
    """Return the ids of the actor processes of a driver: children of its raylet."""
    found = []
    for child in children(driver):
        for process in children(child):
            try:
                command = Path(f"/proc/{process}/cmdline").read_text()
            except (FileNotFoundError, ProcessLookupError):
                continue
            if "ray::_Actor" in command:
                found.append(process)
    return found
