"""The conditions of the pods in deploy/kuberay/rayjob.yaml, without Kubernetes.

Namespaces of the kernel give what a pod has: its own network and processes, the manifest's user without rights, a root that
cannot be written, and the manifest's volumes. Head and worker share one, as they share this machine.
"""

import json
import os
import shlex
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import yaml
from processes import children

from deploy.files import DEPLOY, manifest, num_bytes, pods

UNSHARE = ["unshare", "--mount", "--net", "--pid", "--fork", "--mount-proc"]
SECONDS = 480.0
NUM_CPUS = 2
AGENT_PORTS = {"head": 52365, "cpu": 52366}
RAY = {
    "RAY_AUTH_MODE": "token",
    "RAY_AUTH_TOKEN": "0123456789abcdef" * 4,
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_memory_monitor_refresh_ms": "0",
}
PLACES = {"s3://my-bucket/runs/example": "/tmp/run", "/etc/ntkpipe": "/tmp/etc"}
"""What the manifest names and this machine has elsewhere."""


def can_have_one() -> bool:
    """Return whether this machine and user can make such conditions."""
    if not sys.platform.startswith("linux") or os.geteuid() != 0:
        return False
    found = subprocess.run([*UNSHARE, "true"], capture_output=True, check=False)
    return found.returncode == 0


def run_job(folder: Path, submissions: int) -> list[str]:
    """Start head and worker, submit the job's entrypoint so many times, and return what each has printed.

    Args:
        folder: Its ``tmp`` is the pods' /tmp, where the run is found afterwards.
        submissions: One after the other, as KubeRay retries.
    """
    job = manifest("rayjob.yaml")
    spec = pods(job)["head"]["spec"]
    user = spec["securityContext"]["runAsUser"]
    inside = folder / "tmp"
    (inside / "etc").mkdir(parents=True)
    (inside / "etc" / "run.yaml").write_bytes((DEPLOY / "run.yaml").read_bytes())
    inside.chmod(0o1777)
    (inside / "pod.sh").write_text(_inside(job, submissions))
    variables = _variables(job) | RAY
    shared = max(num_bytes(size) for size in _shared_memory(job))
    said, code = run_as_pod(inside, user, spec["securityContext"]["runAsGroup"], variables, shared)
    logs = "".join(path.read_text() for path in inside.glob("*.log"))
    assert code == 0, f"{said}\n{logs}"
    return [(inside / f"submission-{number}.out").read_text() for number in range(submissions)]


