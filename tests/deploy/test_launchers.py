"""The files of Ray's cluster launcher: its own schema, options that exist, and who may reach the machines."""

import copy
import json
import re
import subprocess
from pathlib import Path

import jsonschema
import pytest
import ray
from ray.autoscaler._private.util import prepare_config, validate_config
from ray.scripts.scripts import start

from deploy.files import DEPLOY, LAUNCHERS, PROJECT, VERSION, launcher, launcher_commands

SCHEMA = json.loads((Path(ray.__file__).parent / "autoscaler" / "ray-schema.json").read_text())


def check(document):
    """As it is written, and as the launcher completes it."""
    jsonschema.validate(document, SCHEMA)
    validate_config(prepare_config(copy.deepcopy(document)))


@pytest.mark.parametrize("name", LAUNCHERS)
def test_ray_accepts_a_launcher_file(name):
    check(launcher(name))


def test_every_launcher_file_is_checked():
    assert sorted(path.name for path in (DEPLOY / "launcher").glob("*.yaml")) == list(LAUNCHERS)


DAMAGES = {
    "an unknown key": lambda document: document.update(idle_timeout=5),
    "a text for a number": lambda document: document.update(max_workers="8"),
    "no provider": lambda document: document.pop("provider"),
    "no name": lambda document: document.pop("cluster_name"),
    "a typo in the security group": lambda document: document["provider"]["security_group"].update(Ingress=[]),
    "a typo in a node type": lambda document: document["available_node_types"]["gpu"].update(min_worker=1),
    "a node type without resources": lambda document: document["available_node_types"]["gpu"].pop("resources"),
    "a head of no type": lambda document: document.update(head_node_type="heads"),
    "commands that are one text": lambda document: document.update(setup_commands="pip install ray"),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_launcher_file_is_refused(damage):
    document = launcher("aws.yaml")
    DAMAGES[damage](document)
    with pytest.raises((jsonschema.ValidationError, ValueError)):
        check(document)


def test_every_command_is_one_that_a_shell_can_read():
    for command in launcher_commands():
        found = subprocess.run(["sh", "-n"], input=command, capture_output=True, text=True, check=False)
        assert (found.returncode, found.stderr) == (0, ""), command


def test_ray_is_started_with_options_that_it_has():
    known = {option for parameter in start.params for option in parameter.opts}
    commands = [command for command in launcher_commands() if "ray start" in command]
    assert len(commands) == 2 * len(LAUNCHERS)
    for command in commands:
        assert set(re.findall(r"--[a-z-]+", command)) <= known
        # A cluster asks for a token; what it listens on for jobs is reached through ssh.
        assert "RAY_AUTH_MODE=token" in command
        assert ("--head" not in command) or ("--dashboard-host=127.0.0.1" in command and "--num-cpus=0" in command)


@pytest.mark.parametrize("name", LAUNCHERS)
def test_nodes_get_the_token_and_install_the_wheel_of_this_version(name):
    document = launcher(name)
    assert document["file_mounts"] == {"~/.ray/auth_token": "~/.ray/auth_token", "~/deploy": "dist"}
    (install,) = [command for command in document["setup_commands"] if "pip install" in command]
    assert f"deploy/ntkpipe-{VERSION}-py3-none-any.whl" in install
    assert "--constraint ~/deploy/constraints.txt" in install
    extras = re.search(r"ntkpipe\[([\w,]+)\]", install).group(1).split(",")
    assert set(extras) <= set(PROJECT["project"]["optional-dependencies"])


def test_only_ssh_is_open_and_not_to_everybody():
    rules = launcher("aws.yaml")["provider"]["security_group"]["IpPermissions"]
    assert [(rule["FromPort"], rule["ToPort"]) for rule in rules] == [(22, 22)]
    assert all(not found["CidrIp"].endswith("/0") for rule in rules for found in rule["IpRanges"])


def test_workers_are_spot_machines_that_watch_for_their_notice_and_the_head_is_none():
    document = launcher("aws.yaml")
    for name, kind in document["available_node_types"].items():
        assert ("InstanceMarketOptions" in kind["node_config"]) is (name != document["head_node_type"])
        assert kind["node_config"]["MetadataOptions"] == {"HttpTokens": "required"}
    assert document["available_node_types"]["head"]["resources"] == {"CPU": 0}
    assert "spot-notice.sh" in document["worker_start_ray_commands"][-1]
    assert document["provider"]["cache_stopped_nodes"] is False
