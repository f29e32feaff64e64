"""A real `ntkpipe serve` for tests, and a service inside the process for those that need no connection."""

import asyncio
import os
import re
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
from commands import COMMAND, TESTS

ADDRESS = re.compile(r"serving .* on (https?://\S+)")


@dataclass(frozen=True)
class Serving:
    """A service that accepts connections.

    Attributes:
        url: Without a slash at its end.
        process: Of the service.
        log: What it writes to its standard error.
    """

    url: str
    process: "subprocess.Popen[str]"
    log: Path

    @property
    def port(self) -> int:
        """Where it listens."""
        return int(self.url.rpartition(":")[2])

    def end(self, number: int = signal.SIGTERM, seconds: float = 30.0) -> int:
        """Send a signal, and return the exit code."""
        self.process.send_signal(number)
        return self.process.wait(seconds)


@contextmanager
def serving(root: object, *options: object, token: str | None = None) -> Iterator[Serving]:
    """Start `ntkpipe serve` on a free port of loopback, and end it."""
    environment = {key: value for key, value in os.environ.items() if key != "NTKPIPE_TOKEN"}
    environment |= {"OMP_NUM_THREADS": "1"} | ({} if token is None else {"NTKPIPE_TOKEN": token})
    with tempfile.NamedTemporaryFile("w+", prefix="ntkpipe-serve-", suffix=".log") as log:
        process = subprocess.Popen(
            [*COMMAND, "serve", str(root), "--port", "0", *map(str, options)],
            cwd=TESTS,
            env=environment,
            stdout=subprocess.PIPE,
            stderr=log,
            text=True,
        )
        assert process.stdout is not None
        try:
            first = process.stdout.readline()
            found = ADDRESS.match(first)
            if found is None:
                process.wait(30)
                raise AssertionError(f"the service did not start: {first}{Path(log.name).read_text()}")
            yield Serving(found[1], process, Path(log.name))
        finally:
            if process.poll() is None:
                process.terminate()
                try:
                    process.wait(30)
                except subprocess.TimeoutExpired:
                    process.kill()
                    process.wait()
            process.stdout.close()


def ask(app: Any, path: str, method: str = "GET", **options: Any) -> httpx.Response:
    """Ask an application of this process."""

    async def asked() -> httpx.Response:
        transport = httpx.ASGITransport(app)
        async with httpx.AsyncClient(transport=transport, base_url="http://127.0.0.1:8765") as client:
            return await client.request(method, path, **options)

    return asyncio.run(asked())


if __name__ == "__main__":
    with serving(*sys.argv[1:]) as service:
        print(service.url, flush=True)
        sys.stdin.read()