def run_as_pod(inside: Path, user: int, group: int, variables: dict[str, str], shared: int) -> tuple[str, int]:
    """Run ``pod.sh`` of a folder, which is the pod's /tmp, and return what it printed and its exit code.

    Args:
        inside: The folder.
        user: Of the pod.
        group: Of the pod.
        variables: Its environment, beside the PATH.
        shared: Bytes of /dev/shm.
    """
    process = subprocess.Popen(
        [*UNSHARE, "sh", "-euc", _outside(inside, user, group, variables, shared)],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    try:
        said, _ = process.communicate(timeout=SECONDS)
    finally:
        # The first process of the namespace takes all others along; it has changed its user, and outlives its parent.
        for first in children(process.pid):
            os.kill(first, signal.SIGKILL)
        process.wait(60)
    return said, process.returncode


def _outside(inside: Path, user: int, group: int, variables: dict[str, str], shared: int) -> str:
    """As root: mounts, and then the user of the pod and no way back."""
    python = Path(sys.base_prefix)
    closed = [place for place in (python, *python.parents) if not place.stat().st_mode & 0o001]
    variables = {
        "PATH": f"{Path(sys.executable).parent}:{os.defpath}",
        "PYTHONDONTWRITEBYTECODE": "1",
        **variables,
    }
    commands = ["mount --make-rprivate /", "ip link set lo up"]
    if closed:
        # The Python of this machine may lie in a folder that only root can enter.
        commands += [
            "mount -t tmpfs -o mode=755 tmpfs /mnt",
            f"mkdir /mnt/python && mount --bind {python} /mnt/python",
            f"mount -t tmpfs -o mode=755 tmpfs {closed[-1]}",
            f"mkdir -p {python} && mount --bind /mnt/python {python}",
        ]
    # The checkout, or its environment, may lie below the /tmp that the pods' own one hides.
    for place in (DEPLOY.parent, Path(sys.prefix)):
        if place.is_relative_to("/tmp"):
            seen = inside / place.relative_to("/tmp")
            commands += [f"mkdir -p {seen}", f"mount --rbind {place} {seen}"]
    commands += [
        f"mount -t tmpfs -o mode=1777,size={shared} tmpfs /dev/shm",
        f"mount --rbind {inside} /tmp",
        "mount -o remount,bind,ro /",
    ]
    assigned = " ".join(shlex.quote(f"{key}={value}") for key, value in variables.items())
    commands.append(
        f"exec setpriv --reuid={user} --regid={group} --clear-groups --bounding-set=-all --no-new-privs"
        f" env --ignore-environment {assigned} bash -c -- 'cd /tmp; . /tmp/pod.sh'"
    )
    return "\n".join(commands)


def _shared_memory(job: dict[str, Any]) -> list[str]:
    volumes = [volume for pod in ("head", "cpu") for volume in pods(job)[pod]["spec"]["volumes"]]
    return [volume["emptyDir"]["sizeLimit"] for volume in volumes if volume["name"] == "shm"]


def _inside(job: dict[str, Any], submissions: int) -> str:
    """As the user: what KubeRay would have the containers do, and its probes, and its submitter."""
    cluster = job["spec"]["rayClusterSpec"]
    (worker,) = [group for group in cluster["workerGroupSpecs"] if group["groupName"] == "cpu"]
    probe = pods(job)["head"]["spec"]["containers"][0]["readinessProbe"]["httpGet"]
    assert probe["port"] == AGENT_PORTS["head"]
    entrypoint = job["spec"]["entrypoint"]
    for written, here in PLACES.items():
        assert written in entrypoint
        entrypoint = entrypoint.replace(written, here)
    environment = json.dumps(yaml.safe_load(job["spec"]["runtimeEnvYAML"]))
    commands = [
        "set -eu",
        "grep -q '^[^ ]* / [^ ]* ro[, ]' /proc/mounts",
        f"test $(id -u) -eq {pods(job)['head']['spec']['securityContext']['runAsUser']}",
        "if touch /usr/written 2>/dev/null; then exit 1; fi",
        _ray_start("head", cluster["headGroupSpec"]["rayStartParams"], "--head"),
        _ready("head", probe["path"]),
        _ray_start("cpu", worker["rayStartParams"], f"--address=127.0.0.1:6379 --num-cpus={NUM_CPUS}"),
        _ready("cpu", probe["path"]),
        "ray health-check --address 127.0.0.1:6379",
    ]
    commands += [
        f"ray job submit --address http://127.0.0.1:8265 --submission-id try-{number}"
        f" --runtime-env-json {shlex.quote(environment)} -- {entrypoint} >submission-{number}.out 2>submission-{number}.log"
        for number in range(submissions)
    ]
    # The worker's pod is told to go: what hears it is Ray, which drains the node before it ends.
    grace = _variables(job)["RAY_GRACEFUL_SHUTDOWN_DRAIN_TIMEOUT_S"]
    commands += [
        'kill -TERM "$cpu"; code=0; wait "$cpu" || code=$?; test "$code" -eq 1',
        f"grep -q 'received SIGTERM. Draining for up to {grace}' cpu.log",
        "grep -q 'finished draining' cpu.log",
    ]
    return "\n".join(commands)


def _variables(job: dict[str, Any]) -> dict[str, str]:
    return {entry["name"]: entry["value"] for entry in pods(job)["head"]["spec"]["containers"][0]["env"]}


def _ray_start(name: str, options: dict[str, str], more: str) -> str:
    """The command of KubeRay's containers; the shell becomes ``ray start``, so that it hears of the pod's end."""
    given = " ".join(f"--{key}={value}" for key, value in options.items())
    port = AGENT_PORTS[name]
    ports = f"--dashboard-agent-listen-port={port} --metrics-export-port={port + 1000}"
    return f"bash -c -- 'ulimit -n 4096; ray start {more} {given} {ports} --block' >{name}.log 2>&1 & {name}=$!"


def _ready(name: str, path: str) -> str:
    """The pods' probe, which has no token."""
    url = f"http://127.0.0.1:{AGENT_PORTS[name]}{path}"
    ask = f'import urllib.request as r; r.urlopen("{url}", timeout=5)'
    return f"for _ in $(seq 240); do python -c '{ask}' 2>/dev/null && break; sleep 0.5; done; python -c '{ask}'"
