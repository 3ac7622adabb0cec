"""Jobs on several hosts to which something happens: they end with the bits of one undisturbed.

Where nothing is wrong with a job it goes on; else all of it ends, with a code and a line that names
the worker, and ends as if nothing had been when it is started again.
"""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest

from tests.support import ROOT, environment
from tests.survival import faults, hosts
from tests.survival.hosts import Host, why_not
from tests.survival.jobs import Job, job, words
from tests.survival.table import is_same
from tfaccel.exit_codes import PREEMPTED

pytestmark = pytest.mark.skipif(bool(why_not()), reason=why_not())

TWO, RING, MESH = "2 workers", "2 workers over the ring", "2x2 mesh"
BATCHES = 18
ENDS_WITHIN_S = 60.0
LEAVES_WITHIN_S = 30.0

Whole = Callable[..., Path]


def cases(*rows: Any) -> list[Any]:
    """Of each fault the first row is in every run, and the others in an exhaustive one."""
    rest = [row if isinstance(row, tuple) else (row,) for row in rows[1:]]
    return [rows[0], *(pytest.param(*row, marks=pytest.mark.exhaustive) for row in rest)]


@pytest.fixture(scope="module")
def two() -> Iterator[list[Host]]:
    with hosts.hosts(2) as made:
        yield made


@pytest.fixture(scope="module")
def whole(two: list[Host], tmp_path_factory: pytest.TempPathFactory) -> Whole:
    """The folder of an undisturbed run, which is run once."""
    folders: dict[Any, Path] = {}

    def folder(*script: str) -> Path:
        if script not in folders:
            folders[script] = tmp_path_factory.mktemp("whole")
            with job(two, folders[script], script) as undisturbed:
                undisturbed.succeed()
        return folders[script]

    return folder


def on(strategy: str, data: str = "tf.data", model: str = "transformer") -> tuple[str, ...]:
    return words(strategy, data, model)


def struck(run: Job) -> None:
    """Waits for what a worker does to itself."""
    assert run.until(lambda: (run.out / "struck").exists()), run.output()


def fails(run: Job, names: int | str) -> None:
    """From now on all workers end in time, none of them well, and a line names one.

    Args:
        run: the job.
        names: that worker's rank, or a pattern of it.
    """
    codes = run.wait(ENDS_WITHIN_S)
    assert 0 not in codes, run.output()
    assert re.search(rf"worker {names}\b|task:{names}\b", run.output()), run.output()


def goes_on(two: list[Host], out: Path, script: Sequence[str], whole: Path) -> None:
    """The job is started again, and ends as the undisturbed one."""
    with job(two, out, script) as again:
        again.succeed()
    assert is_same(whole, out, ranks=2)


def test_nothing_is_left_of_hosts() -> None:
    with hosts.hosts(2) as made:
        names = {host.namespace for host in made} | {made[0].switch}
        sleeping = subprocess.Popen(made[1].command(["sleep", "600"]))
        show = "import socket; print(socket.gethostname())"
        assert subprocess.check_output(made[1].command([sys.executable, "-c", show])) == b"host1\n"
    assert sleeping.wait(10) == -9
    left = subprocess.check_output(["ip", "netns"], text=True)
    assert not any(name in left for name in names)


MEETS = """
import sys
from tfaccel.cluster import Cluster, rendezvous
rank, secret, job_id, timeout_s = int(sys.argv[1]), *sys.argv[2:4], float(sys.argv[4])
cluster = Cluster(("10.77.0.1:2222", "10.77.0.2:2222"), rank, "TF_CONFIG")
print(rendezvous(cluster, timeout_s=timeout_s, secret=secret, job_id=job_id, payload=b"of " +
                 job_id.encode(), versions={}), flush=True)
"""


