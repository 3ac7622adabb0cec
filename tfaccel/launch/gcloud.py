"""The `gcloud` commands of one run on a TPU, as argument lists; nothing here runs them.

Flags as in Google's reference (https://cloud.google.com/sdk/gcloud/reference/compute/tpus), runtime
versions as in https://cloud.google.com/tpu/docs/runtimes.

A slice of several hosts (a pod) is driven by one script, on its first host; TensorFlow's servers
on all of them come with the runtime versions that have ``-pod`` in their name.
"""

from __future__ import annotations

import shlex
from dataclasses import dataclass
from pathlib import Path

import tfaccel
from tfaccel.exit_codes import NO_PROGRESS, PREEMPTED
from tfaccel.installed import INSTALL_TPU

Command = list[str]

_RUNTIMES = {
    "v6e": "v2-alpha-tpuv6e",
    "v5p": "v2-alpha-tpuv5",
    "v5litepod": "v2-alpha-tpuv5-lite",
}
_MARK = "tfaccel-run"  # a label
_EXCLUDED = (".git", ".venv", "__pycache__")


@dataclass(frozen=True)
class TpuJob:
    """A script, and the TPU to run it on.

    Attributes:
        script: a Python file; its directory is copied.
        arguments: of the script.
        name: of the TPU, and of the directory on it.
        zone: of Google Cloud.
        project: of Google Cloud; None for gcloud's default.
        accelerator: such as ``"v5litepod-4"``.
        runtime: software of the TPU VM; None for the one that fits the accelerator.
        queued: wait in the queue of Google Cloud for the TPU.
        spot: a cheaper TPU that may be preempted.
        install: what pip installs in addition to TensorFlow for TPUs; this machine's tfaccel.
        environment: variables of the script.
        mark: a label by which a run recognizes the TPU that it created; none where empty.
        folder: where the code is packed on this machine.
        module: what to run instead of a script; `script` is then a directory, which is copied.
        restarts: how often the script is started again on the TPU after it has failed; None to run
            it once, whatever its exit code.
        log_dir: a directory of this machine for `rank-N.log`, of all workers.
    """

    script: Path
    arguments: tuple[str, ...]
    name: str
    zone: str
    project: str | None
    accelerator: str
    runtime: str | None = None
    queued: bool = False
    spot: bool = False
    install: tuple[str, ...] = (f"tfaccel=={tfaccel.__version__}",)
    environment: tuple[tuple[str, str], ...] = ()
    mark: str = ""
    folder: str = "/tmp"
    module: str = ""
    restarts: int | None = None
    log_dir: str | None = None

    @property
    def software(self) -> str:
        """The runtime version.

        >>> TpuJob(Path("a.py"), (), "n", "z", None, "v4-8").software
        'tpu-ubuntu2204-base'
        """
        kind = self.accelerator.partition("-")[0]
        return self.runtime or _RUNTIMES.get(kind, "tpu-ubuntu2204-base")

    @property
    def chips(self) -> int:
        """The number of chips, or cores with older TPUs, in the accelerator's name."""
        number = self.accelerator.rpartition("-")[2]
        return int(number) if number.isdigit() else 0

    @property
    def is_pod(self) -> bool:
        """Whether the TPU has several hosts: one host has at most eight of them."""
        return self.chips > 8 or "-pod" in self.software

    @property
    def archive(self) -> str:
        """Where the code is packed here; on the TPU, the same name in the home directory."""
        return f"{self.folder}/{self.name}.tar.gz"


def create(job: TpuJob) -> Command:
    """Creates the TPU: billing starts here."""
    spot = ["--spot"] if job.spot else []
    kind = [f"--accelerator-type={job.accelerator}"]
    kind += [f"--labels={_MARK}={job.mark}"] if job.mark else []
    if job.queued:
        arguments = ["queued-resources", "create", job.name, f"--node-id={job.name}", *_where(job)]
        return _gcloud(*arguments, *kind, f"--runtime-version={job.software}", *spot)
    return _gcloud(
        "tpu-vm", "create", job.name, *_where(job), *kind, f"--version={job.software}", *spot
    )


def mark(job: TpuJob) -> Command:
    """Prints the mark of the TPU of that name, which may belong to another run."""
    if job.queued:
        words = ["queued-resources", "describe", job.name, *_where(job)]
        return _gcloud(*words, f"--format=value(tpu.nodeSpec[0].node.labels.{_MARK})")
    words = ["tpu-vm", "describe", job.name, *_where(job)]
    return _gcloud(*words, f"--format=value(labels.{_MARK})")


def wait(job: TpuJob) -> Command:
    """Waits until a queued TPU is ready; fails if the request fails."""
    ask = shlex.join(
        _gcloud(
            "queued-resources", "describe", job.name, *_where(job), "--format=value(state.state)"
        )
    )
    return [
        "bash",
        "-c",
        f'while s=$({ask}) || exit; do case "$s" in ACTIVE) break;; FAILED|SUSPEND*) '
        'echo "the queued resource is $s" >&2; exit 1;; esac; sleep 30; done',
    ]


