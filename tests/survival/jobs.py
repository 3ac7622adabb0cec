"""Jobs of real processes, a worker a host, that are started again as they are by an engine."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from tests.support import environment
from tests.survival.hosts import Host
from tfaccel.cluster import Cluster, to_tf_config

STRATEGIES: dict[str, tuple[int, str, dict[str, Any]]] = {
    "2 workers": (2, "multi_worker_mirrored", {}),
    "2 workers over the ring": (2, "multi_worker_mirrored", {"communication": "ring"}),
    "4 workers": (4, "multi_worker_mirrored", {}),
    "2x2 mesh": (
        2,
        "model_parallel",
        {"mesh": "batch=2,model=2", "layouts": "auto", "devices": 2},
    ),
}
"""How many processes, and their strategy and its options; workers use MPI where they have it."""

_POLL_S = 0.005
_LIMIT_S = 600.0  # of what hangs


def words(name: str, data: str, model: str, **options: Any) -> tuple[str, ...]:
    """The words of `tests.survival.run` for one of `STRATEGIES`, with more options of it."""
    _, strategy, own = STRATEGIES[name]
    given = json.dumps({**own, **options})
    return ("--strategy", strategy, "--options", given, "--data", data, "--model", model)


class Job:
    """One try of a job: its processes, in the order of their ranks.

    Args:
        hosts: where its workers run.
        out: a folder that all of them see.
        words: of `tests.survival.run`, after the folder.
        port: of every worker.
    """

    def __init__(
        self, hosts: Sequence[Host], out: Path, words: Sequence[str], port: int = 2222
    ) -> None:
        self.hosts, self.out = hosts, out
        out.mkdir(exist_ok=True)
        self._tries = len(list(out.glob("output-0-*")))
        for mark in out.glob("compiling-*"):
            mark.unlink()
        workers = tuple(f"{host.address}:{port}" for host in hosts)
        self.started = time.monotonic()
        self.processes = [
            self._start(Cluster(workers, rank, "TF_CONFIG"), words) for rank in range(len(hosts))
        ]

    def _start(self, cluster: Cluster, words: Sequence[str]) -> subprocess.Popen[bytes]:
        variables = {
            "TF_CONFIG": to_tf_config(cluster),
            "TFACCEL_JOB_ID": f"{self.out.name}-{self._tries}",
            "TFACCEL_JOB_SECRET": "5ecre7",
            "OMP_NUM_THREADS": "1",
            "TF_NUM_INTRAOP_THREADS": "1",
        }
        command = [sys.executable, "-m", "tests.survival.run", str(self.out), "--seed", "1", *words]
        with open(self.out / f"output-{cluster.rank}-{self._tries}", "wb") as output:
            return subprocess.Popen(
                self.hosts[cluster.rank].command(command),
                env=environment(variables),
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )

    def signal(self, rank: int, number: int) -> None:
        """Sends a signal to one worker."""
        self.processes[rank].send_signal(number)

    def wait(self, limit_s: float = _LIMIT_S) -> list[int]:
        """The exit codes of all workers.

        Raises:
            AssertionError: one is still there after so long.
        """
        deadline = time.monotonic() + limit_s
        for rank, process in enumerate(self.processes):
            try:
                process.wait(max(0.0, deadline - time.monotonic()))
            except subprocess.TimeoutExpired:
                raise AssertionError(
                    f"rank {rank} is still there after {limit_s:g} s\n{self.output()}"
                ) from None
        return [process.returncode for process in self.processes]

    def has_met(self) -> bool:
        """Whether the workers have found each other, so that each notices the end of another."""
        return all((self.out / f"compiling-{rank}").exists() for rank in range(len(self.hosts)))

    def end_within(self, limit_s: float) -> bool:
        """Waits for the end of all workers, and ends those that are left, as an engine does.

        Returns:
            Whether they have ended by themselves.
        """
        try:
            self.wait(limit_s)
        except AssertionError:
            self.close()
            return False
        return True

    def succeed(self) -> None:
        """Waits until all workers have ended, and well."""
        codes = self.wait()
        assert not any(codes), f"exit codes {codes}\n{self.output()}"

    def output(self) -> str:
        """What all workers have printed in this try."""
        return "\n".join(
            f"[{rank}] {line}"
            for rank in range(len(self.hosts))
            for line in (self.out / f"output-{rank}-{self._tries}")
            .read_text(errors="replace")
            .splitlines()
        )

    def batches(self, rank: int = 0) -> list[int]:
        """The numbers of the batches that a worker has trained on, in all tries."""
        path = self.out / f"seen-{rank}.jsonl"
        lines = path.read_text().splitlines(keepends=True) if path.exists() else []
        return [json.loads(line)[0] for line in lines if line.endswith("\n")]

    def newest(self) -> int:
        """The last of these, or the one before the first."""
        return max(self.batches(), default=0)

    def until(self, happened: Callable[[], bool]) -> bool:
        """Waits for something in the run; False when the run has ended before."""
        deadline = time.monotonic() + _LIMIT_S
        while not happened():
            if all(process.poll() is not None for process in self.processes):
                return happened()
            assert time.monotonic() < deadline, f"it did not happen\n{self.output()}"
            time.sleep(_POLL_S)
        return True

    def close(self) -> None:
        """Ends what is left of it."""
        for process in self.processes:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()


@contextlib.contextmanager
def job(hosts: Sequence[Host], out: Path, words: Sequence[str], port: int = 2222) -> Iterator[Job]:
    """A try of a job, of which nothing is left when the block ends."""
    made = Job(hosts, out, words, port)
    try:
        yield made
    finally:
        made.close()
