"""Running what deploy/ says in a shell, in the foreground and beside the test."""

import contextlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Self, final

from processes import PATIENCE_SECONDS, children, wait_for

from deploy.files import ROOT

BIN = Path(sys.executable).parent


def environment(home: Path, **variables: str) -> dict[str, str]:
    """Return the variables of somebody with an own home folder, who has ntkpipe and Ray on the PATH."""
    inherited = {key: value for key, value in os.environ.items() if not key.startswith(("RAY_AUTH", "PYTHONPATH"))}
    return inherited | {"HOME": str(home), "PATH": f"{BIN}:{os.environ.get('PATH', os.defpath)}"} | variables


def run(commands: str, variables: Mapping[str, str], seconds: float = PATIENCE_SECONDS) -> str:
    """Run commands from the top of the repository, and return what they print; they must succeed."""
    found = subprocess.run(
        ["sh", "-euc", commands],
        cwd=ROOT,
        env=dict(variables),
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        check=False,
        timeout=seconds,
    )
    assert found.returncode == 0, f"{commands}\n{found.stdout}\n{found.stderr}"
    return found.stdout


@final
class Background:
    """A command that goes on until the test ends it; a context manager.

    Args:
        commands: Of the shell.
        variables: Of its environment.
        log: What it prints.
        up: What it prints when it is ready.
    """

    def __init__(self, commands: str, variables: Mapping[str, str], log: Path, up: str) -> None:
        self._commands, self._variables, self.log, self._up = commands, dict(variables), log, up
        self.process: subprocess.Popen[bytes]

    def __enter__(self) -> Self:
        """Start it, and wait until it is ready."""
        with self.log.open("w") as output:
            self.process = subprocess.Popen(
                ["sh", "-euc", self._commands],
                cwd=ROOT,
                env=self._variables,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )

        def is_up() -> bool:
            assert self.process.poll() is None, self.log.read_text()
            return self._up in self.log.read_text()

        try:
            wait_for(is_up, pause=0.1)
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        """Tell it to end, as a user would, and end what is left by its id."""
        started = self._descendants()
        for process in started:
            _send(process, signal.SIGTERM, only=self._own(process))
        deadline = time.monotonic() + 20
        while time.monotonic() < deadline and any(map(_is_alive, started)):
            self.process.poll()
            time.sleep(0.1)
        for process in started:
            _send(process, signal.SIGKILL, only=_is_alive(process))
        self.process.wait(60)

    def _own(self, process: int) -> bool:
        """Whether it is the shell or what it runs; Ray ends the rest."""
        return process == self.process.pid or process in children(self.process.pid)

    def _descendants(self) -> list[int]:
        found = [self.process.pid] if self.process.poll() is None else []
        for one in found:
            found += children(one)
        return found


def _is_alive(process: int) -> bool:
    try:
        return Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False


def _send(process: int, number: signal.Signals, *, only: bool) -> None:
    if only:
        with contextlib.suppress(ProcessLookupError):
            os.kill(process, number)
