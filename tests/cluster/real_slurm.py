"""A real Slurm on this machine for a test: its daemons in a folder of their own, on free ports.

    with real_slurm(nodes=("n1", "n2")) as slurm:
        assert slurm.run("srun", "--ntasks=2", "hostname").returncode == 0

Each node is a `slurmd` of its own; none needs systemd, cgroups or another machine. What it takes is
root, and Debian's packages: `apt-get install slurm-wlm munge`.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

_PROGRAMS = ("setpriv", "munged", "slurmctld", "slurmd", "srun", "scontrol", "sinfo")
_WITH_THIS_PROCESS = ("setpriv", "--pdeathsig", "TERM")
_PATH = os.pathsep.join([os.environ.get("PATH", os.defpath), "/usr/sbin", "/sbin"])
_TIMEOUT_S = 30.0

_SETTINGS = """\
ClusterName=tests
SlurmctldHost=localhost(127.0.0.1)
SlurmctldPort={port}
AuthInfo=socket={folder}/munge.socket
CredType=cred/munge
SlurmUser=root
SlurmctldPidFile={folder}/slurmctld.pid
SlurmctldLogFile={folder}/slurmctld.log
SlurmdPidFile={folder}/slurmd-%n.pid
SlurmdLogFile={folder}/slurmd-%n.log
SlurmdSpoolDir={folder}/spool-%n
SlurmdParameters=config_overrides
StateSaveLocation={folder}/state
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SwitchType=switch/none
MpiDefault=none
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU
JobAcctGatherType=jobacct_gather/none
SchedulerParameters=batch_sched_delay=0,sched_interval=1,sched_min_interval=0
ReturnToService=2
{more}
PartitionName=all Nodes=ALL Default=YES MaxTime=INFINITE State=UP
"""


def why_not() -> str:
    """Why no Slurm can be started here; ``""`` when it can."""
    missing = [name for name in _PROGRAMS if shutil.which(name, path=_PATH) is None]
    if missing:
        return f"{', '.join(missing)} not found: apt-get install slurm-wlm munge"
    return "" if os.geteuid() == 0 else "slurmd needs root"


@dataclass(frozen=True)
class Slurm:
    """A Slurm that runs.

    Attributes:
        environ: the environment in which its commands find it.
        nodes: the names of its nodes.
        folder: where its settings and logs are; free for what a test writes.
    """

    environ: dict[str, str]
    nodes: tuple[str, ...]
    folder: Path

    @property
    def version(self) -> str:
        """For example ``"slurm-wlm 22.05.8"``."""
        return self.run("srun", "--version").stdout.strip()

    def run(
        self, *command: str, env: Mapping[str, str] | None = None, timeout_s: float = 60.0
    ) -> subprocess.CompletedProcess[str]:
        """Runs one of Slurm's commands, or what calls one, and captures its output."""
        return subprocess.run(
            command,
            env={**self.environ, **(env or {})},
            capture_output=True,
            text=True,
            timeout=timeout_s,
        )


