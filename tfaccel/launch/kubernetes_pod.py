"""The pods of a job on Kubernetes: image, command, resources and variables."""

from __future__ import annotations

import re
from dataclasses import replace
from typing import Any

from tfaccel.cluster import job_secret
from tfaccel.errors import LaunchError
from tfaccel.launch.options import CPUS, GPUS, MEMORY, Option, Options, count
from tfaccel.launch.show import ALL
from tfaccel.launch.spec import Job, check_name

PORT = 2222
GRACE_S = 30.0
WORKERS = "workers"
"""The name of the JobSet's only job, and of the container."""

IMAGE = Option(
    "--image", "container image with Python, tfaccel and the script", "IMAGE", required=True
)
VOLUME = Option(
    "--volume",
    "a volume claim and where to mount it, for checkpoints",
    "CLAIM:/PATH",
    repeated=True,
)
NODE_SELECTOR = Option(
    "--node-selector", "a label that the nodes must have", "LABEL=VALUE", repeated=True
)
TPUS = Option("--tpus", "TPU chips of each worker (GKE)", "N", type=count)

# Kubernetes's own formats; the API server would reject anything else later.
_QUANTITY = re.compile(r"[0-9]+(\.[0-9]+)?(m|[kMGTPE]|[KMGTPE]i)?")
_IMAGE = re.compile(r"[A-Za-z0-9][A-Za-z0-9._/:@-]*")
_LABEL = re.compile(
    r"([a-z0-9]([-a-z0-9.]*[a-z0-9])?/)?[A-Za-z0-9]([-A-Za-z0-9_.]{0,61}[A-Za-z0-9])?"
)
_VALUE = re.compile(r"([A-Za-z0-9]([-A-Za-z0-9_.]{0,61}[A-Za-z0-9])?)?")

Manifest = dict[str, Any]


def pod(job: Job, options: Options, hosts: str) -> Manifest:
    """The specification of the pods, one for all workers.

    Args:
        job: what to run.
        options: the engine's own.
        hosts: of all workers, with ``{rank}`` in place of the completion index.

    Raises:
        LaunchError: an option that Kubernetes would reject.
    """
    claims = [_claim(text) for text in options["volume"]]
    mounts = [{"name": f"volume-{i}", "mountPath": path} for i, (_, path) in enumerate(claims)]
    volumes: list[Manifest] = [
        {"name": f"volume-{i}", "persistentVolumeClaim": {"claimName": claim}}
        for i, (claim, _) in enumerate(claims)
    ]
    if options["gpus"]:  # NCCL needs more shared memory than a container's 64 MB.
        mounts.append({"name": "shared-memory", "mountPath": "/dev/shm"})
        volumes.append({"name": "shared-memory", "emptyDir": {"medium": "Memory"}})
    grace_s = GRACE_S if options["grace"] is None else options["grace"]
    if job.show is None and job.log_dir is not None:
        job = replace(job, show=ALL)  # its logs are looked up by its name
    manifest: Manifest = {
        "restartPolicy": "Never",
        "terminationGracePeriodSeconds": int(grace_s),
        "automountServiceAccountToken": False,
        "nodeSelector": dict(_selector(text) for text in options["node_selector"]),
        "containers": [
            {
                "name": WORKERS,
                "image": _checked(IMAGE, options["image"], _IMAGE, "gcr.io/mine/train:1"),
                "command": [_literal(word) for word in job.logged_command("python")],
                "env": _environment(job, hosts),
                "ports": [{"name": "workers", "containerPort": PORT}],
                "resources": _resources(options),
                "securityContext": {"allowPrivilegeEscalation": False},
                "volumeMounts": mounts,
            }
        ],
        "volumes": volumes,
    }
    return {key: _without_empty(value) for key, value in manifest.items() if value not in ({}, [])}


def _environment(job: Job, hosts: str) -> list[Manifest]:
    literals = {
        "TFACCEL_NUM_WORKERS": str(job.workers),
        "TFACCEL_WORKER_HOSTS": hosts,
        "TFACCEL_WORKER_PORT": str(PORT),
        **job.variables(),
    }
    # The same in all pods of one attempt, and different in the next: 122 random bits, known only to
    # those who may read the objects of the namespace. Workers that have a secret send neither.
    uid = {"fieldRef": {"fieldPath": "metadata.labels['batch.kubernetes.io/controller-uid']"}}
    named: list[Manifest] = [
        {"name": name, "valueFrom": uid} for name in ("TFACCEL_JOB_ID", job_secret.VARIABLE)
    ]
    return named + [{"name": name, "value": _literal(value)} for name, value in literals.items()]


def _literal(text: str) -> str:
    """A text in which Kubernetes expands no ``$(VARIABLE)``.

    >>> _literal("$(HOME) costs 3$")
    '$$(HOME) costs 3$$'
    """
    return text.replace("$", "$$")


def _resources(options: Options) -> Manifest:
    requests = {
        name: _checked(option, options[option.dest], _QUANTITY, example)
        for name, option, example in (("cpu", CPUS, "4"), ("memory", MEMORY, "16Gi"))
        if options[option.dest] is not None
    }
    limits = {
        name: str(options[option.dest])
        for name, option in (("nvidia.com/gpu", GPUS), ("google.com/tpu", TPUS))
        if options[option.dest] is not None
    }
    if "memory" in requests:
        # Memory beyond the request would be taken from other pods, until one of them is killed.
        limits["memory"] = requests["memory"]
    return {"requests": requests, "limits": limits}


def _claim(text: str) -> tuple[str, str]:
    claim, _, path = text.partition(":")
    if not path.startswith("/") or ":" in path:
        raise LaunchError(
            f"--volume is {text!r}; expected a claim and an absolute path, such as "
            "checkpoints:/checkpoints"
        )
    return check_name(claim, "the claim of --volume"), path


def _selector(text: str) -> tuple[str, str]:
    label, equals, value = text.partition("=")
    if not equals or not _LABEL.fullmatch(label) or not _VALUE.fullmatch(value):
        raise LaunchError(
            f"--node-selector is {text!r}; expected LABEL=VALUE, such as "
            "cloud.google.com/gke-tpu-topology=2x4"
        )
    return label, value


def _checked(option: Option, value: str, form: re.Pattern[str], example: str) -> str:
    if not form.fullmatch(value):
        raise LaunchError(f"{option.flag} is {value!r}; expected such as {example}")
    return value


def _without_empty(value: Any) -> Any:
    """The same without empty fields."""
    if isinstance(value, dict):
        inner_values = {key: _without_empty(inner) for key, inner in value.items()}
        return {key: inner for key, inner in inner_values.items() if inner not in ({}, [])}
    if isinstance(value, list):
        return [_without_empty(inner) for inner in value]
    return value
