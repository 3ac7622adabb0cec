"""Starts MPI among the workers of a cluster, whoever has started them."""

from __future__ import annotations

import atexit
import contextlib
import os
import secrets
import socket
import sys
from collections.abc import Iterator, Mapping
from typing import Any

from tfaccel.cluster import switchboard
from tfaccel.cluster.cluster import Cluster
from tfaccel.cluster.lifeline import Lifeline
from tfaccel.distribute.collectives.communicator import Communicator
from tfaccel.errors import ClusterError, StrategyError

_INSTALL = "pip install 'tfaccel[mpi]'"
_YIELD = "MPIR_CVAR_POLLS_BEFORE_YIELD"
"""MPICH's: how often a thread that waits looks for messages before it lets others compute."""


def is_installed() -> bool:
    """Whether MPI can be had here."""
    import importlib.util

    return importlib.util.find_spec("mpi4py") is not None


def join(cluster: Cluster, port: int | None = None, secret: str = "") -> Communicator:
    """Starts MPI, and ties this worker's life to the others'.

    Args:
        cluster: the workers.
        port: of the switchboard beside worker 0; None when MPI's own launcher has started us,
            which has told MPI already who is there.
        secret: of the switchboard.

    Raises:
        StrategyError: no MPI library can be loaded.
        ClusterError: the workers do not find each other.
    """
    host = cluster.host_and_port(0)[0] if port is not None else ""
    with contextlib.nullcontext() if port is None else _introduced(cluster, host, port, secret):
        comm = _initialized()
    if (comm.Get_rank(), comm.Get_size()) != (cluster.rank, cluster.size):
        raise ClusterError(
            f"tfaccel: MPI says worker {comm.Get_rank()} of {comm.Get_size()}, but "
            f"{cluster.source} says {cluster.rank} of {cluster.size}; expected the same: use the "
            "MPI library that started this job, or start it with `tfaccel launch`."
        )
    if port is None:
        own = None
        if cluster.is_chief:
            secret = secrets.token_hex(16)
            own = socket.gethostname(), switchboard.start(cluster.size, secret), secret
        host, port, secret = comm.bcast(own)
    assert port is not None
    line = switchboard.call(host, port, cluster.rank, "life", secret)
    names = [f"worker {r} of {cluster.size} ({w})" for r, w in enumerate(cluster.workers)]
    lifeline = Lifeline(line, names)
    atexit.register(_leave, lifeline)
    return Communicator(comm, lifeline.begin)


def _initialized() -> Any:
    import mpi4py

    mpi4py.rc.initialize = mpi4py.rc.finalize = False
    try:
        from mpi4py import MPI
    except (ImportError, RuntimeError) as error:
        reason = str(error).splitlines()[0]
        raise StrategyError(
            f"tfaccel: communication='mpi' was asked for and no MPI library can be loaded "
            f"({reason}); {_INSTALL}."
        ) from error
    if not MPI.Is_initialized():
        # One collective runs at a time, on whichever of TensorFlow's threads has its turn. But
        # only where several may call does MPICH yield the core: with more workers than cores an
        # all-reduce of 1 MB took a second, and takes a millisecond.
        with _told({} if _YIELD in os.environ else {_YIELD: 1}):
            MPI.Init_thread(MPI.THREAD_MULTIPLE)
    return MPI.COMM_WORLD.Dup()


@contextlib.contextmanager
def _introduced(cluster: Cluster, host: str, port: int, secret: str) -> Iterator[None]:
    """Tells an MPI library that starts inside who it is, and where it hears of the others."""
    line = switchboard.call(host, port, cluster.rank, "pmi", secret)
    told = {"PMI_FD": line.detach(), "PMI_RANK": cluster.rank, "PMI_SIZE": cluster.size}
    with _told(told):
        yield


@contextlib.contextmanager
def _told(variables: Mapping[str, Any]) -> Iterator[None]:
    """Environment variables for as long as an MPI library starts."""
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


def _leave(lifeline: Lifeline) -> None:
    """Ends MPI when all workers have ended; not when this one fails, for they will not come."""
    if getattr(sys, "last_value", None) is not None:
        lifeline.drop()
        return
    lifeline.leave()
    from mpi4py import MPI

    if not MPI.Is_finalized():
        MPI.Finalize()