def test_two_jobs_on_one_address(two: list[Host]) -> None:
    """One that is left of an earlier job is told so, and the others meet."""

    def worker(rank: int, of: str, timeout_s: int = 60) -> subprocess.Popen[str]:
        words = [sys.executable, "-c", MEETS, str(rank), f"secret of {of}", of, str(timeout_s)]
        pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
        return subprocess.Popen(two[rank].command(words), cwd=ROOT, env=environment(), **pipes)

    chief = worker(0, "new")
    stale = worker(1, "old")
    said = stale.communicate(timeout=60)[0]
    assert "worker 1 and what answered at 10.77.0.1:2222 do not hold the same secret" in said
    beside = worker(0, "another")
    assert "cannot listen on port 2222 of 10.77.0.1:2222" in beside.communicate(timeout=60)[0]
    own = worker(1, "new")
    assert [one.communicate(timeout=60)[0] for one in (chief, own)] == ["b'of new'\n"] * 2


@pytest.mark.slow
def test_a_run_outlives_a_cut_cable_a_kill_a_cut_file_and_a_slow_line(
    two: list[Host], whole: Whole, tmp_path: Path
) -> None:
    script = on(TWO)
    undisturbed = whole(*script)
    killed_while_compiling(two, tmp_path, script, rank=1)
    with job(two, tmp_path, script) as lost:
        assert lost.until(lambda: lost.newest() >= 2)
        with faults.cable_out(two[1], seconds=3):
            assert lost.until(lambda: lost.newest() >= 7)
        faults.kill(lost, rank=1)
        fails(lost, names=1)
    faults.cut_short(tmp_path / "checkpoints")
    with hosts.slow(*two, megabits=100, delay_ms=20), job(two, tmp_path, script) as again:
        again.succeed()
    assert "skipping checkpoint" in again.output()
    assert is_same(undisturbed, tmp_path, ranks=2)


def killed_while_compiling(two: list[Host], out: Path, script: Sequence[str], rank: int) -> None:
    with job(two, out, script) as lost:
        assert lost.until(lambda: (out / f"compiling-{rank}").exists())
        faults.kill(lost, rank)
        fails(lost, names=rank)


# In every run the run that outlives all begins with it.
@pytest.mark.exhaustive
@pytest.mark.slow
@pytest.mark.parametrize(
    ("strategy", "rank"), [(s, rank) for s in (TWO, RING, MESH) for rank in (1, 0)]
)
def test_a_kill_while_compiling(
    strategy: str, rank: int, two: list[Host], whole: Whole, tmp_path: Path
) -> None:
    script = on(strategy)
    undisturbed = whole(*script)
    killed_while_compiling(two, tmp_path, script, rank)
    goes_on(two, tmp_path, script, undisturbed)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("strategy", "kills"),
    cases(
        # The chief puts a save together. One run is killed in both; the undisturbed one is above.
        (TWO, ((0, "save", 8), (1, "validation", 4))),
        *((s, ((0, "save", 8),)) for s in (RING, MESH)),
        *((s, ((1, "part", 8),)) for s in (TWO, MESH)),
        *((s, ((r, "validation", 8),)) for s, r in ((RING, 0), (MESH, 0), (MESH, 1))),
    ),
)
def test_kills_in_a_save_and_in_validation(
    strategy: str,
    kills: Sequence[tuple[int, str, int]],
    two: list[Host],
    whole: Whole,
    tmp_path: Path,
) -> None:
    script = on(strategy) if len(kills) > 1 else on(strategy, "arrays", "digits")
    undisturbed = whole(*script)
    for rank, phase, batches in kills:
        kill = ["--kill", str(batches), "--kill-in", phase, "--rank", str(rank)]
        with job(two, tmp_path, [*script, *kill]) as lost:
            struck(lost)
            fails(lost, names=rank)
            assert lost.processes[rank].returncode == -9
        (tmp_path / "struck").unlink()
    goes_on(two, tmp_path, script, undisturbed)


