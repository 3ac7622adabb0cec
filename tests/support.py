"""Tests that need devices or workers of their own run in child processes, through this module.

TensorFlow's devices are set once in a process. A test marked `child` is therefore run by a pytest
of its own, together with all other tests of its file that requested the same child:

    @pytest.mark.child(devices=3)             one process with three logical CPUs
    @pytest.mark.child(workers=2)             two workers of `tfaccel launch`, both run the test
    @pytest.mark.child(devices=2, group="a")  as the first, and apart from other groups

A child of one process is forked from one that has imported TensorFlow and Keras
(`tests/fork_server.py`).

A `conftest.py` takes part by importing `pytest_configure` and `pytest_pyfunc_call` from here.

A child is as on a machine with `tfaccel[cpu]` alone: packages that TensorFlow and Keras import
where they find them, at great cost, are left out (`tests/plain`). `full=True`, of the marker too,
brings them back.
"""

from __future__ import annotations

import atexit
import contextlib
import functools
import json
import os
import signal
import subprocess
import sys
import tempfile
import traceback
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest

from tests.fork_server import ForkServer
from tests.plain import sitecustomize

ROOT = Path(__file__).resolve().parents[1]
_PLAIN = ROOT / "tests" / "plain"
LIMIT_S = 900.0  # for what hangs: a slow machine with other work takes minutes

_LAUNCH = "import sys; from tfaccel.launch.local import run; "
_LAUNCH += "sys.exit(run(sys.argv[2:], nproc=int(sys.argv[1]), start_timeout_s=60, grace_s=2, "
_LAUNCH += "show='all'))"
_OPTIONAL = ("jax", "jaxlib", "matplotlib", "sklearn", "scipy", "IPython")
_OUT = "TESTS_CHILD_OUT"
_DEVICES = "TESTS_CHILD_DEVICES"


def environment(
    overrides: Mapping[str, str] | None = None, *, without: Sequence[str] = _OPTIONAL
) -> dict[str, str]:
    """This process's environment without what describes another job.

    Args:
        overrides: variables on top of it.
        without: packages that a Python process started with it does not find.
    """
    others = ("TF_CONFIG", "PMI_RANK", "KERAS_BACKEND", "TFACCEL_")
    kept = {name: value for name, value in os.environ.items() if not name.startswith(others)}
    given = os.environ.get("PYTHONPATH", "").split(os.pathsep)
    path = os.pathsep.join(dict.fromkeys(filter(None, [str(ROOT), str(_PLAIN), *given])))
    fixed = {"PYTHONPATH": path, "TF_CPP_MIN_LOG_LEVEL": "2", "CUDA_VISIBLE_DEVICES": "-1"}
    return {**kept, **fixed, sitecustomize.VARIABLE: ",".join(without), **(overrides or {})}


