"""TPU slices of GKE: a JobSet a slice, whose one job has a pod a host, behind a queue of Kueue where one is named.

A JobSet a slice, not one for all: slices are then admitted, preempted and started again one by one, and nothing takes
them for one multislice program. Needs JobSet 0.10 or newer (jobset.sigs.k8s.io), for rules by message.
"""

import re
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import yaml

from scaling.launch import launcher
from scaling.launch.launchers.tpu import slices

if TYPE_CHECKING:
    from scaling.launch.launchers.tpu import Tpu

CONTAINER = "worker"
CONFIG = "/etc/scaling"  # where the sweep's Python file is, and what it imports from beside it
# Bytes of its text at most: `kubectl apply` keeps a copy of a ConfigMap, as JSON, in its annotations, which may have
# 256 KiB in all.
CONFIG_BYTES = 200_000
FOLDER = "/work"  # where workers run: with their text and caches, on the disk of the node
# A worker saves its run after the dispatch that it is in. Of a spot node, GKE grants pods at most 15 s of its last 30:
# cloud.google.com/kubernetes-engine/docs/concepts/spot-vms; what is deleted or drained otherwise has all of it.
GRACE_SECONDS = 120
# Device files belong to root, and Kubernetes gives them to no other user unless the node's runtime is set so:
# kubernetes.io/blog/2021/11/09/non-root-containers-and-devices.
SECURITY = {"runAsUser": 0, "allowPrivilegeEscalation": False}
KEPT_SECONDS = 24 * 3600  # how long a JobSet that has ended can still be looked at


def files(settings: "Tpu", job: launcher.Job) -> dict[str, str]:
    """The manifest: the sweep's Python file and what it imports, where it has one, and a JobSet a slice."""
    sources = job.sources()
    documents = [_config_map(settings, job, sources)] if sources else []
    documents += [_jobset(settings, job, number) for number in range(slices.workers(job))]
    text = yaml.dump_all(documents, Dumper=_Dumper, sort_keys=False, allow_unicode=True, width=120)
    return {"jobset.yaml": text}


class _Dumper(yaml.SafeDumper):
    """PyYAML's safe dumper, with text of several lines written as such."""


def _text(dumper: yaml.SafeDumper, text: str) -> yaml.ScalarNode:
    unusual = any(mark in text for mark in "\x85\u2028\u2029")  # ends of lines to YAML, which reads others for them
    style = '"' if unusual else "|" if "\n" in text else None
    return dumper.represent_scalar("tag:yaml.org,2002:str", text, style=style)


_Dumper.add_representer(str, _text)
_Dumper.ignore_aliases = lambda self, data: True  # type: ignore[method-assign]  # no anchors: a person reads it


def _config_map(settings: "Tpu", job: launcher.Job, sources: Mapping[str, str]) -> dict[str, Any]:
    size = sum(len(text.encode()) for text in sources.values())
    keys = {_key(path) for path in sources}
    if size > CONFIG_BYTES or len(keys) < len(sources):
        raise ValueError(
            f"{job.config_path} and what it imports from beside it ({', '.join(sources)}; {size:,} bytes) cannot be "
            f"sent as a ConfigMap, which has no folders and at most {CONFIG_BYTES:,} bytes; install the modules in the "
            "image"
        )
    return {
        "apiVersion": "v1",
        "kind": "ConfigMap",
        "metadata": {"name": _config_name(job), "namespace": settings.namespace, "labels": _labels(job)},
        "data": {_key(path): text for path, text in sources.items()},
    }


def _key(path: str) -> str:
    """The name of a file in a ConfigMap, which has no folders: letters, digits, '-', '_' and '.'."""
    return re.sub(r"[^-._a-zA-Z0-9]", "-", path.replace("/", "--"))


def _config_name(job: launcher.Job) -> str:
    return f"{slices.base_name(job)}-config"


def _labels(job: launcher.Job) -> dict[str, str]:
    return {"app.kubernetes.io/name": "scaling", "app.kubernetes.io/instance": slices.base_name(job)}


def _jobset(settings: "Tpu", job: launcher.Job, number: int) -> dict[str, Any]:
    labels = _labels(job)
    if settings.queue is not None:
        labels |= {"kueue.x-k8s.io/queue-name": settings.queue}
    metadata: dict[str, Any] = {
        "name": f"{slices.base_name(job)}-{number}",
        "namespace": settings.namespace,
        "labels": labels,
    }
    if settings.slice.hosts > 1:  # a slice of several hosts is a node pool: all pods in one, and no others in it
        metadata["annotations"] = {"alpha.jobset.sigs.k8s.io/exclusive-topology": "cloud.google.com/gke-nodepool"}
    return {
        "apiVersion": "jobset.x-k8s.io/v1alpha2",
        "kind": "JobSet",
        "metadata": metadata,
        "spec": {
            "ttlSecondsAfterFinished": KEPT_SECONDS,
            "network": {"enableDNSHostnames": True, "publishNotReadyAddresses": True},  # hosts find each other by name
            "failurePolicy": _failure_policy(),
            "replicatedJobs": [{"name": "slice", "replicas": 1, "template": {"spec": _job(settings, job)}}],
        },
    }


