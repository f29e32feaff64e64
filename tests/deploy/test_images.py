"""The Dockerfile and all YAML of deploy/ pass their linters, and build from what is there and pinned."""

import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet

from deploy.files import DEPLOY, PROJECT, README, ROOT, VERSION, pinned

BIN = Path(sys.executable).parent
DOCKERFILE = (DEPLOY / "Dockerfile").read_text()
TARGETS = ("cpu", "cuda")


def stage(name):
    return re.search(rf"^FROM \S+ AS {name}\n(.*?)(?=^FROM |\Z)", DOCKERFILE, re.MULTILINE | re.DOTALL).group(1)


def hadolint(text):
    found = subprocess.run(
        [BIN / "hadolint", "--no-color", "-"], input=text, capture_output=True, text=True, check=False
    )
    return found.returncode, found.stdout


def test_the_dockerfile_passes_its_linter_with_no_rule_left_out():
    assert hadolint(DOCKERFILE) == (0, "")
    assert "hadolint ignore" not in DOCKERFILE


@pytest.mark.parametrize(
    ("damage", "rule"),
    [
        (("python:3.11.15-slim-bookworm", "python"), "DL3006"),
        (('CMD ["ntkpipe", "--help"]', "CMD ntkpipe --help"), "DL3025"),
        (("WORKDIR /source", "WORKDIR source"), "DL3000"),
        (("pip install --no-cache-dir --no-deps", "pip install --no-deps"), "DL3042"),
    ],
)
def test_the_linter_would_have_found_it(damage, rule):
    damaged = DOCKERFILE.replace("FROM ${PYTHON_IMAGE}", "FROM python:3.11.15-slim-bookworm").replace(*damage)
    assert damaged != DOCKERFILE
    code, said = hadolint(damaged)
    assert code != 0
    assert rule in said


@pytest.mark.parametrize("target", TARGETS)
def test_an_image_runs_as_a_numbered_user_without_a_shell_around_it(target):
    text = stage(target)
    number = re.search(r"^USER (\d+):\1$", text, re.MULTILINE).group(1)
    assert f"--uid {number} --gid {number}" in stage("base")
    assert int(number) >= 10000
    assert 'CMD ["ntkpipe", "--help"]' in text
    assert "ENTRYPOINT" not in text
    # After the user has been set, nothing is installed.
    assert "RUN" not in text.partition("USER ")[2]


@pytest.mark.parametrize("target", TARGETS)
def test_an_image_installs_the_pinned_versions_and_checks_them(target):
    text = stage(target)
    assert "--constraint /install/constraints.txt --requirement /install/ntkpipe.txt" in text
    assert '--no-deps --index-url "${TORCH_INDEX}" --requirement /install/torch.txt' in text
    assert "pip check" in text
    assert f'org.opencontainers.image.version="{VERSION}"' in text
    assert f'org.opencontainers.image.licenses="{PROJECT["project"]["license"]}"' in text


def test_the_images_differ_only_in_what_gpus_need():
    wanted = re.search(r"^ENV NVIDIA_VISIBLE_DEVICES.*?\n(?=LABEL)", stage("cuda"), re.MULTILINE | re.DOTALL).group(0)

    def plain(name):
        text = re.sub(r"^#.*\n", "", stage(name).replace(wanted, ""), flags=re.MULTILINE)
        return re.sub(r"^(ARG TORCH_INDEX|.*image.description)=.*\n", "", text, flags=re.MULTILINE).strip()

    assert plain("cpu") == plain("cuda")


def test_base_images_have_exact_versions_of_a_python_that_is_supported():
    version = re.search(r"^ARG PYTHON_IMAGE=python:(\d+\.\d+\.\d+)-\w+-\w+$", DOCKERFILE, re.MULTILINE).group(1)
    assert version in SpecifierSet(PROJECT["project"]["requires-python"])
    assert f"python:{version}-slim-bookworm@sha256:..." in README
    bases = re.findall(r"^FROM (\S+) AS (\w+)$", DOCKERFILE, re.MULTILINE)
    assert {base for base, _ in bases} == {"${PYTHON_IMAGE}", "base"}


def test_the_wheel_is_built_with_a_setuptools_that_the_project_accepts():
    (build,) = PROJECT["build-system"]["requires"]
    version = re.search(r"setuptools==(\S+)", DOCKERFILE).group(1)
    assert version in Requirement(build).specifier


def test_the_extras_exist_and_torch_is_pinned():
    extras = re.search(r"ntkpipe\[([\w,]+)\] @", DOCKERFILE).group(1).split(",")
    assert set(extras) <= set(PROJECT["project"]["optional-dependencies"])
    assert {"cluster", "s3"} <= set(extras)
    assert pinned("torch")


def test_the_builder_gets_what_it_copies_and_nothing_else():
    copied = re.findall(r"^COPY (?!--from)(.*) \S+$", DOCKERFILE, re.MULTILINE)
    sources = {name for line in copied for name in line.split()}
    first, *allowed, last = [
        line for line in (DEPLOY / "Dockerfile.dockerignore").read_text().splitlines() if not line.startswith("#")
    ]
    assert (first, last) == ("*", "**/__pycache__")
    assert {line.removeprefix("!") for line in allowed} == sources
    assert all((ROOT / name).exists() for name in sources)
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    folders = {path.partition("/")[0] for path in project["tool"]["setuptools"]["package-dir"].values()}
    assert folders | {project["project"]["readme"], *project["project"]["license-files"]} <= sources


def test_nothing_secret_is_built_in():
    words = re.findall(r"^(?:ARG|ENV) .*?(?<!\\)$", DOCKERFILE, re.MULTILINE | re.DOTALL)
    assert not [text for text in words if re.search(r"(?i)secret|password|token=(?!token)|_key", text)]


def test_all_yaml_is_tidy():
    found = subprocess.run(
        [BIN / "yamllint", "--strict", "--config-file", DEPLOY / ".yamllint.yaml", DEPLOY],
        capture_output=True,
        text=True,
        check=False,
    )
    assert (found.returncode, found.stdout) == (0, "")
