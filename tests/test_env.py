"""`tfaccel env` tells what a bug report needs, on a broken machine too."""

from __future__ import annotations

import dataclasses
import json
import os
import subprocess
import sys

import pytest

from tests.support import environment
from tfaccel import cluster, env
from tfaccel.cluster import Cluster, resolve_all, to_tf_config
from tfaccel.errors import ClusterError
from tfaccel.hardware import Device

TWO = Cluster(("a:1", "b:1"), rank=1, source="TF_CONFIG")
ENVIRON = {"TF_CONFIG": to_tf_config(TWO), "PMI_RANK": "1", "PMI_SIZE": "2", "TPU_WORKER_ID": "0"}
REPORT = env.Report(
    tfaccel="1.0",
    python="3.12.1",
    platform="Linux",
    tensorflow="2.21.0 (tensorflow-cpu)",
    keras="3.15.1",
    backend="tensorflow",
    numpy="2.4.0",
    cores=8,
    memory=31.2,
    cuda="12.5.1",
    cudnn="9",
    variables=(("CUDA_VISIBLE_DEVICES", "0,1"),),
    devices=(Device("CPU", 0), Device("GPU", 0, "NVIDIA L4", (8, 9))),
    cluster=TWO,
    resolvers=resolve_all(ENVIRON),
    auto="multi_worker_mirrored",
    reason="a cluster of 2 workers",
    problems=("something is [wrong]",),
)
CPU_BUILD = dataclasses.replace(REPORT, cuda="", cudnn="")


def run(*argv: str, **variables: str) -> subprocess.CompletedProcess[str]:
    """`tfaccel env` in a separate process, as TensorFlow and Keras read variables once."""
    unset = {*env._VARIABLES, *(name for name in os.environ if name.startswith("TFACCEL_"))}
    kept = {name: value for name, value in environment().items() if name not in unset}
    return subprocess.run(
        [sys.executable, "-m", "tfaccel.env", *argv],
        capture_output=True,
        text=True,
        timeout=300,
        env={**kept, "COLUMNS": "200", **variables},
    )


def found(**variables: str) -> dict:
    done = run("--json", **variables)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def test_rows_name_all_that_was_found():
    assert env.rows(REPORT) == [
        ("tfaccel", "1.0"),
        ("Python", "3.12.1 on Linux"),
        ("TensorFlow", "2.21.0 (tensorflow-cpu)"),
        ("Keras", "3.15.1 on tensorflow"),
        ("NumPy", "2.4.0"),
        ("cores", "8"),
        ("memory", "31.2 GiB"),
        ("built for", "CUDA 12.5.1, cuDNN 9"),
        ("CPU:0", "CPU"),
        ("GPU:0", "NVIDIA L4"),
        ("CUDA_VISIBLE_DEVICES", "0,1"),
        ("cluster", "worker 1 of 2, by TF_CONFIG"),
        ("worker 0", "a:1"),
        ("worker 1", "b:1"),
        ("by TF_CONFIG", f"worker 1 of 2; read TF_CONFIG={ENVIRON['TF_CONFIG']}"),
        ("by mpiexec, ignored", "worker 1 of 2; read PMI_RANK=1, PMI_SIZE=2"),
        (
            "by GKE TPU, ignored",
            "no cluster, which takes TPU_WORKER_HOSTNAMES with more than one host; "
            "read TPU_WORKER_ID=0",
        ),
        ("auto", "multi_worker_mirrored: a cluster of 2 workers"),
        ("problem", "something is [wrong]"),
    ]


def test_no_cluster_is_reported_with_the_variables_that_do_not_suffice():
    alone = dataclasses.replace(
        REPORT, cluster=None, resolvers=resolve_all({"JOB_COMPLETION_INDEX": "3"})
    )
    shown = env.rows(alone)
    assert ("cluster", "none") in shown
    (by,) = [text for subject, text in shown if subject == "by Kubernetes"]
    assert by.startswith("no cluster, which takes JOB_COMPLETION_INDEX, TFACCEL_NUM_WORKERS ")
    assert by.endswith("; read JOB_COMPLETION_INDEX=3")


def test_a_build_without_cuda_is_reported():
    assert ("built for", "CPU (no CUDA)") in env.rows(CPU_BUILD)


def test_the_table_shows_brackets_as_they_are():
    from rich.console import Console

    console = Console(width=120, record=True, file=open(os.devnull, "w"))  # noqa: SIM115
    console.print(env.table(REPORT))
    assert "something is [wrong]" in console.export_text()


