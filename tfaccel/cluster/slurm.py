"""The cluster of the tasks of `srun`.

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
    "SLURMD_NODENAME",
    "SLURM_GTIDS",
    "SLURM_HET_SIZE",
    "SLURM_JOB_ID",
    "SLURM_STEP_ID",
)
NEEDS = "more than one task of srun"

_FIRST_PORT, _PORTS = 10_000, 20_000  # below the kernel's ephemeral ports
_OPTIONS = ("pack", "nopack")  # of --distribution; they affect the choice of nodes, not the order


def resolve(environ: Mapping[str, str]) -> Cluster | None:
    """Reads the tasks of a job step, in the order of their ranks.

    Every task has its own port, even where several nodes are one machine, and every step of every
    job has different ones. Each task can compute them all.

    Args:
        environ: an environment, for example ``os.environ``.

    Returns:
        The cluster; None when no `srun` has started this process, or it alone, or when MPI's own
        launcher has started it inside a job.

    Raises:
        ClusterError: the variables contradict each other, or do not determine which task runs
            where.

    >>> resolve({"SLURM_PROCID": "2", "SLURM_STEP_NUM_TASKS": "3", "SLURM_STEP_NODELIST": "n[1-2]",
    ...          "SLURM_STEP_TASKS_PER_NODE": "2,1", "SLURM_JOB_ID": "7", "SLURM_STEP_ID": "0"})
    Cluster(workers=('n1:13719', 'n1:13720', 'n2:13721'), rank=2, source='Slurm')
    """
    if not all(environ.get(name) for name in VARIABLES[:3]) or mpiexec.is_launched(environ):
        return None
    rank, size, nodes = (environ[name] for name in VARIABLES[:3])
    if not (rank.isdecimal() and size.isdecimal()):
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
    nodes_of_ranks = [hosts[node] for node in _nodes(environ, counts)]
    _check_own_node(environ, nodes_of_ranks)
    step = f"{environ.get('SLURM_JOB_ID', '')}.{environ.get('SLURM_STEP_ID', '')}"
    first = zlib.crc32(step.encode())
    ports = (_FIRST_PORT + (first + i) % _PORTS for i in range(int(size)))
    addresses = (f"{host}:{port}" for host, port in zip(nodes_of_ranks, ports, strict=True))
    return Cluster(tuple(addresses), int(rank), SOURCE)


def _nodes(environ: Mapping[str, str], counts: list[int]) -> list[int]:
    """The node of each rank, as an index into the list of nodes.

    Slurm assigns planes of tasks to nodes in turn: of one task each with ``cyclic``, of all of a
    node's tasks with ``block``.
    """
    if len(counts) == 1:
        return [0] * counts[0]  # in any distribution
    if environ.get("SLURM_HET_SIZE", "1") != "1":
        # The list of nodes is sorted, and ranks are counted from component to component, each of
        # which has a distribution of its own.
        _wrong(
            f"this is a heterogeneous job (SLURM_HET_SIZE is {environ['SLURM_HET_SIZE']}) on "
            f"{len(counts)} nodes, and no variable determines the node of a rank",
            "a step of one component, and SLURM_HET_SIZE unset",
        )
    plane = _plane(environ, counts)
    tasks = [(i // plane, node) for node, count in enumerate(counts) for i in range(count)]
    return [node for _, node in sorted(tasks)]


def _plane(environ: Mapping[str, str], counts: list[int]) -> int:
    """How many tasks in a row are on one node."""
    how = environ.get("SLURM_DISTRIBUTION", "")
    nodes, _, _ = next((part for part in how.split(",") if part not in _OPTIONS), "").partition(":")
    name, _, size = nodes.partition("=")
    size = size or environ.get("SLURM_DIST_PLANESIZE", "")
    if name in ("", "*", "block"):
        return max(counts)
    if name == "cyclic":
        return 1
    if name != "plane" or not size.isdecimal() or int(size) < 1:
        _wrong(
            f"SLURM_DISTRIBUTION is {how!r}, which does not determine the node of a rank",
            "block, cyclic or plane=SIZE",
        )
    return int(size)


def _check_own_node(environ: Mapping[str, str], nodes_of_ranks: list[str]) -> None:
    """Compares the node of each rank with Slurm's variables for the node of this task."""
    node, listed = environ.get("SLURMD_NODENAME"), environ.get("SLURM_GTIDS")
    computed = ",".join(str(rank) for rank, other in enumerate(nodes_of_ranks) if other == node)
    if node and listed and computed != listed:
        _wrong(
            f"SLURM_GTIDS puts ranks {listed} on {node}, and SLURM_DISTRIBUTION "
            f"{environ.get('SLURM_DISTRIBUTION', '')!r} puts {computed or 'none'} there"
        )


def hostnames(nodes: str) -> list[str]:
    """The hosts of a Slurm node list, as `scontrol show hostnames` gives them.

    >>> hostnames("a[08-10,12],b-[1-2]-x,c")
    ['a08', 'a09', 'a10', 'a12', 'b-1-x', 'b-2-x', 'c']
    """
    names: list[str] = []
    for name in re.findall(r"(?:[^,\[]|\[[^\]]*\])+", nodes):
        before, bracket, rest = name.partition("[")
        if not bracket:
            names.append(name)
            continue
        ranges, _, after = rest.partition("]")
        for part in ranges.split(","):
            if not re.fullmatch(r"\d+(-\d+)?", part):
                _wrong(f"SLURM_STEP_NODELIST is {nodes!r}", "numbers in its brackets")
            low, _, high = part.partition("-")
            numbers = range(int(low), int(high or low) + 1)
            tails = hostnames(after) or [""]
            names += [f"{before}{i:0{len(low)}}{tail}" for i in numbers for tail in tails]
    return names


def tasks_per_node(tasks: str) -> list[int]:
    """The tasks on each node.

    >>> tasks_per_node("2(x3),1")
    [2, 2, 2, 1]
    """
    parts = [re.fullmatch(r"(\d+)(?:\(x(\d+)\))?", part) for part in tasks.split(",")]
    return [int(m[1]) for m in parts if m is not None for _ in range(int(m[2] or 1))]


def _wrong(found: str, expected: str = "consistent values, as srun sets them") -> NoReturn:
    raise ClusterError(
        f"tfaccel: {found}; expected {expected}; start the script with srun and another "
        "--distribution, write TF_CONFIG, or unset SLURM_PROCID."
    )