def pack(job: TpuJob) -> Command:
    """Packs the script's directory."""
    folder = str(job.script if job.module else job.script.parent)
    return [
        "tar",
        *(f"--exclude={name}" for name in _EXCLUDED),
        "-czf",
        job.archive,
        "-C",
        folder,
        ".",
    ]


def copy(job: TpuJob) -> Command:
    """Copies the code to every worker."""
    there = f"{job.name}:{Path(job.archive).name}"
    return _gcloud("tpu-vm", "scp", job.archive, there, *_where(job), "--worker=all")


def clean(job: TpuJob) -> Command:
    """Removes the packed code from this machine."""
    return ["rm", "-f", job.archive]


def install(job: TpuJob) -> Command:
    """Unpacks the code and installs what it needs, on every worker."""
    folder = shlex.quote(job.name)
    # The servers of a pod come with their own TensorFlow, and the script must use the same.
    pip = "pip install" if job.is_pod else INSTALL_TPU
    words = [f"python3 -m {pip}", *map(shlex.quote, job.install)]
    return _ssh(
        job,
        "all",
        f"set -e; rm -rf ~/{folder}; mkdir ~/{folder}; tar -xzf ~/{folder}.tar.gz "
        f"-C ~/{folder}; rm ~/{folder}.tar.gz; {' '.join(words)}",
    )


def start(job: TpuJob) -> Command:
    """Starts the script, which keeps running if the connection ends."""
    pod = {"TPU_NAME": job.name, "TPU_LOAD_LIBRARY": "0"} if job.is_pod else {}
    variables = [f"{name}={value}" for name, value in {**pod, **dict(job.environment)}.items()]
    script = ["-m", job.module] if job.module else [job.script.name]
    run = shlex.join(["env", *variables, "python3", "-u", *script, *job.arguments])
    # The script's exit code is written next to its output.
    inner = shlex.quote(f"{_until_it_ends(run, job.restarts)} > run.exit")
    return _ssh(
        job,
        "0" if job.is_pod else "all",
        f"cd ~/{shlex.quote(job.name)} && rm -f run.exit && : > run.log && "
        f"{{ nohup bash -c {inner} > /dev/null 2>&1 & echo $! > run.pid; }}",
    )


def _until_it_ends(run: str, restarts: int | None) -> str:
    """Shell code that runs a line, retries failures, and prints the last exit code."""
    if restarts is None:
        return f"{run} > run.log 2>&1; echo $?"
    return (
        f"n=0; while :; do {run} >> run.log 2>&1; c=$?; "
        f"case $c in 0|{NO_PROGRESS}) break;; {PREEMPTED}) continue;; esac; "
        f"[ $n -ge {restarts} ] && break; n=$((n+1)); done; echo $c"
    )


def follow(job: TpuJob) -> Command:
    """Shows the output of worker 0 until its script ends, and exits with its code."""
    return _ssh(
        job,
        "0",
        f"cd ~/{shlex.quote(job.name)} && tail -n +1 --pid=$(cat run.pid) -F run.log; "
        "exit $(cat run.exit || echo 1)",
    )


def delete(job: TpuJob) -> Command:
    """Deletes the TPU: billing ends here."""
    if job.queued:
        words = ["queued-resources", "delete", job.name, *_where(job), "--force"]
    else:
        words = ["tpu-vm", "delete", job.name, *_where(job)]
    return _gcloud(*words, "--quiet")


def collect(job: TpuJob) -> list[Command]:
    """Copies the output of all workers to this machine, if requested."""
    if job.log_dir is None:
        return []
    folder = shlex.quote(job.log_dir)
    read = _ssh(job, "all", f"cat ~/{shlex.quote(job.name)}/run.log")
    renamed = f'cd {folder} && for f in [0-9]*.log; do mv "$f" "rank-$f"; done'
    return [
        ["mkdir", "-p", job.log_dir],
        [*read, f"--output-directory={job.log_dir}"],
        ["bash", "-c", renamed],
    ]


def plan(job: TpuJob, keep: bool = False) -> list[Command]:
    """All commands, in order."""
    before = [wait(job)] if job.queued else []
    after = [] if keep else [delete(job)]
    code = [pack(job), copy(job), clean(job)]
    run = [install(job), start(job), follow(job), *collect(job)]
    return [create(job), *before, *code, *run, *after]


def _gcloud(*words: str) -> Command:
    return ["gcloud", "compute", "tpus", *words]


def _where(job: TpuJob) -> Command:
    project = [f"--project={job.project}"] if job.project else []
    return [f"--zone={job.zone}", *project]


def _ssh(job: TpuJob, worker: str, command: str) -> Command:
    words = ["tpu-vm", "ssh", job.name, *_where(job)]
    return _gcloud(*words, f"--worker={worker}", f"--command={command}")
