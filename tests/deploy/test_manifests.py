"""What is applied to Kubernetes: the right fields, sizes that fit each other, and users without rights."""

import copy
import re
import shlex

import kubernetes_validate
import pydantic
import pytest
import yaml

from deploy.files import DEPLOY, MANIFESTS, README, VERSION, manifest, num_bytes, pinned, pods
from deploy.kuberay import check
from ntkpipe.configs.loading import load_config

REFUSED = (pydantic.ValidationError, kubernetes_validate.ValidationError)
CLUSTERS = ("raycluster.yaml", "rayjob.yaml")
RAY_PODS = [(name, pod) for name in CLUSTERS for pod in ("head", "cpu", "gpu")]
ALL_PODS = [*RAY_PODS, ("rayjob.yaml", "submitter")]


def cluster_spec(document):
    return document["spec"].get("rayClusterSpec", document["spec"])


@pytest.mark.parametrize("name", MANIFESTS)
def test_an_object_has_only_fields_that_exist(name):
    check(manifest(name))


def test_every_manifest_is_checked():
    assert sorted(path.name for path in (DEPLOY / "kuberay").iterdir()) == list(MANIFESTS)


def at(document, *keys):
    for key in keys:
        document = document[key]
    return document


def renamed(*keys, to):
    def damage(document):
        at(document, *keys[:-1])[to] = at(document, *keys[:-1]).pop(keys[-1])

    return damage


def replaced(*keys, by):
    def damage(document):
        at(document, *keys[:-1])[keys[-1]] = by

    return damage


def removed(*keys):
    def damage(document):
        del at(document, *keys[:-1])[keys[-1]]

    return damage


