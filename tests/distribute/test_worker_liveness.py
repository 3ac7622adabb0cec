"""A worker that fails as another waits for it in TensorFlow's collectives, and a coordinator that a
worker does not reach."""

from __future__ import annotations

import re
from pathlib import Path
from unittest import mock

import pytest
from absl import logging

from tests.support import run_workers
from tfaccel.cluster.cluster import Cluster
from tfaccel.distribute import worker_liveness


def test_a_coordinator_that_is_not_reached_is_no_error() -> None:
    cluster = Cluster(("127.0.0.1:1", "127.0.0.1:2"), 1, "example")
    with mock.patch.object(logging, "warning") as warned:
        worker_liveness.watch_beside_tensorflow(cluster, 1, "abc")
    text = warned.call_args.args[0] % warned.call_args.args[1:]
    assert "did not reach the coordinator beside worker 0 at 127.0.0.1:1" in text
    assert text.endswith("Workers that fail or hang will not be reported.")


WAITING = """
import os, time
import tensorflow as tf
import tfaccel

strategy = tfaccel.strategy("multi_worker_mirrored", communication="ring", device_type="cpu")
strategy.reduce("SUM", tf.constant(1.0), axis=None)
if strategy.cluster.rank == 1:
    time.sleep(0.5)  # worker 0, which leads the group, waits for the next message
    print(time.time(), flush=True)
    os.kill(os.getpid(), 9)
try:
    strategy.reduce("SUM", tf.constant(1.0), axis=None)
except tf.errors.UnavailableError as error:
    print(time.time(), error, flush=True)
"""


@pytest.mark.slow
def test_what_waits_for_a_failed_worker_raises_its_name_at_once(tmp_path: Path) -> None:
    (tmp_path / "script.py").write_text(WAITING)
    (_, caught, _), (_, failed, _) = run_workers(tmp_path / "script.py")
    assert re.search("tfaccel: worker 1 of 2 .* has exited or disconnected", caught), caught
    # TensorFlow's own comes after ten seconds of missed heartbeats.
    assert float(caught.split()[0]) - float(failed.split()[0]) < 8
