from __future__ import annotations

import json

import pytest

from tfaccel.cluster import Cluster, resolve, to_tf_config
from tfaccel.cluster.tf_config import resolve as resolve_tf_config
from tfaccel.errors import ClusterError


def environ(cluster: object, task: object = None) -> dict[str, str]:
    config = {"cluster": cluster}
    if task is not None:
        config["task"] = task
    return {"TF_CONFIG": json.dumps(config)}


WORKER_0 = {"type": "worker", "index": 0}
TWO = {"worker": ["a:1", "b:2"]}


@pytest.mark.parametrize(
    "environment",
    [
        {},
        {"TF_CONFIG": ""},
        {"TF_CONFIG": "  \n"},
        {"TF_CONFIG": "{}"},
        {"TF_CONFIG": '{"cluster": {}}'},
        {"TF_CONFIG": '{"task": {"type": "worker", "index": 0}}'},
    ],
)
def test_without_a_cluster_there_is_none(environment: dict[str, str]) -> None:
    assert resolve_tf_config(environment) is None


@pytest.mark.parametrize(
    ("jobs", "task", "workers", "rank"),
    [
        (TWO, {"type": "worker", "index": 1}, ("a:1", "b:2"), 1),
        ({"chief": ["c:3"], **TWO}, {"type": "chief", "index": 0}, ("c:3", "a:1", "b:2"), 0),
        ({**TWO, "chief": ["c:3"]}, {"type": "worker", "index": 1}, ("c:3", "a:1", "b:2"), 2),
        ({"chief": ["c:3"]}, {"type": "chief", "index": 0}, ("c:3",), 0),
        ({"chief": ["c:3"], "worker": []}, {"type": "chief", "index": 0}, ("c:3",), 0),
        ({"worker": ["a:1"], "ps": []}, WORKER_0, ("a:1",), 0),
        ({"worker": ["[::1]:1", "10.0.0.2:65535"]}, WORKER_0, ("[::1]:1", "10.0.0.2:65535"), 0),
        ({"worker": ["a:1", "a:2"]}, WORKER_0, ("a:1", "a:2"), 0),
    ],
)
def test_rank_counts_the_chief_first(
    jobs: object, task: object, workers: tuple[str, ...], rank: int
) -> None:
    assert resolve_tf_config(environ(jobs, task)) == Cluster(workers, rank, "TF_CONFIG")


@pytest.mark.parametrize(
    ("environment", "says"),
    [
        ({"TF_CONFIG": "{cluster}"}, "is not JSON"),
        ({"TF_CONFIG": "[" * 100_000}, "is not JSON"),
        ({"TF_CONFIG": '["a:1"]'}, 'is ["a:1"]; expected a JSON object'),
        (environ(["a:1"], WORKER_0), 'has cluster ["a:1"]'),
        (environ({"worker": []}, WORKER_0), "has an empty worker list"),
        (environ({"worker": "a:1"}, WORKER_0), 'has cluster.worker "a:1"; expected a list'),
        (environ({"worker": {"0": "a:1"}}, WORKER_0), "expected a list of host:port"),
        (environ({"worker": ["a"]}, WORKER_0), 'has cluster.worker[0] "a"; expected host:port'),
        (environ({"worker": ["a:1", 7]}, WORKER_0), "has cluster.worker[1] 7"),
        (environ({"worker": ["grpc://a:1"]}, WORKER_0), "expected host:port"),
        (environ({"worker": [":1"]}, WORKER_0), "expected host:port"),
        (environ({"worker": ["a:http"]}, WORKER_0), "expected host:port"),
        (environ({"worker": ["a:0"]}, WORKER_0), "a port from 1 to 65535"),
        (environ({"worker": ["a:65536"]}, WORKER_0), "a port from 1 to 65535"),
        (environ({"worker": ["a:1", "A:1"]}, WORKER_0), "has the address 'A:1' twice"),
        (environ({"chief": ["a:1"], "worker": ["a:1"]}, WORKER_0), "twice"),
        (environ({"chief": ["a:1", "b:1"], "worker": ["c:1"]}, WORKER_0), "has 2 chiefs"),
        (environ({**TWO, "ps": ["p:1"]}, WORKER_0), "not supported by Keras 3"),
        (environ({**TWO, "evaluator": ["e:1"]}, WORKER_0), "not supported by Keras 3"),
        (environ({**TWO, "wroker": ["e:1"]}, WORKER_0), "has a job 'wroker' in its cluster"),
        (environ(TWO), "has no task"),
        (environ(TWO, "worker"), 'has task "worker"'),
        (environ(TWO, {"index": 0}), "has task.type null; expected chief or worker"),
        (environ(TWO, {"type": ["x"], "index": 0}), 'has task.type ["x"]'),
        (environ(TWO, {"type": "master", "index": 0}), 'has task.type "master"'),
        (environ(TWO, {"type": "ps", "index": 0}), "not supported by Keras 3"),
        (environ(TWO, {"type": "evaluator", "index": 0}), "not supported by Keras 3"),
        (environ(TWO, {"type": "chief", "index": 0}), "one of the jobs of its cluster: worker"),
        (environ(TWO, {"type": "worker"}), "has task.index null; expected an int from 0 to 1"),
        (environ(TWO, {"type": "worker", "index": "1"}), 'has task.index "1"'),
        (environ(TWO, {"type": "worker", "index": True}), "has task.index true"),
        (environ(TWO, {"type": "worker", "index": 2}), "an int from 0 to 1"),
        (environ(TWO, {"type": "worker", "index": -1}), "an int from 0 to 1"),
        (environ({"chief": ["a:1"], "worker": []}, WORKER_0), "a worker list that is not empty"),
    ],
)
def test_an_invalid_cluster_is_an_error_of_one_line(environment: dict[str, str], says: str) -> None:
    with pytest.raises(ClusterError) as caught:
        resolve_tf_config(environment)
    message = str(caught.value)
    assert message.startswith("TF_CONFIG ")
    assert says in message
    assert '{"cluster": {"worker": ["host0:2222"' in message
    assert "\n" not in message


def test_what_is_written_is_what_is_read() -> None:
    cluster = Cluster(("a:1", "b:2", "c:3"), 2, "TF_CONFIG")
    assert resolve_tf_config({"TF_CONFIG": to_tf_config(cluster)}) == cluster


def test_resolve_reads_this_process_when_no_environment_is_given(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("TF_CONFIG", environ(TWO, {"type": "worker", "index": 1})["TF_CONFIG"])
    assert resolve() == Cluster(("a:1", "b:2"), 1, "TF_CONFIG")
    assert resolve({}) is None