def test_json_has_a_key_for_each_attribute():
    shown = json.loads(env.to_json(REPORT))
    assert set(shown) == {field.name for field in dataclasses.fields(env.Report)}
    assert shown["variables"] == {"CUDA_VISIBLE_DEVICES": "0,1"}
    assert shown["devices"][1]["compute_capability"] == [8, 9]
    assert shown["cluster"]["workers"] == ["a:1", "b:1"]
    sources = ["TF_CONFIG", "Slurm", "Kubernetes", "mpiexec", "GKE TPU", "Compute Engine TPU"]
    assert [answer["source"] for answer in shown["resolvers"]] == sources
    assert shown["resolvers"][3]["variables"] == {"PMI_RANK": "1", "PMI_SIZE": "2"}


def test_a_distribution_that_is_not_the_usual_one_is_named():
    assert env._installed("no-such-distribution", "rich").endswith(" (rich)")
    assert "(" not in env._installed("rich")
    assert env._installed("no-such-distribution") == env.MISSING


def test_only_variables_that_change_a_run_are_reported():
    environ = {"HOME": "/root", "XLA_FLAGS": "--x", "TFACCEL_SEED": "1", "AWS_SECRET": "s"}
    assert env._variables(environ) == (("XLA_FLAGS", "--x"), ("TFACCEL_SEED", "1"))


def test_the_secret_of_the_job_is_not_told():
    told = dict(env._variables({"TFACCEL_JOB_SECRET": "5ecre7", "TFACCEL_JOB_ID": "7f"}))
    assert told == {"TFACCEL_JOB_ID": "7f", "TFACCEL_JOB_SECRET": "(set, not shown)"}


def test_this_machine():
    import keras
    import tensorflow as tf

    shown = found(CUDA_VISIBLE_DEVICES="-1")
    assert shown["tensorflow"].split()[0] == tf.__version__
    assert shown["keras"] == keras.__version__
    assert shown["backend"] == "tensorflow"
    assert [(d["kind"], d["index"]) for d in shown["devices"]] == [("CPU", 0)]
    assert shown["variables"] == {"CUDA_VISIBLE_DEVICES": "-1"}
    assert shown["cluster"] is None
    assert shown["auto"] == "one_device"
    assert shown["reason"]
    assert shown["problems"] == []


def test_the_cluster_is_reported_and_decides_the_choice():
    config = {"cluster": {"worker": ["localhost:1111", "localhost:2222"]}}
    config["task"] = {"type": "worker", "index": 1}
    shown = found(CUDA_VISIBLE_DEVICES="-1", TF_CONFIG=json.dumps(config))
    assert shown["cluster"]["rank"] == 1
    assert shown["auto"] == "multi_worker_mirrored"


def test_two_clusters_that_disagree_are_a_problem_and_both_are_named(monkeypatch):
    monkeypatch.setattr(env, "_tensorflow", lambda problems: ("", "", ()))
    monkeypatch.setattr(env, "_backend", lambda environ, problems: "tensorflow")
    told = env.report(ENVIRON | {"PMI_RANK": "0"})
    (problem,) = told.problems
    assert "TF_CONFIG describes this process as worker 1 of 2" in problem
    assert "mpiexec describes it as worker 0 of 2" in problem
    assert told.cluster is None
    shown = dict(env.rows(told))
    assert shown["by TF_CONFIG"].startswith("worker 1 of 2; read TF_CONFIG=")
    assert shown["by mpiexec"] == "worker 0 of 2; read PMI_RANK=0, PMI_SIZE=2"


def test_an_unusable_tf_config_is_a_problem_and_no_crash():
    shown = found(TF_CONFIG="{bad")
    (problem,) = shown["problems"]
    with pytest.raises(ClusterError) as error:
        cluster.resolve({"TF_CONFIG": "{bad"})
    assert problem == str(error.value)
    assert shown["auto"] == ""


# A cluster in the environment decides too, in every run.
@pytest.mark.exhaustive
def test_what_auto_chooses_follows_the_environment():
    shown = found(CUDA_VISIBLE_DEVICES="-1", TFACCEL_DEVICES="2")
    assert shown["auto"] == "mirrored"
    assert shown["variables"]["TFACCEL_DEVICES"] == "2"


@pytest.mark.exhaustive
def test_a_mesh_in_the_environment_is_what_auto_chooses():
    shown = found(CUDA_VISIBLE_DEVICES="-1", TFACCEL_MESH="batch=1,model=2")
    assert (shown["auto"], shown["reason"]) == ("model_parallel", "a mesh was requested")


def test_a_backend_that_is_not_there_and_legacy_keras_are_problems():
    shown = found(KERAS_BACKEND="no_such_backend", TF_USE_LEGACY_KERAS="1")
    legacy, backend = shown["problems"]
    assert "unset the variable" in legacy
    assert "Keras does not start" in backend
    assert shown["backend"] == ""


@pytest.mark.exhaustive  # its rows are above
def test_a_table_for_people():
    shown = run(CUDA_VISIBLE_DEVICES="-1").stdout
    assert "one_device: " in shown
    assert "CUDA_VISIBLE_DEVICES" in shown
