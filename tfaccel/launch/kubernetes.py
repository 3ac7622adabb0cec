"""Jobs of Kubernetes: a JobSet, or by ``--kind job`` an indexed Job with its headless Service.

In each pod `JOB_COMPLETION_INDEX` is the rank, and a template gives the hosts of all, so that one
manifest serves all pods. https://jobset.sigs.k8s.io,
https://kubernetes.io/docs/concepts/workloads/controllers/job/
"""

from __future__ import annotations

import re
import shutil
import subprocess
from collections.abc import Mapping
from typing import Any

from tfaccel.errors import LaunchError
from tfaccel.launch.exit_codes import PREEMPTED
from tfaccel.launch.options import CPUS, GPUS, GRACE, MEMORY, NAME, Option, Options, count
from tfaccel.launch.spec import Job, check_name
from tfaccel.launch.yaml_text import dump

HELP = "a JobSet, or an indexed Job, through kubectl"
SCRIPT_IS_HERE = False
COUNTS_WORKERS = True

PORT = 2222
GRACE_S = 30.0
WORKERS = "workers"
"""The name of the JobSet's only job, and of the container."""

IMAGE = Option(
    "--image", "the container, with Python, tfaccel and the script", "IMAGE", required=True
)
KIND = Option("--kind", "what to make (jobset)", default="jobset", choices=("jobset", "job"))
NAMESPACE = Option("--namespace", "where to make it; by default kubectl's own", "NS")
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
OPTIONS: tuple[Option, ...] = (
    *(NAME, IMAGE, KIND, NAMESPACE, CPUS, MEMORY, GPUS, TPUS),
    *(VOLUME, NODE_SELECTOR, GRACE),
)

# Kubernetes's own forms; what they do not match the API server would refuse later.
_QUANTITY = re.compile(r"[0-9]+(\.[0-9]+)?(m|[kMGTPE]|[KMGTPE]i)?")
_IMAGE = re.compile(r"[A-Za-z0-9][A-Za-z0-9._/:@-]*")
_LABEL = re.compile(
    r"([a-z0-9]([-a-z0-9.]*[a-z0-9])?/)?[A-Za-z0-9]([-A-Za-z0-9_.]{0,61}[A-Za-z0-9])?"
)
_VALUE = re.compile(r"([A-Za-z0-9]([-A-Za-z0-9_.]{0,61}[A-Za-z0-9])?)?")

Manifest = dict[str, Any]


def render(job: Job, options: Options) -> str:
    """The manifest as YAML, of one or two objects.

    Raises:
        LaunchError: an option that Kubernetes would not take.
    """
    return dump(*manifests(job, options))


def launch(job: Job, options: Options) -> int:
    """Gives the manifest to ``kubectl apply``."""
    manifest = render(job, options)
    if shutil.which("kubectl") is None:
        raise LaunchError(
            "kubectl is not here, expected Kubernetes's command line, set up for a cluster: "
            "https://kubernetes.io/docs/tasks/tools; --dry-run prints the manifest"
        )
    done = subprocess.run(["kubectl", "apply", "-f", "-"], input=manifest, text=True)
    if done.returncode == 0:
        print(f"tfaccel launch: follow rank 0 with: {_follow(job, options)}", flush=True)
    return done.returncode


def manifests(job: Job, options: Options) -> list[Manifest]:
    """The objects to make: a pure function."""
    if options["kind"] == "jobset":
        return [_jobset(job, options)]
    return [_service(job, options), _indexed_job(job, options)]


def _jobset(job: Job, options: Options) -> Manifest:
    """All workers are one Job, which a restart makes anew: never one worker alone."""
    failed = {"action": "FailJob"}  # of the reason PodFailurePolicy, which the rule below takes up
    return {
        "apiVersion": "jobset.x-k8s.io/v1alpha2",
        "kind": "JobSet",
        "metadata": _metadata(job, options),
        "spec": {
            "network": {
                "enableDNSHostnames": True,
                "subdomain": job.name,
                "publishNotReadyAddresses": True,
            },
            "failurePolicy": {
                "maxRestarts": job.max_restarts,
                # The new pods have the names of the old ones, which must be gone.
                "restartStrategy": "BlockingRecreate",
                "rules": [
                    {
                        "name": "preempted",
                        "action": "RestartJobSetAndIgnoreMaxRestarts",
                        "onJobFailureReasons": ["PodFailurePolicy"],
                    }
                ],
            },
            "replicatedJobs": [
                {
                    "name": WORKERS,
                    "replicas": 1,
                    "template": {
                        "spec": _job_spec(
                            job, options, failed, 0, f"{job.name}-{WORKERS}-0-{{rank}}.{job.name}"
                        )
                    },
                }
            ],
        },
    }


