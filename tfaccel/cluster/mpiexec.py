"""The cluster that MPI's own launcher tells its processes of: `mpiexec`, `mpirun`."""

from __future__ import annotations

from collections.abc import Mapping

from tfaccel.cluster.cluster import Cluster
from tfaccel.errors import ClusterError

SOURCE = "mpiexec"
# MPICH and its relatives, then Open MPI.
_NAMES = (("PMI_RANK", "PMI_SIZE"), ("OMPI_COMM_WORLD_RANK", "OMPI_COMM_WORLD_SIZE"))


def resolve(environ: Mapping[str, str]) -> Cluster | None:
    """Reads rank and size as `mpiexec` gives them.

    It gives no addresses: the workers can communicate over MPI alone.

    Args:
        environ: an environment, for example ``os.environ``.

    Returns:
        The cluster, or None when there is no `mpiexec` or only one process.

    Raises:
        ClusterError: rank and size cannot be right.

    >>> resolve({"PMI_RANK": "1", "PMI_SIZE": "2"})
    Cluster(workers=('rank 0', 'rank 1'), rank=1, source='mpiexec')
    """
    for of_rank, of_size in _NAMES:
        rank, size = environ.get(of_rank), environ.get(of_size)
        if rank is None or size is None:
            continue
        if not (rank.isdigit() and size.isdigit() and int(rank) < int(size)):
            raise ClusterError(
                f"tfaccel: {of_rank} is {rank!r} and {of_size} is {size!r}, expected a number and "
                "a larger one; start the job with mpiexec, or unset both."
            )
        if int(size) == 1:
            return None
        return Cluster(tuple(f"rank {r}" for r in range(int(size))), int(rank), SOURCE)
    return None