def _failure_policy() -> dict[str, Any]:
    """Refused: failed for good. Infrastructure: all pods again, for ever. Any other end: again, a few times.

    The message of the job's failure says what failed: it names the rule of `_pod_failure_policy` by its
    index; a failure that none of them matched has another reason (BackoffLimitExceeded), and counts.
    """
    matched = {"onJobFailureReasons": ["PodFailurePolicy"]}
    return {
        "maxRestarts": launcher.RESTARTS,
        "rules": [
            {
                "name": "refused",
                "action": "FailJobSet",
                **matched,
                "onJobFailureMessagePatterns": ["matching FailJob rule at index 0$"],
            },
            {"name": "infrastructure", "action": "RestartJobSetAndIgnoreMaxRestarts", **matched},
        ],
    }


def _pod_failure_policy() -> dict[str, Any]:
    def codes(*values: int) -> dict[str, Any]:
        return {"containerName": CONTAINER, "operator": "In", "values": list(values)}

    return {
        "rules": [
            {"action": "FailJob", "onExitCodes": codes(launcher.REFUSED)},
            {"action": "FailJob", "onExitCodes": codes(*slices.RESUMED)},
            {"action": "FailJob", "onPodConditions": [{"type": "DisruptionTarget", "status": "True"}]},
        ]
    }


def _job(settings: "Tpu", job: launcher.Job) -> dict[str, Any]:
    hosts = settings.slice.hosts
    return {
        "completionMode": "Indexed",  # GKE takes a pod's index for its TPU_WORKER_ID
        "parallelism": hosts,
        "completions": hosts,
        "backoffLimit": 0,  # no pod is replaced alone: hosts of a slice only start together
        "podFailurePolicy": _pod_failure_policy(),
        "template": {"metadata": {"labels": _labels(job)}, "spec": _pod(settings, job)},
    }


def _pod(settings: "Tpu", job: launcher.Job) -> dict[str, Any]:
    chosen = settings.slice
    selector = {
        "cloud.google.com/gke-tpu-accelerator": chosen.generation.label,
        "cloud.google.com/gke-tpu-topology": chosen.topology,
    }
    tolerations = [{"key": "google.com/tpu", "operator": "Exists", "effect": "NoSchedule"}]
    if settings.spot:
        selector["cloud.google.com/gke-spot"] = "true"
        spot = {"key": "cloud.google.com/gke-spot", "operator": "Equal", "value": "true", "effect": "NoSchedule"}
        tolerations.append(spot)
    volumes: list[dict[str, Any]] = [{"name": "work", "emptyDir": {}}]
    if sources := job.sources():
        kept: dict[str, Any] = {"name": _config_name(job)}
        if any(_key(path) != path for path in sources):
            kept["items"] = [{"key": _key(path), "path": path} for path in sources]
        volumes.append({"name": "config", "configMap": kept})
    fetching: dict[str, Any] = {}
    if settings.text is not None:
        fetching["initContainers"] = [_fetcher(settings, settings.text)]
    account = {} if settings.service_account is None else {"serviceAccountName": settings.service_account}
    return {
        "restartPolicy": "Never",
        "terminationGracePeriodSeconds": GRACE_SECONDS,
        **account,
        "nodeSelector": selector,
        "tolerations": tolerations,
        **fetching,
        "containers": [_container(settings, job)],
        "volumes": volumes,
    }


def _fetcher(settings: "Tpu", text: str) -> dict[str, Any]:
    return {
        "name": "text",
        "image": settings.image,
        "command": _literal(slices.fetch_command(text, "python")),
        "workingDir": FOLDER,
        "securityContext": SECURITY,
        "volumeMounts": [{"name": "work", "mountPath": FOLDER}],
    }


def _literal(command: list[str]) -> list[str]:
    """A command that Kubernetes leaves as it is: it puts variables for $(NAME), and $ for $$."""
    return [word.replace("$", "$$") for word in command]


def _container(settings: "Tpu", job: launcher.Job) -> dict[str, Any]:
    variables = {
        **slices.environment(job),
        "SCALING_CACHE": f"{FOLDER}/cache",
        "JAX_COMPILATION_CACHE_DIR": f"{FOLDER}/cache/compiled",
    }
    environment: list[dict[str, Any]] = [{"name": name, "value": value} for name, value in variables.items()]
    for name in job.secrets:
        environment.append({"name": name, "valueFrom": {"secretKeyRef": {"name": settings.secret, "key": name}}})
    mounts: list[dict[str, Any]] = [{"name": "work", "mountPath": FOLDER}]
    if job.config_path is not None:
        mounts.append({"name": "config", "mountPath": CONFIG, "readOnly": True})
    chips = {"google.com/tpu": settings.slice.chips_per_host}
    return {
        "name": CONTAINER,
        "image": settings.image,
        "command": _literal(job.worker_command("python", CONFIG)),
        "workingDir": FOLDER,
        "env": environment,
        "resources": {"requests": chips, "limits": chips},
        "securityContext": SECURITY,
        "volumeMounts": mounts,
    }
