"""Which way between workers is taken."""

from __future__ import annotations

from typing import Any

import pytest

from tfaccel.cluster import mpiexec
from tfaccel.cluster.cluster import Cluster
from tfaccel.distribute.collectives import mpi_startup
from tfaccel.errors import StrategyError
from tfaccel.strategies import transport, worker_startup
from tfaccel.strategies.options import Options

TWO = Cluster(("a:1", "b:1"), 0, "TF_CONFIG")
BY_MPIEXEC = Cluster(("rank 0", "rank 1"), 0, mpiexec.SOURCE)


@pytest.mark.parametrize(
    ("values", "kind", "cluster", "installed", "way"),
    [
        ({}, "CPU", TWO, True, "mpi"),
        ({}, "CPU", TWO, False, "ring"),
        ({"collective_timeout": 3.0}, "CPU", TWO, True, "ring"),
        ({}, "GPU", TWO, True, "auto"),
        ({"communication": "nccl"}, "GPU", TWO, True, "nccl"),
        ({"communication": "mpi"}, "GPU", TWO, True, "mpi"),
        ({"communication": "ring"}, "CPU", TWO, True, "ring"),
        ({}, "CPU", BY_MPIEXEC, True, "mpi"),
        ({}, "GPU", BY_MPIEXEC, True, "mpi"),
    ],
)
def test_the_way(
    values: Any, kind: str, cluster: Cluster, installed: bool, way: str, monkeypatch: Any
) -> None:
    monkeypatch.setattr(mpi_startup, "is_installed", lambda: installed)
    assert transport.choose_transport(Options(**values), kind, cluster) == way


@pytest.mark.parametrize(
    ("values", "says"),
    [
        ({"communication": "nccl"}, "communication='nccl' was requested on CPUs; expected 'mpi'"),
        (
            {"communication": "mpi", "collective_timeout": 3.0},
            "collective_timeout=3 was requested with communication='mpi', which has none",
        ),
    ],
)
def test_what_cannot_be(values: Any, says: str) -> None:
    with pytest.raises(StrategyError, match=says):
        transport.choose_transport(Options(**values), "CPU", TWO)


def test_missing_mpi_is_an_error_before_the_rendezvous(monkeypatch: Any) -> None:
    monkeypatch.setattr(mpi_startup, "is_installed", lambda: False)
    with pytest.raises(StrategyError, match=r"mpi4py is not installed; pip install 'tfaccel"):
        transport.connect_mpi(TWO, Options(communication="mpi"))


def test_workers_without_addresses_are_refused() -> None:
    with pytest.raises(StrategyError, match="2 workers were started by mpiexec, which gives them"):
        worker_startup.join_workers(BY_MPIEXEC, Options(), b"")
