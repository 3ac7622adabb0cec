"""Who am I among the workers: one resolver a file, each a pure function of an environment."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping

from tfaccel.cluster import mpiexec, slurm, tf_config
from tfaccel.cluster.cluster import Cluster
from tfaccel.cluster.rendezvous import RendezvousResult, rendezvous
from tfaccel.cluster.tf_config import to_tf_config

__all__ = ["Cluster", "RendezvousResult", "rendezvous", "resolve", "to_tf_config"]

# The first that knows wins, so what a person wrote by hand comes before what a scheduler set.
_RESOLVERS: tuple[Callable[[Mapping[str, str]], Cluster | None], ...] = (
    tf_config.resolve,
    slurm.resolve,
    mpiexec.resolve,
)


def resolve(environ: Mapping[str, str] | None = None) -> Cluster | None:
    """Finds the workers of this job in an environment.

    Args:
        environ: the environment to read; this process's own when None.

    Returns:
        The cluster, or None when nothing says that there is more than this process.

    Raises:
        ClusterError: the environment describes a cluster that cannot be right.

    >>> resolve({}) is None
    True
    """
    environ = os.environ if environ is None else environ
    return next((found for ask in _RESOLVERS if (found := ask(environ)) is not None), None)
