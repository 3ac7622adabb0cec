"""Rents a TPU of Google Cloud, runs a script on it and deletes it."""

from __future__ import annotations

import contextlib
import dataclasses
import re
import shlex
import shutil
import signal
import subprocess
import sys
import tempfile
import uuid
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from tfaccel.errors import LaunchError
from tfaccel.launch import gcloud
from tfaccel.launch.gcloud import TpuJob
from tfaccel.launch.options import NAME, SPOT, Option, Options
from tfaccel.launch.spec import Job

# Messages of gcloud when it creates no TPU, and what to do.
_KNOWN = (
    (r"gcloud auth login|do not currently have an active account", "run `gcloud auth login`"),
    (r"[Qq]uota", "the project has no quota for it: request some in Google Cloud's console"),
    (r"already exists|ALREADY_EXISTS", "a TPU of that name exists: use another name, or delete it"),
    (
        r"no more capacity|RESOURCE_EXHAUSTED|stockout",
        "no capacity in this zone; use --queued, --spot or another zone",
    ),
    (r"PERMISSION_DENIED|403", "permission denied: the account needs the TPU Admin role"),
    (r"[Ii]nvalid|INVALID_ARGUMENT", "the zone has no such accelerator or runtime version"),
)


def shown(job: TpuJob, keep: bool) -> str:
    """The commands, one per line."""
    return "".join(f"{shlex.join(command)}\n" for command in gcloud.plan(job, keep))


def run_if_agreed(job: TpuJob, *, keep: bool, agreed: bool) -> int:
    """Runs the commands, or only prints them.

    Raises:
        LaunchError: gcloud is missing, or makes no TPU.
    """
    if not agreed:
        sys.stdout.write(shown(job, keep))
        print("tfaccel: a TPU costs money; give --yes to run these commands.", file=sys.stderr)
        return 2
    if shutil.which("gcloud") is None:
        raise LaunchError(
            "tfaccel: gcloud is not installed; expected Google Cloud's command line: "
            "https://cloud.google.com/sdk/docs/install; --dry-run shows what would run."
        )
    with _sigterm_interrupts(), tempfile.TemporaryDirectory(prefix="tfaccel-") as folder:
        job = dataclasses.replace(job, mark=uuid.uuid4().hex, folder=folder)
        return run(job, keep)


def run(job: TpuJob, keep: bool = False) -> int:
    """Rents the TPU, runs the script and deletes the TPU again, whatever happens in between.

    After an interrupt during creation it is unknown whether the TPU exists: then it is deleted only
    if it has the mark of this job. Another user's TPU of that name stays.

    Returns:
        The script's exit code; that of the first command that failed before it; 130 when
        interrupted.

    Raises:
        LaunchError: the TPU could not be created.
    """
    created = False
    try:
        _make(job)
        created = True
        after = gcloud.collect(job)
        steps = gcloud.plan(job, keep=True)[1:]
        steps = steps[: len(steps) - len(after)]
        code = next((code for code in map(_print_and_call, steps) if code != 0), 0)
        for command in after:  # even after a failed script
            _print_and_call(command)
        return code
    except KeyboardInterrupt:
        return 130
    finally:
        Path(job.archive).unlink(missing_ok=True)
        failed = isinstance(sys.exc_info()[1], LaunchError) or not (created or _is_ours(job))
        if not failed and not keep:
            _delete(job)
        elif not failed:
            line = shlex.join(gcloud.delete(job))
            print(f"tfaccel: TPU {job.name!r} is kept and costs money until: {line}", flush=True)


def _make(job: TpuJob) -> None:
    command = gcloud.create(job)
    print(f"+ {shlex.join(command)}", flush=True)
    done = subprocess.run(command, stderr=subprocess.PIPE, text=True)
    sys.stderr.write(done.stderr)
    if done.returncode != 0:
        advice = next((a for p, a in _KNOWN if re.search(p, done.stderr)), "see its output above")
        raise LaunchError(
            f"tfaccel: gcloud did not create TPU {job.name!r} (exit code {done.returncode}); "
            f"{advice}."
        )


def _is_ours(job: TpuJob) -> bool:
    """Whether there is a TPU of that name, created by this job."""
    with _interrupts_ignored():
        result = subprocess.run(gcloud.mark(job), capture_output=True, text=True)
    is_own = bool(job.mark) and result.stdout.strip() == job.mark
    if not is_own:
        line = shlex.join(gcloud.mark(job)[:-1])
        print(
            f"tfaccel: interrupted before TPU {job.name!r} was created, so none is deleted; make "
            f"sure that it is not created later, which would cost money: {line}",
            file=sys.stderr,
            flush=True,
        )
    return is_own


