"""`tfaccel launch --engine slurm` on a real Slurm of two nodes: small programs, and a `fit`."""

from __future__ import annotations

import os
import re
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest

from tests.checkpoint.same import assert_same
from tests.cluster.real_slurm import Slurm, real_slurm, why_not
from tests.plain import sitecustomize
from tests.support import environment

pytestmark = pytest.mark.skipif(why_not() != "", reason=f"needs a Slurm: {why_not()}")

SCRIPT = """
import os, signal, sys, time
from tfaccel import cluster
found = cluster.resolve()
print(found.rank, found.workers, os.environ["TFACCEL_JOB_ID"], os.environ["GREETING"], sys.argv[1:],
      flush=True)
here = os.path.dirname(os.path.abspath(__file__))
def mark(rank):
    return os.path.join(here, f"tries-{rank}")
def tries(rank):
    return os.path.getsize(mark(rank)) if os.path.exists(mark(rank)) else 0
number = tries(found.rank)
def save(*_):
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    time.sleep(1.0)
    print("saved", flush=True)
    os._exit(33)
signal.signal(signal.SIGTERM, save)
codes = [int(code) for code in sys.argv[1].split(",")]
code = codes[min(number, len(codes) - 1)]
open(mark(found.rank), "a").write("x")
while found.rank == 1 and tries(0) <= number:
    time.sleep(0.02)  # else it would be stopped before it has started
if code == -1 or (code and found.rank == 0):
    time.sleep(60)  # until it is told to stop
sys.exit(code)
"""


@pytest.fixture(scope="module")
def slurm() -> Iterator[Slurm]:
    with real_slurm(
        settings=["PreemptType=preempt/partition_prio", "PreemptMode=REQUEUE"]
    ) as found:
        urgent = ("PartitionName=urgent", "Nodes=ALL", "PriorityTier=9")
        done = found.run("scontrol", "create", *urgent)
        assert done.returncode == 0, done.stderr
        yield found


class Submitted:
    """A job that `tfaccel launch` has submitted from a folder."""

    def __init__(
        self, slurm: Slurm, folder: Path, codes: str, *words: str, fit: Sequence[str] = ()
    ) -> None:
        self._slurm, self._folder = slurm, folder
        (folder / "train.py").write_text(SCRIPT)
        launch = [sys.executable, "-m", "tfaccel.cli", "launch", "--engine=slurm", "--nproc=2"]
        script = ["-m", "--", "tests.checkpoint.run", str(folder), *fit]
        if not fit:
            script = ["--env=GREETING=it's $me", str(folder / "train.py"), codes, "a b"]
        words = (*words, f"--sbatch=--chdir={folder}", *script)
        variables = ("PYTHONPATH", sitecustomize.VARIABLE)
        plain = {name: environment()[name] for name in variables}
        done = slurm.run(*launch, *words, env=plain)
        assert done.returncode == 0, done.stdout + done.stderr
        (self.id,) = re.findall(r"submitted job (\d+)", done.stdout)

    def field(self, name: str) -> str:
        shown = self._slurm.run("scontrol", "show", "job", self.id).stdout
        return re.findall(rf"\b{name}=(\S*)", shown)[0]

    def wait_for(self, *states: str, restarts: int = 0, within_s: float = 90.0) -> None:
        deadline = time.monotonic() + within_s
        while self.field("JobState") not in states or int(self.field("Restarts")) < restarts:
            assert time.monotonic() < deadline, self.field("JobState") + self.output
            time.sleep(0.1)

    def wait_for_tries(self, number: int) -> None:
        """Until both ranks have started so often."""
        deadline = time.monotonic() + 60
        marks = [self._folder / f"tries-{rank}" for rank in range(2)]
        while not all(mark.exists() and mark.stat().st_size >= number for mark in marks):
            assert time.monotonic() < deadline, self.output
            time.sleep(0.1)

    @property
    def code(self) -> int:
        self.wait_for("COMPLETED", "FAILED", "CANCELLED", "TIMEOUT", within_s=300.0)
        return int(self.field("ExitCode").partition(":")[0])

    @property
    def output(self) -> str:
        path = self._folder / f"slurm-{self.id}.out"
        return path.read_text() if path.exists() else ""

    def lines(self, rank: int) -> list[str]:
        return [line for line in self.output.splitlines() if line.startswith(f"{rank}: {rank}")]


def test_a_range_runs_on_the_nodes_that_are_there(slurm: Slurm, tmp_path: Path) -> None:
    job = Submitted(slurm, tmp_path, "0", "--nproc=1:3", "--cpus=2")
    assert job.code == 0, job.output
    assert [len(job.lines(rank)) for rank in range(3)] == [1, 1, 0], job.output


def test_two_nodes_run_the_script(slurm: Slurm, tmp_path: Path) -> None:
    job = Submitted(slurm, tmp_path, "0")
    assert job.code == 0, job.output
    said = re.compile(rf"(\d): \1 \('n1:\d+', 'n2:\d+'\) {job.id}\.0\.0 it's \$me \['0', 'a b'\]")
    assert sorted(said.fullmatch(line)[1] for line in job.output.splitlines()) == ["0", "1"]  # type: ignore[index]


