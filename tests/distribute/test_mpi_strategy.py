"""Workers over MPI: started by mpiexec too, and ended by whatever ends one of them."""

from __future__ import annotations

import re
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.support import environment, run_workers

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[2]
LAUNCH = [sys.executable, "-m", "tfaccel.cli", "launch", "--nproc=2", "--show=all"]
MPIEXEC = [str(Path(sys.executable).with_name("mpiexec")), "-n", "2", sys.executable]

SCRIPT = """
import os, sys
import numpy as np
import tensorflow as tf
import tfaccel

strategy = tfaccel.strategy("multi_worker_mirrored", communication="mpi", device_type="cpu")
rank = strategy.cluster.rank

def sums():
    context = tf.distribute.get_replica_context()
    one = tf.constant([1.0, 2.0]) * (rank + 1)
    def inside():
        return context.all_reduce("SUM", one)
    within = tf.cond(tf.size(one) > 1, inside, lambda: one)
    rows = tf.IndexedSlices(tf.fill([rank, 2], 5.0), tf.range(rank), tf.constant([4, 2]))
    sparse = context.all_reduce("SUM", rows)
    tens = context.all_reduce("SUM", tf.fill([3], 5.0))
    if rank == 0:  # nobody reads it on the other worker
        within += tens[:2] - 10.0
    half = context.all_reduce("MEAN", tf.constant([0.5, 1.5], tf.bfloat16) * (rank + 1))
    return within, tf.convert_to_tensor(sparse), tf.cast(half, tf.float32)

within, sparse, half = strategy.run(tf.function(sums))
made = tf.constant([[rank, rank]] * (rank + 1))
gathered = strategy.gather(made, axis=0)
text = [np.asarray(t).tolist() for t in (within, sparse, half, gathered)]
with strategy.scope():
    drawn = tf.Variable(tf.random.normal([2], seed=None))
    drawn = strategy.experimental_local_results(drawn)[0].numpy().tolist()
print(f"saw {text} drew {drawn}", flush=True)
END
for _ in range(10_000):
    strategy.reduce("SUM", tf.constant(1.0), axis=None)
"""
SEEN = (
    "[[3.0, 6.0], [[5.0, 5.0], [0.0, 0.0], [0.0, 0.0], [0.0, 0.0]], [0.75, 2.25], "
    "[[0, 0], [1, 1], [1, 1]]]"
)


def run(start: list[str], folder: Path, end: str) -> subprocess.CompletedProcess[str]:
    path = folder / "script.py"
    path.write_text(SCRIPT.replace("END", end))
    return subprocess.run(
        [*start, str(path)],
        env=environment(),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=300,
    )


# What these show of `tfaccel launch`, other tests do too: the conformance table, and
# tests/launch/test_training.py.
STARTS = [
    pytest.param(LAUNCH, id="launch", marks=pytest.mark.exhaustive),
    pytest.param(MPIEXEC, id="mpiexec"),
]


@pytest.mark.parametrize("start", STARTS)
def test_collectives_of_all_kinds(start: list[str], tmp_path: Path) -> None:
    done = run(start, tmp_path, end="sys.exit(0)")
    assert done.returncode == 0, done.stdout[-4000:]
    said = re.findall(r"saw (\[.*?\]) drew (\[.*?\])", done.stdout)
    assert [seen for seen, _ in said] == [SEEN, SEEN]
    assert len({drew for _, drew in said}) == 1, "the workers start from other values"


@pytest.mark.parametrize(
    "start",
    [
        pytest.param(LAUNCH, id="launch"),
        pytest.param(MPIEXEC, id="mpiexec", marks=pytest.mark.exhaustive),
    ],
)
def test_a_worker_that_ends_early_ends_the_others(start: list[str], tmp_path: Path) -> None:
    began = time.monotonic()
    done = run(start, tmp_path, end="if rank == 1: sys.exit(3)")
    assert done.returncode != 0
    assert "worker 1 of 2" in done.stdout
    assert "has ended after" in done.stdout
    assert time.monotonic() - began < 60


# In every run: a worker that ends early, above, and an exception in tests/launch/test_training.py.
@pytest.mark.exhaustive
@pytest.mark.parametrize("start", STARTS)
def test_an_exception_ends_the_others(start: list[str], tmp_path: Path) -> None:
    done = run(start, tmp_path, end="if rank == 1: raise KeyError('of rank one')")
    assert done.returncode != 0
    assert "KeyError: 'of rank one'" in done.stdout


def test_a_worker_killed_while_mpi_ends_ends_the_others(tmp_path: Path) -> None:
    kill = "from mpi4py import MPI; MPI.Finalize = lambda: os.kill(os.getpid(), 9)"
    (tmp_path / "script.py").write_text(SCRIPT.replace("END", f"if rank: {kill}\nsys.exit(0)"))
    (code, _, errors), (killed, *_) = run_workers(tmp_path / "script.py", limit_s=60)
    assert (code, killed) == (1, -9)
    assert re.search(r"worker 1 of 2 \(.*\) has exited or disconnected", errors)


WAITING = """
import os, time
os.sched_setaffinity(0, [min(os.sched_getaffinity(0))])
import numpy as np
import tensorflow as tf
import tfaccel

strategy = tfaccel.strategy("multi_worker_mirrored", communication="mpi", device_type="cpu")
rank = strategy.cluster.rank

def touched(begun, name):
    open(f"{name}.{rank}", "w").close()
    return begun

@tf.function
def both():
    begun = tf.numpy_function(lambda: np.float32(time.sleep(0.1) is None), [], tf.float32)
    around = [tf.numpy_function(touched, [begun, n], tf.float32) for n in range(4)]
    context = tf.distribute.get_replica_context()
    total = context.all_reduce("SUM", tf.ensure_shape(begun, []))
    return total, [tf.numpy_function(touched, [begun, n], tf.float32) for n in range(4, 8)]

strategy.reduce("SUM", tf.constant(1.0), axis=None)
while rank == 1 and not all(os.path.exists(f"{n}.0") for n in range(8)):
    time.sleep(0.01)
print("total", strategy.run(both)[0].numpy(), flush=True)
"""


def test_a_worker_on_one_core_computes_while_it_waits(tmp_path: Path) -> None:
    (tmp_path / "script.py").write_text(WAITING)
    done = subprocess.run(
        [*LAUNCH, "script.py"],
        cwd=tmp_path,
        env=environment(),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stdout[-4000:]
    assert done.stdout.count("total 2.0") == 2
