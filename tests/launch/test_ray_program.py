"""The program that gives a script to Ray Train."""

from __future__ import annotations

import ast
import contextlib
import importlib.util
import os
import subprocess
import sys
import time
from collections.abc import Iterator
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


# A process as Ray's: its main thread has a handler of SIGTERM, and another thread runs the script.
WORKER = """
import os, signal, sys, threading, time
from tfaccel.launch import ray_notice, worker
from tfaccel.launch.show import shown_by

def stop(*_):
    print("ended by Ray", flush=True)
    os._exit(7)

ray_notice.POLL_S = 0.1
asked = time.monotonic()
notices = {
    "none": None,
    "late": lambda: "a node" if time.monotonic() > asked + 2 else None,
    "broken": lambda: 1 / 0,
}
signal.signal(signal.SIGTERM, stop)
ray_notice.handle_sigterm()
notice = ray_notice.Notice(notices[sys.argv[1]])

def train():
    shown = shown_by("all")
    end = worker.run(sys.argv[2:], os.environ, 0, None, shown, received=notice.listening)
    print("code", end.code, notice.preempted, flush=True)

thread = threading.Thread(target=train)
thread.start()
while thread.is_alive():
    time.sleep(0.02)
print("waits", flush=True)
time.sleep(30)
"""
SAVES = "trap 'echo saved; exit 33' TERM; echo ready; while :; do sleep 0.05; done"


def ray_like(preemption: str, script: str = SAVES) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-c", WORKER, preemption, "bash", "-c", script],
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
    )


def test_sigterm_to_ray_s_worker_reaches_the_script() -> None:
    """Ray's handler would end the process, and the script with it; it is only put off."""
    with ray_like("none") as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "[0] ready\n"
        process.terminate()
        said = [process.stdout.readline() for _ in range(3)]
        assert said == ["[0] saved\n", "code 33 False\n", "waits\n"]
        process.terminate()
        assert process.communicate(timeout=30)[0] == "ended by Ray\n"
        assert process.returncode == 7


@pytest.mark.parametrize("script", [SAVES, SAVES.replace("exit 33", "exit 1")])
def test_a_node_that_goes_away_is_sigterm_for_the_script(script: str) -> None:
    with ray_like("late", script) as process:
        assert process.stdout is not None
        said = [process.stdout.readline() for _ in range(3)]
        assert said == ["[0] ready\n", "[0] saved\n", f"code {33 if script == SAVES else 1} True\n"]
        process.terminate()


def test_a_notice_that_fails_stops_nothing() -> None:
    with ray_like("broken", "sleep 1; echo done") as process:
        assert process.stdout is not None
        assert [process.stdout.readline() for _ in range(2)] == ["[0] done\n", "code 0 False\n"]
        process.terminate()


@pytest.mark.skipif(importlib.util.find_spec("ray") is not None, reason="Ray is installed")
def test_a_missing_ray_is_an_error() -> None:
    with pytest.raises(LaunchError, match=r"Ray is not installed.* pip install 'tfaccel\[ray\]'"):
        ray.launch(JOB, options())


# --- a real Ray --------------------------------------------------------------------------------

CLUSTER = """
import sys, time
from ray.cluster_utils import Cluster
cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 1, "include_dashboard": False})
node = cluster.add_node(num_cpus=1)
print(cluster.address, flush=True)
if sys.stdin.readline() == "drain\\n":
    from ray._raylet import GcsClient
    from ray.core.generated.autoscaler_pb2 import DrainNodeReason
    cluster.add_node(num_cpus=1)
    reason = DrainNodeReason.DRAIN_NODE_REASON_PREEMPTION
    deadline = int(time.time() * 1000) + 120_000
    GcsClient(cluster.address).drain_node(node.node_id, reason, "test", deadline)
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


NOTICED = """
import os, signal, sys, time
from tfaccel import cluster
found = cluster.resolve()
def tries(rank):
    return os.path.getsize(f"tries-{rank}") if os.path.exists(f"tries-{rank}") else 0
number = tries(found.rank)
def save(*_):
    print("try", number, "saved", flush=True)
    open(f"saved-{number}", "w").close()
    os._exit(33)
signal.signal(signal.SIGTERM, save)
open(f"tries-{found.rank}", "a").write("x")
while tries(1 - found.rank) <= number:
    time.sleep(0.05)
if number == 0 and found.rank == 1:
    os.kill(os.getppid(), signal.SIGTERM)  # the worker process of Ray
deadline = time.monotonic() + 120
while number < 2 and time.monotonic() < deadline:
    if number == 0 and os.path.exists("saved-0"):
        os._exit(33)  # as all workers do when one is told to stop
    time.sleep(0.05)
print("try", number, "of", os.environ["TFACCEL_JOB_ID"], flush=True)
"""
needs_ray = pytest.mark.skipif(
    importlib.util.find_spec("ray") is None, reason="needs Ray: pip install 'tfaccel[ray]'"
)


@contextlib.contextmanager
def two_nodes(environment: dict[str, str]) -> Iterator[tuple[str, subprocess.Popen[str]]]:
    """The address of a cluster, and its process."""
    cluster = subprocess.Popen(
        [sys.executable, "-c", CLUSTER],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env=environment,
    )
    try:
        assert cluster.stdout is not None
        yield cluster.stdout.readline().strip(), cluster
    finally:
        cluster.communicate(timeout=300)


@pytest.mark.slow
@needs_ray
def test_two_nodes_of_a_real_ray(tmp_path: Path) -> None:
    """Preempted, then killed, then done: with one restart, for the first does not count."""
    (tmp_path / "train.py").write_text(SCRIPT)
    environment = {**os.environ, "PYTHONPATH": os.getcwd(), "RAY_TMPDIR": "/tmp"}
    with two_nodes(environment) as (address, _):
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
    for rank in range(2):
        log = (tmp_path / "logs" / f"rank-{rank}.log").read_text()
        lines = [f"try {n} rank {rank} of 2 ['a b'] None it's me" for n in range(3)]
        assert log.splitlines() == lines


@pytest.mark.slow
@needs_ray
def test_a_real_ray_tells_the_script_to_stop(tmp_path: Path) -> None:
    """By SIGTERM to a worker process, then by a node that is drained: neither counts."""
    (tmp_path / "train.py").write_text(NOTICED)
    environment = {**os.environ, "PYTHONPATH": os.getcwd(), "RAY_TMPDIR": "/tmp"}
    with two_nodes(environment) as (address, cluster):
        words = ["launch", "--engine=ray", f"--address={address}", "--nproc=2", "--log-dir=logs"]
        launched = subprocess.Popen(
            [sys.executable, "-m", "tfaccel.cli", *words, "train.py"],
            cwd=tmp_path,
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        marks = [tmp_path / f"tries-{rank}" for rank in range(2)]
        deadline = time.monotonic() + 300
        while not all(mark.exists() and mark.stat().st_size == 2 for mark in marks):
            assert launched.poll() is None or launched.returncode == 0, launched.communicate()[0]
            assert time.monotonic() < deadline, launched.kill() or launched.communicate()[0]
            time.sleep(0.2)
        assert cluster.stdin is not None
        cluster.stdin.write("drain\n")
        cluster.stdin.flush()
        said, _ = launched.communicate(timeout=600)
        assert launched.returncode == 0, said
    logs = [(tmp_path / "logs" / f"rank-{rank}.log").read_text() for rank in range(2)]
    assert "try 0 saved\n" in logs[1]
    for log in logs:
        assert "try 1 saved\n" in log
        assert log.splitlines()[-1].startswith("try 2 of ray-")
