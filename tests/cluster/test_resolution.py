"""Several resolvers that speak at once: who is taken, and what is an error."""

from __future__ import annotations

import itertools

import pytest

from tfaccel import cluster
from tfaccel.cluster import Cluster, resolution, resolve, to_tf_config
from tfaccel.errors import ClusterError

SOURCES = ("TF_CONFIG", "Slurm", "Kubernetes", "mpiexec", "GKE TPU", "Compute Engine TPU")


def tf_config(rank: int, size: int) -> dict[str, str]:
    workers = tuple(f"h{i}:1" for i in range(size))
    return {"TF_CONFIG": to_tf_config(Cluster(workers, rank, "a test"))}


def slurm(rank: int, size: int) -> dict[str, str]:
    return {
        "SLURM_PROCID": str(rank),
        "SLURM_STEP_NUM_TASKS": str(size),
        "SLURM_STEP_NODELIST": "n1",
        "SLURM_STEP_TASKS_PER_NODE": str(size),
    }


def kubernetes(rank: int, size: int) -> dict[str, str]:
    return {
        "JOB_COMPLETION_INDEX": str(rank),
        "TFACCEL_NUM_WORKERS": str(size),
        "TFACCEL_WORKER_HOSTS": "p-{rank}.s",
    }


def pmi(rank: int, size: int) -> dict[str, str]:
    return {"PMI_RANK": str(rank), "PMI_SIZE": str(size)}


def gke_tpu(rank: int, size: int) -> dict[str, str]:
    hosts = ",".join(f"t-{i}" for i in range(size))
    return {"TPU_WORKER_ID": str(rank), "TPU_WORKER_HOSTNAMES": hosts}


# The last one asks a server: test_gce_tpu.py.
OF_VARIABLES = SOURCES[:-1]
ALL = dict(zip(OF_VARIABLES, (tf_config, slurm, kubernetes, pmi, gke_tpu), strict=True))
PAIRS = list(itertools.combinations(OF_VARIABLES, 2))
HYDRA = {"MPI_LOCALRANKID": "0"}
LAUNCHED = {"TFACCEL_JOB_ID": "7f"}


def source(environ: dict[str, str]) -> str:
    found = resolve(environ)
    assert found is not None
    return found.source


def test_the_order() -> None:
    assert tuple(resolver.SOURCE for resolver in resolution.RESOLVERS) == SOURCES
    for resolver in resolution.RESOLVERS:
        module = str(resolver.resolve.__module__).rpartition(".")[2]
        assert f"`{module}`" in str(cluster.__doc__)


@pytest.mark.parametrize(("first", "second"), PAIRS)
def test_two_that_agree_are_one_and_the_first_is_taken(first: str, second: str) -> None:
    assert source({**ALL[second](1, 3), **ALL[first](1, 3)}) == first


@pytest.mark.parametrize(("first", "second"), PAIRS)
@pytest.mark.parametrize("other", [(0, 2), (1, 3)])
def test_two_that_disagree_are_an_error_that_shows_both(
    first: str, second: str, other: tuple[int, int]
) -> None:
    one, two = ALL[first](1, 2), ALL[second](*other)
    with pytest.raises(ClusterError) as caught:
        resolve({**two, **one})
    message = str(caught.value)
    assert f"{first} describes this process as worker 1 of 2 (" in message
    assert f"{second} describes it as worker {other[0]} of {other[1]} (" in message
    for name, value in (one | two).items():
        assert f"{name}={value}" in message
    assert message.endswith("unset the variables of the one that is wrong.")
    assert "\n" not in message


