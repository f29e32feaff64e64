"""What can be known of worker processes, and done about them, without asking whoever started them."""

import os
import shutil
import signal
import socket
import tempfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Self

from ntkpipe.storage.locks import boot_id, process_started


@dataclass(frozen=True, slots=True)
class Place:
    """Where a worker process runs."""

    host: str
    boot_id: str
    process: int
    started: str
    """When, in the machine's own count, so that a reused process id is not mistaken for the worker."""

    @classmethod
    def here(cls) -> Self:
        """Return the place of this process."""
        process = os.getpid()
        return cls(socket.gethostname(), boot_id(), process, process_started(process) or "")

    @property
    def is_near(self) -> bool:
        """Whether it is on the machine of this process."""
        return bool(self.started) and self.host == socket.gethostname() and self.boot_id == boot_id()

    @property
    def is_there(self) -> bool:
        """Whether it is near, and the process has not ended."""
        return self.is_near and process_started(self.process) == self.started

    def kill(self) -> None:
        """End the process for sure if it is near: one that was stopped hears nothing but this."""
        if self.is_there:
            with suppress(ProcessLookupError, PermissionError):
                os.kill(self.process, signal.SIGKILL)


def oom_kills() -> int:
    """Return how many processes the kernel of this machine has ended for want of memory; 0 where it does not tell."""
    path = Path("/proc/vmstat")
    if not path.exists():
        return 0
    fields = dict(line.split() for line in path.read_text().splitlines())
    return int(fields.get("oom_kill", 0))


def remove_stale_folders(prefix: str) -> None:
    """Remove what drivers that were killed have left in the temporary folder.

    Args:
        prefix: Of the folders; the id of the driver's process follows it, then a hyphen.
    """
    if not Path("/proc/self").exists():
        return
    for folder in Path(tempfile.gettempdir()).glob(f"{prefix}*"):
        process = folder.name.removeprefix(prefix).partition("-")[0]
        if process.isdigit() and not Path(f"/proc/{process}").exists():
            shutil.rmtree(folder, ignore_errors=True)


@contextmanager
def keeping_handler() -> Iterator[None]:
    """Put back the handler of SIGTERM that a library takes the place of when it starts, if there was one."""
    before = signal.getsignal(signal.SIGTERM)
    try:
        yield
    finally:
        if callable(before) and threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGTERM, before)


@contextmanager
def deferring_signals() -> Iterator[None]:
    """Let a SIGTERM to the main thread wait while a library that uninstalls its handler ends."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
    try:
        with keeping_handler():
            yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
