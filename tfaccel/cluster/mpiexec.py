"""The cluster of MPI's own launchers: `mpiexec`, `mpirun`."""

from __future__ import annotations

from collections.abc import Mapping

from tfaccel.cluster.cluster import Cluster
from tfaccel.errors import ClusterError

SOURCE = "mpiexec"
# MPICH and its derivatives, then Open MPI.
_NAMES = (("PMI_RANK", "PMI_SIZE"), ("OMPI_COMM_WORLD_RANK", "OMPI_COMM_WORLD_SIZE"))
# Set only by MPI launchers: `srun --mpi=pmi2` sets PMI_RANK too, to Slurm's own rank.
_LAUNCHERS = ("MPI_LOCALRANKID", "OMPI_COMM_WORLD_RANK")
VARIABLES = (*(name for names in _NAMES for name in names), "MPI_LOCALRANKID")
NEEDS = "more than one process of mpiexec"


def resolve(environ: Mapping[str, str]) -> Cluster | None:
    """Reads rank and size as `mpiexec` gives them.

    It gives no addresses: the workers can communicate over MPI alone.

    Args:
        environ: an environment, for example ``os.environ``.

    Returns:
        The cluster, or None when there is no `mpiexec` or only one process.

    Raises:
        ClusterError: rank or size is invalid.

    >>> resolve({"PMI_RANK": "1", "PMI_SIZE": "2"})
    Cluster(workers=('rank 0', 'rank 1'), rank=1, source='mpiexec')
    """
    for of_rank, of_size in _NAMES:
        rank, size = environ.get(of_rank), environ.get(of_size)
        if rank is None or size is None:
            continue
        if not (rank.isdecimal() and size.isdecimal() and int(rank) < int(size)):
            raise ClusterError(
                f"tfaccel: {of_rank} is {rank!r} and {of_size} is {size!r}; expected "
                "0 <= rank < size; start the job with mpiexec, or unset both."
            )
        if int(size) == 1:
            return None
        return Cluster(tuple(f"rank {r}" for r in range(int(size))), int(rank), SOURCE)
    return None


def is_launched(environ: Mapping[str, str]) -> bool:
    """Whether a launcher of MPI started this process as one of several, rather than `srun`.

    >>> is_launched({"PMI_RANK": "1", "PMI_SIZE": "2", "MPI_LOCALRANKID": "0"})
    True
    >>> is_launched({"PMI_RANK": "1", "PMI_SIZE": "2", "PMI_JOBID": "29.0"})
    False
    """
    return any(name in environ for name in _LAUNCHERS) and resolve(environ) is not None
