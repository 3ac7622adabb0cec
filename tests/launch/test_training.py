"""Real training jobs of two workers, and what can go wrong with them."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.support import environment

pytestmark = pytest.mark.slow

SCRIPT = """
import hashlib, os, sys, time
import numpy as np
import tfaccel

BEFORE
strategy = tfaccel.strategy("multi_worker_mirrored", seed=5)
import keras

rank = strategy.cluster.rank

class Told(keras.callbacks.Callback):
    def on_epoch_end(self, epoch, logs=None):
        print(f"pid {os.getpid()} epoch {epoch}", flush=True)
        DURING

with strategy.scope():
    model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(3), keras.layers.Dense(1)])
    model.compile("adam", "mse")
x = np.random.default_rng(0).normal(size=(32, 4)).astype("float32")
backup = keras.callbacks.BackupAndRestore(os.path.join(os.environ["WHERE"], "backup"))
model.fit(x, x[:, :1], batch_size=8, epochs=int(os.environ["EPOCHS"]), verbose=0,
          shuffle=False, callbacks=[backup, Told()])
bits = b"".join(w.tobytes() for w in model.get_weights())
print("weights", hashlib.sha256(bits).hexdigest(), int(model.optimizer.iterations.numpy()))
"""

Start = Callable[..., "subprocess.Popen[str]"]


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Start]:
    """Starts a job with lines of its own before the strategy is made and after each epoch."""
    started: list[subprocess.Popen[str]] = []

    def begin(
        *options: str,
        before: str = "",
        during: str = "pass",
        epochs: int = 1000,
        communication: str = "auto",
    ) -> subprocess.Popen[str]:
        path = tmp_path / "train.py"
        path.write_text(SCRIPT.replace("BEFORE", before).replace("DURING", during))
        command = [sys.executable, "-m", "tfaccel.cli", "launch", "--nproc=2", "--show=all"]
        more = {"WHERE": str(tmp_path), "EPOCHS": str(epochs)}
        process = subprocess.Popen(
            [*command, *options, str(path)],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            env=environment({**more, "TFACCEL_COMMUNICATION": communication}),
        )
        started.append(process)
        return process

    yield begin
    for process in started:
        process.kill()
        process.communicate()


def pids(process: subprocess.Popen[str]) -> dict[int, int]:
    """Waits until both workers have finished an epoch; their processes by rank."""
    by_rank: dict[int, int] = {}
    assert process.stdout is not None
    for line in process.stdout:
        if match := re.match(r"\[(\d)\] pid (\d+) epoch", line):
            by_rank[int(match[1])] = int(match[2])
        if len(by_rank) == 2:
            return by_rank
    raise AssertionError("the job ended before both workers had trained")


def finish(process: subprocess.Popen[str], limit_s: float = 120) -> str:
    return process.communicate(timeout=limit_s)[0]


def gone(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return True
    return False


@pytest.mark.parametrize(
    "communication", ["ring", pytest.param("mpi", marks=pytest.mark.exhaustive)]
)
def test_sigterm_ends_workers_that_train(start: Start, communication: str) -> None:
    """TensorFlow's ring takes SIGTERM for itself; a tfaccel strategy gives it back."""
    job = start("--grace=30", communication=communication)
    workers = pids(job)
    job.send_signal(signal.SIGTERM)
    asked = time.monotonic()
    finish(job)
    assert job.returncode == 128 + signal.SIGTERM
    assert time.monotonic() - asked < 25, "the workers ended by SIGKILL, after the grace"
    assert all(map(gone, workers.values()))


@pytest.mark.parametrize(
    "communication", [pytest.param("ring", marks=pytest.mark.exhaustive), "mpi"]
)
def test_a_killed_worker_ends_the_job_with_its_name(start: Start, communication: str) -> None:
    job = start(communication=communication)
    workers = pids(job)
    os.kill(workers[1], signal.SIGKILL)
    said = finish(job)
    assert job.returncode == 128 + signal.SIGKILL
    assert re.search(r"tfaccel launch: .*rank 1.*SIGKILL", said)
    assert all(map(gone, workers.values()))


def test_an_exception_in_one_worker_is_the_last_output(start: Start) -> None:
    job = start(during="if rank == 1 and epoch == 2: raise KeyError('from rank one')")
    said = finish(job)
    assert job.returncode == 1
    assert "KeyError: 'from rank one'" in said.rstrip().splitlines()[-1]


@pytest.mark.exhaustive  # tests/cluster/test_rendezvous.py has who is missing
def test_a_worker_that_never_comes_is_given_up(start: Start) -> None:
    wait = 'if \'"index": 1\' in os.environ["TF_CONFIG"]: time.sleep(600)'
    job = start("--start-timeout=8", before=wait)
    said = finish(job)
    assert job.returncode not in (0, None)
    assert re.search(r"ClusterError: .*worker 1|ClusterError: .*rank 1", said), said[-2000:]


# In every run test_local.py restarts jobs, and tests/distribute/test_workers.py takes backups.
@pytest.mark.exhaustive
def test_a_job_that_lost_a_worker_resumes_where_it_was(start: Start, tmp_path: Path) -> None:
    """The weights of a run that was split and restarted are those of one that was not."""
    die = (
        "if rank == 1 and epoch == 3 and not os.path.exists('MARK'): "
        "open('MARK', 'w').close(); time.sleep(1); os.kill(os.getpid(), 9)"
    ).replace("MARK", str(tmp_path / "died"))
    job = start("--max-restarts=2", during=die, epochs=6)
    said = finish(job)
    assert job.returncode == 0, said[-3000:]
    assert "restarting all 2 workers (restart 1 of 2)" in said
    cut = re.findall(r"weights (\w+) (\d+)", said)

    whole = start(epochs=6)
    straight = re.findall(r"weights (\w+) (\d+)", finish(whole))
    assert len(set(cut)) == 1, "the two workers hold different weights"
    assert cut == straight
    assert straight[0][1] == "24"
