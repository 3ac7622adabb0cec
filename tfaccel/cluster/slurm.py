"""The cluster that `srun` tells its tasks of.

https://slurm.schedmd.com/srun.html#SECTION_OUTPUT-ENVIRONMENT-VARIABLES
"""

from __future__ import annotations

import re
import zlib
from collections.abc import Mapping
from typing import NoReturn

from tfaccel.cluster import mpiexec
from tfaccel.cluster.cluster import Cluster
from tfaccel.errors import ClusterError

SOURCE = "Slurm"
VARIABLES = (
    "SLURM_PROCID",
    "SLURM_STEP_NUM_TASKS",
    "SLURM_STEP_NODELIST",
    "SLURM_STEP_TASKS_PER_NODE",
    "SLURM_DISTRIBUTION",
    "SLURM_DIST_PLANESIZE",
    "SLURM_NODEID",
    "SLURM_GTIDS",
    "SLURM_HET_SIZE",
    "SLURM_JOB_ID",
    "SLURM_STEP_ID",
)
NEEDS = "more than one task of srun"

_FIRST_PORT, _PORTS = 10_000, 20_000  # below those that a kernel gives to outgoing connections
_OPTIONS = ("pack", "nopack")  # of --distribution; they choose nodes and leave the order as it is


def resolve(environ: Mapping[str, str]) -> Cluster | None:
    """Reads the tasks of a job step, in the order of their ranks.

    Every step of every job gets ports of its own, which its tasks can work out by themselves.

    Args:
        environ: an environment, for example ``os.environ``.

    Returns:
        The cluster; None when no `srun` has started this process, or it alone, or when MPI's own
        launcher has started it inside a job.

    Raises:
        ClusterError: the variables contradict each other, or do not tell which task is where.

    >>> resolve({"SLURM_PROCID": "2", "SLURM_STEP_NUM_TASKS": "3", "SLURM_STEP_NODELIST": "n[1-2]",
    ...          "SLURM_STEP_TASKS_PER_NODE": "2,1", "SLURM_JOB_ID": "7", "SLURM_STEP_ID": "0"})
    Cluster(workers=('n1:13719', 'n1:13720', 'n2:13719'), rank=2, source='Slurm')
    """
    if not all(environ.get(name) for name in VARIABLES[:3]) or mpiexec.is_launched(environ):
        return None
    rank, size, nodes = (environ[name] for name in VARIABLES[:3])
    if not (rank.isdigit() and size.isdigit()):
        _wrong(f"SLURM_PROCID is {rank!r} and SLURM_STEP_NUM_TASKS is {size!r}")
    if int(size) == 1:
        return None
    tasks = environ.get("SLURM_STEP_TASKS_PER_NODE", "")
    hosts, counts = hostnames(nodes), tasks_per_node(tasks)
    if len(hosts) != len(counts) or sum(counts) != int(size) or int(rank) >= int(size):
        _wrong(
            f"SLURM_STEP_NODELIST is {nodes!r}, SLURM_STEP_TASKS_PER_NODE {tasks!r}, "
            f"SLURM_STEP_NUM_TASKS {size}, SLURM_PROCID {rank}"
        )
    order = _order(environ, counts)
    _check_own_node(environ, [node for node, _ in order])
    step = f"{environ.get('SLURM_JOB_ID', '')}.{environ.get('SLURM_STEP_ID', '')}"
    first = _FIRST_PORT + zlib.crc32(step.encode()) % _PORTS
    return Cluster(tuple(f"{hosts[node]}:{first + i}" for node, i in order), int(rank), SOURCE)


def _order(environ: Mapping[str, str], counts: list[int]) -> list[tuple[int, int]]:
    """The tasks in the order of their ranks, each as its node and its number there.

    Slurm deals planes of so many tasks to nodes in turn: of one task each with ``cyclic``, of all
    that a node has with ``block``.
    """
    tasks = [(node, i) for node, count in enumerate(counts) for i in range(count)]
    if len(counts) == 1:
        return tasks  # in any distribution
    how = environ.get("SLURM_DISTRIBUTION", "")
    nodes, _, _ = next((part for part in how.split(",") if part not in _OPTIONS), "").partition(":")
    name, _, size = nodes.partition("=")
    size = size or environ.get("SLURM_DIST_PLANESIZE", "")
    planes = {"": max(counts), "block": max(counts), "*": max(counts), "cyclic": 1}
    if name == "plane" and size.isdigit() and int(size) > 0:
        planes["plane"] = int(size)
    if name not in planes:
        _wrong(
            f"SLURM_DISTRIBUTION is {how!r}, which does not tell which node a rank is on",
            "block, cyclic or plane=SIZE",
        )
    if environ.get("SLURM_HET_SIZE", "1") != "1" and max(counts) > 1:
        # The distribution is that of one component, and ranks are counted over all.
        _wrong(
            f"the step has tasks in several components (SLURM_HET_SIZE is "
            f"{environ['SLURM_HET_SIZE']}) and {max(counts)} of them on one node, which does not "
            "tell which node a rank is on",
            "one task a node, or a job of one component",
        )
    plane = planes[name]
    return sorted(tasks, key=lambda task: (task[1] // plane, task[0], task[1]))


def _check_own_node(environ: Mapping[str, str], nodes: list[int]) -> None:
    """Compares the node of each rank with what Slurm tells every task of its own node."""
    node, told = environ.get("SLURM_NODEID", ""), environ.get("SLURM_GTIDS", "")
    if not node.isdigit() or not told:
        return
    here = ",".join(str(rank) for rank, other in enumerate(nodes) if other == int(node))
    if here != told:
        _wrong(
            f"SLURM_GTIDS puts ranks {told} on node {node}, and SLURM_DISTRIBUTION "
            f"{environ.get('SLURM_DISTRIBUTION', '')!r} puts {here or 'none'} there"
        )


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
        f"tfaccel: {found}, expected {expected}; start the script with srun and another "
        "--distribution, write TF_CONFIG, or unset SLURM_PROCID."
    )
