"""What deploy/ says is done here: the commands of its README, the job's entrypoint in a pod's conditions, the spot watcher."""

import json
import os
import re
import shutil
import subprocess
import tempfile
import threading
import urllib.request
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import final

import pytest
from ports import free_ports
from processes import PATIENCE_SECONDS, command_of, raylet_of, wait_for
from runs import chunk_hashes

import ntkpipe
from deploy.files import DEPLOY, lines, snippet
from deploy.pods import can_have_one, run_job
from deploy.shells import Background, environment, run

pytestmark = pytest.mark.slow

UP = "Ray runtime started"


@pytest.fixture(scope="module")
def expected(tmp_path_factory):
    """The hashes of the same run in this process."""
    folder = tmp_path_factory.mktemp("serial") / "run"
    ntkpipe.run(
        str(DEPLOY / "run.yaml"), str(folder), overrides=["resources.executor=serial", "resources.threads_per_worker=1"]
    )
    return chunk_hashes(folder)


@final
class Cluster:
    """What the README's commands make, on one machine: every node has ports of its own."""

    def __init__(self, folder):
        self.folder, self.run = folder, folder / "run"
        # The test ends nodes; they need not wait for long.
        self.variables = environment(folder, RAY_TMPDIR=str(folder), RAY_GRACEFUL_SHUTDOWN_DRAIN_TIMEOUT_S="1")
        self.port, self.jobs_port, self.client_port = free_ports(3)

    def settings(self, *options):
        """The README's block of settings with the values of one machine; all that it sets must be named here."""
        values = {
            "HEAD": "127.0.0.1",
            "RAY_PORT": self.port,
            "JOBS_PORT": self.jobs_port,
            "RUN": self.run,
            "NODE_OPTIONS": " ".join(["--object-store-memory=104857600", "--disable-usage-stats", *options]),
        }
        text = snippet("settings")
        assert set(re.findall(r"\b([A-Z_]+)=", re.sub(r"#.*|\"[^\"]*\"", "", text))) == {*values, "RAY_AUTH_MODE"}
        for name, value in values.items():
            text = re.sub(rf'\b{name}=("[^"]*"|\S+)', f'{name}="{value}"', text)
        return text

    def does(self, commands, seconds=PATIENCE_SECONDS):
        """Run commands of the README on a machine, and return what they print."""
        return run(self.settings() + commands, self.variables, seconds)

    def node(self, name, *options):
        """Start a node by the README's command, as on a terminal of its own: Ctrl-C and SIGTERM reach it."""
        agent, metrics = free_ports(2)
        ports = (
            f"--dashboard-agent-listen-port={agent}",
            f"--metrics-export-port={metrics}",
            "--min-worker-port=0",
            "--max-worker-port=0",
        )
        log = self.folder / f"{name}-{agent}.log"
        return Background(f"{self.settings(*ports, *options)}\nexec {snippet(name)}", self.variables, log, UP)

    def state_of(self, node):
        """What the head knows of a node."""
        token = (self.folder / ".ray" / "auth_token").read_text().strip()
        request = urllib.request.Request(
            f"http://127.0.0.1:{self.jobs_port}/nodes?view=summary", headers={"Authorization": f"Bearer {token}"}
        )
        with urllib.request.urlopen(request, timeout=30) as answer:
            nodes = [node["raylet"] for node in json.loads(answer.read())["data"]["summary"]]
        (found,) = [raylet for raylet in nodes if raylet["nodeId"] == node]
        return found


@pytest.fixture(scope="module")
def cluster():
    """A head and one node, started by the README's commands."""
    with tempfile.TemporaryDirectory(prefix="nt", ignore_cleanup_errors=True) as folder:
        found = Cluster(Path(folder))
        found.does(snippet("token"))
        with (
            found.node("head", f"--ray-client-server-port={found.client_port}"),
            found.node("node", "--num-cpus=1") as found.first,
        ):
            yield found


def test_the_token_is_for_its_owner_only(cluster):
    assert (cluster.folder / ".ray" / "auth_token").stat().st_mode & 0o077 == 0