def _print_and_call(command: Sequence[str]) -> int:
    print(f"+ {shlex.join(command)}", flush=True)
    return subprocess.call(command)


def _delete(job: TpuJob) -> None:
    """Deletes the TPU; another interrupt does not prevent it."""
    with _interrupts_ignored():
        code = _print_and_call(gcloud.delete(job))
    if code != 0:
        line = shlex.join(gcloud.delete(job))
        print(
            f"tfaccel: TPU {job.name!r} COULD NOT BE DELETED AND STILL COSTS MONEY; run: {line}",
            file=sys.stderr,
            flush=True,
        )


@contextlib.contextmanager
def _interrupts_ignored() -> Iterator[None]:
    """Shields this process and its children from signals."""
    handlers = {s: signal.signal(s, signal.SIG_IGN) for s in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, handler in handlers.items():
            signal.signal(number, handler)


@contextlib.contextmanager
def _sigterm_interrupts() -> Iterator[None]:
    """A plain kill deletes the TPU too."""

    def interrupt(*_: Any) -> None:
        raise KeyboardInterrupt

    handler = signal.signal(signal.SIGTERM, interrupt)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, handler)


def with_servers(job: TpuJob) -> TpuJob:
    """The job, validated.

    Raises:
        LaunchError: it is for several hosts, and their software has no TensorFlow.
    """
    if job.is_pod and "-pod" not in job.software:
        raise LaunchError(
            f"tfaccel: {job.accelerator} has several hosts, and {job.software} has no TensorFlow "
            "servers for them; expected --runtime-version=tpu-vm-tf-<version>-pod-pjrt, of "
            "https://cloud.google.com/tpu/docs/runtimes."
        )
    return job


# --- the engine --------------------------------------------------------------------------------

HELP = "a TPU of Google Cloud that is rented for the script"
SCRIPT_IS_LOCAL = True
COUNTS_WORKERS = False
TAKES_RANGES = False

_ZONE = Option("--zone", "Google Cloud zone, such as us-west4-a", "Z", required=True)
_ACCELERATOR = Option(
    "--accelerator-type", "type of the TPU, such as v5litepod-4 or v6e-8", "TYPE", required=True
)
OPTIONS: tuple[Option, ...] = (
    NAME,
    _ZONE,
    _ACCELERATOR,
    Option("--project", "Google Cloud project; default: the setting of gcloud", "P"),
    Option("--runtime-version", "runtime version of the TPU VM; default: by accelerator", "V"),
    Option("--queued", "request the TPU as a queued resource"),
    SPOT,
    Option("--keep", "do not delete the TPU at the end"),
    Option(
        "--install",
        "packages that pip installs besides TensorFlow; default: tfaccel",
        "PACKAGE",
        repeated=True,
    ),
    Option("--yes", "run the commands: a TPU costs money"),
)


def render(job: Job, options: Options) -> str:
    """The commands of gcloud, one per line."""
    return shown(tpu_job(job, options), options["keep"])


def launch(job: Job, options: Options) -> int:
    """Runs the commands; without ``--yes`` it only prints them."""
    return run_if_agreed(tpu_job(job, options), keep=options["keep"], agreed=options["yes"])


def tpu_job(job: Job, options: Options) -> TpuJob:
    """The arguments that `tfaccel tpu run` would get.

    Raises:
        LaunchError: an invalid TPU, or a program that is not Python.
    """
    script, *arguments = job.script
    if not job.module and not script.endswith(".py"):
        raise LaunchError(
            f"the script is {script!r}; expected a .py file, or -m and a module: a TPU VM has "
            "nothing else"
        )
    job.variables()  # which refuses names that a shell cannot hold
    return with_servers(
        TpuJob(
            script=Path() if job.module else Path(script),
            module=script if job.module else "",
            arguments=tuple(arguments),
            name=job.name,
            zone=options["zone"],
            project=options["project"],
            accelerator=options["accelerator_type"],
            runtime=options["runtime_version"],
            queued=options["queued"],
            spot=options["spot"],
            install=tuple(options["install"]) or TpuJob.install,
            environment=job.env,
            restarts=job.max_restarts,
            log_dir=job.log_dir,
        )
    )
