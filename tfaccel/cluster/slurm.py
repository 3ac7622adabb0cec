"""The cluster that `srun` tells its tasks of.

https://slurm.schedmd.com/srun.html#SECTION_OUTPUT-ENVIRONMENT-VARIABLES
"""

from __future__ import annotations

import re
import zlib
from collections.abc import Callable, Mapping
from typing import Any, NoReturn

from tfaccel.cluster.cluster import Cluster
from tfaccel.errors import ClusterError

SOURCE = "Slurm"
_FIRST_PORT, _PORTS = 10_000, 20_000  # below those that a kernel gives to outgoing connections


def resolve(environ: Mapping[str, str]) -> Cluster | None:
    """Reads the tasks of a job step, in the order of their ranks.

    Every step of every job gets ports of its own, which its tasks can work out by themselves.

    Args:
        environ: an environment, for example ``os.environ``.

    Returns:
        The cluster; None when no `srun` has started this process, or it alone, or when MPI's own
        launcher has started it inside a job.

    Raises:
        ClusterError: the variables contradict each other.

    >>> resolve({"SLURM_PROCID": "2", "SLURM_STEP_NUM_TASKS": "3", "SLURM_STEP_NODELIST": "n[1-2]",
    ...          "SLURM_STEP_TASKS_PER_NODE": "2,1", "SLURM_JOB_ID": "7", "SLURM_STEP_ID": "0"})
    Cluster(workers=('n1:13719', 'n1:13720', 'n2:13719'), rank=2, source='Slurm')
    """
    names = ("SLURM_PROCID", "SLURM_STEP_NUM_TASKS", "SLURM_STEP_NODELIST")
    if not all(environ.get(name) for name in names):
        return None
    rank, size, nodes = (environ[name] for name in names)
    if not (rank.isdigit() and size.isdigit()):
        _wrong(f"SLURM_PROCID is {rank!r} and SLURM_STEP_NUM_TASKS is {size!r}")
    launched_by_mpi = environ.get("PMI_SIZE", size) != size or environ.get("PMI_RANK", rank) != rank
    if int(size) == 1 or launched_by_mpi:
        return None
    tasks = environ.get("SLURM_STEP_TASKS_PER_NODE", "")
    hosts, counts = hostnames(nodes), tasks_per_node(tasks)
    if len(hosts) != len(counts) or sum(counts) != int(size) or int(rank) >= int(size):
        _wrong(
            f"SLURM_STEP_NODELIST is {nodes!r}, SLURM_STEP_TASKS_PER_NODE {tasks!r}, "
            f"SLURM_STEP_NUM_TASKS {size}, SLURM_PROCID {rank}"
        )
    tasks_of = [(i, n) for n, count in enumerate(counts) for i in range(count)]
    order = sorted(tasks_of, key=_turn(environ, max(counts)))
    step = f"{environ.get('SLURM_JOB_ID', '')}.{environ.get('SLURM_STEP_ID', '')}"
    first = _FIRST_PORT + zlib.crc32(step.encode()) % _PORTS
    return Cluster(tuple(f"{hosts[n]}:{first + i}" for i, n in order), int(rank), SOURCE)


def _turn(environ: Mapping[str, str], most: int) -> Callable[[tuple[int, int]], Any]:
    """By what to sort tasks, as (number on its node, node), into the order of their ranks.

    Slurm deals planes of so many tasks to nodes in turn: of one task each with ``cyclic``, of all
    that a node has with ``block``.
    """
    how = environ.get("SLURM_DISTRIBUTION", "").split(",")[0].split(":")[0] or "block"
    name, _, size = how.partition("=")
    size = size or environ.get("SLURM_DIST_PLANESIZE", "")
    planes = {"block": most, "*": most, "cyclic": 1}
    if name == "plane" and size.isdigit() and int(size) > 0:
        planes["plane"] = int(size)
    if name not in planes:
        _wrong(f"SLURM_DISTRIBUTION is {how!r}", "block, cyclic or plane=SIZE")
    plane = planes[name]
    return lambda task: (task[0] // plane, task[1], task[0])


def hostnames(nodes: str) -> list[str]:
    """The hosts of a Slurm node list, as `scontrol show hostnames` gives them.

    >>> hostnames("a[08-10,12],b-[1-2]-x,c")
    ['a08', 'a09', 'a10', 'a12', 'b-1-x', 'b-2-x', 'c']
    """
    found: list[str] = []
    for name in re.findall(r"(?:[^,\[]|\[[^\]]*\])+", nodes):
        before, bracket, rest = name.partition("[")
        if not bracket:
            found.append(name)
            continue
        ranges, _, after = rest.partition("]")
        for part in ranges.split(","):
            low, _, high = part.partition("-")
            numbers = range(int(low), int(high or low) + 1)
            tails = hostnames(after) or [""]
            found += [f"{before}{i:0{len(low)}}{tail}" for i in numbers for tail in tails]
    return found


def tasks_per_node(tasks: str) -> list[int]:
    """The tasks on each node.

    >>> tasks_per_node("2(x3),1")
    [2, 2, 2, 1]
    """
    parts = [re.fullmatch(r"(\d+)(?:\(x(\d+)\))?", part) for part in tasks.split(",")]
    return [int(m[1]) for m in parts if m is not None for _ in range(int(m[2] or 1))]


def _wrong(found: str, expected: str = "what srun sets, which agrees") -> NoReturn:
    raise ClusterError(
        f"tfaccel: {found}, expected {expected}; start the script with srun, or unset SLURM_PROCID."
    )
