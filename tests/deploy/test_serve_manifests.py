"""What serves runs on Kubernetes, by itself and on Ray Serve: fields that exist, sizes that fit, a token that stays secret."""

import copy
import re
import shlex

import kubernetes_validate
import pydantic
import pytest
import typer
import yaml

from deploy.files import DEPLOY, README, VERSION, num_bytes, pinned
from deploy.kuberay import check, serve_config
from ntkpipe.pipeline.cli import app
from ntkpipe.pipeline.server.rayserve import NAME, settings_of

REFUSED = (pydantic.ValidationError, kubernetes_validate.ValidationError, ValueError)
FOLDERS = ("serve", "rayserve")
CONFIG = DEPLOY / "rayserve" / "serve.yaml"


def objects():
    """{file: object} of both folders; the Serve configuration is no object of Kubernetes."""
    files = [path for folder in FOLDERS for path in sorted((DEPLOY / folder).iterdir()) if path != CONFIG]
    return {f"{path.parent.name}/{path.name}": yaml.safe_load(path.read_text()) for path in files}


OBJECTS = objects()
DEPLOYMENT = OBJECTS["serve/deployment.yaml"]
POD = DEPLOYMENT["spec"]["template"]["spec"]
(CONTAINER,) = POD["containers"]
RAY = OBJECTS["rayserve/rayservice.yaml"]
GROUPS = [RAY["spec"]["rayClusterConfig"]["headGroupSpec"], *RAY["spec"]["rayClusterConfig"]["workerGroupSpecs"]]
PODS = [POD, *(group["template"]["spec"] for group in GROUPS)]


@pytest.mark.parametrize("name", OBJECTS)
def test_an_object_has_only_fields_that_exist(name):
    check(OBJECTS[name])


@pytest.mark.parametrize(
    ("name", "path", "value"),
    [
        ("serve/deployment.yaml", ("spec", "replica"), 2),
        ("serve/deployment.yaml", ("spec", "replicas"), "2"),
        ("serve/deployment.yaml", ("spec", "template", "spec", "containers", 0, "readinessProbe", "httpget"), {}),
        ("serve/service.yaml", ("spec", "ports", 0, "port"), "http"),
        ("serve/disruptionbudget.yaml", ("spec", "minavailable"), 1),
        ("rayserve/networkpolicy.yaml", ("spec", "ingress", 0, "port"), []),
        ("rayserve/rayservice.yaml", ("spec", "serveConfig"), ""),
        ("rayserve/rayservice.yaml", ("spec", "serveConfigV2"), "applications: [{name: a, import_path: 3}]"),
        ("rayserve/rayservice.yaml", ("spec", "rayClusterConfig", "headGroupSpec", "rayStartParams", "cpus"), "1"),
    ],
)
def test_a_mistake_in_an_object_would_be_found(name, path, value):
    document = copy.deepcopy(OBJECTS[name])
    place = document
    for key in path[:-1]:
        place = place[key]
    place[path[-1]] = value
    with pytest.raises(REFUSED):
        check(document)


def test_the_container_runs_a_command_that_exists_with_the_token_in_a_file():
    words = CONTAINER["args"]
    group = typer.main.get_command(app)
    with group.make_context("ntkpipe", ["--"], resilient_parsing=True) as context:
        name, command, rest = group.resolve_command(context, words[1:])
        found = command.make_context(name, rest, parent=context).params
    assert (words[0], name, found["host"]) == ("ntkpipe", "serve", "0.0.0.0")
    (mount,) = [mount for mount in CONTAINER["volumeMounts"] if mount["name"] == "token"]
    assert str(found["token_file"]) == f"{mount['mountPath']}/token"
    (volume,) = [volume["secret"] for volume in POD["volumes"] if volume["name"] == "token"]
    # The service refuses a token that every user may read; its group is the pod's.
    assert volume["defaultMode"] & 0o007 == 0
    assert volume["defaultMode"] & 0o040
    assert f"create secret generic {volume['secretName']} --from-file=token=" in README
    assert found["port"] == CONTAINER["ports"][0]["containerPort"]