def test_failures_are_counted_and_a_preemption_is_not(slurm: Slurm, tmp_path: Path) -> None:
    """Rank 1 ends; rank 0 is told to stop by Slurm, and then always says that it has saved."""
    logs = tmp_path / "my logs"
    job = Submitted(slurm, tmp_path, "33,7,7", "--max-restarts=1", f"--log-dir={logs}")
    job.wait_for("PENDING", restarts=1)
    assert "preempted and saved a checkpoint; requeued" in job.output
    time.sleep(3.0)  # the script is still ending on its node, which is what Slurm waits for
    slurm.run("scontrol", "update", f"jobid={job.id}", "StartTime=now")  # not in two minutes
    assert job.code == 7, job.output
    assert job.output.count("restarting all workers") == 1
    tries = re.findall(rf"\) ({job.id}\.\S+) ", (logs / "rank-0.log").read_text())
    assert tries == [f"{job.id}.0.0", f"{job.id}.1.0", f"{job.id}.1.1"]


def test_a_job_that_is_preempted_by_another_can_save(
    slurm: Slurm, tmp_path: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    """Slurm requeues it then, once."""
    all_of_it = "--sbatch=--exclusive"
    job = Submitted(slurm, tmp_path, "-1,0", all_of_it, f"--log-dir={tmp_path}/logs")
    job.wait_for_tries(1)
    other = tmp_path_factory.mktemp("other")
    urgent = Submitted(slurm, other, "0", all_of_it, "--partition=urgent")
    assert urgent.code == 0, urgent.output
    job.wait_for("PENDING", restarts=1)
    time.sleep(3.0)
    assert job.field("Restarts") == "1"
    assert "requeued" not in job.output
    for rank in range(2):
        assert "saved" in (tmp_path / "logs" / f"rank-{rank}.log").read_text()
    slurm.run("scontrol", "update", f"jobid={job.id}", "StartTime=now")
    assert job.code == 0, job.output
    assert job.field("Restarts") == "1"


def test_a_job_is_requeued_at_the_limit_of_its_partition(slurm: Slurm, tmp_path: Path) -> None:
    """Without `--time`: the notice of two minutes is due as soon as it starts."""
    limit = ("PartitionName=short", "Nodes=ALL", "DefaultTime=2", "MaxTime=2")
    assert slurm.run("scontrol", "create", *limit).returncode == 0
    job = Submitted(slurm, tmp_path, "-1,0", "--partition=short", f"--log-dir={tmp_path}/logs")
    job.wait_for("PENDING", restarts=1)
    for early in (1, 2, 3):  # a slow machine still imports when the notice comes
        if "saved a checkpoint; requeued" in job.output:
            break
        assert job.output.count("before they could save; requeued") == early, job.output
        time.sleep(3.0)
        slurm.run("scontrol", "update", f"jobid={job.id}", "StartTime=now")
        job.wait_for("PENDING", restarts=early + 1)
    assert "preempted and saved a checkpoint; requeued" in job.output
    for rank in range(2):
        assert "saved" in (tmp_path / "logs" / f"rank-{rank}.log").read_text()
    time.sleep(3.0)
    slurm.run("scontrol", "update", f"jobid={job.id}", "StartTime=now")
    assert job.code == 0, job.output


def test_a_cancelled_job_stays_cancelled(slurm: Slurm, tmp_path: Path) -> None:
    job = Submitted(slurm, tmp_path, "-1", "--max-restarts=3")
    job.wait_for_tries(1)
    slurm.run("scancel", job.id)
    job.wait_for("CANCELLED")
    time.sleep(1.0)
    assert job.field("JobState") == "CANCELLED"
    assert job.field("Restarts") == "0"
    assert len(job.lines(0)) == 1


# In every run: jobs above that are requeued, and tests/survival, where a fit is told to stop in the
# same way and started again.
@pytest.mark.exhaustive
@pytest.mark.slow
def test_a_fit_that_is_requeued_ends_with_the_bits_of_one_that_is_not(tmp_path: Path) -> None:
    with real_slurm(nodes=("127.0.0.1", "127.0.0.2")) as slurm:
        _requeues_a_fit(slurm, tmp_path)


def _requeues_a_fit(slurm: Slurm, tmp_path: Path) -> None:
    whole, told = tmp_path / "whole", tmp_path / "told"
    fit = ["--strategy=multi_worker_mirrored", "--seed=1"]
    stop = ["--kill=10", "--signal=SIGTERM", "--rank=1", "--once"]
    for folder, more in ((whole, []), (told, stop)):
        folder.mkdir()
        job = Submitted(slurm, folder, "", fit=[*fit, *more])
        if more:
            job.wait_for("PENDING", restarts=1, within_s=300.0)
            time.sleep(3.0)
            slurm.run("scontrol", "update", f"jobid={job.id}", "StartTime=now")
        assert job.code == 0, job.output
    assert "preempted and saved a checkpoint; requeued" in job.output
    assert_same(whole, told, ranks=2)


def test_inside_an_allocation(slurm: Slurm, tmp_path: Path) -> None:
    (tmp_path / "train.py").write_text(SCRIPT)
    launch = [sys.executable, "-m", "tfaccel.cli", "launch", "--engine=slurm", "--nproc=2"]
    done = slurm.run(
        *("salloc", "--nodes=2", *launch, "--env=GREETING=you"),
        *(str(tmp_path / "train.py"), "7,0"),
        env={"PYTHONPATH": os.getcwd()},
    )
    assert done.returncode == 7, done.stdout + done.stderr
    assert sorted(re.findall(r"^\d: \d \(", done.stdout, re.MULTILINE)) == ["0: 0 (", "1: 1 ("]
