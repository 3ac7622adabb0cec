"""The program that gives a script to Ray Train."""

from __future__ import annotations

import ast
import importlib.util
import os
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from tfaccel.errors import LaunchError
from tfaccel.launch import ray, ray_worker
from tfaccel.launch.options import values_of
from tfaccel.launch.spec import Job


def options(**values: object) -> dict[str, object]:
    return dict(values_of("ray", ray.OPTIONS, values, {}))


def arguments(program: str, function: str) -> dict[str, Any]:
    """The literal arguments of the only call of a function in a program."""
    (call,) = (
        node
        for node in ast.walk(ast.parse(program))
        if isinstance(node, ast.Call) and ast.unparse(node.func) == function
    )
    by_name = {}
    for one in call.keywords:
        try:
            by_name[str(one.arg)] = ast.literal_eval(one.value)
        except ValueError:
            by_name[str(one.arg)] = ast.unparse(one.value)
    return by_name


def given(program: str) -> dict[str, Any]:
    """What workers are given, beside their secret."""
    trainer = arguments(program, "TensorflowTrainer")
    assert trainer["train_loop_config"] == "{'secret': secrets.token_hex(16), **CONFIG}"
    (found,) = (
        node.value
        for node in ast.parse(program).body
        if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "CONFIG"
    )
    made: dict[str, Any] = ast.literal_eval(found)
    return made


JOB = Job(("train.py", "it's", '"$x"\n'), name="digits", workers=2, max_restarts=3)


def test_the_arguments_that_ray_gets() -> None:
    program = ray.render(JOB, options(cpus="4", gpus=1, storage="/nfs/it's", address="ray:6379"))
    assert arguments(program, "ScalingConfig") == {
        "num_workers": 2,
        "use_gpu": True,
        "resources_per_worker": {"CPU": 4, "GPU": 1},
    }
    assert arguments(program, "FailureConfig") == {"max_failures": 3}
    assert arguments(program, "RunConfig")["storage_path"] == "/nfs/it's"
    assert arguments(program, "ray.init") == {"address": "ray:6379"}
    config = given(program)
    assert config["script"] == list(JOB.script)
    assert config["folder"] == os.getcwd()


def test_a_range_is_ray_s_own() -> None:
    program = ray.render(replace(JOB, min_workers=1), options())
    assert arguments(program, "ScalingConfig")["num_workers"] == (1, 2)


def test_few_options() -> None:
    program = ray.render(JOB, options())
    assert arguments(program, "ScalingConfig") == {"num_workers": 2, "use_gpu": False}
    address = "os.environ.get('RAY_ADDRESS', 'local')"
    assert arguments(program, "ray.init") == {"address": address}


def test_a_folder_is_copied(tmp_path: Path) -> None:
    program = ray.render(JOB, options(working_dir=str(tmp_path)))
    assert arguments(program, "ray.init")["runtime_env"] == {"working_dir": str(tmp_path)}
    assert given(program)["folder"] is None


def test_logs_are_written_to_the_requested_folder() -> None:
    program = ray.render(Job(("a.py",), log_dir="logs"), options())
    config = given(program)
    assert config["log_dir"] == str(Path("logs").absolute())


@pytest.mark.parametrize("cpus", ["many", "0", "-1", "inf", "nan"])
def test_what_ray_would_refuse_is_refused_first(cpus: str) -> None:
    with pytest.raises(LaunchError, match=r"--cpus is '.*'; expected a number of cores above 0"):
        ray.render(JOB, options(cpus=cpus))


def test_each_try_is_a_job_of_its_own() -> None:
    def job_id(port: int, rank: int) -> str:
        workers = f'{{"cluster": {{"worker": ["a:{port}", "b:1"]}}, "task": {{"index": {rank}}}}}'
        made = ray_worker.script_environment({"TF_CONFIG": workers}, {}, "01", "5e")
        assert made["TFACCEL_JOB_SECRET"] == "5e"
        return made["TFACCEL_JOB_ID"]

    assert job_id(1, rank=0) == job_id(1, rank=1)
    assert job_id(1, rank=0) != job_id(2, rank=0)


@pytest.mark.skipif(importlib.util.find_spec("ray") is not None, reason="Ray is installed")
def test_a_missing_ray_is_an_error() -> None:
    with pytest.raises(LaunchError, match=r"Ray is not installed.* pip install 'tfaccel\[ray\]'"):
        ray.launch(JOB, options())


# --- a real Ray --------------------------------------------------------------------------------

CLUSTER = """
import sys
from ray.cluster_utils import Cluster
cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 1, "include_dashboard": False})
cluster.add_node(num_cpus=1)
print(cluster.address, flush=True)
sys.stdin.read()
cluster.shutdown()
"""
SCRIPT = """
import os, sys, time
from tfaccel import cluster
found = cluster.resolve()
def tries(rank):
    return os.path.getsize(f"tries-{rank}") if os.path.exists(f"tries-{rank}") else 0
number = tries(found.rank)
open(f"tries-{found.rank}", "a").write("x")
print("try", number, "rank", found.rank, "of", found.size, sys.argv[1:],
      os.environ.get("TF_USE_LEGACY_KERAS"), os.environ["GREETING"], flush=True)
while tries(1 - found.rank) <= number:
    time.sleep(0.05)  # else it would be stopped before it has started
if number == 1 and found.rank == 1:
    os.kill(os.getpid(), 9)
if number == 1:
    time.sleep(600)  # until it is stopped
sys.exit(33 if number == 0 else 0)
"""


@pytest.mark.slow
@pytest.mark.skipif(
    importlib.util.find_spec("ray") is None, reason="needs Ray: pip install 'tfaccel[ray]'"
)
def test_two_nodes_of_a_real_ray(tmp_path: Path) -> None:
    """Preempted, then killed, then done: with one restart, for the first does not count."""
    (tmp_path / "train.py").write_text(SCRIPT)
    environment = {**os.environ, "PYTHONPATH": os.getcwd(), "RAY_TMPDIR": "/tmp"}
    cluster = subprocess.Popen(
        [sys.executable, "-c", CLUSTER],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env=environment,
    )
    try:
        assert cluster.stdout is not None
        address = cluster.stdout.readline().strip()
        words = ["launch", "--engine=ray", f"--address={address}", "--nproc=2", "--max-restarts=1"]
        more = ["--log-dir=logs", "--env=GREETING=it's me", "train.py", "a b"]
        started = time.monotonic()
        done = subprocess.run(
            [sys.executable, "-m", "tfaccel.cli", *words, *more],
            cwd=tmp_path,
            env=environment,
            capture_output=True,
            text=True,
            timeout=1200,
        )
        assert done.returncode == 0, done.stdout + done.stderr
        print(f"{time.monotonic() - started:.1f} s")
    finally:
        cluster.communicate(timeout=300)
    for rank in range(2):
        log = (tmp_path / "logs" / f"rank-{rank}.log").read_text()
        lines = [f"try {n} rank {rank} of 2 ['a b'] None it's me" for n in range(3)]
        assert log.splitlines() == lines
