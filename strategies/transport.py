"""Which of the ways between workers is taken, and how they meet on it."""

from __future__ import annotations

import secrets

from tfaccel.cluster import mpi, switchboard
from tfaccel.cluster.cluster import Cluster
from tfaccel.cluster.rendezvous import installed_versions
from tfaccel.distribute import agreement
from tfaccel.distribute.collectives import start
from tfaccel.distribute.collectives.communicator import Communicator
from tfaccel.errors import ClusterError, StrategyError
from tfaccel.strategies import meeting
from tfaccel.strategies.options import Options


def chosen(options: Options, kind: str, cluster: Cluster) -> str:
    """The transport for `options.communication`: ``"mpi"``, ``"ring"``, ``"nccl"`` or ``"auto"``.

    CPUs speak over MPI where it is installed, else over TensorFlow's ring. For GPUs TensorFlow's
    own ``"auto"`` takes NCCL for what NCCL can do, and its ring for the rest.

    Args:
        options: what the user asked for.
        kind: of device.
        cluster: the workers.

    Raises:
        StrategyError: when what was asked for cannot be had.
    """
    asked = options.communication
    if asked == "nccl" and kind != "GPU":
        raise StrategyError(
            "tfaccel: communication='nccl' was asked for on CPUs, expected 'mpi', 'ring' or 'auto'."
        )
    if asked == "mpi" and options.collective_timeout is not None:
        raise StrategyError(
            f"tfaccel: collective_timeout={options.collective_timeout:g} was asked for with "
            "communication='mpi', which has none (it ends with any worker that ends); leave it out."
        )
    if asked != "auto":
        return asked
    if cluster.source == mpi.SOURCE:
        return "mpi"
    if kind != "CPU":
        return "auto"
    return "mpi" if start.is_installed() and options.collective_timeout is None else "ring"


def over_mpi(cluster: Cluster, options: Options) -> Communicator:
    """Meets the other workers, agrees on random state, and starts MPI among them.

    Raises:
        StrategyError: when MPI is not installed.
        ClusterError: when a worker does not come in time, or belongs to another job.
    """
    if not start.is_installed():
        raise StrategyError(
            "tfaccel: communication='mpi' was asked for and mpi4py is not installed; "
            "pip install 'tfaccel[mpi]'."
        )
    if cluster.source == mpi.SOURCE:
        communicator = start.join(cluster)
        _refuse_others(communicator.share_all(installed_versions()))
        agreement.adopt(communicator.share(agreement.offer()))
        return communicator
    secret = secrets.token_hex(16)
    port = switchboard.start(cluster.size, secret) if cluster.is_chief else 0
    payload = f"{port} {secret}\n".encode() + agreement.offer()
    said, _, state = meeting.of(cluster, options, payload, "mpi").payload.partition(b"\n")
    agreement.adopt(state)
    number, _, secret = said.decode().partition(" ")
    return start.join(cluster, int(number), secret)


def _refuse_others(versions: list[dict[str, str]]) -> None:
    for rank, theirs in enumerate(versions):
        if theirs != versions[0]:
            raise ClusterError(
                f"tfaccel: worker {rank} has {theirs}, worker 0 has {versions[0]}; expected the "
                "same packages on every worker."
            )
