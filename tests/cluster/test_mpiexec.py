"""What mpiexec tells its processes."""

from __future__ import annotations

import pytest

from tfaccel.cluster import mpiexec, resolve
from tfaccel.errors import ClusterError


@pytest.mark.parametrize(
    ("environ", "rank", "size"),
    [
        ({"PMI_RANK": "1", "PMI_SIZE": "2"}, 1, 2),
        ({"OMPI_COMM_WORLD_RANK": "0", "OMPI_COMM_WORLD_SIZE": "3"}, 0, 3),
    ],
)
def test_rank_and_size(environ: dict[str, str], rank: int, size: int) -> None:
    found = resolve(environ)
    assert found is not None
    assert (found.rank, found.size, found.source) == (rank, size, mpiexec.SOURCE)


@pytest.mark.parametrize("environ", [{}, {"PMI_RANK": "0"}, {"PMI_RANK": "0", "PMI_SIZE": "1"}])
def test_one_process_is_no_cluster(environ: dict[str, str]) -> None:
    assert mpiexec.resolve(environ) is None


@pytest.mark.parametrize("rank", ["2", "-1", "x", ""])
def test_a_rank_that_cannot_be(rank: str) -> None:
    with pytest.raises(ClusterError, match=f"PMI_RANK is '{rank}' and PMI_SIZE is '2'; expected"):
        mpiexec.resolve({"PMI_RANK": rank, "PMI_SIZE": "2"})