def run_child(
    command: Sequence[str],
    *,
    workers: int = 1,
    env: Mapping[str, str] | None = None,
    limit_s: float = LIMIT_S,
    codes: Sequence[int] = (0,),
    full: bool = False,
) -> str:
    """Runs Python with these arguments in one process, or as the workers of one job.

    Args:
        command: what follows `python`: ``["-c", snippet]``, ``["-m", module]`` or a script.
        workers: more than one are started by the launcher, on free ports.
        env: variables on top of `environment()`.
        limit_s: seconds after which the processes are ended.
        codes: the exit codes that are no failure.
        full: with optional packages of TensorFlow and Keras.

    Returns:
        What all workers printed; the lines of several carry their rank.

    Raises:
        AssertionError: it failed or ran out of time; every rank's output is in the message.
    """
    command = [sys.executable, *command]
    if workers > 1:
        command = [sys.executable, "-c", _LAUNCH, str(workers), *command]
    with tempfile.TemporaryFile("w+", encoding="utf-8", errors="replace") as log:
        process = subprocess.Popen(
            command,
            env=environment(env, without=() if full else _OPTIONAL),
            cwd=ROOT,
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
        late = False
        try:
            process.wait(limit_s)
        except subprocess.TimeoutExpired:
            late = True
        finally:
            _end(process)
        log.seek(0)
        output = log.read()
    if late:
        raise AssertionError(f"the child was not done after {limit_s:g} s\n{output}")
    if process.returncode not in codes:
        raise AssertionError(f"the child exited with {process.returncode}\n{output}")
    return output


def run_forked(
    words: Sequence[str],
    *,
    env: Mapping[str, str] | None = None,
    limit_s: float = LIMIT_S,
    codes: Sequence[int] = (0,),
) -> str:
    """As `run_child` of one process, in a child that need not import TensorFlow and Keras.

    For what does so before anything else: with them come settings of the environment.

    Args:
        words: what follows `python -m`.
        env: variables on top of `environment()`.
        limit_s: seconds after which it is ended.
        codes: the exit codes that are no failure.
    """
    server = _free_fork_server()
    with tempfile.TemporaryDirectory() as folder:
        log = Path(folder) / "log"
        log.touch()
        child = server.start(words, environment(env), log)
        code = None
        try:
            code = server.wait(limit_s)
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(child, signal.SIGKILL)
        if late := code is None:
            server.wait(LIMIT_S)
        output = log.read_text(encoding="utf-8", errors="replace")
    _FORK_SERVERS.append(server)
    if late:
        raise AssertionError(f"the child was not done after {limit_s:g} s\n{output}")
    if code not in codes:
        raise AssertionError(f"the child exited with {code}\n{output}")
    return output


_FORK_SERVERS: list[ForkServer] = []


def _free_fork_server() -> ForkServer:
    """One for one child: threads that run some side by side have one each."""
    while _FORK_SERVERS:
        server = _FORK_SERVERS.pop()
        if server.lives():
            return server
    server = ForkServer(environment(), ROOT)
    atexit.register(server.close)
    return server


def run_workers(script: Path, *, limit_s: float = LIMIT_S) -> list[tuple[int, str, str]]:
    """Runs a script as two workers that no launcher ends when one of them fails.

    Returns:
        The exit code, output and errors of each.

    Raises:
        subprocess.TimeoutExpired: one is still there after `limit_s` seconds; both are ended.
    """
    from tfaccel.cluster import Cluster, to_tf_config
    from tfaccel.launch.ports import free_ports

    workers = tuple(f"127.0.0.1:{port}" for port in free_ports(2))
    with contextlib.ExitStack() as stack:
        processes = []
        for rank in range(2):
            described = to_tf_config(Cluster(workers, rank, "TF_CONFIG"))
            process = subprocess.Popen(
                [sys.executable, str(script)],
                env=environment({"TF_CONFIG": described, "TFACCEL_JOB_SECRET": "5ecre7"}),
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                text=True,
                start_new_session=True,
            )
            stack.callback(_end, process)
            processes.append(process)
        printed = [process.communicate(timeout=limit_s) for process in processes]
        return [(one.returncode, *text) for one, text in zip(processes, printed, strict=True)]


def _end(process: subprocess.Popen[Any]) -> None:
    """Ends a child and all it started; a launcher gets the time to end its workers."""
    if process.poll() is None:
        process.send_signal(signal.SIGTERM)
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(10)
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def at_once() -> int:
    """How many long child processes a file may run side by side: two, unless other files do run."""
    return 1 if "PYTEST_XDIST_WORKER" in os.environ else 2


# --- The marker -----------------------------------------------------------------------------


def pytest_configure(config: pytest.Config) -> None:
    says = "child(devices, workers, group, full): run in a child process"
    config.addinivalue_line("markers", says)


@pytest.hookimpl(wrapper=True)
def pytest_pyfunc_call(pyfuncitem: pytest.Function) -> Iterator[None]:
    if pyfuncitem.get_closest_marker("child") is None:
        return (yield)
    if _OUT in os.environ:
        return (yield from _in_child(pyfuncitem))
    # The test's own body runs in the child alone.
    pyfuncitem.obj = functools.partial(_reported, pyfuncitem)
    return (yield)


def _in_child(item: pytest.Function) -> Iterator[None]:
    """Runs the test here, and notes how it ended before the next one can hang."""
    _logical_cpus(int(os.environ[_DEVICES]))
    error = ""
    try:
        return (yield)
    except BaseException:
        error = traceback.format_exc()
        raise
    finally:
        rank = json.loads(os.environ.get("TF_CONFIG", "{}")).get("task", {}).get("index", 0)
        with open(Path(os.environ[_OUT]) / f"rank-{rank}.jsonl", "a", encoding="utf-8") as file:
            file.write(json.dumps([item.nodeid, error]) + "\n")


@functools.cache
def _logical_cpus(number: int) -> None:
    if number < 2:
        return
    import tensorflow as tf

    cpu = tf.config.list_physical_devices("CPU")[0]
    parts = [tf.config.LogicalDeviceConfiguration()] * number
    tf.config.set_logical_device_configuration(cpu, parts)


def _reported(item: pytest.Function, **_: Any) -> None:
    """Stands for a test that ran in a child: passes or fails as it did there."""
    requested = _asked(item)
    ran = item.session.stash.setdefault(_RAN, {})
    child = _child(item)
    if child not in ran:
        same = [i for i in item.session.items if _child(i) == child]
        ran[child] = _run_all([i.nodeid for i in same], **dict(requested))
    output, ranks = ran[child]
    for rank, found in enumerate(ranks):
        if item.nodeid not in found:
            pytest.fail(f"rank {rank} of the child did not end this test\n{output}", False)
        if found[item.nodeid]:
            pytest.fail(f"rank {rank}: {found[item.nodeid]}", False)


_RAN: pytest.StashKey[dict[Any, Any]] = pytest.StashKey()


def _child(item: pytest.Item) -> tuple[Path, tuple[tuple[str, Any], ...], bool]:
    """What tests of one child have in common; rare ones have one to themselves, for its limit."""
    return item.path, _asked(item), item.get_closest_marker("exhaustive") is not None


def _asked(item: pytest.Item) -> tuple[tuple[str, Any], ...]:
    marker = item.get_closest_marker("child")
    return tuple(sorted(marker.kwargs.items())) if marker else ()


def _run_all(
    nodeids: Sequence[str],
    devices: int = 1,
    workers: int = 1,
    group: str = "",
    full: bool = False,
) -> tuple[str, list[dict[str, str]]]:
    with tempfile.TemporaryDirectory() as out:
        options = ["-q", "--runxfail", "--no-header", "-p", "no:cacheprovider", "-o", "addopts="]
        words = ["pytest", *options, *nodeids]
        env = {_OUT: out, _DEVICES: str(devices)}
        try:
            if workers > 1 or full:
                output = run_child(
                    ["-m", *words], workers=workers, env=env, codes=(0, 1), full=full
                )
            else:
                output = run_forked(words, env=env, codes=(0, 1))
        except AssertionError as error:
            output = str(error)
        ranks = []
        for rank in range(workers):
            path = Path(out) / f"rank-{rank}.jsonl"
            lines = path.read_text("utf-8").splitlines() if path.exists() else []
            ranks.append(dict(json.loads(line) for line in lines))
    return output, ranks
