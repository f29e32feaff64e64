"""The files of deploy/, as the tests read them."""

import re
import shlex
import tomllib
from pathlib import Path
from typing import Any

import yaml

ROOT = Path(__file__).parents[2]
DEPLOY = ROOT / "deploy"
PROJECT: dict[str, Any] = tomllib.loads((ROOT / "pyproject.toml").read_text())
VERSION: str = PROJECT["project"]["version"]
README = (DEPLOY / "README.md").read_text()

MANIFESTS = ("networkpolicy.yaml", "podmonitor.yaml", "raycluster.yaml", "rayjob.yaml", "secrets.example.yaml")
LAUNCHERS = ("aws.yaml", "local.yaml")

FENCE = re.compile(r"^```sh ?(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)


def manifest(name: str) -> dict[str, Any]:
    """Return the one object in a file of deploy/kuberay."""
    (document,) = yaml.safe_load_all((DEPLOY / "kuberay" / name).read_text())
    return document


def launcher(name: str) -> dict[str, Any]:
    """Return a file of deploy/launcher."""
    return yaml.safe_load((DEPLOY / "launcher" / name).read_text())


def snippets() -> list[tuple[str, str]]:
    """Return (name, commands) of all shell blocks of the README; the name is empty where none is given."""
    return FENCE.findall(README)


def snippet(name: str) -> str:
    """Return the shell block of the README that has this name."""
    (text,) = [text for found, text in snippets() if found == name]
    return text


def launcher_commands() -> list[str]:
    """Return every shell command of the launcher files."""
    found = []
    for name in LAUNCHERS:
        document = launcher(name)
        for key in ("initialization", "setup", "head_setup", "worker_setup", "head_start_ray", "worker_start_ray"):
            found += document.get(f"{key}_commands", [])
    return found


def lines(text: str) -> list[str]:
    """Return the commands of a shell block, one each, without those that are only comments."""
    joined = text.replace("\\\n", " ").splitlines()
    return [line.strip() for line in joined if line.strip() and not line.strip().startswith("#")]


def ntkpipe_commands() -> list[list[str]]:
    """Return the arguments of every ``ntkpipe`` command in deploy/, variables as they are written."""
    texts = [line for _, text in snippets() for line in lines(text)]
    texts += [manifest("rayjob.yaml")["spec"]["entrypoint"], *launcher_commands()]
    return [words[1:] for words in (shlex.split(text) for text in texts) if words[0] == "ntkpipe"]


def pinned(package: str) -> str:
    """Return the version that constraints.txt pins."""
    (version,) = re.findall(rf"^{re.escape(package)}==(\S+)$", (ROOT / "constraints.txt").read_text(), re.MULTILINE)
    return version


def pods(document: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """Return {name: pod template} of a RayCluster or RayJob."""
    spec = document["spec"]
    cluster = spec.get("rayClusterSpec", spec)
    found = {"head": cluster["headGroupSpec"]["template"]}
    found |= {group["groupName"]: group["template"] for group in cluster["workerGroupSpecs"]}
    if "submitterPodTemplate" in spec:
        found["submitter"] = spec["submitterPodTemplate"]
    return found


def num_bytes(quantity: str) -> int:
    """Return a memory quantity of Kubernetes in bytes."""
    number, unit = re.fullmatch(r"(\d+)(Mi|Gi)", quantity).groups()  # type: ignore[union-attr]
    return int(number) * {"Mi": 2**20, "Gi": 2**30}[unit]
