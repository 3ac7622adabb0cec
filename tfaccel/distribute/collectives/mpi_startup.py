"""Starts MPI among the workers of a cluster, however they were started."""

from __future__ import annotations

import atexit
import contextlib
import os
import secrets
import socket
from collections.abc import Iterator, Mapping
from typing import Any

from tfaccel.cluster import coordinator, interface
from tfaccel.cluster.cluster import Cluster
from tfaccel.cluster.failure_detector import FailureDetector
from tfaccel.distribute import worker_liveness
from tfaccel.distribute.collectives.communicator import Communicator
from tfaccel.errors import ClusterError, StrategyError

_INSTALL = "pip install 'tfaccel[mpi]'"
_YIELD = "MPIR_CVAR_POLLS_BEFORE_YIELD"
"""MPICH's: how often a waiting thread polls for messages before it yields."""


def is_installed() -> bool:
    """Whether MPI is available here."""
    import importlib.util

    return importlib.util.find_spec("mpi4py") is not None


def join(
    cluster: Cluster, port: int | None = None, secret: str = "", stall_timeout_s: float = 0.0
) -> Communicator:
    """Starts MPI, and ties this worker's lifetime to the others'.

    Args:
        cluster: the workers.
        port: of the coordinator next to worker 0; None when MPI's own launcher has started this
            process and configured MPI.
        secret: of the coordinator.
        stall_timeout_s: as in `coordinator.start`, if started here.

    Raises:
        StrategyError: no MPI library can be loaded.
        ClusterError: the workers do not find each other.
    """
    host = cluster.host_and_port(0)[0] if port is not None else ""
    with (
        contextlib.nullcontext() if port is None else _pmi_environment(cluster, host, port, secret)
    ):
        comm = _initialized()
    if (comm.Get_rank(), comm.Get_size()) != (cluster.rank, cluster.size):
        raise ClusterError(
            f"tfaccel: this process is worker {comm.Get_rank()} of {comm.Get_size()} in MPI, but "
            f"worker {cluster.rank} of {cluster.size} in {cluster.source}; expected the same: use "
            "the MPI library that started this job, or start it with `tfaccel launch`."
        )
    if port is None:
        hosts = comm.allgather(socket.gethostname())
        host = hosts[0] if len(set(hosts)) > 1 else "localhost"
        local_endpoint = None
        if cluster.is_chief:
            secret = secrets.token_hex(16)
            address = interface.address_of(host, [host])
            own_port = coordinator.start(cluster.size, secret, address, stall_timeout_s)
            local_endpoint = address or host, own_port, secret
        host, port, secret = comm.bcast(local_endpoint)
    assert port is not None
    detector = worker_liveness.watch(cluster, host, port, secret)
    atexit.register(_leave, detector)
    return Communicator(comm, detector.before_collective)


def _initialized() -> Any:
    import mpi4py

    mpi4py.rc.initialize = mpi4py.rc.finalize = False
    try:
        from mpi4py import MPI
    except (ImportError, RuntimeError) as error:
        reason = str(error).splitlines()[0]
        raise StrategyError(
            f"tfaccel: communication='mpi' was requested and no MPI library can be loaded "
            f"({reason}); {_INSTALL}."
        ) from error
    if not MPI.Is_initialized():
        # One collective runs at a time, on any of TensorFlow's threads. But MPICH only yields the
        # core where several threads may call it: with more workers than cores an all-reduce of 1 MB
        # took a second without this, and a millisecond with it.
        with _environment_set({} if _YIELD in os.environ else {_YIELD: 1}):
            MPI.Init_thread(MPI.THREAD_MULTIPLE)
    return MPI.COMM_WORLD.Dup()


@contextlib.contextmanager
def _pmi_environment(cluster: Cluster, host: str, port: int, secret: str) -> Iterator[None]:
    """Sets the rank and the process manager's address while an MPI library starts."""
    line = coordinator.connect(host, port, cluster.rank, "pmi", secret)
    variables = {"PMI_FD": line.detach(), "PMI_RANK": cluster.rank, "PMI_SIZE": cluster.size}
    with _environment_set(variables):
        yield


@contextlib.contextmanager
def _environment_set(variables: Mapping[str, Any]) -> Iterator[None]:
    """Sets environment variables while an MPI library starts."""
    before = {name: os.environ.get(name) for name in variables}
    os.environ.update({name: str(value) for name, value in variables.items()})
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value


def _leave(detector: FailureDetector) -> None:
    """Finalizes MPI when all workers have ended; not when this one fails, as they will not."""
    if worker_liveness.ended_by_error(detector):
        detector.abort()
        return
    detector.close(_finalize)


def _finalize() -> None:
    from mpi4py import MPI

    if not MPI.Is_finalized():
        MPI.Finalize()