# In every run tests/checkpoint/test_killed.py tells two workers to stop.
@pytest.mark.exhaustive
@pytest.mark.slow
@pytest.mark.parametrize(
    ("strategy", "rank", "phase"),
    cases(
        *((TWO, 1, phase) for phase in ("step", "compiling", "validation")),
        *((RING, 0, "compiling"), (RING, 0, "step"), (RING, 1, "validation")),
        *((MESH, 1, "compiling"), (MESH, 1, "step"), (MESH, 0, "validation")),
    ),
)
def test_all_save_and_leave_when_one_is_told_to_stop(
    strategy: str, rank: int, phase: str, two: list[Host], whole: Whole, tmp_path: Path
) -> None:
    script = on(strategy)
    undisturbed = whole(*script)
    stop = ["--kill", "8", "--kill-in", phase, "--rank", str(rank), "--once", "--signal", "SIGTERM"]
    with job(two, tmp_path, script if phase == "compiling" else [*script, *stop]) as stopped:
        if phase == "compiling":
            assert stopped.until(lambda: (tmp_path / f"compiling-{rank}").exists())
            faults.tell_to_stop(stopped, rank)
        else:
            struck(stopped)
        assert stopped.wait(LEAVES_WITHIN_S) == [PREEMPTED] * 2, stopped.output()
    goes_on(two, tmp_path, script, undisturbed)
    for of in range(2):
        with open(tmp_path / f"seen-{of}.jsonl") as file:
            assert sum(1 for _ in file) == BATCHES, "no step was lost"


def cut_for_good(two: list[Host], out: Path, strategy: str) -> None:
    with job(two, out, on(strategy)) as lost:
        assert lost.until(lambda: lost.newest() >= 5)  # early: it takes a while to cut it
        with faults.cable_out(two[1]):
            fails(lost, names=1)


def hangs(two: list[Host], out: Path, strategy: str, rank: int, steps: int = 5) -> None:
    """After so many steps."""
    short = words(strategy, "tf.data", "transformer", stall_timeout=10)
    with job(two, out, short) as lost:
        assert lost.until(lambda: lost.newest() >= steps)
        faults.freeze(lost, rank)
        other = lost.processes[1 - rank]
        assert other.wait(ENDS_WITHIN_S) != 0, lost.output()
        assert re.search(rf"worker {rank}\b", lost.output()), lost.output()


@pytest.mark.slow
def test_a_run_outlives_a_worker_that_hangs_and_a_network_that_is_cut_for_good(
    two: list[Host], whole: Whole, tmp_path: Path
) -> None:
    script = on(TWO)
    undisturbed = whole(*script)
    hangs(two, tmp_path, TWO, rank=1, steps=3)
    cut_for_good(two, tmp_path, TWO)
    goes_on(two, tmp_path, script, undisturbed)


@pytest.mark.exhaustive
@pytest.mark.slow
@pytest.mark.parametrize("strategy", [TWO, RING, MESH])
def test_a_network_that_is_cut_for_good(
    strategy: str, two: list[Host], whole: Whole, tmp_path: Path
) -> None:
    script = on(strategy)
    undisturbed = whole(*script)
    cut_for_good(two, tmp_path, strategy)
    goes_on(two, tmp_path, script, undisturbed)


@pytest.mark.exhaustive
@pytest.mark.slow
@pytest.mark.parametrize(
    ("strategy", "rank"), [(s, rank) for s in (TWO, RING, MESH) for rank in (1, 0)]
)
def test_a_worker_that_hangs(
    strategy: str, rank: int, two: list[Host], whole: Whole, tmp_path: Path
) -> None:
    script = on(strategy)
    undisturbed = whole(*script)
    hangs(two, tmp_path, strategy, rank)
    goes_on(two, tmp_path, script, undisturbed)


# In every run a write fails in tests/checkpoint/test_background.py.
@pytest.mark.exhaustive
@pytest.mark.slow
@pytest.mark.parametrize("strategy", cases(TWO, MESH))
def test_a_full_disk_is_every_workers_error(
    strategy: str, two: list[Host], whole: Whole, tmp_path: Path
) -> None:
    script = on(strategy)
    undisturbed = whole(*script)
    checkpoints = tmp_path / "checkpoints"
    (size, *_) = subprocess.check_output(
        ["du", "-s", str(max((undisturbed / "checkpoints").iterdir()))], text=True
    ).split()
    with faults.disk(checkpoints, kilobytes=int(size) * 3 // 2):
        with job(two, tmp_path, script) as lost:
            assert lost.until(lambda: lost.newest() >= 6)
            fails(lost, names="[01]")  # each writes a file, and either may be too much
        assert lost.newest() == 6, "the second checkpoint was too much"
        assert lost.output().count("No space left on device") >= 2, lost.output()
        faults.grow(checkpoints, kilobytes=1 << 16)
        goes_on(two, tmp_path, script, undisturbed)
