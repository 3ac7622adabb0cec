"""What a run trains on, as far as a checkpoint depends on it: workers, replicas, a mesh.

A run may resume on others. Shared values in a checkpoint are laid out again. Per-replica values are
combined into one: the sum of partial sums, the mean of what replicas have trained independently.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from tfaccel.cluster.cluster import cluster_of


@dataclass(frozen=True)
class Topology:
    """What a run trains on.

    Attributes:
        workers: the number of processes.
        replicas: of all of them.
        mesh: its axes; empty without a mesh.
        diverges: whether replicas may hold different states between two steps.
    """

    workers: int = 1
    replicas: int = 1
    mesh: str = ""
    diverges: bool = False

    def __str__(self) -> str:
        """A readable description.

        >>> str(Topology(4, 4)), str(Topology(2, 4)), str(Topology(mesh="batch=2")), str(Topology())
        ('4 workers', '2 workers of 2 replicas', 'a mesh of batch=2', 'one device')
        """
        workers = f"{self.workers} workers" if self.workers > 1 else ""
        if self.mesh:
            return f"a mesh of {self.mesh}" + (f" on {workers}" if workers else "")
        if self.replicas == self.workers:
            return workers or "one device"
        replicas = f"{self.replicas // self.workers} replicas"
        return f"{workers} of {replicas}" if workers else replicas


def topology_of(strategy: Any) -> Topology:
    """What a strategy trains on."""
    planner = getattr(strategy, "planner", None)
    frequency = getattr(strategy, "frequency", None)
    return Topology(
        workers=cluster_of(strategy).size,
        replicas=1 if planner else int(strategy.num_replicas_in_sync),
        mesh=str(planner.mesh) if planner else "",
        diverges=frequency is not None and frequency.replicas_diverge,
    )


def merged(values: Sequence[np.ndarray], sums: bool, diverges: bool) -> np.ndarray | None:
    """The value of a variable on one device, from its values on each replica.

    Args:
        values: the replicas', the first one's first.
        sums: whether the variable is the sum of them.
        diverges: whether they were trained independently; else they should be the same.

    Returns:
        One value, or None where they differ and how to combine them is unknown.

    >>> merged([np.ones(2), np.full(2, 4.0)], False, True), merged([np.ones(1)] * 3, False, False)
    (array([2.5, 2.5]), array([1.]))
    """
    first, kind = values[0], values[0].dtype.kind
    value: Any = None
    if sums:
        value = np.sum(values, axis=0)
    elif all(np.array_equal(first, one) for one in values[1:]):
        value = first  # not their mean, which might round
    elif kind in "iu" and diverges:
        value = np.sum(values, axis=0) // len(values)  # as `local_steps` does
    elif kind in "fV" and diverges:  # V: bfloat16
        value = np.sum([one.astype(np.float64) for one in values], axis=0) / len(values)
    return value if value is None else np.asarray(value, first.dtype)
