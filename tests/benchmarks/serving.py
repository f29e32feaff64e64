"""Loads `ntkpipe serve` with wrk, next to a bare server that sends the same bytes.

    python tests/benchmarks/serving.py --seconds 5 --connections 1,8,64,256

See README.md in this folder for what the figures mean.
"""

import argparse
import json
import re
import secrets
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any
from urllib.parse import quote

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import httpx
import torch
from serving import Serving, serving

import ntkpipe
from benchmarks.measure import machine
from benchmarks.report import Grid, facts, markdown_grids, print_grids

SCRIPT = """
function done(summary, latency, requests)
  io.write(string.format("FIGURES %d %d %d %d %d %d %d %d %f %f %f\\n",
    summary.requests, summary.duration, summary.bytes, summary.errors.connect, summary.errors.read,
    summary.errors.write, summary.errors.timeout, summary.errors.status,
    latency:percentile(50), latency:percentile(99), latency.max))
end
"""

COUNTED = re.compile(r'^ntkpipe_(?:refused_)?requests_total\{[^}]*status="(\d+)"[^}]*\} (\S+)$', re.MULTILINE)

NOTES = (
    "wrk, one thread, connections kept alive, every request alike; it shares the machine's cores with the server.",
    "floor: the same request to a uvicorn that sends the same bytes from memory; the two take turns.",
    "busy: 503 with Retry-After, which the service says by itself when it has too much to do; they count among the requests.",
    "errors: connections refused or lost, time-outs, and every other status above 399.",
)


@dataclass(frozen=True, slots=True)
class Endpoint:
    """Something that is asked."""

    name: str
    target: str
    """Path and query."""
    headers: dict[str, str]


@dataclass(frozen=True, slots=True)
class Load:
    """What one load has found."""

    endpoint: str
    connections: int
    server: str
    requests_per_second: float
    megabytes_per_second: float
    p50_ms: float
    p99_ms: float
    max_ms: float
    busy: int
    errors: int


def load_samples(num: int) -> ntkpipe.Samples:
    """Return inputs of noise around ten centres, with classes."""
    generator = torch.Generator().manual_seed(0)
    labels = torch.arange(num) % 10
    centres = torch.randn(10, 64, generator=generator)
    return ntkpipe.Samples(centres[labels] + 0.5 * torch.randn(num, 64, generator=generator), labels)


def make_run(folder: Path, num: int) -> None:
    """Make a run of the size of the digits."""
    train = {"kind": "python", "target": "benchmarks.serving:load_samples", "options": {"num": num}}
    kernels = [{"kind": "laplace", "name": "kernel", "bandwidth": 10.0}]
    document = {"name": "load", "data": {"splits": {"train": train}}, "kernels": kernels}
    ntkpipe.run(document | {"store": {"shard_rows": 512, "block_rows": 512}}, folder / "load")


def endpoints(run: Any, name: str, headers: dict[str, str]) -> list[Endpoint]:
    """Return what is asked of a run."""
    base, kernel = f"/v1/runs/{quote(name)}", run.manifest.geometry.references[0]
    num = min(256, len(run.sample_ids))
    matrix, npy = f"{base}/kernels/{quote(kernel)}", "format=npy"
    found = [
        Endpoint("healthz", "/healthz", {}),
        Endpoint(f"{num} x {num} as npy", f"{matrix}?rows=0:{num}&cols=0:{num}&{npy}", headers),
        Endpoint("one row as npy", f"{matrix}?rows=7&{npy}", headers),
        Endpoint("10 neighbors of one sample", f"{matrix}/neighbors?rows=7&k=10", headers),
        Endpoint("1,000 ids as JSON", f"{base}/splits/{quote(run.train_split)}/ids?start=0&stop=1000", headers),
        Endpoint("tile of the picture", f"{matrix}/tiles/0/0/0.png", headers),
    ]
    return found


def ready(client: httpx.Client, url: str, wanted: list[Endpoint]) -> tuple[list[Endpoint], list[dict[str, Any]]]:
    """Ask everything until it is there; return what can be asked, with a question for what is known, and the answers."""
    answers, kept = [], []
    for endpoint in wanted:
        for _ in range(600):
            found = client.get(f"{url}{endpoint.target}", headers=endpoint.headers)
            if found.status_code != 202:
                break
        if found.status_code != 200:
            print(f"{endpoint.name} is left out: {found.status_code} {found.text[:200]}", file=sys.stderr)
            continue
        kept.append(endpoint)
        answers.append(answer_of(endpoint.target, found))
        if " x " in endpoint.name and "etag" in found.headers:
            known = endpoint.headers | {"If-None-Match": found.headers["etag"]}
            kept.append(Endpoint(f"{endpoint.name}, known (304)", endpoint.target, known))
    return kept, answers


def answer_of(target: str, found: httpx.Response) -> dict[str, Any]:
    """Return an answer as the bare server is told it."""
    return {
        "target": target,
        "status": found.status_code,
        "headers": found.headers.multi_items(),
        "content": found.content,
    }


@contextmanager
def bare(answers: Sequence[dict[str, Any]]) -> Iterator[str]:
    """Start the bare server; yields its address."""
    with tempfile.TemporaryDirectory() as folder:
        described = []
        for number, answer in enumerate(answers):
            (Path(folder) / str(number)).write_bytes(answer["content"])
            described.append({**answer, "content": "", "file": str(number)})
        (Path(folder) / "answers.json").write_text(json.dumps(described))
        command = [sys.executable, str(Path(__file__).with_name("serving_floor.py")), folder]
        process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
        try:
            assert process.stdout is not None
            yield process.stdout.readline().strip()
        finally:
            process.terminate()
            process.wait(30)


