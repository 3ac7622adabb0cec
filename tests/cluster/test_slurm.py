"""What srun tells its tasks."""

from __future__ import annotations

import pytest

from tfaccel.cluster import resolve, slurm
from tfaccel.errors import ClusterError

STEP = {
    "SLURM_PROCID": "1",
    "SLURM_STEP_NUM_TASKS": "4",
    "SLURM_STEP_NODELIST": "n[1-2]",
    "SLURM_STEP_TASKS_PER_NODE": "2(x2)",
    "SLURM_JOB_ID": "12",
    "SLURM_STEP_ID": "0",
}


def hosts(environ: dict[str, str]) -> list[str]:
    found = resolve(environ)
    assert found is not None
    assert found.source == slurm.SOURCE
    return [address.partition(":")[0] for address in found.workers]


def test_tasks_in_the_order_of_their_ranks() -> None:
    assert hosts(STEP) == ["n1", "n1", "n2", "n2"]
    assert hosts(STEP | {"SLURM_DISTRIBUTION": "cyclic"}) == ["n1", "n2", "n1", "n2"]
    uneven = {"SLURM_STEP_TASKS_PER_NODE": "1,3", "SLURM_DISTRIBUTION": "cyclic"}
    assert hosts(STEP | uneven) == ["n1", "n2", "n2", "n2"]


def test_tasks_in_planes() -> None:
    six = STEP | {"SLURM_STEP_NUM_TASKS": "7", "SLURM_STEP_TASKS_PER_NODE": "4,3"}
    found = ["n1", "n1", "n2", "n2", "n1", "n1", "n2"]
    assert hosts(six | {"SLURM_DISTRIBUTION": "plane=2"}) == found
    named = {"SLURM_DISTRIBUTION": "plane", "SLURM_DIST_PLANESIZE": "2"}
    assert hosts(six | named) == found
    assert hosts(six | {"SLURM_DISTRIBUTION": "block:cyclic,NoPack"}) == ["n1"] * 4 + ["n2"] * 3


@pytest.mark.parametrize("how", ["plane", "plane=0", "arbitrary"])
def test_an_order_that_nobody_knows_is_refused(how: str) -> None:
    with pytest.raises(ClusterError, match=f"SLURM_DISTRIBUTION is '{how}', expected block, cycl"):
        slurm.resolve(STEP | {"SLURM_DISTRIBUTION": how})


def test_no_two_tasks_share_an_address_and_no_two_steps_either() -> None:
    first, second = slurm.resolve(STEP), slurm.resolve(STEP | {"SLURM_STEP_ID": "1"})
    assert first is not None
    assert second is not None
    assert len({*first.workers, *second.workers}) == 8
    assert first.workers == slurm.resolve(STEP | {"SLURM_PROCID": "3"}).workers  # type: ignore[union-attr]


@pytest.mark.parametrize(
    "environ",
    [
        {},
        {"SLURM_PROCID": "0", "SLURM_JOB_ID": "3"},  # a batch script
        STEP | {"SLURM_STEP_NUM_TASKS": "1", "SLURM_PROCID": "0"},
        STEP | {"PMI_RANK": "0", "PMI_SIZE": "2"},  # mpiexec inside a job
    ],
)
def test_not_srun_s_or_alone(environ: dict[str, str]) -> None:
    assert slurm.resolve(environ) is None


@pytest.mark.parametrize(
    "wrong",
    [
        {"SLURM_PROCID": "4"},
        {"SLURM_PROCID": "x"},
        {"SLURM_STEP_TASKS_PER_NODE": "2"},
        {"SLURM_STEP_TASKS_PER_NODE": "2,1"},
        {"SLURM_STEP_NODELIST": "n1"},
    ],
)
def test_contradictions(wrong: dict[str, str]) -> None:
    with pytest.raises(ClusterError, match="expected what srun sets, which agrees"):
        slurm.resolve(STEP | wrong)


@pytest.mark.parametrize(
    ("nodes", "names"),
    [
        ("n9", ["n9"]),
        ("n[9-11]", ["n9", "n10", "n11"]),  # by number, not as text
        ("a[1,3],b", ["a1", "a3", "b"]),
        ("r[1-2]n[01-02]", ["r1n01", "r1n02", "r2n01", "r2n02"]),
    ],
)
def test_hostnames(nodes: str, names: list[str]) -> None:
    assert slurm.hostnames(nodes) == names
