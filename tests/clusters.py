"""Real Ray clusters of several nodes on this machine, which ask for a token and end with the test.

A node is a ``ray start --block`` in a session of its own. Every port is a free one, so that clusters can live side by side,
and everything that a node has started is found again by a mark in its environment and ended by its id.
"""

import ctypes
import json
import os
import secrets
import signal
import subprocess
import sys
import tempfile
import urllib.error
import urllib.request
from pathlib import Path
from typing import Any, Self, final

from ports import free_ports
from processes import children, raylet_of, wait_for

QUICK_TO_DOUBT = {
    "health_check_initial_delay_ms": 1000,
    "health_check_period_ms": 500,
    "health_check_timeout_ms": 4000,
    "health_check_failure_threshold": 4,
}
"""A killed node is known to be dead after seconds; Ray's own patience is a minute. Busy cores need not answer at once."""

STORE_BYTES = 100 * 2**20
"""Of a node's object store."""

START_SECONDS = 240.0
"""Starting a node takes five on an idle machine."""

MARK = "NTKPIPE_TEST_NODE"

LIBC = ctypes.CDLL(None)

PR_SET_PDEATHSIG = 1
"""Of prctl(2)."""


TOO_SLOW = "The current node timed out during startup"
"""What ``ray start`` says when its own processes do not answer each other within half a minute."""


@final
class Node:
    """A ``ray start --block`` and all that it has started.

    Attributes:
        process: Of the command; its raylet and workers are found with ``processes.raylet_of`` and ``workers_of``.
        log: What the command prints.
    """

    def __init__(self, environment: dict[str, str], log: Path, *options: str) -> None:
        self._mark = secrets.token_hex(8)
        self._environment, self._options = environment | {MARK: self._mark}, options
        self.log = log
        self.process = self._start()

    def _start(self) -> "subprocess.Popen[bytes]":
        agent, export = free_ports(2)
        with self.log.open("w") as output:
            return subprocess.Popen(
                [
                    str(Path(sys.executable).parent / "ray"),
                    "start",
                    "--block",
                    "--disable-usage-stats",
                    f"--dashboard-agent-listen-port={agent}",
                    f"--metrics-export-port={export}",
                    "--min-worker-port=0",
                    "--max-worker-port=0",
                    f"--object-store-memory={STORE_BYTES}",
                    *self._options,
                ],
                env=self._environment,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,
                preexec_fn=_end_with_parent,  # noqa: PLW1509 - one call into a library that is loaded already
            )

    @property
    def raylet(self) -> int | None:
        """The id of the process that runs the node's workers; None if it is gone."""
        return raylet_of(self.process.pid)

    def wait_until_up(self) -> None:
        """Wait until the command says that the node has started; on a busy machine Ray's own patience may end before."""
        tries = 2

        def is_up() -> bool:
            nonlocal tries
            if self.process.poll() is not None and TOO_SLOW in self.log.read_text() and tries > 1:
                tries -= 1
                self.kill()
                self.process = self._start()
            if self.process.poll() is not None:
                raise AssertionError(f"ray start ended with {self.process.returncode}:\n{self.log.read_text()}")
            return "Ray runtime started" in self.log.read_text()

        wait_for(is_up, START_SECONDS, 0.1)

    def terminate(self) -> None:
        """Tell the node to end, as a cloud does with notice: Ray drains it. Returns at once."""
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)

    def kill(self) -> None:
        """End the node without warning, with every process on it."""
        while found := self._processes():
            for process in found:
                try:
                    os.kill(process, signal.SIGKILL)
                except ProcessLookupError:
                    continue
            self.process.poll()
        self.process.wait(60)

    def _processes(self) -> list[int]:
        """Return the raylet first: what it would start again in its place goes after it."""
        raylet = self.raylet
        own = [] if raylet is None else [raylet]
        # Workers overwrite their environment, and what a dead parent leaves belongs to nobody: both ways are needed.
        return own + [found for found in {*self._descendants(), *_marked(self._mark)} if found != raylet]

    def _descendants(self) -> list[int]:
        found = [self.process.pid] if self.process.poll() is None else []
        for one in found:
            found += children(one)
        return found


def _end_with_parent() -> None:
    """Have Linux end this process, and with it the node, when the tests are killed."""
    LIBC.prctl(PR_SET_PDEATHSIG, signal.SIGTERM)


