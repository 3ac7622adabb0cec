"""Connects the workers of a job, to name one that fails or holds up the others.

Over MPI nothing else ends a worker whose peers are gone. TensorFlow's own collectives are made to
raise an exception: a worker is given the time for the script's own handling of it.
"""

from __future__ import annotations

import atexit
import sys
from collections.abc import Callable

import tensorflow as tf
from absl import logging

from tfaccel.cluster import coordinator
from tfaccel.cluster.cluster import Cluster
from tfaccel.cluster.failure_detector import FailureDetector
from tfaccel.distribute import _private
from tfaccel.distribute.worker_activity import worker_activity
from tfaccel.errors import ClusterError

_GRACE_PERIOD_S = 30.0
_FAILURE_REPORT_S = 1.0  # TensorFlow's exception may come before the line that names its cause
_detectors: list[FailureDetector] = []


def watch(
    cluster: Cluster,
    host: str,
    port: int,
    secret: str,
    on_failure: Callable[[str], None] | None = None,
    grace_period_s: float = 0.0,
) -> FailureDetector:
    """Connects to the coordinator, and ends this process when another worker has failed or hangs.

    Args:
        cluster: the workers.
        host: where the coordinator is.
        port: its port.
        secret: of the coordinator.
        on_failure: as in `FailureDetector`.
        grace_period_s: as in `FailureDetector`.

    Raises:
        ClusterError: the coordinator is unreachable.
    """
    line = coordinator.connect(host, port, cluster.rank, "liveness", secret)
    names = [f"worker {rank} of {cluster.size} ({w})" for rank, w in enumerate(cluster.workers)]
    detector = FailureDetector(
        line,
        names,
        rank=cluster.rank,
        report=worker_activity.report,
        on_failure=on_failure,
        grace_period_s=grace_period_s,
    )
    _detectors.append(detector)
    return detector


def watch_beside_tensorflow(cluster: Cluster, port: int, secret: str) -> None:
    """As `watch`, for workers whose collectives are TensorFlow's.

    A worker that cannot reach the coordinator trains without it, with a warning: TensorFlow only
    needs the workers' own ports.
    """
    host = cluster.host_and_port(0)[0]
    try:
        detector = watch(cluster, host, port, secret, _private.abort_collectives, _GRACE_PERIOD_S)
    except ClusterError as error:
        logging.warning("%s Workers that fail or hang will not be reported.", error)
        return
    atexit.register(_leave, detector)


def stop_all(code: int) -> None:
    """Ends all other workers of this job with an exit code, wherever they are.

    Args:
        code: this process's exit code too.
    """
    for detector in _detectors:
        detector.stop_all(code)


def ended_by_error(detector: FailureDetector) -> bool:
    """Whether this process ends by an exception or ends the others, which then do not wait."""
    return detector.stops_all or getattr(sys, "last_value", None) is not None


def _leave(detector: FailureDetector) -> None:
    if isinstance(getattr(sys, "last_value", None), tf.errors.OpError):
        detector.wait_for_failure_report(_FAILURE_REPORT_S)
    if ended_by_error(detector):
        detector.abort()
    else:
        detector.leave()
