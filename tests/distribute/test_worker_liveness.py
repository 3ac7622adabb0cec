"""A coordinator that a worker does not reach."""

from __future__ import annotations

from unittest import mock

from absl import logging

from tfaccel.cluster.cluster import Cluster
from tfaccel.distribute import worker_liveness


def test_a_coordinator_that_is_not_reached_is_no_error() -> None:
    cluster = Cluster(("127.0.0.1:1", "127.0.0.1:2"), 1, "example")
    with mock.patch.object(logging, "warning") as warned:
        worker_liveness.watch_beside_tensorflow(cluster, 1, "abc")
    text = warned.call_args.args[0] % warned.call_args.args[1:]
    assert "did not reach the coordinator beside worker 0 at 127.0.0.1:1" in text
    assert text.endswith("Workers that fail or hang will not be reported.")
