"""What a launcher tells each worker, as environment variables: a pure function."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from tfaccel.cluster import Cluster, to_tf_config

THREAD_VARIABLES = ("OMP_NUM_THREADS", "TF_NUM_INTRAOP_THREADS")
"""OpenMP's (NumPy, oneDNN) and TensorFlow's own; both default to all cores of the machine."""


def worker_environment(
    base: Mapping[str, str],
    *,
    workers: Sequence[str],
    rank: int,
    job_id: str,
    start_timeout_s: float,
    cores: int | None = None,
) -> dict[str, str]:
    """The environment of one worker.

    Args:
        base: what the worker inherits; thread counts set there are left as they are.
        workers: `host:port` of every worker, in rank order.
        rank: which of them this one is.
        job_id: the same for all workers of this job, and for no other job.
        start_timeout_s: how long the workers wait for each other, in seconds.
        cores: the processor cores to share when all workers are on one machine, else None.

    >>> made = worker_environment({}, workers=("a:1", "a:2"), rank=1, job_id="7f", cores=8,
    ...                           start_timeout_s=60)
    >>> made["TFACCEL_JOB_ID"], made["TF_NUM_INTRAOP_THREADS"], made["TFACCEL_START_TIMEOUT"]
    ('7f', '4', '60')
    """
    made = dict(base)
    if cores is not None and len(workers) > 1:
        share = str(max(1, cores // len(workers)))
        for variable in THREAD_VARIABLES:
            made.setdefault(variable, share)
    made["TF_CONFIG"] = to_tf_config(Cluster(tuple(workers), rank, source="tfaccel launch"))
    made["TFACCEL_JOB_ID"] = job_id
    made["TFACCEL_START_TIMEOUT"] = f"{start_timeout_s:g}"
    made["PYTHONUNBUFFERED"] = "1"
    return made
