"""Starting servers for a while: loopback only, ended by process id."""

import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

START_SECONDS = 180.0
STOP_SECONDS = 2.0
"""What a server gets to end by itself; what it holds is of no use to anybody."""


@contextmanager
def running(command: list[str], folder: Path, answers: Callable[[], object]) -> Iterator[None]:
    """Run a server in a folder; ``answers`` raises for as long as it is not ready."""
    log = folder / "server.log"
    with log.open("wb") as output:
        process = subprocess.Popen(command, cwd=folder, stdout=output, stderr=subprocess.STDOUT)
    try:
        _wait(process, answers, log)
        yield
    finally:
        process.terminate()
        try:
            process.wait(STOP_SECONDS)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def _wait(process: "subprocess.Popen[bytes]", answers: Callable[[], object], log: Path) -> None:
    deadline = time.monotonic() + START_SECONDS
    while True:
        try:
            answers()
            return
        except Exception as error:
            if process.poll() is not None or time.monotonic() > deadline:
                raise RuntimeError(f"the server does not answer ({error}):\n{log.read_text()[-2000:]}") from error
            time.sleep(0.1)
