"""Slurm jobs: an sbatch script to submit, or `srun` inside an allocation.

https://slurm.schedmd.com/sbatch.html, https://slurm.schedmd.com/srun.html
"""

from __future__ import annotations

import os
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Mapping

from tfaccel.errors import LaunchError
from tfaccel.exit_codes import NO_PROGRESS, PREEMPTED
from tfaccel.launch import shell
from tfaccel.launch.data_service import DATA_WORKERS
from tfaccel.launch.options import CPUS, GPUS, NAME, Option, Options, count
from tfaccel.launch.profile import PROFILE
from tfaccel.launch.show import SHOW
from tfaccel.launch.spec import Job

HELP = "an sbatch script, or srun inside an allocation"
SCRIPT_IS_LOCAL = True
COUNTS_WORKERS = True
TAKES_RANGES = True

NODES = Option("--nodes", "nodes to run on; default: one per worker", "N", type=count)
TIME = Option(
    "--time",
    "time limit, as for sbatch; default: the partition's; workers get SIGTERM two minutes before",
    "T",
)
PARTITION = Option("--partition", "partition to submit to", "P")
ACCOUNT = Option("--account", "account to charge", "A")
SBATCH = Option("--sbatch", "any other option of sbatch, such as --mem=64G", "OPT", repeated=True)
WAIT = Option("--wait", "wait for the job, and exit with its exit code")
OPTIONS: tuple[Option, ...] = (
    *(NAME, NODES, CPUS, GPUS, SHOW, PROFILE, DATA_WORKERS),
    *(TIME, PARTITION, ACCOUNT, SBATCH, WAIT),
)

_NOTICE_S = 120
# What an #SBATCH line can hold without quotes, which Slurm parses in its own way.
_DIRECTIVE = re.compile(r"[A-Za-z0-9@%+=:.,/\[\]()*_-]+")

# Slurm sends SIGTERM to this script too when it preempts the nodes or the job is cancelled; what
# happens to the job then is up to Slurm. With --kill-on-bad-exit, srun's own exit code is that of a
# task it has killed; the first line that srun itself prints names the first failure.
_LOOP = """\
stopped=
trap 'stopped=yes' TERM
restarts=0
while :; do
    export TFACCEL_JOB_ID="$SLURM_JOB_ID.${{SLURM_RESTART_COUNT:-0}}.$restarts"
    export TFACCEL_JOB_SECRET="{new_secret}"
    said=$(mktemp)
    SECONDS=0
    {{ {srun} 2>&1 >&3 | sed -u "/^srun: error: /w $said" >&2; code=${{PIPESTATUS[0]}}; }} 3>&1
    first=$(sed -n -e '1s/.*: Exited with exit code \\([0-9]*\\)$/\\1/p' \\
        -e '1s/.*: Terminated$/143/p' "$said")
    rm -f "$said"
    ((code == 0)) && exit 0
    code=${{first:-$code}}
    [[ $stopped ]] && exit "$code"
    ((code == {no_progress})) && exit "$code"
{preempted}
    ((restarts >= {max_restarts})) && exit "$code"
    restarts=$((restarts + 1))
    echo "tfaccel launch: exit code $code; restarting all workers" \\
        "(restart $restarts of {max_restarts})" >&2
done
"""
_REQUEUE = """\
    if ((code == {preempted})); then
        echo "tfaccel launch: the workers were preempted and saved a checkpoint; requeued" >&2
        scontrol requeue "$SLURM_JOB_ID"
        exit "$code"
    fi
    # By SIGTERM while they imported: at most three times, as a short limit may always cause it.
    if ((first == 143 && SECONDS < {notice_s} && ${{SLURM_RESTART_COUNT:-0}} < 3)); then
        echo "tfaccel launch: the workers were told to stop before they could save; requeued" >&2
        scontrol requeue "$SLURM_JOB_ID"
        exit "$code"
    fi"""
_NO_REQUEUE = '    ((code == {preempted})) && exit "$code"'


def render(job: Job, options: Options) -> str:
    """The script for sbatch, or to run in the allocation of this process."""
    return _inside(job, options) if _allocation(os.environ) else sbatch_script(job, options)