def test_probes_ask_for_what_needs_no_token():
    from ntkpipe.pipeline.server.security import OPEN_PATHS

    for probe in ("startupProbe", "readinessProbe", "livenessProbe"):
        assert CONTAINER[probe]["httpGet"] == {"path": "/healthz", "port": CONTAINER["ports"][0]["name"]}
    assert "/healthz" in OPEN_PATHS


def test_a_pod_that_must_go_has_the_time_it_takes():
    drain = int(re.search(r"--drain-seconds=(\d+)", " ".join(CONTAINER["args"])).group(1))
    pause = int(CONTAINER["lifecycle"]["preStop"]["exec"]["command"][1])
    assert drain + pause < POD["terminationGracePeriodSeconds"]


def test_what_is_kept_in_memory_fits_its_limit():
    words = " ".join(CONTAINER["args"])
    kept = sum(int(re.search(rf"--{name}-bytes=(\d+)", words).group(1)) for name in ("cache", "answer"))
    assert kept + 2**30 <= num_bytes(CONTAINER["resources"]["limits"]["memory"])


def test_the_service_and_the_budget_are_about_the_pods_that_there_are():
    labels = DEPLOYMENT["spec"]["template"]["metadata"]["labels"]
    assert DEPLOYMENT["spec"]["selector"]["matchLabels"] == labels
    assert OBJECTS["serve/service.yaml"]["spec"]["selector"] == labels
    assert OBJECTS["serve/disruptionbudget.yaml"]["spec"]["selector"]["matchLabels"] == labels
    assert OBJECTS["serve/service.yaml"]["spec"]["ports"][0]["targetPort"] == CONTAINER["ports"][0]["name"]
    assert OBJECTS["serve/disruptionbudget.yaml"]["spec"]["minAvailable"] < DEPLOYMENT["spec"]["replicas"]
    assert f"service/{OBJECTS['serve/service.yaml']['metadata']['name']} " in README


@pytest.mark.parametrize("pod", PODS, ids=lambda pod: pod["containers"][0]["name"])
def test_no_pod_has_rights_that_it_does_not_need(pod):
    user = re.search(r"^USER (\d+):(\d+)$", (DEPLOY / "Dockerfile").read_text(), re.MULTILINE)
    security = pod["securityContext"]
    assert security["runAsNonRoot"] is True
    assert (security["runAsUser"], security["fsGroup"]) == tuple(map(int, user.groups()))
    for container in pod["containers"]:
        assert container["securityContext"] == {
            "allowPrivilegeEscalation": False,
            "readOnlyRootFilesystem": True,
            "capabilities": {"drop": ["ALL"]},
        }
        assert container["resources"]["limits"] == container["resources"]["requests"]
        assert container["image"] == f"registry.example.com/ntkpipe:{VERSION}-cpu"
        assert container["envFrom"] == [{"secretRef": {"name": "ntkpipe-bucket"}}]
        assert {"name": "HOME", "value": "/tmp"} in container["env"]
        assert "/tmp" in [mount["mountPath"] for mount in container["volumeMounts"]]


def test_the_images_have_what_serves():
    from deploy.test_images import DOCKERFILE

    assert "rayserve" in re.search(r"ntkpipe\[([\w,]+)\] @", DOCKERFILE).group(1).split(",")


def test_the_configuration_of_ray_serve_is_one_and_names_settings_that_exist(monkeypatch):
    serve_config(CONFIG.read_text())
    monkeypatch.setenv("NTKPIPE_TOKEN", "a-token-of-these-tests")
    (application,) = yaml.safe_load(CONFIG.read_text())["applications"]
    settings = settings_of(application["args"])
    assert (settings.root, settings.token) == ("s3://my-bucket/runs", "a-token-of-these-tests")
    module, _, name = application["import_path"].partition(":")
    assert callable(getattr(__import__(module, fromlist=[name]), name))
    assert [deployment["name"] for deployment in application["deployments"]] == [NAME]


