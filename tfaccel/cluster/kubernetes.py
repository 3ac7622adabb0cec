"""The cluster that a pod of an indexed Job or a JobSet is part of.

All pods share one manifest and differ only in their completion index, which Kubernetes sets in
``JOB_COMPLETION_INDEX``. Neither a Job nor a JobSet passes the number of pods to its pods, so the
manifest does: ``TFACCEL_NUM_WORKERS``, and ``TFACCEL_WORKER_HOSTS``, the names that a headless
service gives to the pods, with ``{rank}`` in place of the index, such as
``digits-workers-0-{rank}.digits``. ``TFACCEL_WORKER_PORT`` defaults to 2222.

An index alone is not a cluster: an indexed Job can also run independent tasks.
https://kubernetes.io/docs/tasks/job/job-with-pod-to-pod-communication/
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import NoReturn

from tfaccel.cluster.cluster import Cluster
from tfaccel.cluster.worker_port import worker_port
from tfaccel.errors import ClusterError

SOURCE = "Kubernetes"
VARIABLES = (
    "JOB_COMPLETION_INDEX",
    "TFACCEL_NUM_WORKERS",
    "TFACCEL_WORKER_HOSTS",
    "TFACCEL_WORKER_PORT",
)
NEEDS = "JOB_COMPLETION_INDEX, TFACCEL_NUM_WORKERS above 1 and TFACCEL_WORKER_HOSTS"

_HOST = re.compile(r"[A-Za-z0-9]([A-Za-z0-9.-]*[A-Za-z0-9])?")
_TO_DO = (
    "set both in the manifest (`tfaccel launch --engine kubernetes` does), or neither for pods "
    "that train alone"
)


def resolve(environ: Mapping[str, str]) -> Cluster | None:
    """Reads the completion index of this pod, and the manifest's variables for the others.

    Args:
        environ: an environment, for example ``os.environ``.

    Returns:
        The cluster, or None when the manifest describes none, or one pod.

    Raises:
        ClusterError: the description is incomplete or invalid.

    >>> resolve({"JOB_COMPLETION_INDEX": "1", "TFACCEL_NUM_WORKERS": "2",
    ...          "TFACCEL_WORKER_HOSTS": "digits-{rank}.digits"})
    Cluster(workers=('digits-0.digits:2222', 'digits-1.digits:2222'), rank=1, source='Kubernetes')
    """
    index, number, hosts = (environ.get(name, "").strip() for name in VARIABLES[:3])
    if not number and not hosts:
        return None
    if not number.isdecimal() or int(number) < 1:
        _wrong(f"TFACCEL_NUM_WORKERS is {number!r}", "the number of pods", _TO_DO)
    size = int(number)
    if size == 1:
        return None
    if not index.isdecimal() or int(index) >= size:
        _wrong(
            f"JOB_COMPLETION_INDEX is {index!r} with {size} workers in TFACCEL_NUM_WORKERS",
            f"a number from 0 to {size - 1}",
            "run them as a Job with completionMode: Indexed and as many completions, or a JobSet",
        )
    names = tuple(hosts.replace("{rank}", str(rank)) for rank in range(size))
    if len(set(names)) != size or not all(_HOST.fullmatch(name) for name in names):
        _wrong(f"TFACCEL_WORKER_HOSTS is {hosts!r}", "a host name with {rank} in it", _TO_DO)
    port = worker_port(environ)
    return Cluster(tuple(f"{name}:{port}" for name in names), int(index), SOURCE)


def _wrong(found: str, expected: str, to_do: str) -> NoReturn:
    raise ClusterError(f"tfaccel: {found}; expected {expected}; {to_do}.")
