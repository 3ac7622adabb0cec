"""What srun tells its tasks."""

from __future__ import annotations

import pytest

from tests.cluster.slurm_steps import STEPS, recorded
from tfaccel.cluster import mpiexec, resolve, slurm
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
def test_an_unknown_task_distribution_is_refused(how: str) -> None:
    with pytest.raises(
        ClusterError, match=f"SLURM_DISTRIBUTION is '{how}', which does not determine"
    ):
        slurm.resolve(STEP | {"SLURM_DISTRIBUTION": how})


def test_an_order_that_slurm_did_not_take_is_refused() -> None:
    step = STEP | {"SLURMD_NODENAME": "n1", "SLURM_GTIDS": "0,1"}
    assert hosts(step) == ["n1", "n1", "n2", "n2"]
    with pytest.raises(ClusterError, match="SLURM_GTIDS puts ranks 0,2 on n1, and SLURM_DISTR"):
        slurm.resolve(step | {"SLURM_GTIDS": "0,2"})
    with pytest.raises(ClusterError, match="on n3, and SLURM_DISTRIBUTION '' puts none there"):
        slurm.resolve(step | {"SLURMD_NODENAME": "n3"})


# --- What a real Slurm told its tasks: see slurm_steps.py -------------------------------------

RECORDED = dict(recorded())
ARBITRARY = [step for step in STEPS if "arbitrary" in step and "n2,n2,n2" not in step]
COMPONENTS = [step for step in STEPS if " : " in step]
ALONE = ("srun -n1 PROGRAM", "salloc -N2 -n4 PROGRAM")
BY_MPI = [step for step in STEPS if "mpiexec" in step]
TOLD = [step for step in STEPS if step not in (*ARBITRARY, *COMPONENTS, *ALONE, *BY_MPI)]


def test_every_step_was_recorded() -> None:
    assert tuple(RECORDED) == STEPS
    assert len(TOLD) > 25


@pytest.mark.parametrize("step", TOLD)
def test_ranks_are_on_the_nodes_that_slurm_put_them_on(step: str) -> None:
    tasks = RECORDED[step]
    nodes = [task["SLURMD_NODENAME"] for task in tasks]
    assert len(tasks) > 1
    assert [hosts(task) for task in tasks] == [nodes] * len(tasks)
    found = [slurm.resolve(task) for task in tasks]
    assert [cluster.rank for cluster in found if cluster] == list(range(len(tasks)))
    assert len({cluster.workers for cluster in found if cluster}) == 1
    assert len(set(found[0].workers)) == len(tasks)  # type: ignore[union-attr]


@pytest.mark.parametrize("step", ARBITRARY)
def test_an_arbitrary_order_is_in_no_variable(step: str) -> None:
    for task in RECORDED[step]:
        with pytest.raises(ClusterError, match="'arbitrary', which does not determine the node"):
            resolve(task)


@pytest.mark.parametrize("step", COMPONENTS)
def test_the_order_of_components_is_in_no_variable(step: str) -> None:
    for task in RECORDED[step]:
        with pytest.raises(
            ClusterError, match=r"SLURM_HET_SIZE is 2\) on . nodes, and no variable"
        ):
            resolve(task)


def test_one_component_of_several_is_a_step_like_any_other() -> None:
    tasks = RECORDED["salloc -N2 -n4 : -N1 -n2 srun -m cyclic PROGRAM"]
    nodes = [task["SLURMD_NODENAME"] for task in tasks]
    for task in tasks:
        assert hosts({k: v for k, v in task.items() if k != "SLURM_HET_SIZE"}) == nodes


@pytest.mark.parametrize("step", ALONE)
def test_one_task_is_no_cluster(step: str) -> None:
    assert [resolve(task) for task in RECORDED[step]] == [None]


@pytest.mark.parametrize("step", BY_MPI)
def test_mpiexec_in_an_allocation_starts_its_daemons_as_a_step(step: str) -> None:
    tasks = RECORDED[step]
    found = [resolve(task) for task in tasks]
    assert [(c.rank, c.size, c.source) for c in found if c] == [
        (rank, len(tasks), mpiexec.SOURCE) for rank in range(len(tasks))
    ]
    assert all("SLURM_STEP_NUM_TASKS" in task for task in tasks)  # as srun's own tasks have it


# --- What cannot be right ---------------------------------------------------------------------


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
        STEP | {"PMI_RANK": "0", "PMI_SIZE": "2", "MPI_LOCALRANKID": "0"},  # mpiexec inside a job
        STEP | {"OMPI_COMM_WORLD_RANK": "0", "OMPI_COMM_WORLD_SIZE": "2"},
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
    with pytest.raises(ClusterError, match="expected consistent values, as srun sets them"):
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


@pytest.mark.parametrize("nodes", ["n[1-x]", "n[]", "n[1-2-3]"])
def test_hostnames_that_slurm_does_not_write(nodes: str) -> None:
    with pytest.raises(ClusterError, match=r"SLURM_STEP_NODELIST is .* expected numbers in its br"):
        slurm.resolve(STEP | {"SLURM_STEP_NODELIST": nodes})
