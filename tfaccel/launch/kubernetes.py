"""Kubernetes jobs: a JobSet, or with ``--kind job`` an indexed Job with its headless Service.

In each pod `JOB_COMPLETION_INDEX` is the rank, and a template gives the hosts of all, so that one
manifest serves all pods. https://jobset.sigs.k8s.io,
https://kubernetes.io/docs/concepts/workloads/controllers/job/
"""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Mapping

from tfaccel.errors import LaunchError
from tfaccel.exit_codes import NO_PROGRESS, PREEMPTED
from tfaccel.launch.data_service import DATA_WORKERS
from tfaccel.launch.kubernetes_pod import (
    IMAGE,
    NODE_SELECTOR,
    PORT,
    TPUS,
    VOLUME,
    WORKERS,
    Manifest,
    pod,
)
from tfaccel.launch.options import CPUS, GPUS, GRACE, MEMORY, NAME, Option, Options
from tfaccel.launch.profile import PROFILE
from tfaccel.launch.show import SHOW
from tfaccel.launch.spec import Job, check_name
from tfaccel.launch.yaml_text import dump

HELP = "a JobSet, or an indexed Job, through kubectl"
SCRIPT_IS_LOCAL = False
COUNTS_WORKERS = True
TAKES_RANGES = False

KIND = Option(
    "--kind", "kind of resource to create (jobset)", default="jobset", choices=("jobset", "job")
)
NAMESPACE = Option("--namespace", "namespace; default: that of kubectl", "NS")
OPTIONS: tuple[Option, ...] = (
    *(NAME, IMAGE, KIND, NAMESPACE, CPUS, MEMORY, GPUS, TPUS),
    *(VOLUME, NODE_SELECTOR, GRACE, SHOW, PROFILE, DATA_WORKERS),
)

# Of the message that a Job fails with by a rule about an exit code (Kubernetes's
# pkg/controller/job/pod_failure_policy.go): no rule has a reason of its own.
_NO_PROGRESS_MESSAGE = f"failed with exit code {NO_PROGRESS} matching FailJob rule"


def render(job: Job, options: Options) -> str:
    """The manifest as YAML, with one or two objects.

    Raises:
        LaunchError: an option that Kubernetes would reject.
    """
    return dump(*manifests(job, options))


def launch(job: Job, options: Options) -> int:
    """Passes the manifest to ``kubectl apply``."""
    manifest = render(job, options)
    if shutil.which("kubectl") is None:
        raise LaunchError(
            "kubectl is not installed; expected Kubernetes's command line, set up for a cluster: "
            "https://kubernetes.io/docs/tasks/tools; --dry-run prints the manifest"
        )
    done = subprocess.run(["kubectl", "apply", "-f", "-"], input=manifest, text=True)
    if done.returncode == 0:
        print(f"tfaccel launch: follow rank 0 with: {_follow(job, options)}", flush=True)
    return done.returncode


def manifests(job: Job, options: Options) -> list[Manifest]:
    """The objects to create: a pure function."""
    if options["kind"] == "jobset":
        return [_jobset(job, options)]
    return [_service(job, options), _indexed_job(job, options)]


def _jobset(job: Job, options: Options) -> Manifest:
    """All workers are one Job, which a restart recreates: never one worker alone."""
    failed = {"action": "FailJob"}  # with the reason PodFailurePolicy, which the rules below match
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
                # The new pods reuse the names of the old ones, which must be gone.
                "restartStrategy": "BlockingRecreate",
                "rules": [
                    {
                        "name": "no_progress",
                        "action": "FailJobSet",
                        "onJobFailureReasons": ["PodFailurePolicy"],
                        "onJobFailureMessagePatterns": [_NO_PROGRESS_MESSAGE],
                    },
                    {
                        "name": "preempted",
                        "action": "RestartJobSetAndIgnoreMaxRestarts",
                        "onJobFailureReasons": ["PodFailurePolicy"],
                    },
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
    """Here each worker is restarted separately: the others fail with it and restart too."""
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
                {"action": "FailJob", "onExitCodes": _exit_code(NO_PROGRESS)},
                {**preempted, "onExitCodes": _exit_code(PREEMPTED)},
                {
                    **preempted,
                    "onPodConditions": [{"type": "DisruptionTarget", "status": "True"}],
                },
            ]
        },
        "template": {"spec": pod(job, options, hosts)},
    }


def _exit_code(code: int) -> Manifest:
    return {"containerName": WORKERS, "operator": "In", "values": [code]}


def _metadata(job: Job, options: Options) -> Manifest:
    metadata = {"name": job.name}
    if options["namespace"]:
        metadata["namespace"] = check_name(options["namespace"], NAMESPACE.flag)
    return metadata


def _follow(job: Job, options: Options) -> str:
    label = "jobset.sigs.k8s.io/jobset-name" if options["kind"] == "jobset" else "job-name"
    namespace = f" --namespace {options['namespace']}" if options["namespace"] else ""
    chosen = f"{label}={job.name},batch.kubernetes.io/job-completion-index=0"
    return f"kubectl logs{namespace} --follow --selector {chosen}"