@pytest.mark.parametrize(
    ("around", "inside", "taken"),
    [
        # srun -n1 tfaccel launch --nproc 4, and srun -n2 -N2, a job on each node
        (slurm(0, 1), tf_config(3, 4) | LAUNCHED, "TF_CONFIG"),
        (slurm(1, 2), tf_config(3, 4) | LAUNCHED, "TF_CONFIG"),
        # tfaccel launch in a pod, under mpiexec, and of one worker
        (kubernetes(1, 2), tf_config(0, 4) | LAUNCHED, "TF_CONFIG"),
        (pmi(1, 2) | HYDRA, tf_config(0, 4) | LAUNCHED, "TF_CONFIG"),
        (slurm(1, 2), tf_config(0, 1) | LAUNCHED, "TF_CONFIG"),
        # its pods: a job id, and no TF_CONFIG
        (LAUNCHED, kubernetes(1, 2), "Kubernetes"),
        (LAUNCHED, slurm(1, 2), "Slurm"),
        # by hand, one step for each machine: srun -N1 -n1 -w n2 env TF_CONFIG=... python train.py
        (slurm(0, 1), tf_config(1, 2), "TF_CONFIG"),
        (pmi(0, 1), tf_config(1, 2), "TF_CONFIG"),
        # mpiexec in an allocation of Slurm: a step of two daemons, four processes
        (slurm(1, 2), pmi(3, 4) | HYDRA, "mpiexec"),
        (slurm(1, 2), {"OMPI_COMM_WORLD_RANK": "3", "OMPI_COMM_WORLD_SIZE": "4"}, "mpiexec"),
        # srun --mpi=pmi2
        (slurm(1, 2), pmi(1, 2), "Slurm"),
        # a manager in Slurm's batch script: srun below `mpiexec -n 1`
        (pmi(0, 1) | HYDRA, slurm(1, 2), "Slurm"),
        # a pod of a TPU slice
        (gke_tpu(1, 4), kubernetes(1, 4), "Kubernetes"),
        ({"JOB_COMPLETION_INDEX": "2"}, tf_config(0, 4), "TF_CONFIG"),
    ],
)
def test_launchers_inside_others(
    around: dict[str, str], inside: dict[str, str], taken: str
) -> None:
    assert source({**around, **inside}) == taken


def test_a_job_of_one_in_tf_config_is_a_description_too() -> None:
    assert resolve(tf_config(0, 1)) == Cluster(("h0:1",), 0, "TF_CONFIG")
    with pytest.raises(ClusterError, match=r"worker 0 of 1 \(.*and Slurm describes it as worker 1"):
        resolve(tf_config(0, 1) | slurm(1, 2))


def test_vertex_ai() -> None:
    tf_config_text = (
        '{"cluster": {"chief": ["workerpool0-0:2222"], "worker": ["workerpool1-0:2222",'
        '"workerpool1-1:2222"]}, "environment": "cloud", "task": {"type": "worker", "index": 1,'
        '"trial": "2"}, "job": "{\\"python_module\\": \\"\\"}"}'
    )
    found = resolve(
        {"TF_CONFIG": tf_config_text, "CLUSTER_SPEC": "{}", "JOB_COMPLETION_INDEX": "0"}
    )
    assert found == Cluster(
        ("workerpool0-0:2222", "workerpool1-0:2222", "workerpool1-1:2222"), 2, "TF_CONFIG"
    )


def test_a_wrong_description_is_skipped_after_a_right_one_and_an_error_before_it() -> None:
    arbitrary = slurm(1, 2) | {
        "SLURM_STEP_NODELIST": "n[1-2]",
        "SLURM_STEP_TASKS_PER_NODE": "1(x2)",
        "SLURM_DISTRIBUTION": "arbitrary",
    }
    assert source(tf_config(1, 2) | arbitrary) == "TF_CONFIG"
    results = resolution.resolve_all(tf_config(1, 2) | arbitrary)
    assert "SLURM_DISTRIBUTION is 'arbitrary'" in results[1].summary
    with pytest.raises(ClusterError, match="SLURM_DISTRIBUTION is 'arbitrary'"):
        resolve(arbitrary | gke_tpu(1, 2))


def test_answers_tell_what_was_read() -> None:
    results = resolution.resolve_all(pmi(1, 2) | {"JOB_COMPLETION_INDEX": "3", "HOME": "/root"})
    assert [answer.source for answer in results] == list(SOURCES)
    assert [answer.variables for answer in results] == [
        (),
        (),
        (("JOB_COMPLETION_INDEX", "3"),),
        (("PMI_RANK", "1"), ("PMI_SIZE", "2")),
        (),
        (),
    ]
    assert results[3].summary == "worker 1 of 2"
    assert results[2].summary.startswith(
        "no cluster, which takes JOB_COMPLETION_INDEX, TFACCEL_NUM_W"
    )