CONTAINER = ("template", "spec", "containers", 0)
DAMAGES = {
    "a typo in a field of the job": ("rayjob.yaml", renamed("spec", "backoffLimit", to="backofLimit")),
    "a submission mode that is none": ("rayjob.yaml", replaced("spec", "submissionMode", by="KubernetesMode")),
    "a text for a number": ("rayjob.yaml", replaced("spec", "ttlSecondsAfterFinished", by="300")),
    "a number for a text": (
        "rayjob.yaml",
        replaced("spec", "rayClusterSpec", "headGroupSpec", "rayStartParams", "num-cpus", by=0),
    ),
    "no entrypoint": ("rayjob.yaml", removed("spec", "entrypoint")),
    "a time to live that does nothing": ("rayjob.yaml", replaced("spec", "shutdownAfterJobFinishes", by=False)),
    "variables that are no texts": ("rayjob.yaml", replaced("spec", "runtimeEnvYAML", by="env_vars: {A: 60}")),
    "a runtime environment with a typo": ("rayjob.yaml", replaced("spec", "runtimeEnvYAML", by="env_var: {A: a}")),
    "a typo in the submitter's pod": (
        "rayjob.yaml",
        renamed("spec", "submitterPodTemplate", "spec", "restartPolicy", to="restartpolicy"),
    ),
    "a group without a name": ("raycluster.yaml", removed("spec", "workerGroupSpecs", 0, "groupName")),
    "two groups of one name": ("raycluster.yaml", replaced("spec", "workerGroupSpecs", 0, "groupName", by="gpu")),
    "more at the least than at the most": (
        "raycluster.yaml",
        replaced("spec", "workerGroupSpecs", 0, "minReplicas", by=9),
    ),
    "an option that ray start does not know": (
        "raycluster.yaml",
        replaced("spec", "workerGroupSpecs", 0, "rayStartParams", by={"object-store": "1"}),
    ),
    "a mode of authentication that is none": ("raycluster.yaml", replaced("spec", "authOptions", "mode", by="tokens")),
    "no token": ("raycluster.yaml", removed("spec", "authOptions")),
    "a limit instead of limits": (
        "raycluster.yaml",
        renamed("spec", "workerGroupSpecs", 0, *CONTAINER, "resources", "limits", to="limit"),
    ),
    "a typo in a security context": (
        "raycluster.yaml",
        renamed(
            "spec",
            "headGroupSpec",
            *CONTAINER,
            "securityContext",
            "readOnlyRootFilesystem",
            to="readOnlyRootFileSystem",
        ),
    ),
    "a typo in the autoscaler's security context": (
        "raycluster.yaml",
        renamed("spec", "autoscalerOptions", "securityContext", "capabilities", to="capability"),
    ),
    "an autoscaler that is none": ("raycluster.yaml", replaced("spec", "autoscalerOptions", "version", by="v3")),
    "a pod without containers": ("raycluster.yaml", removed("spec", "headGroupSpec", "template", "spec", "containers")),
    "an old version of the objects": ("raycluster.yaml", replaced("apiVersion", by="ray.io/v1alpha1")),
    "a typo in the network policy": ("networkpolicy.yaml", renamed("spec", "policyTypes", to="policyType")),
    "a port that is a list": ("networkpolicy.yaml", replaced("spec", "ingress", 1, "ports", 0, "port", by=[8265])),
    "a monitor of a port that has no name": (
        "podmonitor.yaml",
        replaced("spec", "podMetricsEndpoints", 0, "port", by=8080),
    ),
    "a typo in the monitor": ("podmonitor.yaml", renamed("spec", "podMetricsEndpoints", to="podMetricEndpoints")),
    "a secret that is a number": ("secrets.example.yaml", replaced("stringData", "AWS_REGION", by=1)),
    "a typo in the secret": ("secrets.example.yaml", renamed("stringData", to="stringdata")),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_manifest_is_refused(damage):
    name, do = DAMAGES[damage]
    # Anchors make parts of a document one object; a damage to one pod must not reach the others.
    document = yaml.safe_load(yaml.dump(copy.deepcopy(manifest(name)), Dumper=_WithoutAnchors))
    check(document)
    do(document)
    with pytest.raises(REFUSED):
        check(document)


class _WithoutAnchors(yaml.SafeDumper):
    def ignore_aliases(self, data):
        return True


def test_the_job_and_the_cluster_that_stays_are_the_same_cluster():
    assert cluster_spec(manifest("rayjob.yaml")) == manifest("raycluster.yaml")["spec"]


def test_ray_is_the_version_in_the_images():
    for name in CLUSTERS:
        assert cluster_spec(manifest(name))["rayVersion"] == pinned("ray")


@pytest.mark.parametrize(("name", "pod"), ALL_PODS)
def test_images_have_one_name_and_a_version(name, pod):
    image = pods(manifest(name))[pod]["spec"]["containers"][0]["image"]
    assert image == f"registry.example.com/ntkpipe:{VERSION}-{'cuda' if pod == 'gpu' else 'cpu'}"


@pytest.mark.parametrize(("name", "pod"), ALL_PODS)
def test_no_pod_has_rights_that_it_does_not_need(name, pod):
    spec = pods(manifest(name))[pod]["spec"]
    user = re.search(r"^USER (\d+):(\d+)$", (DEPLOY / "Dockerfile").read_text(), re.MULTILINE)
    security = spec["securityContext"]
    assert security["runAsNonRoot"] is True
    assert (security["runAsUser"], security["runAsGroup"]) == tuple(map(int, user.groups()))
    assert security["seccompProfile"] == {"type": "RuntimeDefault"}
    # The autoscaler beside the head talks to Kubernetes; nobody else does.
    assert spec.get("automountServiceAccountToken", True) is (pod == "head")
    for container in spec["containers"]:
        assert container["securityContext"] == {
            "allowPrivilegeEscalation": False,
            "readOnlyRootFilesystem": True,
            "capabilities": {"drop": ["ALL"]},
        }
        assert {"name": "HOME", "value": "/tmp"} in container["env"]
        assert "/tmp" in [mount["mountPath"] for mount in container["volumeMounts"]]


@pytest.mark.parametrize(("name", "pod"), ALL_PODS)
def test_limits_are_requests(name, pod):
    for container in pods(manifest(name))[pod]["spec"]["containers"]:
        assert container["resources"]["limits"] == container["resources"]["requests"]


@pytest.mark.parametrize(("name", "pod"), RAY_PODS)
def test_memory_holds_the_object_store_and_a_worker_on_every_cpu(name, pod):
    document = manifest(name)
    spec = cluster_spec(document)
    groups = {group["groupName"]: group for group in spec["workerGroupSpecs"]} | {"head": spec["headGroupSpec"]}
    template = groups[pod]["template"]["spec"]
    volumes = {volume["name"]: volume for volume in template["volumes"]}
    (container,) = template["containers"]
    (shared,) = [mount["name"] for mount in container["volumeMounts"] if mount["mountPath"] == "/dev/shm"]
    assert volumes[shared]["emptyDir"]["medium"] == "Memory"
    size = num_bytes(volumes[shared]["emptyDir"]["sizeLimit"])
    assert int(groups[pod]["rayStartParams"]["object-store-memory"]) < size
    limits = container["resources"]["limits"]
    workers = 0 if pod == "head" else int(limits["cpu"])
    needed = workers * load_config(str(DEPLOY / "run.yaml")).resources.max_worker_bytes + size + 2**30
    assert needed <= num_bytes(limits["memory"])


def test_gpus_are_asked_for_by_the_group_that_has_them_only():
    for name in CLUSTERS:
        for pod, template in pods(manifest(name)).items():
            limits = template["spec"]["containers"][0]["resources"]["limits"]
            assert ("nvidia.com/gpu" in limits) is (pod == "gpu")


def test_no_worker_lands_on_the_head():
    for name in CLUSTERS:
        assert cluster_spec(manifest(name))["headGroupSpec"]["rayStartParams"]["num-cpus"] == "0"


def test_whoever_waits_for_somebody_waits_longer():
    job = manifest("rayjob.yaml")
    driver = load_config(str(DEPLOY / "run.yaml")).resources.grace_seconds
    stop = int(yaml.safe_load(job["spec"]["runtimeEnvYAML"])["env_vars"]["RAY_JOB_STOP_WAIT_TIME_S"])
    notice = int(re.search(r"NOTICE_SECONDS:-(\d+)", (DEPLOY / "launcher" / "spot-notice.sh").read_text()).group(1))
    for name, pod in RAY_PODS:
        spec = pods(manifest(name))[pod]["spec"]
        variables = {entry["name"]: entry["value"] for entry in spec["containers"][0]["env"]}
        drain = int(variables["RAY_GRACEFUL_SHUTDOWN_DRAIN_TIMEOUT_S"])
        waits = [driver, stop, drain, notice, spec["terminationGracePeriodSeconds"]]
        assert waits == sorted(set(waits))
        assert waits == [int(seconds) for seconds in re.findall(r"^\| .* \| (\d+) s \| .*\|$", README, re.MULTILINE)]


def test_the_network_policy_is_about_the_pods_that_there_are():
    policy = manifest("networkpolicy.yaml")["spec"]
    ray, submitter = (
        policy["ingress"][0]["from"][0]["podSelector"]["matchLabels"],
        policy["ingress"][1]["from"][0]["podSelector"]["matchLabels"],
    )
    assert policy["podSelector"]["matchLabels"] == ray
    for name, pod in ALL_PODS:
        labels = pods(manifest(name))[pod]["metadata"]["labels"]
        assert labels == (submitter if pod == "submitter" else ray)
    assert [port["port"] for port in policy["ingress"][1]["ports"]] == [8265]


@pytest.mark.parametrize(("name", "pod"), RAY_PODS)
def test_metrics_can_be_collected_from_every_pod_by_one_namespace(name, pod):
    document, policy, monitor = manifest(name), manifest("networkpolicy.yaml")["spec"], manifest("podmonitor.yaml")
    spec = cluster_spec(document)
    groups = {group["groupName"]: group for group in spec["workerGroupSpecs"]} | {"head": spec["headGroupSpec"]}
    port = int(groups[pod]["rayStartParams"]["metrics-export-port"])
    (container,) = groups[pod]["template"]["spec"]["containers"]
    (endpoint,) = monitor["spec"]["podMetricsEndpoints"]
    assert {"name": endpoint["port"], "containerPort": port} in container["ports"]
    assert monitor["spec"]["selector"] == policy["podSelector"]
    rule = policy["ingress"][2]
    assert [each["port"] for each in rule["ports"]] == [port]
    assert [set(each) for each in rule["from"]] == [{"namespaceSelector"}]
    assert f"on port {port} (`{endpoint['port']}`)" in README


def test_what_differs_between_clusters_is_marked():
    text = (DEPLOY / "kuberay" / "networkpolicy.yaml").read_text()
    names = re.findall(r"kubernetes\.io/metadata\.name: (\S+)( # CHANGE)?$", text, re.MULTILINE)
    assert len(names) == 2
    assert all(mark for _, mark in names)
    (command,) = re.findall(r"^ +# +(kubectl get .*)$", text, re.MULTILINE)
    assert command in README


def test_a_job_that_has_ended_is_made_again():
    # The object stays unless the operator deletes it, and to apply the same again changes nothing.
    assert (
        "kubectl delete rayjob ntkpipe --ignore-not-found\nkubectl apply --filename deploy/kuberay/rayjob.yaml"
        in README
    )


def test_the_secret_has_names_and_no_values():
    secret = manifest("secrets.example.yaml")
    assert set(secret["stringData"].values()) == {""}
    for name, pod in RAY_PODS:
        (container,) = pods(manifest(name))[pod]["spec"]["containers"]
        assert container["envFrom"] == [{"secretRef": {"name": secret["metadata"]["name"]}}]
    assert f"create secret generic {secret['metadata']['name']} " in README


def test_the_entrypoint_reads_the_configuration_that_is_mounted():
    job = manifest("rayjob.yaml")
    spec = pods(job)["head"]["spec"]
    (volume,) = [volume["configMap"]["name"] for volume in spec["volumes"] if "configMap" in volume]
    (mount,) = [mount for mount in spec["containers"][0]["volumeMounts"] if mount["name"] == "run"]
    words = shlex.split(job["spec"]["entrypoint"])
    assert words[:3] == ["ntkpipe", "run", f"{mount['mountPath']}/run.yaml"]
    assert "--or-resume" in words
    assert f"create configmap {volume} --from-file=run.yaml=deploy/run.yaml" in README