@contextlib.contextmanager
def real_slurm(
    nodes: Sequence[str] = ("n1", "n2"), cpus: int = 8, settings: Sequence[str] = ()
) -> Iterator[Slurm]:
    """Starts munge, a controller and a daemon for each node.

    Jobs that run at the end of the block are cancelled, and whatever else was started in it ends.

    Args:
        nodes: their names. Workers reach each other when those are addresses of this machine, such
            as 127.0.0.1 and 127.0.0.2.
        cpus: what each node pretends to have.
        settings: more lines of ``slurm.conf``.
    """
    # A short path: those of sockets are limited to about 100 characters.
    with tempfile.TemporaryDirectory(prefix="slurm-", dir="/tmp") as path, _Daemons() as daemons:
        folder = Path(path)
        folder.chmod(0o755)  # munge accepts no socket in a folder that others may not enter
        conf = folder / "slurm.conf"
        conf.write_text(_settings(folder, nodes, cpus, settings))
        kept = {k: v for k, v in os.environ.items() if not k.startswith(("SLURM", "SRUN", "PMI"))}
        slurm = Slurm({**kept, "PATH": _PATH, "SLURM_CONF": str(conf)}, tuple(nodes), folder)
        for name in ("state", *(f"spool-{node}" for node in nodes)):
            (folder / name).mkdir()
        key = folder / "munge.key"
        key.write_bytes(os.urandom(128))
        key.chmod(0o400)
        files = [f"--{kind}-file={folder}/munge.{kind}" for kind in ("key", "log", "pid", "seed")]
        socket_at = folder / "munge.socket"
        daemons.start(["munged", "--foreground", "--force", f"--socket={socket_at}", *files], slurm)
        daemons.wait_until(socket_at.exists)
        daemons.start(["slurmctld", "-D"], slurm)
        for node in nodes:
            daemons.start(["slurmd", "-D", "-N", node], slurm)
        idle = ["idle"] * len(nodes)
        states = ("sinfo", "--noheader", "--Node", "--format=%t")
        daemons.wait_until(lambda: slurm.run(*states).stdout.split() == idle)
        try:
            yield slurm
        finally:
            slurm.run("scancel", "--user=root")
            daemons.wait_until(lambda: not slurm.run("squeue", "--noheader").stdout)


def _settings(folder: Path, nodes: Sequence[str], cpus: int, more: Sequence[str]) -> str:
    port, *ports = _free_ports(1 + len(nodes))
    lines = (
        f"NodeName={name} NodeHostname=localhost NodeAddr=127.0.0.1 Port={at} CPUs={cpus} "
        "RealMemory=1000 State=UNKNOWN"
        for name, at in zip(nodes, ports, strict=True)
    )
    return _SETTINGS.format(port=port, folder=folder, more="\n".join((*more, *lines)))


def _free_ports(count: int) -> list[int]:
    with contextlib.ExitStack() as held:
        taken = [held.enter_context(socket.create_server(("127.0.0.1", 0))) for _ in range(count)]
        return [one.getsockname()[1] for one in taken]


class _Daemons:
    """Processes that end with the block, and with them all that they have started."""

    def __init__(self) -> None:
        self._running: list[subprocess.Popen[bytes]] = []

    def __enter__(self) -> _Daemons:
        # Slurm's steps leave the daemon that started them, and become our children instead.
        _adopt_orphans(True)
        self._before = _children()
        return self

    def __exit__(self, *_: object) -> None:
        for process in reversed(self._running):
            process.terminate()
            try:
                process.wait(10)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
        while left := _children() - self._before:
            for pid in left:
                os.kill(pid, signal.SIGKILL)
                os.waitpid(pid, 0)
        _adopt_orphans(False)

    def start(self, command: Sequence[str], slurm: Slurm) -> None:
        # They end with this process too, even if it is killed and never comes to `__exit__`.
        self._running.append(
            subprocess.Popen(
                [*_WITH_THIS_PROCESS, *command],
                env=slurm.environ,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
                start_new_session=True,
            )
        )

    def wait_until(self, done: Callable[[], bool]) -> None:
        deadline = time.monotonic() + _TIMEOUT_S
        while not done():
            for process in self._running:
                if process.poll() is not None:
                    raise RuntimeError(f"{process.args} ended with code {process.returncode}")
            if time.monotonic() > deadline:
                raise RuntimeError(f"Slurm did not get ready in {_TIMEOUT_S:g} s")
            time.sleep(0.05)


def _adopt_orphans(adopt: bool) -> None:
    ctypes.CDLL(None).prctl(36, int(adopt), 0, 0, 0)  # PR_SET_CHILD_SUBREAPER


def _children() -> set[int]:
    pids = set()
    for stat in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):
            parent = stat.read_text().rpartition(")")[2].split()[1]  # a name may hold spaces
            if int(parent) == os.getpid():
                pids.add(int(stat.parent.name))
    return pids
