"""Which transport between workers is used, and how it is set up."""

from __future__ import annotations

from tfaccel.cluster import mpiexec
from tfaccel.cluster.cluster import Cluster
from tfaccel.cluster.rendezvous import installed_versions
from tfaccel.distribute import random_state
from tfaccel.distribute.collectives import mpi_startup
from tfaccel.distribute.collectives.communicator import Communicator
from tfaccel.errors import ClusterError, StrategyError
from tfaccel.strategies import worker_startup
from tfaccel.strategies.options import Options


def choose_transport(options: Options, kind: str, cluster: Cluster) -> str:
    """The transport for `options.communication`: ``"mpi"``, ``"ring"``, ``"nccl"`` or ``"auto"``.

    CPUs communicate over MPI where it is installed, else over TensorFlow's ring. For GPUs
    TensorFlow's own ``"auto"`` uses NCCL for what NCCL supports, and its ring for the rest.

    Args:
        options: what the user requested.
        kind: of device.
        cluster: the workers.

    Raises:
        StrategyError: when the request is unsupported.
    """
    requested = options.communication
    if requested == "nccl" and kind != "GPU":
        raise StrategyError(
            "tfaccel: communication='nccl' was requested on CPUs; expected 'mpi', 'ring' or 'auto'."
        )
    if requested == "mpi" and options.collective_timeout is not None:
        raise StrategyError(
            f"tfaccel: collective_timeout={options.collective_timeout:g} was requested with "
            "communication='mpi', which has none (it ends with any worker that ends); leave it out."
        )
    if requested != "auto":
        return requested
    if cluster.source == mpiexec.SOURCE:
        return "mpi"
    if kind != "CPU":
        return "auto"
    return "mpi" if mpi_startup.is_installed() and options.collective_timeout is None else "ring"


def connect_mpi(cluster: Cluster, options: Options) -> Communicator:
    """Meets the other workers, agrees on random state, and starts MPI among them.

    Raises:
        StrategyError: when MPI is not installed.
        ClusterError: when a worker does not arrive in time, or belongs to another job.
    """
    if not mpi_startup.is_installed():
        raise StrategyError(
            "tfaccel: communication='mpi' was requested and mpi4py is not installed; "
            "pip install 'tfaccel[mpi]'."
        )
    if cluster.source == mpiexec.SOURCE:
        communicator = mpi_startup.join(cluster, stall_timeout_s=options.stall_timeout)
        _check_versions(communicator.all_gather_object(installed_versions()))
        random_state.restore(communicator.broadcast_object(random_state.serialize()))
        return communicator
    info = worker_startup.rendezvous_workers(cluster, options, "mpi")
    return mpi_startup.join(cluster, info.port, info.secret)


def _check_versions(versions: list[dict[str, str]]) -> None:
    for rank, found in enumerate(versions):
        if found != versions[0]:
            raise ClusterError(
                f"tfaccel: worker {rank} has {found}, worker 0 has {versions[0]}; expected the "
                "same packages on every worker."
            )
