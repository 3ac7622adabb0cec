"""What the pods of an indexed Job or a JobSet are told."""

from __future__ import annotations

import pytest

from tfaccel.cluster import kubernetes, resolve
from tfaccel.errors import ClusterError

JOBSET = {
    "JOB_COMPLETION_INDEX": "1",
    "TFACCEL_NUM_WORKERS": "3",
    "TFACCEL_WORKER_HOSTS": "digits-workers-0-{rank}.digits",
    "TFACCEL_JOB_ID": "7f",
    "HOSTNAME": "digits-workers-0-1",
    "KUBERNETES_SERVICE_HOST": "10.0.0.1",
}


@pytest.mark.parametrize("index", [0, 1, 2])
def test_pods_differ_in_their_index_alone(index: int) -> None:
    found = resolve(JOBSET | {"JOB_COMPLETION_INDEX": str(index)})
    assert found is not None
    assert (found.rank, found.source) == (index, kubernetes.SOURCE)
    assert found.workers == tuple(f"digits-workers-0-{i}.digits:2222" for i in range(3))


def test_a_port_and_the_full_name_of_a_service() -> None:
    given = {"TFACCEL_WORKER_HOSTS": "w-{rank}.svc.ns.svc.cluster.local"}
    found = resolve(JOBSET | given | {"TFACCEL_WORKER_PORT": "9000"})
    assert found is not None
    assert found.address == "w-1.svc.ns.svc.cluster.local:9000"


@pytest.mark.parametrize(
    "environ",
    [
        {},
        {"JOB_COMPLETION_INDEX": "3"},  # tasks that do not know each other
        {"TFACCEL_JOB_ID": "7f", "TFACCEL_WORKER_PORT": "9000"},
        JOBSET | {"TFACCEL_NUM_WORKERS": "1", "JOB_COMPLETION_INDEX": "0"},
    ],
)
def test_without_variables_there_is_no_cluster(environ: dict[str, str]) -> None:
    assert resolve(environ) is None


@pytest.mark.parametrize(
    ("wrong", "says"),
    [
        ({"TFACCEL_NUM_WORKERS": ""}, "TFACCEL_NUM_WORKERS is ''; expected the number of pods"),
        ({"TFACCEL_NUM_WORKERS": "0"}, "TFACCEL_NUM_WORKERS is '0'; expected the number"),
        ({"TFACCEL_NUM_WORKERS": "two"}, "TFACCEL_NUM_WORKERS is 'two'; expected the number"),
        ({"TFACCEL_WORKER_HOSTS": ""}, "TFACCEL_WORKER_HOSTS is ''; expected a host name with"),
        ({"TFACCEL_WORKER_HOSTS": "digits"}, "is 'digits'; expected a host name with {rank} in"),
        ({"TFACCEL_WORKER_HOSTS": "a-{rank}:1"}, "is 'a-{rank}:1'; expected a host name"),
        ({"TFACCEL_WORKER_HOSTS": "a-$(rank)"}, "expected a host name with {rank} in it"),
        ({"JOB_COMPLETION_INDEX": ""}, "JOB_COMPLETION_INDEX is '' with 3 workers in TFACCEL_NUM"),
        ({"JOB_COMPLETION_INDEX": "3"}, "'3' with 3 workers in TFACCEL_NUM_WORKERS; expected a"),
        ({"JOB_COMPLETION_INDEX": "-1"}, "a number from 0 to 2; run them as a Job with completion"),
        ({"TFACCEL_WORKER_PORT": "http"}, "TFACCEL_WORKER_PORT is 'http'; expected a port"),
        ({"TFACCEL_WORKER_PORT": "0"}, "TFACCEL_WORKER_PORT is '0'; expected a port"),
        ({"TFACCEL_WORKER_PORT": "65536"}, "expected a port from 1 to 65535"),
    ],
)
def test_a_description_that_cannot_be_right(wrong: dict[str, str], says: str) -> None:
    with pytest.raises(ClusterError) as caught:
        resolve(JOBSET | wrong)
    assert says in str(caught.value)
    assert "\n" not in str(caught.value)
