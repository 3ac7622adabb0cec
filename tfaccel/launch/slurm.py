"""Jobs of Slurm: an sbatch script that is submitted, or `srun` inside an allocation.

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
from tfaccel.launch.options import CPUS, GPUS, NAME, Option, Options, count
from tfaccel.launch.spec import Job

HELP = "an sbatch script, or srun inside an allocation"
SCRIPT_IS_HERE = True
COUNTS_WORKERS = True

NODES = Option("--nodes", "nodes to run on; by default one a worker", "N", type=count)
TIME = Option("--time", "time limit, as sbatch takes it; workers are told two minutes before", "T")
PARTITION = Option("--partition", "where to queue", "P")
ACCOUNT = Option("--account", "whom to charge", "A")
SBATCH = Option("--sbatch", "any other option of sbatch, such as --mem=64G", "OPT", repeated=True)
WAIT = Option("--wait", "wait for the job's end, and end with its exit code")
OPTIONS: tuple[Option, ...] = (
    *(NAME, NODES, CPUS, GPUS),
    *(TIME, PARTITION, ACCOUNT, SBATCH, WAIT),
)

_NOTICE_S = 120
# What an #SBATCH line can hold without quotes, which Slurm reads in a way of its own.
_DIRECTIVE = re.compile(r"[A-Za-z0-9@%+=:.,/\[\]()*_-]+")

# Slurm sends SIGTERM to this script too when it takes the nodes away, or the job is cancelled; what
# becomes of the job then is Slurm's. Of a step with --kill-on-bad-exit, srun's own code is that of
# a task it has killed; the first line that it says itself names the first failure.
_LOOP = """\
stopped=
trap 'stopped=yes' TERM
restarts=0
while :; do
    export TFACCEL_JOB_ID="$SLURM_JOB_ID.${{SLURM_RESTART_COUNT:-0}}.$restarts"
    said=$(mktemp)
    {{ {srun} 2>&1 >&3 | sed -u "/^srun: error: /w $said" >&2; code=${{PIPESTATUS[0]}}; }} 3>&1
    first=$(sed -n '1s/.*: Exited with exit code \\([0-9]*\\)$/\\1/p' "$said")
    rm -f "$said"
    ((code == 0)) && exit 0
    code=${{first:-$code}}
    [[ $stopped ]] && exit "$code"
    ((code == {no_progress})) && exit "$code"
{preempted}
    ((restarts >= {max_restarts})) && exit "$code"
    restarts=$((restarts + 1))
    echo "tfaccel launch: exit code $code; starting all workers again" \\
        "(restart $restarts of {max_restarts})" >&2
done
"""
_REQUEUE = """\
    if ((code == {preempted})); then
        echo "tfaccel launch: the workers were told to stop and have saved; requeued" >&2
        scontrol requeue "$SLURM_JOB_ID"
        exit "$code"
    fi"""
_NO_REQUEUE = '    ((code == {preempted})) && exit "$code"'


def render(job: Job, options: Options) -> str:
    """The script that sbatch gets, or that runs in the allocation that this process is in."""
    return _inside(job, options) if _allocation(os.environ) else sbatch_script(job, options)


def launch(job: Job, options: Options) -> int:
    """Submits the script, or runs the workers in the allocation that this process is in."""
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
            f"sbatch did not take the script (exit code {process.returncode}); see what it says "
            "above, and the script with --dry-run"
        )
    return process.returncode


def sbatch_script(job: Job, options: Options) -> str:
    """The script for sbatch: a pure function.

    Raises:
        LaunchError: an option that an #SBATCH line cannot hold.
    """
    given = [
        f"--job-name={job.name}",
        f"--nodes={options['nodes'] or job.workers}",
        f"--ntasks={job.workers}",
        *_resources(options),
        *(_directive(TIME, options["time"], "--time=") if options["time"] else ()),
        *((f"--signal=TERM@{_NOTICE_S}",) if options["time"] else ()),
        *(_directive(PARTITION, options["partition"], "--partition=")),
        *(_directive(ACCOUNT, options["account"], "--account=")),
        "--requeue",
        "--open-mode=append",
    ]
    for extra in options["sbatch"]:
        if not extra.startswith("--"):
            raise LaunchError(
                f"--sbatch is {extra!r}, expected an option of sbatch, such as --sbatch=--mem=64G"
            )
        given += _directive(SBATCH, extra, "")
    lines = ["#!/bin/bash", *(f"#SBATCH {one}" for one in given), "", *_exports(job)]
    return "\n".join([*lines, _loop(job, options, _REQUEUE)])


def _inside(job: Job, options: Options) -> str:
    """The script for an allocation that is there: a pure function."""
    no_use = [one.flag for one in (TIME, PARTITION, ACCOUNT, SBATCH, WAIT) if options[one.dest]]
    if no_use:
        raise LaunchError(
            f"{', '.join(no_use)} is for sbatch, and this process is in an allocation already; "
            "leave it out, or start from outside the allocation"
        )
    return "\n".join([*_exports(job), _loop(job, options, _NO_REQUEUE)])


def _exports(job: Job) -> list[str]:
    return [f"export {name}={shlex.quote(value)}" for name, value in job.variables().items()]


def _loop(job: Job, options: Options, preempted: str) -> str:
    srun = ["srun", f"--ntasks={job.workers}"]
    srun += [f"--nodes={options['nodes']}"] if options["nodes"] else []
    srun += [*_resources(options), "--kill-on-bad-exit=1"]
    # Where there are logs, the worker itself puts its rank before each line.
    srun += ["--label"] if job.log_dir is None else []
    return _LOOP.format(
        srun=shlex.join([*srun, *job.logged_command()]),
        max_restarts=job.max_restarts,
        no_progress=NO_PROGRESS,
        preempted=preempted.format(preempted=PREEMPTED),
    )


def _resources(options: Options) -> list[str]:
    """What sbatch and srun are both told: srun does not take the cores from sbatch."""
    if options["cpus"] and not options["cpus"].isdigit():
        raise LaunchError(f"--cpus is {options['cpus']!r}, expected a whole number, as Slurm does")
    cpus = [f"--cpus-per-task={options['cpus']}"] if options["cpus"] else []
    return cpus + ([f"--gpus-per-task={options['gpus']}"] if options["gpus"] else [])


def _directive(option: Option, value: str | None, before: str) -> list[str]:
    if value is None:
        return []
    if not _DIRECTIVE.fullmatch(value):
        raise LaunchError(
            f"{option.flag} is {value!r}, expected letters, digits and the signs that Slurm takes "
            "without quotes"
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
            f"{program} is not here, expected a machine of a Slurm cluster; --dry-run prints the "
            "script, to be submitted there"
        )