def drive(url: str, endpoint: Endpoint, connections: int, seconds: int, script: Path) -> list[float]:
    """Let wrk ask one thing; return its figures."""
    command = ["wrk", "-t1", f"-c{connections}", f"-d{seconds}s", "--timeout", "30s", "-s", str(script)]
    command += [word for name, value in endpoint.headers.items() for word in ("-H", f"{name}: {value}")]
    found = subprocess.run([*command, f"{url}{endpoint.target}"], capture_output=True, text=True, check=True)
    (line,) = [line for line in found.stdout.splitlines() if line.startswith("FIGURES")]
    return [float(word) for word in line.split()[1:]]


def statuses(client: httpx.Client, url: str, headers: dict[str, str]) -> dict[str, float]:
    """Return how many answers of each status the service counts."""
    found: dict[str, float] = {}
    for status, number in COUNTED.findall(client.get(f"{url}/metrics", headers=headers).text):
        found[status] = found.get(status, 0) + float(number)
    return found


def load_of(endpoint: Endpoint, connections: int, server: str, figures: Sequence[float], busy: float) -> Load:
    """Return what wrk and the service have counted; those that were told to come back are no errors."""
    requests, duration, num_bytes, connect, read, write, timeout, status, p50, p99, largest = figures
    return Load(
        endpoint=endpoint.name,
        connections=connections,
        server=server,
        requests_per_second=requests / duration * 1e6,
        megabytes_per_second=num_bytes / duration,
        p50_ms=p50 / 1e3,
        p99_ms=p99 / 1e3,
        max_ms=largest / 1e3,
        busy=int(busy),
        errors=int(connect + read + write + timeout + max(0.0, status - busy)),
    )


def measure(service: Serving, wanted: list[Endpoint], headers: dict[str, str], options: Any) -> list[Load]:
    """Drive every endpoint with every number of connections, the service and the bare server in turn."""
    found = []
    with httpx.Client(timeout=120) as client, tempfile.NamedTemporaryFile("w", suffix=".lua") as script:
        script.write(SCRIPT)
        script.flush()
        wanted, answers = ready(client, service.url, wanted)
        with bare(answers) as floor:
            for connections in options.connections:
                for endpoint in wanted:
                    before = statuses(client, service.url, headers).get("503", 0)
                    figures = drive(service.url, endpoint, connections, options.seconds, Path(script.name))
                    busy = statuses(client, service.url, headers).get("503", 0) - before
                    found.append(load_of(endpoint, connections, "service", figures, busy))
                    figures = drive(floor, endpoint, connections, options.seconds, Path(script.name))
                    found.append(load_of(endpoint, connections, "floor", figures, 0))
                    print(f"{connections} connections, {endpoint.name}: done", file=sys.stderr)
    return found


def grids(loads: Sequence[Load], root: str) -> list[Grid]:
    """Return a table for each number of connections."""
    header = (
        "asked",
        "requests/s",
        "of the floor's",
        "MB/s",
        "p50",
        "p99",
        "floor's p50",
        "floor's p99",
        "busy",
        "errors",
    )
    found = []
    for connections in dict.fromkeys(load.connections for load in loads):
        rows = []
        pairs = [load for load in loads if load.connections == connections]
        for one, floor in zip(pairs[::2], pairs[1::2], strict=True):
            times = (f"{ms:,.2f} ms" for ms in (one.p50_ms, one.p99_ms, floor.p50_ms, floor.p99_ms))
            share = one.requests_per_second / floor.requests_per_second if floor.requests_per_second else float("nan")
            numbers = f"{one.requests_per_second:,.0f}", f"{share:.2f}", f"{one.megabytes_per_second:,.1f}"
            rows.append((one.endpoint, *numbers, *times, str(one.busy), str(one.errors)))
        found.append(Grid(f"{root}: {connections} connections", header, tuple(rows)))
    return found


def main() -> int:
    """Measure and report; 1 if there was any error."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--root", help="folder of runs to serve; by default one is made")
    parser.add_argument("--run", default="load", help="name of the run")
    parser.add_argument("--samples", type=int, default=1437, help="of the run that is made")
    parser.add_argument("--seconds", type=int, default=5, help="of each load")
    parser.add_argument(
        "--connections", type=lambda text: [int(part) for part in text.split(",")], default=[1, 8, 64, 256]
    )
    parser.add_argument("--only", default="", help="part of the names of what is asked")
    parser.add_argument("--json", type=Path, help="file for everything that was measured")
    parser.add_argument("--markdown", action="store_true", help="print Markdown")
    options = parser.parse_args()
    if shutil.which("wrk") is None:
        parser.error("wrk is missing; it is a package of Debian: apt-get install wrk")
    before, token = machine(torch.device("cpu")), secrets.token_urlsafe(32)
    headers = {"Authorization": f"Bearer {token}"}
    with tempfile.TemporaryDirectory() as folder:
        if options.root is None:
            make_run(Path(folder), options.samples)
        root = options.root or folder
        wanted = endpoints(ntkpipe.open_run(f"{root.rstrip('/')}/{options.run}"), options.run, headers)
        with serving(root, "--no-access-log", token=token) as service:
            loads = measure(service, [one for one in wanted if options.only in one.name], headers, options)
    line, tables = facts(before, machine(torch.device("cpu"))), grids(loads, options.run)
    if options.markdown:
        print(markdown_grids(tables, line, NOTES))
    else:
        print_grids(tables, [line, *NOTES])
    if options.json:
        options.json.write_text(json.dumps([asdict(load) for load in loads], indent=1))
    return 1 if any(load.errors for load in loads) else 0


if __name__ == "__main__":
    sys.exit(main())