def test_both_configurations_of_ray_serve_are_the_same_but_for_the_address():
    one, other = yaml.safe_load(CONFIG.read_text()), yaml.safe_load(RAY["spec"]["serveConfigV2"])
    assert one["http_options"].pop("host") == "127.0.0.1"
    assert other["http_options"].pop("host") == "0.0.0.0"
    assert one == other
    ports = [port for group in GROUPS for port in group["template"]["spec"]["containers"][0]["ports"]]
    assert {port["containerPort"] for port in ports if port["name"] == "serve"} == {one["http_options"]["port"]}
    (rule,) = OBJECTS["rayserve/networkpolicy.yaml"]["spec"]["ingress"]
    assert [port["port"] for port in rule["ports"]] == [one["http_options"]["port"]]


def test_metrics_are_where_the_network_policy_of_all_ray_pods_lets_them_be_collected():
    rule = yaml.safe_load((DEPLOY / "kuberay" / "networkpolicy.yaml").read_text())["spec"]["ingress"][2]
    for group in GROUPS:
        (port,) = [p for p in group["template"]["spec"]["containers"][0]["ports"] if p["name"] == "metrics"]
        assert group["rayStartParams"]["metrics-export-port"] == str(port["containerPort"])
        assert [each["port"] for each in rule["ports"]] == [port["containerPort"]]


def test_ray_is_the_version_in_the_images_and_its_pods_have_the_token_from_the_secret():
    assert RAY["spec"]["rayClusterConfig"]["rayVersion"] == pinned("ray")
    (secret,) = [volume["secret"]["secretName"] for volume in POD["volumes"] if volume["name"] == "token"]
    for pod in PODS[1:]:
        variables = {entry["name"]: entry for entry in pod["containers"][0]["env"]}
        assert variables["NTKPIPE_TOKEN"]["valueFrom"]["secretKeyRef"] == {"name": secret, "key": "token"}


@pytest.mark.parametrize(
    ("args", "text"),
    [
        ({}, "no root"),
        ({"root": ""}, "no root"),
        ({"root": "/runs", "token": "a-token-of-these-tests"}, "does not belong"),
        ({"root": "/runs", "cash_bytes": 1}, "cache_bytes"),
        ({"root": "/runs", "host": "127.0.0.1"}, "unknown setting"),
        ({"root": "/runs", "threads": 0}, "at least 1"),
        ({"root": "/runs", "threads": "16"}, "threads in args is '16'"),
        ({"root": "/runs", "threads": True}, "threads in args is True"),
        ({"root": "/runs", "allowed_hosts": "runs.example.com"}, "allowed_hosts in args"),
        ({"root": 3}, "root in args is 3"),
    ],
)
def test_arguments_that_make_no_service_are_refused_where_they_are_given(args, text, monkeypatch):
    from ntkpipe.configs.errors import ConfigError

    monkeypatch.setenv("NTKPIPE_TOKEN", "a-token-of-these-tests")
    with pytest.raises(ConfigError, match=text) as caught:
        settings_of(args)
    assert "a-token-of" not in caught.value.message


def test_without_a_token_nothing_is_served(monkeypatch):
    from ntkpipe.configs.errors import ConfigError

    monkeypatch.delenv("NTKPIPE_TOKEN", raising=False)
    with pytest.raises(ConfigError, match="token"):
        settings_of({"root": "/runs"})


def test_no_command_of_the_readme_shows_a_token():
    for line in re.findall(r"^.*token.*$", README, re.MULTILINE | re.IGNORECASE):
        assert not re.search(r"--token[= ]", line)
    assert shlex.split(CONTAINER["args"][5])