def _marked(mark: str) -> list[int]:
    """Return the ids of the processes that were started with a mark in their environment and are not zombies."""
    needle, found = f"{MARK}={mark}".encode(), []
    for path in Path("/proc").glob("[0-9]*/environ"):
        try:
            # That of a zombie is empty.
            if needle in path.read_bytes():
                found.append(int(path.parent.name))
        except (OSError, ProcessLookupError):
            continue
    return found


@final
class LocalCluster:
    """A head node on loopback, to which nodes can be added; a context manager.

    Args:
        num_cpus: Of the head. Without any, work goes to the nodes that are added, as on real clusters.
        dashboard: Whether it runs the dashboard, and with it the Jobs API; it takes a few seconds longer to start.
        quick_to_doubt: Whether a node that does not answer is given up after seconds instead of a minute.
        environment: Further variables of all nodes, which jobs and workers inherit, such as PYTHONPATH.

    Attributes:
        address: Where drivers join.
        jobs_address: Where jobs are submitted.
        environment: Of the cluster's users: the token, and the PATH on which ``ray`` and ``python`` are found.
        head: The first node.
        nodes: That were added.
    """

    def __init__(
        self,
        num_cpus: int = 0,
        *,
        dashboard: bool = True,
        quick_to_doubt: bool = True,
        environment: dict[str, str] | None = None,
    ) -> None:
        self._num_cpus = num_cpus
        self._dashboard = dashboard
        self._settings = QUICK_TO_DOUBT if quick_to_doubt else {}
        inherited = {key: value for key, value in os.environ.items() if not key.startswith("RAY_AUTH")}
        self.environment = inherited | (environment or {})
        self.environment |= {
            "PATH": os.pathsep.join((str(Path(sys.executable).parent), os.environ.get("PATH", os.defpath))),
            "RAY_AUTH_MODE": "token",
            "RAY_AUTH_TOKEN": secrets.token_hex(32),
        }
        self.nodes: list[Node] = []
        self.head: Node
        self._folder: tempfile.TemporaryDirectory[str]

    def __enter__(self) -> Self:
        """Start the head and wait until it takes drivers, and jobs if it has a dashboard."""
        self._folder = tempfile.TemporaryDirectory(prefix="nt", ignore_cleanup_errors=True)
        port, client, self._jobs_port = free_ports(3)
        self.address, self.jobs_address = f"127.0.0.1:{port}", f"http://127.0.0.1:{self._jobs_port}"
        try:
            self.head = Node(
                self._node_environment(),
                Path(self._folder.name) / "head.log",
                "--head",
                f"--port={port}",
                f"--num-cpus={self._num_cpus}",
                f"--ray-client-server-port={client}",
                f"--include-dashboard={'true' if self._dashboard else 'false'}",
                "--dashboard-host=127.0.0.1",
                f"--dashboard-port={self._jobs_port}",
                f"--temp-dir={self._folder.name}",
                f"--system-config={json.dumps(self._settings)}",
            )
            self.head.wait_until_up()
            if self._dashboard:
                wait_for(lambda: self.get("/api/version"), START_SECONDS, 0.2)
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        """End every process of every node."""
        for node in (*self.nodes, *([self.head] if "head" in vars(self) else [])):
            node.kill()
        self._folder.cleanup()

    def add_node(self, num_cpus: int = 1, *options: str, environment: dict[str, str] | None = None) -> Node:
        """Start another node and wait until it has joined.

        Args:
            num_cpus: Of the node.
            options: Of ``ray start``, such as ``--num-gpus=1``.
            environment: Further variables of this node.
        """
        node = Node(
            self._node_environment() | (environment or {}),
            Path(self._folder.name) / f"node-{len(self.nodes)}.log",
            f"--address={self.address}",
            f"--num-cpus={num_cpus}",
            *options,
        )
        self.nodes.append(node)
        node.wait_until_up()
        return node

    def get(self, path: str) -> Any:
        """Ask the dashboard; None if it does not answer yet."""
        token = self.environment["RAY_AUTH_TOKEN"]
        request = urllib.request.Request(self.jobs_address + path, headers={"Authorization": f"Bearer {token}"})
        try:
            with urllib.request.urlopen(request, timeout=10) as answer:
                return json.loads(answer.read())
        except (urllib.error.URLError, TimeoutError, ConnectionError):
            return None

    def _node_environment(self) -> dict[str, str]:
        # A node that is told to end waits for its tasks, but not for the half minute that Ray would give them.
        return {"RAY_GRACEFUL_SHUTDOWN_DRAIN_TIMEOUT_S": "5"} | self.environment
