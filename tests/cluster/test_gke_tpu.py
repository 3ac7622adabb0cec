"""What a host of a TPU slice is told."""

from __future__ import annotations

import pytest

from tfaccel.cluster import gke_tpu, resolve
from tfaccel.errors import ClusterError

SLICE = {"TPU_WORKER_HOSTNAMES": "t-0.t, t-1.t,t-2.t", "TPU_WORKER_ID": "2"}


def test_hosts_of_a_slice() -> None:
    found = resolve(SLICE)
    assert found is not None
    assert (found.rank, found.source) == (2, gke_tpu.SOURCE)
    assert found.workers == ("t-0.t:2222", "t-1.t:2222", "t-2.t:2222")
    moved = resolve(SLICE | {"TFACCEL_WORKER_PORT": "9000"})
    assert moved is not None
    assert moved.address == "t-2.t:9000"


def test_the_port_of_libtpu_is_not_used() -> None:
    found = resolve({"TPU_WORKER_HOSTNAMES": "a:8471,b:8471", "TPU_WORKER_ID": "0"})
    assert found is not None
    assert found.workers == ("a:2222", "b:2222")


@pytest.mark.parametrize(
    "environ",
    [
        {"TPU_WORKER_ID": "0"},
        {"TPU_WORKER_HOSTNAMES": "", "TPU_WORKER_ID": "0"},
        {"TPU_WORKER_HOSTNAMES": "localhost", "TPU_WORKER_ID": "0"},
        {"TPU_NAME": "mine"},
    ],
)
def test_one_host_is_no_cluster(environ: dict[str, str]) -> None:
    assert resolve(environ) is None


@pytest.mark.parametrize("place", ["", "3", "-1", "x"])
def test_a_place_that_cannot_be(place: str) -> None:
    with pytest.raises(ClusterError, match=f"TPU_WORKER_ID is '{place}' and .* from 0 to 2, among"):
        resolve(SLICE | {"TPU_WORKER_ID": place})


def test_a_host_twice() -> None:
    with pytest.raises(ClusterError, match="among hosts that differ"):
        resolve({"TPU_WORKER_HOSTNAMES": "a,a", "TPU_WORKER_ID": "0"})
