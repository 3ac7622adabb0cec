"""Who am I among the workers: one resolver a file, each a pure function of an environment.

They are asked in this order, and the first that describes a job is taken:

1. `tf_config`: ``TF_CONFIG``, which `tfaccel launch`, Vertex AI, Ray and people set.
2. `slurm`: the variables of a job step, set by `srun`.
3. `kubernetes`: a pod of an indexed Job or a JobSet.
4. `mpiexec`: rank and size, set by the launchers of MPI.
5. `tpu_vm`: a host of a TPU slice.

Launchers are started inside others, and variables are inherited, so several may speak:

- Two that give this process the same rank in a job of the same size agree, and the first is taken.
- Two that do not agree are an error, which shows both.
- `tfaccel launch` and `mpiexec` start processes inside whatever else is there, so what is around
  them describes another thing: ``TF_CONFIG`` beside ``TFACCEL_JOB_ID`` is from the first and is
  taken without asking the others; in a process that was started by `mpiexec` or `mpirun`, Slurm's
  variables are those of the step in which MPI's own daemons run, and Slurm is not asked.
- A step, a pod or an MPI job of one process says nothing: something else may be inside it.
- One that cannot be right is an error, unless another has spoken before it.
"""

from __future__ import annotations

import os
from collections.abc import Mapping

from tfaccel.cluster.cluster import Cluster
from tfaccel.cluster.rendezvous import RendezvousResult, rendezvous
from tfaccel.cluster.resolution import Answer, ask, decide
from tfaccel.cluster.tf_config import to_tf_config

__all__ = [
    "Answer",
    "Cluster",
    "RendezvousResult",
    "ask",
    "decide",
    "rendezvous",
    "resolve",
    "to_tf_config",
]


def resolve(environ: Mapping[str, str] | None = None) -> Cluster | None:
    """Finds the workers of this job in an environment.

    Args:
        environ: the environment to read; this process's own when None.

    Returns:
        The cluster, or None when nothing says that there is more than this process.

    Raises:
        ClusterError: the environment describes a cluster that cannot be right, or two.

    >>> resolve({}) is None
    True
    """
    return decide(ask(os.environ if environ is None else environ))
