"""Cluster resolvers: one per file, each a function of an environment.

They are tried in this order, and the first that describes a job is used:

1. `tf_config`: ``TF_CONFIG``, set by `tfaccel launch`, Vertex AI, Ray or by hand.
2. `slurm`: the variables of a job step, set by `srun`.
3. `kubernetes`: a pod of an indexed Job or a JobSet.
4. `mpiexec`: rank and size, set by the launchers of MPI.
5. `gke_tpu`: a host of a TPU slice, under Google Kubernetes Engine or KubeRay.
6. `gce_tpu`: a host of a TPU slice, a TPU VM of Google Compute Engine.

Launchers run inside other launchers and variables are inherited, so several may match:

- Two that give this process the same rank in a job of the same size agree; the first is used.
- Two that disagree are an error that shows both.
- `tfaccel launch` and `mpiexec` start processes inside any other environment, whose variables then
  describe something else: ``TF_CONFIG`` together with ``TFACCEL_JOB_ID`` comes from the first and
  takes precedence; in a process started by `mpiexec` or `mpirun`, Slurm's variables are those of
  the step in which MPI's own daemons run, and Slurm is not tried.
- A step, a pod or an MPI job of one process does not match: something else may be inside it.
- An invalid description is an error, unless an earlier one matched.
"""

from __future__ import annotations

import os
from collections.abc import Mapping

from tfaccel.cluster.cluster import Cluster
from tfaccel.cluster.rendezvous import rendezvous
from tfaccel.cluster.resolution import ResolverResult, decide, resolve_all
from tfaccel.cluster.tf_config import to_tf_config

__all__ = [
    "Cluster",
    "ResolverResult",
    "decide",
    "rendezvous",
    "resolve",
    "resolve_all",
    "to_tf_config",
]


def resolve(environ: Mapping[str, str] | None = None) -> Cluster | None:
    """Finds the workers of this job in an environment.

    Args:
        environ: the environment to read; this process's own when None.

    Returns:
        The cluster, or None when nothing describes more than this process.

    Raises:
        ClusterError: the environment describes an invalid cluster, or two different ones.

    >>> resolve({}) is None
    True
    """
    return decide(resolve_all(os.environ if environ is None else environ))