def launch(job: Job, options: Options) -> int:
    """Submits the script, or runs the workers in the allocation of this process."""
    allocation = _allocation(os.environ)
    script = render(job, options)
    _need("srun" if allocation else "sbatch")
    if allocation:
        sys.stdout.flush()
        os.execvp("bash", ["bash", "-c", script])
    submit = ["sbatch", "--parsable", *(["--wait"] if options["wait"] else [])]
    with subprocess.Popen(
        submit, text=True, stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        process.stdin.write(script)
        process.stdin.close()
        job_id = process.stdout.readline().strip().partition(";")[0]
        if job_id:
            print(
                f"tfaccel launch: submitted job {job_id}; its output is slurm-{job_id}.out",
                flush=True,
            )
    if not job_id:
        raise LaunchError(
            f"sbatch rejected the script (exit code {process.returncode}); see its output above, "
            "and the script with --dry-run"
        )
    return process.returncode


def sbatch_script(job: Job, options: Options) -> str:
    """The script for sbatch: a pure function.

    Raises:
        LaunchError: an option that an #SBATCH line cannot hold.
    """
    directives = [
        f"--job-name={job.name}",
        *_size(job, options),
        *_resources(job, options),
        *(_directive(TIME, options["time"], "--time=") if options["time"] else ()),
        # Without --time too: the partition has a limit, at which Slurm ends the job for good.
        f"--signal=TERM@{_NOTICE_S}",
        *(_directive(PARTITION, options["partition"], "--partition=")),
        *(_directive(ACCOUNT, options["account"], "--account=")),
        "--requeue",
        "--open-mode=append",
    ]
    for extra in options["sbatch"]:
        if not extra.startswith("--"):
            raise LaunchError(
                f"--sbatch is {extra!r}; expected an option of sbatch, such as --sbatch=--mem=64G"
            )
        directives += _directive(SBATCH, extra, "")
    lines = ["#!/bin/bash", *(f"#SBATCH {one}" for one in directives), "", *_exports(job)]
    return "\n".join([*lines, _loop(job, options, _REQUEUE)])


def _inside(job: Job, options: Options) -> str:
    """The script for an existing allocation: a pure function."""
    no_use = [one.flag for one in (TIME, PARTITION, ACCOUNT, SBATCH, WAIT) if options[one.dest]]
    if no_use:
        raise LaunchError(
            f"{', '.join(no_use)} is for sbatch, and this process is in an allocation already; "
            "leave it out, or start from outside the allocation"
        )
    if job.min_workers is not None:
        raise LaunchError(
            f"--nproc is {job.min_workers}:{job.workers}, and this process is in an allocation, "
            "which does not change; expected one number, or to be started from outside"
        )
    return "\n".join([*_exports(job), _loop(job, options, _NO_REQUEUE)])


def _size(job: Job, options: Options) -> list[str]:
    """How many nodes and workers to request from sbatch; Slurm chooses within a range."""
    if job.min_workers is None:
        return [f"--nodes={options['nodes'] or job.workers}", f"--ntasks={job.workers}"]
    if options["nodes"]:
        raise LaunchError(
            f"--nodes is {options['nodes']}, and --nproc {job.min_workers}:{job.workers} runs one "
            "worker on each of the nodes that Slurm gives; leave it out"
        )
    # With a number of tasks, even with one per node, Slurm allocates only the minimum of nodes.
    return [f"--nodes={job.min_workers}-{job.workers}"]


def _exports(job: Job) -> list[str]:
    return [f"export {name}={shlex.quote(value)}" for name, value in job.variables().items()]


def _loop(job: Job, options: Options, preempted: str) -> str:
    if job.min_workers is None:
        srun = ["srun", f"--ntasks={job.workers}"]
        srun += [f"--nodes={options['nodes']}"] if options["nodes"] else []
    else:
        srun = ["srun", "--ntasks-per-node=1"]
    srun += [*_resources(job, options), "--kill-on-bad-exit=1"]
    # Where the worker has a wrapper, that prefixes each line with the rank.
    srun += [] if job.needs_wrapper else ["--label"]
    return _LOOP.format(
        srun=shlex.join([*srun, *job.logged_command()]),
        new_secret=shell.NEW_SECRET,
        max_restarts=job.max_restarts,
        no_progress=NO_PROGRESS,
        preempted=preempted.format(preempted=PREEMPTED, notice_s=_NOTICE_S),
    )


def _resources(job: Job, options: Options) -> list[str]:
    """Options for both sbatch and srun: srun does not inherit the cores from sbatch."""
    if options["cpus"] and not options["cpus"].isdigit():
        raise LaunchError(f"--cpus is {options['cpus']!r}; expected an integer, as Slurm requires")
    cpus = [f"--cpus-per-task={options['cpus']}"] if options["cpus"] else []
    each = "task" if job.min_workers is None else "node"  # gpus-per-task needs a number of tasks
    return cpus + ([f"--gpus-per-{each}={options['gpus']}"] if options["gpus"] else [])


def _directive(option: Option, value: str | None, before: str) -> list[str]:
    if value is None:
        return []
    if not _DIRECTIVE.fullmatch(value):
        raise LaunchError(
            f"{option.flag} is {value!r}; expected letters, digits and the characters that Slurm "
            "accepts without quotes"
        )
    return [f"{before}{value}"]


def _allocation(environ: Mapping[str, str]) -> str:
    """The job whose allocation this process is in; empty for none.

    Raises:
        LaunchError: this process is one of the tasks of a step.
    """
    if int(environ.get("SLURM_STEP_NUM_TASKS", "1") or 1) > 1:
        raise LaunchError(
            f"this is one of {environ['SLURM_STEP_NUM_TASKS']} tasks of srun; start "
            "`tfaccel launch` without srun, or the script itself with it"
        )
    return environ.get("SLURM_JOB_ID", "")


def _need(program: str) -> None:
    if shutil.which(program) is None:
        raise LaunchError(
            f"{program} is not installed; expected a machine of a Slurm cluster; --dry-run prints "
            "the script, to be submitted there"
        )
