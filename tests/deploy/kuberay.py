"""A strict model of the fields of KubeRay's RayJob, RayCluster and RayService, and of the PodMonitor, that deploy/ uses.

The operators' own schemas are not published as packages. Unknown fields and wrong types are refused here, as a strict server
would; pod templates are checked against Kubernetes' schema.
"""

import json
from functools import cache
from typing import Annotated, Any, Literal, Self

import kubernetes_validate
import yaml
from pydantic import AfterValidator, BaseModel, ConfigDict, Field, TypeAdapter, model_validator
from pydantic.alias_generators import to_camel


def pod_template(template: dict[str, Any]) -> dict[str, Any]:
    """Refuse what Kubernetes would refuse."""
    core({"apiVersion": "v1", "kind": "PodTemplate", "metadata": {"name": "checked"}, "template": template})
    return template


def container(fields: dict[str, Any]) -> dict[str, Any]:
    """Refuse fields that no container has."""
    pod_template({"spec": {"containers": [{"name": "checked"} | fields]}})
    return fields


def start_options(options: dict[str, str]) -> dict[str, str]:
    """Refuse what ``ray start`` does not know."""
    from ray.scripts.scripts import start

    known = {option.removeprefix("--") for parameter in start.params for option in parameter.opts}
    if unknown := sorted(set(options) - known):
        raise ValueError(f"ray start has no {unknown}")
    return options


def runtime_env(text: str) -> str:
    """Refuse anything but variables; Ray only warns of keys that it does not know."""
    if set(found := yaml.safe_load(text)) != {"env_vars"}:
        raise ValueError(f"a runtime environment of {sorted(found)}; only env_vars is used")
    TypeAdapter(dict[str, str]).validate_python(found["env_vars"], strict=True)
    return text


def core(document: dict[str, Any]) -> None:
    """Check an object of Kubernetes itself.

    Raises:
        kubernetes_validate.ValidationError: A field is unknown, missing or of the wrong type.
    """
    _core(json.dumps(document, sort_keys=True))


@cache
def _core(document: str) -> None:
    # The schema is read again for each object, and most objects here are checked many times.
    kubernetes_validate.validate(json.loads(document), kubernetes_validate.latest_version(), strict=True)


def serve_config(text: str) -> str:
    """Refuse what Ray Serve would refuse, and names that it would only pass over."""
    from ray.serve.schema import HTTPOptionsSchema, ServeDeploySchema

    document = yaml.safe_load(text)
    ServeDeploySchema.model_validate(document)
    for part, schema in [(document, ServeDeploySchema), (document.get("http_options", {}), HTTPOptionsSchema)]:
        if unknown := sorted(set(part) - set(schema.model_fields)):
            raise ValueError(f"Ray Serve has no {unknown}")
    return text


PodTemplate = Annotated[dict[str, Any], AfterValidator(pod_template)]
StartParams = Annotated[dict[str, str], AfterValidator(start_options)]
Count = Annotated[int, Field(ge=0)]


class Fields(BaseModel):
    """Fields as they are written, and no others."""

    model_config = ConfigDict(extra="forbid", strict=True, alias_generator=to_camel)


class Metadata(Fields):
    name: str = Field(pattern=r"^[a-z]([-a-z0-9]*[a-z0-9])?$", max_length=47)
    namespace: str | None = None
    labels: dict[str, str] = {}
    annotations: dict[str, str] = {}


class AuthOptions(Fields):
    mode: Literal["token", "disabled"]
    secret_name: str | None = None


class AutoscalerOptions(Fields):
    version: Literal["v1", "v2"]
    idle_timeout_seconds: Count
    upscaling_mode: Literal["Default", "Conservative", "Aggressive"] = "Default"
    resources: Annotated[dict[str, Any], AfterValidator(lambda found: container({"resources": found}))]
    security_context: Annotated[dict[str, Any], AfterValidator(lambda found: container({"securityContext": found}))]


class HeadGroup(Fields):
    service_type: Literal["ClusterIP", "NodePort", "LoadBalancer"] = "ClusterIP"
    ray_start_params: StartParams
    template: PodTemplate


