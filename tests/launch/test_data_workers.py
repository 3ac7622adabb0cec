"""`tfaccel launch --data-workers`: real jobs, whose data workers die."""

from __future__ import annotations

import re
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.support import environment
from tfaccel.launch import data_service, local

SCRIPT = """
import hashlib, os, signal, sys
import tfaccel

strategy = tfaccel.strategy("multi_worker_mirrored", seed=5)
import keras
import tensorflow as tf

def heavy(i):
    x = tf.sort(tf.random.stateless_normal([20_000], [1, i]))[:4]
    return x, tf.reduce_sum(x, keepdims=True)

class Kills(keras.callbacks.Callback):
    def on_epoch_begin(self, epoch, logs=None):
        if epoch != 1 or strategy.cluster.rank or "kill" not in sys.argv:
            return
        for pid in filter(str.isdigit, os.listdir("/proc")):
            try:
                words = open(f"/proc/{pid}/cmdline").read().split(chr(0))
                parent = int(open(f"/proc/{pid}/stat").read().rpartition(")")[2].split()[1])
            except OSError:
                continue
            if "tfaccel.launch.data_worker" in words and len(words) == 6:  # of a worker
                if parent == os.getppid():
                    os.kill(int(pid), signal.SIGKILL)
                    break

with strategy.scope():
    model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(3), keras.layers.Dense(1)])
    model.compile("sgd", "mse")
rows = tf.data.Dataset.range(200).shuffle(200, seed=1).map(heavy).batch(7)
model.fit(rows, epochs=4, verbose=0, callbacks=[Kills()])
bits = b"".join(w.tobytes() for w in model.get_weights())
print("weights", hashlib.sha256(bits).hexdigest())
"""


def launched(folder: Path, *words: str) -> subprocess.CompletedProcess[str]:
    """A job of two workers in a folder, which succeeds."""
    launch = [sys.executable, "-m", "tfaccel.cli", "launch", "--nproc=2", "--show=all"]
    done = subprocess.run(
        [*launch, *words],
        cwd=folder,
        env=environment(),
        capture_output=True,
        text=True,
        timeout=600,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done


@pytest.mark.slow
@pytest.mark.exhaustive
@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="finds processes in /proc")
def test_a_job_whose_data_worker_dies_ends_with_the_same_bits(tmp_path: Path) -> None:
    (tmp_path / "train.py").write_text(SCRIPT)
    weights = []
    for more in ([], ["--data-workers=2", f"--log-dir={tmp_path}/logs"]):
        done = launched(tmp_path, *more, "train.py", *(["kill"] if more else []))
        weights.append(re.findall(r"weights (\w+)", done.stdout))
    assert weights[0] == weights[1]
    assert len({*weights[0]}) == 1
    assert re.search(r"data worker \d has ended \(killed by SIGKILL\), and is rest", done.stderr)
    logs = {path.name for path in (tmp_path / "logs").iterdir()}
    assert {"data-dispatcher.log", "data-worker-0.log", "data-worker-1.log"} < logs


@pytest.mark.slow
@pytest.mark.exhaustive
def test_workers_of_other_engines_have_their_own_and_the_same_bits(tmp_path: Path) -> None:
    """As Slurm, Kubernetes and the others start them: `tfaccel.launch.worker` around each."""
    (tmp_path / "train.py").write_text(SCRIPT)
    weights = []
    wrapper = [sys.executable, "-m", "tfaccel.launch.worker", "--show=all"]
    for more in ([], ["--data-workers=1", f"--log-dir={tmp_path}/logs"]):
        done = launched(tmp_path, *wrapper, *more, "--", sys.executable, "train.py")
        weights.append(re.findall(r"weights (\w+)", done.stdout))
    assert weights[0] == weights[1]
    assert len({*weights[0]}) == 1
    logs = {path.name for path in (tmp_path / "logs").iterdir()}
    assert logs == {
        f"rank-{rank}{name}.log"
        for rank in range(2)
        for name in ("", "-data-dispatcher", "-data-worker-0")
    }


def test_processes_are_started_again_and_end_with_the_job(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    messages: list[str] = []
    script = "import os, sys, time; print(os.getpid(), flush=True); time.sleep(60 * (N > 1))"

    def command(words: list[str]) -> list[str]:
        return [sys.executable, "-c", script.replace("N", str(len(words))), *words]

    monkeypatch.setattr(data_service, "_command", command)
    monkeypatch.setattr(data_service, "AGAIN_S", 0.05)
    monkeypatch.setattr(data_service, "log_message", messages.append)
    with data_service.running(1, {"A": "b"}, tmp_path) as told:
        assert re.fullmatch(r"127\.0\.0\.1:\d+", told["TFACCEL_DATA_SERVICE"])
        worker = tmp_path / "data-worker-0.log"
        deadline = time.monotonic() + 30
        while len(messages) < 3 or not worker.read_text():
            assert time.monotonic() < deadline
            time.sleep(0.02)
        pid = int(worker.read_text())
        assert Path(f"/proc/{pid}").exists() or not sys.platform.startswith("linux")
    assert not Path(f"/proc/{pid}").exists()
    assert len((tmp_path / "data-dispatcher.log").read_text().split()) == 3
    assert messages == [
        *["data dispatcher has ended (exit code 0), and is restarted"] * 2,
        "data dispatcher has ended 3 times (exit code 0) and is not restarted; the workers "
        "compute its rows",
    ]


def test_without_data_workers_nobody_is_told(capfd: pytest.CaptureFixture[str]) -> None:
    asks = "import os; print(os.environ.get('TFACCEL_DATA_SERVICE'))"
    assert local.run([sys.executable, "-c", asks], nproc=1) == 0
    assert capfd.readouterr().out == "None\n"
