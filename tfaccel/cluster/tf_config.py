"""TF_CONFIG, TensorFlow's own description of a cluster: read it strictly, and write it.

The format: https://www.tensorflow.org/guide/distributed_training#TF_CONFIG
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from typing import Any, NoReturn

from tfaccel.cluster.cluster import Cluster
from tfaccel.errors import ClusterError

SOURCE = "TF_CONFIG"
VARIABLES = ("TF_CONFIG", "TFACCEL_JOB_ID")
NEEDS = "TF_CONFIG with a cluster"

_EXAMPLE = (
    '{"cluster": {"worker": ["host0:2222", "host1:2222"]}, "task": {"type": "worker", "index": 0}}'
)
_ADDRESS = re.compile(r"(?P<host>\[[0-9A-Fa-f:.%]+\]|[^\s:/\[\]]+):(?P<port>[0-9]{1,5})")
_RANK_ORDER = ("chief", "worker")  # TensorFlow ranks the chief before worker 0.
_REFUSED = {
    "ps": "ParameterServerStrategy is not supported by Keras 3",
    "evaluator": "a separate evaluator belongs to ParameterServerStrategy, "
    "which is not supported by Keras 3",
}


def resolve(environ: Mapping[str, str]) -> Cluster | None:
    """Reads the cluster out of TF_CONFIG.

    Args:
        environ: an environment, for example ``os.environ``.

    Returns:
        The cluster, the chief (if any) first; None when TF_CONFIG is unset, empty or has no
        cluster, which all mean "this process alone".

    Raises:
        ClusterError: TF_CONFIG is set but invalid.

    >>> resolve({"TF_CONFIG": '{"cluster": {"worker": ["a:1", "b:1"]}, "task": {"type": "worker", '
    ...          '"index": 1}}'})
    Cluster(workers=('a:1', 'b:1'), rank=1, source='TF_CONFIG')
    """
    text = environ.get("TF_CONFIG", "").strip()
    if not text:
        return None
    try:
        config = json.loads(text)
    except (ValueError, RecursionError) as error:
        _wrong(f"is not JSON ({error})", "a JSON object")
    if not isinstance(config, dict):
        _wrong(f"is {_shown(config)}", "a JSON object")
    if not config.get("cluster"):
        return None
    jobs = _jobs(config["cluster"])
    workers = tuple(address for job in _RANK_ORDER for address in jobs.get(job, ()))
    if not workers:
        _wrong("has an empty worker list", "at least one worker")
    _refuse_twice(workers)
    return Cluster(workers, _rank(config.get("task"), jobs), source=SOURCE)


def is_launched(environ: Mapping[str, str]) -> bool:
    """Whether TF_CONFIG is from `tfaccel launch`, which may run inside any other launcher."""
    return bool(environ.get("TF_CONFIG") and environ.get("TFACCEL_JOB_ID"))


def to_tf_config(cluster: Cluster) -> str:
    """Writes a cluster as TF_CONFIG; worker 0 is then TensorFlow's chief.

    >>> to_tf_config(Cluster(("a:1", "b:1"), 1, "example"))
    '{"cluster": {"worker": ["a:1", "b:1"]}, "task": {"type": "worker", "index": 1}}'
    """
    return json.dumps(
        {
            "cluster": {"worker": list(cluster.workers)},
            "task": {"type": "worker", "index": cluster.rank},
        }
    )


def _jobs(spec: Any) -> dict[str, tuple[str, ...]]:
    """The addresses of each job, each one checked."""
    if not isinstance(spec, dict):
        _wrong(f"has cluster {_shown(spec)}", "an object with a list of workers")
    jobs: dict[str, tuple[str, ...]] = {}
    for job, addresses in spec.items():
        if job in _REFUSED and addresses:
            _wrong(f"has a {job!r} job", f"only chief and worker: {_REFUSED[job]}")
        if job not in _RANK_ORDER and job not in _REFUSED:
            _wrong(f"has a job {job!r} in its cluster", "only chief and worker")
        if not isinstance(addresses, list):
            _wrong(f"has cluster.{job} {_shown(addresses)}", "a list of host:port")
        for place, address in enumerate(addresses):
            _check_address(address, f"cluster.{job}[{place}]")
        jobs[job] = tuple(addresses)
    if len(jobs.get("chief", ())) > 1:
        _wrong(f"has {len(jobs['chief'])} chiefs", "at most one; the others are workers")
    return jobs


def _check_address(address: Any, place: str) -> None:
    match = _ADDRESS.fullmatch(address) if isinstance(address, str) else None
    if match is None:
        _wrong(f"has {place} {_shown(address)}", "host:port")
    if not 1 <= int(match["port"]) <= 65535:
        _wrong(f"has {place} {_shown(address)}", "a port from 1 to 65535")


def _refuse_twice(workers: tuple[str, ...]) -> None:
    seen: set[str] = set()
    for address in workers:
        if address.lower() in seen:
            _wrong(f"has the address {address!r} twice", "one host:port for each worker")
        seen.add(address.lower())


def _rank(task: Any, jobs: Mapping[str, tuple[str, ...]]) -> int:
    """The rank among all workers, from the job and the index in it."""
    if not isinstance(task, dict):
        task_text = "has no task" if task is None else f"has task {_shown(task)}"
        _wrong(task_text, "an object with type and index")
    job, index = task.get("type"), task.get("index")
    if isinstance(job, str) and job in _REFUSED:
        _wrong(f"has task.type {job!r}", f"chief or worker: {_REFUSED[job]}")
    if job not in _RANK_ORDER:
        _wrong(f"has task.type {_shown(job)}", "chief or worker")
    if job not in jobs:
        _wrong(f"has task.type {job!r}", f"one of the jobs of its cluster: {', '.join(jobs)}")
    count = len(jobs[job])
    if isinstance(index, bool) or not isinstance(index, int) or not 0 <= index < count:
        _wrong(
            f"has task.index {_shown(index)}",
            f"an int from 0 to {count - 1}" if count else f"a {job} list that is not empty",
        )
    before = _RANK_ORDER[: _RANK_ORDER.index(job)]
    return index + sum(len(jobs.get(earlier, ())) for earlier in before)


def _shown(value: Any) -> str:
    """A value as the user wrote it, truncated to a readable length."""
    text = json.dumps(value)
    return text if len(text) <= 80 else text[:77] + "..."


def _wrong(found: str, expected: str) -> NoReturn:
    raise ClusterError(
        f"TF_CONFIG {found}; expected {expected}. It should look like {_EXAMPLE}"
    ) from None