class WorkerGroup(Fields):
    group_name: str = Field(pattern=r"^[a-z]([-a-z0-9]*[a-z0-9])?$")
    replicas: Count | None = None
    min_replicas: Count
    max_replicas: Count
    num_of_hosts: int = Field(1, ge=1)
    ray_start_params: StartParams
    template: PodTemplate

    @model_validator(mode="after")
    def _least_is_not_most(self) -> Self:
        if not self.min_replicas <= self.max_replicas:
            raise ValueError(f"{self.group_name}: minReplicas is above maxReplicas")
        return self


class ClusterSpec(Fields):
    ray_version: str = Field(pattern=r"^\d+\.\d+\.\d+$")
    auth_options: AuthOptions
    enable_in_tree_autoscaling: bool
    autoscaler_options: AutoscalerOptions
    head_group_spec: HeadGroup
    worker_group_specs: list[WorkerGroup] = Field(min_length=1)

    @model_validator(mode="after")
    def _names_differ(self) -> Self:
        names = [group.group_name for group in self.worker_group_specs]
        if len(set(names)) < len(names):
            raise ValueError(f"groupName is not unique: {names}")
        return self


class SubmitterConfig(Fields):
    backoff_limit: Count


class JobSpec(Fields):
    entrypoint: str = Field(min_length=1)
    runtime_env_yaml: Annotated[str, AfterValidator(runtime_env)] = Field(alias="runtimeEnvYAML")
    submission_mode: Literal["K8sJobMode", "HTTPMode", "InteractiveMode", "SidecarMode"]
    backoff_limit: Count
    submitter_config: SubmitterConfig
    shutdown_after_job_finishes: bool
    ttl_seconds_after_finished: Count
    active_deadline_seconds: Annotated[int, Field(ge=1)]
    submitter_pod_template: PodTemplate
    ray_cluster_spec: ClusterSpec

    @model_validator(mode="after")
    def _nothing_stays(self) -> Self:
        if self.ttl_seconds_after_finished and not self.shutdown_after_job_finishes:
            raise ValueError("ttlSecondsAfterFinished does nothing without shutdownAfterJobFinishes")
        return self


class ServiceSpec(Fields):
    serve: Annotated[str, AfterValidator(serve_config)] = Field(alias="serveConfigV2")
    ray_cluster_config: ClusterSpec


class RayCluster(Fields):
    api_version: Literal["ray.io/v1"]
    kind: Literal["RayCluster"]
    metadata: Metadata
    spec: ClusterSpec


class RayJob(Fields):
    api_version: Literal["ray.io/v1"]
    kind: Literal["RayJob"]
    metadata: Metadata
    spec: JobSpec


class RayService(Fields):
    api_version: Literal["ray.io/v1"]
    kind: Literal["RayService"]
    metadata: Metadata
    spec: ServiceSpec


class Selector(Fields):
    match_labels: dict[str, str] = Field(min_length=1)


class MetricsEndpoint(Fields):
    port: str = Field(pattern=r"^[a-z]([-a-z0-9]*[a-z0-9])?$", max_length=15)
    path: str = Field(pattern="^/")
    interval: str = Field(pattern=r"^\d+(s|m)$")


class PodMonitorSpec(Fields):
    selector: Selector
    pod_target_labels: list[str] = []
    pod_metrics_endpoints: list[MetricsEndpoint] = Field(min_length=1)


class PodMonitor(Fields):
    api_version: Literal["monitoring.coreos.com/v1"]
    kind: Literal["PodMonitor"]
    metadata: Metadata
    spec: PodMonitorSpec


OBJECTS: dict[str, type[RayCluster | RayJob | RayService | PodMonitor]] = {
    "PodMonitor": PodMonitor,
    "RayCluster": RayCluster,
    "RayJob": RayJob,
    "RayService": RayService,
}


def check(document: dict[str, Any]) -> None:
    """Check an object of Kubernetes or KubeRay.

    Raises:
        kubernetes_validate.ValidationError: It, or a pod template in it, is not what Kubernetes accepts.
        pydantic.ValidationError: A field of KubeRay is unknown, missing, or has a wrong type or value.
    """
    if document["kind"] in OBJECTS:
        OBJECTS[document["kind"]].model_validate(document)
    else:
        core(document)
