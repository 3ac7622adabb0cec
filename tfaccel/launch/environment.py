"""The environment variables of each worker: a pure function."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from tfaccel.cluster import Cluster, job_secret, to_tf_config

THREAD_VARIABLES = ("OMP_NUM_THREADS", "TF_NUM_INTRAOP_THREADS")
"""OpenMP's (NumPy, oneDNN) and TensorFlow's own; both default to all cores of the machine."""


def share_cores(environment: dict[str, str], workers: int, cores: int) -> None:
    """Divides the cores of one machine among its processes, unless threads are configured.

    Args:
        environment: of one of them; it is changed.
        workers: how many there are.
        cores: of the machine.
    """
    if workers > 1:
        for variable in THREAD_VARIABLES:
            environment.setdefault(variable, str(max(1, cores // workers)))


def worker_environment(
    base: Mapping[str, str],
    *,
    workers: Sequence[str],
    rank: int,
    job_id: str,
    secret: str,
    start_timeout_s: float,
    cores: int | None = None,
    arrivals: str = "",
) -> dict[str, str]:
    """The environment of one worker.

    Args:
        base: what the worker inherits; thread counts set there are kept.
        workers: `host:port` of every worker, in rank order.
        rank: which of them this one is.
        job_id: the same for all workers of this job, and for no other job.
        secret: that only the workers of this job hold; where it is empty, that of `base` is kept.
        start_timeout_s: how long the workers wait for each other, in seconds.
        cores: the processor cores to share when all workers are on one machine, else None.
        arrivals: a directory in which each leaves a file when it has joined the rendezvous; or
            empty.

    >>> made = worker_environment({}, workers=("a:1", "a:2"), rank=1, job_id="7f", cores=8,
    ...                           secret="5e", start_timeout_s=60)
    >>> made["TFACCEL_JOB_ID"], made["TF_NUM_INTRAOP_THREADS"], made["TFACCEL_START_TIMEOUT"]
    ('7f', '4', '60')
    """
    environment = dict(base)
    if cores is not None:
        share_cores(environment, len(workers), cores)
    environment["TF_CONFIG"] = to_tf_config(Cluster(tuple(workers), rank, source="tfaccel launch"))
    environment["TFACCEL_JOB_ID"] = job_id
    if secret:
        environment[job_secret.VARIABLE] = secret
    environment["TFACCEL_START_TIMEOUT"] = f"{start_timeout_s:g}"
    environment["PYTHONUNBUFFERED"] = "1"
    environment.pop("TFACCEL_ARRIVALS", None)  # of a launcher around this one
    if arrivals:
        environment["TFACCEL_ARRIVALS"] = arrivals
    return environment