def test_the_commands_of_the_readme_are_those_that_work(cluster, expected):
    status, logs = lines(snippet("watch"))
    with cluster.node("node", "--num-cpus=1"):
        assert str(cluster.run) in cluster.does(snippet("submit"))
        wait_for(lambda: list(cluster.run.glob("receipts/*/*")), pause=0.1)
        assert str(cluster.run) in cluster.does(status)
        cluster.does(snippet("stop"))
        assert ntkpipe.open_run(str(cluster.run)).status().state in ("interrupted", "finished")
        cluster.does(snippet("resume"), 300)
        assert cluster.does(logs).strip()
    assert chunk_hashes(cluster.run) == expected


@pytest.mark.skipif(not can_have_one(), reason="needs Linux and the right to make namespaces")
def test_the_entrypoint_runs_and_runs_again_in_the_conditions_of_its_pods(tmp_path, expected):
    out = tmp_path / "tmp" / "run"
    first, second = run_job(tmp_path, submissions=2)
    assert "Finished in" in first
    # A retry finds that all is done.
    assert not re.search(r"^features .* in ", second, re.MULTILINE)
    assert chunk_hashes(out) == expected


class Metadata(BaseHTTPRequestHandler):
    """A cloud that gives notice when it is told to, to those who have fetched a session token."""

    def do_PUT(self):
        assert self.path == "/latest/api/token"
        assert self.headers["X-aws-ec2-metadata-token-ttl-seconds"] == "60"
        self.answer(200, b"session")

    def do_GET(self):
        if self.headers["X-aws-ec2-metadata-token"] != "session":
            self.answer(401, b"")
        elif self.server.notice:
            self.answer(200, json.dumps({"action": "terminate", "time": "2026-11-25T12:00:00Z"}).encode())
        else:
            self.server.asked.set()
            self.answer(404, b"")

    def answer(self, code, body):
        self.send_response(code)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_):
        pass


@pytest.fixture
def metadata():
    server = ThreadingHTTPServer(("127.0.0.1", 0), Metadata)
    server.notice, server.asked = False, threading.Event()
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    yield server
    server.shutdown()
    server.server_close()


@pytest.mark.skipif(shutil.which("curl") is None, reason="the watcher asks with curl")
def test_a_node_that_gets_notice_drains_and_leaves(metadata, cluster, tmp_path):
    base = f"http://127.0.0.1:{metadata.server_port}/latest"
    node = re.search(r"\0--node_id=(\w+)\0", command_of(raylet_of(cluster.first.process.pid))).group(1)
    variables = cluster.variables | {
        "RAY_AUTH_MODE": "token",
        "RAY_ADDRESS": f"127.0.0.1:{cluster.port}",
        "NOTICE_URL": f"{base}/meta-data/spot/instance-action",
        "NOTICE_TOKEN_URL": f"{base}/api/token",
        "NOTICE_SECONDS": "30",
        "POLL_SECONDS": "0.2",
    }
    script = f"exec sh {DEPLOY / 'launcher' / 'spot-notice.sh'}"
    with Background(script, variables, tmp_path / "watcher.log", "watching") as watcher:
        assert metadata.asked.wait(30)
        assert cluster.state_of(node)["state"] == "ALIVE"
        metadata.notice = True
        assert watcher.process.wait(PATIENCE_SECONDS) == 0, watcher.log.read_text()
    said = watcher.log.read_text()
    assert f"draining node {node}, which has 30 s" in said
    assert "session" not in said
    wait_for(lambda: cluster.state_of(node)["state"] == "DEAD", pause=0.2)
    assert "preemption" in cluster.state_of(node)["stateMessage"]


def test_a_watcher_that_does_not_know_its_cluster_says_so():
    found = subprocess.run(
        ["sh", DEPLOY / "launcher" / "spot-notice.sh"],
        env={"PATH": os.environ["PATH"]},
        capture_output=True,
        text=True,
        check=False,
    )
    assert found.returncode != 0
    assert "RAY_ADDRESS" in found.stderr