def _indexed_job(job: Job, options: Options) -> Manifest:
    """Here each worker is started again by itself: the others fail with it and follow it."""
    ignored = {"action": "Ignore"}
    limit = job.max_restarts * job.workers
    spec = _job_spec(job, options, ignored, limit, f"{job.name}-{{rank}}.{job.name}")
    spec["podReplacementPolicy"] = "Failed"
    spec["template"]["spec"]["subdomain"] = job.name
    return {
        "apiVersion": "batch/v1",
        "kind": "Job",
        "metadata": _metadata(job, options),
        "spec": spec,
    }


def _service(job: Job, options: Options) -> Manifest:
    return {
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": _metadata(job, options),
        "spec": {
            "clusterIP": "None",
            # Workers look each other up before any of them is ready.
            "publishNotReadyAddresses": True,
            "selector": {"batch.kubernetes.io/job-name": job.name},
            "ports": [{"name": "workers", "port": PORT}],
        },
    }


def _job_spec(
    job: Job, options: Options, preempted: Mapping[str, str], backoff_limit: int, hosts: str
) -> Manifest:
    return {
        "completionMode": "Indexed",
        "completions": job.workers,
        "parallelism": job.workers,
        "backoffLimit": backoff_limit,
        "podFailurePolicy": {
            "rules": [
                {
                    **preempted,
                    "onExitCodes": {
                        "containerName": WORKERS,
                        "operator": "In",
                        "values": [PREEMPTED],
                    },
                },
                {
                    **preempted,
                    "onPodConditions": [{"type": "DisruptionTarget", "status": "True"}],
                },
            ]
        },
        "template": {"spec": _pod(job, options, hosts)},
    }


def _pod(job: Job, options: Options, hosts: str) -> Any:
    claims = [_claim(text) for text in options["volume"]]
    mounts = [{"name": f"volume-{i}", "mountPath": path} for i, (_, path) in enumerate(claims)]
    volumes: list[Manifest] = [
        {"name": f"volume-{i}", "persistentVolumeClaim": {"claimName": claim}}
        for i, (claim, _) in enumerate(claims)
    ]
    if options["gpus"]:  # NCCL wants more shared memory than the 64 MB of a container.
        mounts.append({"name": "shared-memory", "mountPath": "/dev/shm"})
        volumes.append({"name": "shared-memory", "emptyDir": {"medium": "Memory"}})
    grace_s = GRACE_S if options["grace"] is None else options["grace"]
    pod = {
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
    return _without_empty(pod)


def _environment(job: Job, hosts: str) -> list[Manifest]:
    own = {
        "TFACCEL_NUM_WORKERS": str(job.workers),
        "TFACCEL_WORKER_HOSTS": hosts,
        "TFACCEL_WORKER_PORT": str(PORT),
        **job.variables(),
    }
    # The same in all pods of one try, and another in the next one.
    uid = {"fieldRef": {"fieldPath": "metadata.labels['batch.kubernetes.io/controller-uid']"}}
    named: list[Manifest] = [{"name": "TFACCEL_JOB_ID", "valueFrom": uid}]
    return named + [{"name": name, "value": _literal(value)} for name, value in own.items()]


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
        # More than it requested would be taken from its neighbours, until one of them is killed.
        limits["memory"] = requests["memory"]
    return {"requests": requests, "limits": limits}


def _metadata(job: Job, options: Options) -> Manifest:
    metadata = {"name": job.name}
    if options["namespace"]:
        metadata["namespace"] = check_name(options["namespace"], NAMESPACE.flag)
    return metadata


def _claim(text: str) -> tuple[str, str]:
    claim, _, path = text.partition(":")
    if not path.startswith("/") or ":" in path:
        raise LaunchError(
            f"--volume is {text!r}, expected a claim and an absolute path, such as "
            "checkpoints:/checkpoints"
        )
    return check_name(claim, "the claim of --volume"), path


def _selector(text: str) -> tuple[str, str]:
    label, equals, value = text.partition("=")
    if not equals or not _LABEL.fullmatch(label) or not _VALUE.fullmatch(value):
        raise LaunchError(
            f"--node-selector is {text!r}, expected LABEL=VALUE, such as "
            "cloud.google.com/gke-tpu-topology=2x4"
        )
    return label, value


def _checked(option: Option, value: str, form: re.Pattern[str], example: str) -> str:
    if not form.fullmatch(value):
        raise LaunchError(f"{option.flag} is {value!r}, expected such as {example}")
    return value


def _without_empty(value: Any) -> Any:
    """The same without fields that hold nothing."""
    if isinstance(value, dict):
        made = {key: _without_empty(inner) for key, inner in value.items()}
        return {key: inner for key, inner in made.items() if inner not in ({}, [])}
    if isinstance(value, list):
        return [_without_empty(inner) for inner in value]
    return value


def _follow(job: Job, options: Options) -> str:
    label = "jobset.sigs.k8s.io/jobset-name" if options["kind"] == "jobset" else "job-name"
    namespace = f" --namespace {options['namespace']}" if options["namespace"] else ""
    chosen = f"{label}={job.name},batch.kubernetes.io/job-completion-index=0"
    return f"kubectl logs{namespace} --follow --selector {chosen}"
