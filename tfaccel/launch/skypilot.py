"""SkyPilot managed jobs: a task file for `sky jobs launch`, on any cloud that it supports.

https://docs.skypilot.co/en/latest/reference/yaml-spec.html
"""

from __future__ import annotations

import os
import re
import shlex
import shutil
import subprocess
import tempfile
from typing import Any

from tfaccel.cluster import job_secret
from tfaccel.errors import LaunchError
from tfaccel.exit_codes import PREEMPTED
from tfaccel.launch.data_service import DATA_WORKERS
from tfaccel.launch.options import CPUS, MEMORY, NAME, SPOT, Option, Options
from tfaccel.launch.profile import PROFILE
from tfaccel.launch.show import SHOW
from tfaccel.launch.spec import Job
from tfaccel.launch.yaml_text import dump

HELP = "a managed job of SkyPilot, one machine per worker"
SCRIPT_IS_LOCAL = True
COUNTS_WORKERS = True
TAKES_RANGES = False

INFRA = Option("--infra", "cloud, region or cluster, such as gcp/us-central1 or k8s", "INFRA")
ACCELERATORS = Option("--accelerators", "accelerators of each worker, such as H100:8", "KIND:N")
SETUP = Option("--setup", "a line of shell that installs what the script needs", "LINE")
MOUNT = Option(
    "--mount", "a bucket and where to mount it, for checkpoints", "/PATH=URL", repeated=True
)
OPTIONS: tuple[Option, ...] = (
    *(NAME, CPUS, MEMORY, SHOW, PROFILE, DATA_WORKERS),
    *(INFRA, ACCELERATORS, SPOT, SETUP, MOUNT),
)

_PORT = 2222
_NUMBER = re.compile(r"[0-9]+(\.[0-9]+)?\+?")
_WORD = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.:/*-]*")


def render(job: Job, options: Options) -> str:
    """The task as YAML.

    Raises:
        LaunchError: an option that SkyPilot would reject.
    """
    return dump(task(job, options))


def launch(job: Job, options: Options) -> int:
    """Passes the task to ``sky jobs launch``."""
    text = render(job, options)
    if shutil.which("sky") is None:
        raise LaunchError(
            "sky is not installed; expected SkyPilot: pip install skypilot; --dry-run prints the "
            "task"
        )
    with tempfile.NamedTemporaryFile("w", suffix=".yaml", prefix="tfaccel-") as file:
        file.write(text)
        file.flush()
        return subprocess.call(
            ["sky", "jobs", "launch", "--yes", "--secret", job_secret.VARIABLE, file.name],
            env={**os.environ, job_secret.VARIABLE: job_secret.new()},
        )


def task(job: Job, options: Options) -> dict[str, Any]:
    """The task: a pure function."""
    resources: dict[str, Any] = {
        name: _checked(option, options[option.dest], form)
        for name, option, form in (
            ("infra", INFRA, _WORD),
            ("accelerators", ACCELERATORS, _WORD),
            ("cpus", CPUS, _NUMBER),
            ("memory", MEMORY, _NUMBER),
        )
        if options[option.dest] is not None
    }
    if options["spot"]:
        resources["use_spot"] = True
    resources["job_recovery"] = {
        "max_restarts_on_errors": job.max_restarts,
        "recover_on_exit_codes": [PREEMPTED],
    }
    manifest: dict[str, Any] = {
        "name": job.name,
        "num_nodes": job.workers,
        "workdir": ".",
        "resources": resources,
        "envs": job.variables(),
        # Without a value here: it comes from the environment of the launch.
        "secrets": {job_secret.VARIABLE: None},
    }
    if options["mount"]:
        manifest["file_mounts"] = dict(_mount(text) for text in options["mount"])
    if options["setup"]:
        manifest["setup"] = f"{options['setup']}\n"
    manifest["run"] = _run(job)
    return manifest


def _run(job: Job) -> str:
    """What each machine runs: its rank and hosts are in SkyPilot's variables."""
    before = shlex.join(job.wrapper("python"))
    identity = (
        f'--hosts "$SKYPILOT_NODE_IPS" --rank "$SKYPILOT_NODE_RANK" --port {_PORT} '
        '--job-id "$SKYPILOT_TASK_ID"'
    )
    return f"exec {before} \\\n  {identity} \\\n  -- {shlex.join(job.command('python'))}\n"


def _mount(text: str) -> tuple[str, Any]:
    path, _, url = text.partition("=")
    if not path.startswith("/") or "://" not in url:
        raise LaunchError(
            f"--mount is {text!r}; expected an absolute path and a bucket, such as "
            "/checkpoints=gs://mine/checkpoints"
        )
    return path, {"source": url, "mode": "MOUNT"}


def _checked(option: Option, value: str, form: re.Pattern[str]) -> str:
    if not form.fullmatch(value):
        example = {"cpus": "8+", "memory": "32+", "infra": "gcp/us-central1"}
        raise LaunchError(
            f"{option.flag} is {value!r}; expected such as "
            f"{example.get(option.dest, 'H100:8')}, as SkyPilot requires"
        )
    return value
