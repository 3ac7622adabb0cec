"""`python -m tfaccel.launch.worker`, which an engine starts around each worker."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest


def start(*words: str, **variables: str) -> subprocess.Popen[str]:
    unset = ("TF_CONFIG", "TFACCEL_JOB_ID")
    kept = {name: value for name, value in os.environ.items() if name not in unset}
    return subprocess.Popen(
        [sys.executable, "-m", "tfaccel.launch.worker", *words],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**kept, "PYTHONPATH": os.pathsep.join(sys.path), **variables},
    )


def finish(process: subprocess.Popen[str]) -> tuple[int, str, str]:
    out, err = process.communicate(timeout=30)
    return process.returncode, out, err


def test_lines_code_and_log(tmp_path: Path) -> None:
    logs = tmp_path / "my logs"
    workers = '{"cluster": {"worker": ["a:1", "b:1"]}, "task": {"type": "worker", "index": 1}}'
    script = "echo out; echo err >&2; exit 33"
    for _ in range(2):
        words = ["--log-dir", str(logs), "--show=all", "--", "sh", "-c", script]
        assert finish(start(*words, TF_CONFIG=workers)) == (33, "[1] out\n", "[1] err\n")
    assert sorted((logs / "rank-1.log").read_text().split()) == ["err"] * 2 + ["out"] * 2


@pytest.mark.parametrize(
    ("script", "code"),
    [("trap 'echo saved; exit 33' TERM", 33), ("trap '' HUP", 128 + signal.SIGTERM)],
)
def test_signals_reach_the_worker(script: str, code: int) -> None:
    process = start("--", "bash", "-c", f"{script}; echo ready; while :; do sleep 0.05; done")
    assert process.stdout is not None
    assert process.stdout.readline() == "ready\n"
    process.send_signal(signal.SIGTERM)
    found, out, _ = finish(process)
    assert found == code
    assert out == ("saved\n" if code == 33 else "")


def test_the_cluster_comes_from_hosts() -> None:
    show = "import os; print(os.environ['TF_CONFIG'], os.environ['TFACCEL_JOB_ID'])"
    words = [
        "--hosts",
        "10.0.0.1\n10.0.0.2\nfe80::1\n",
        "--rank",
        "1",
        "--job-id",
        "sky-1",
        "--show=1",
    ]
    code, out, err = finish(start(*words, "--", sys.executable, "-c", show))
    assert code == 0, err
    config, job = out.rsplit(maxsplit=1)
    assert json.loads(config)["cluster"]["worker"] == [
        *("10.0.0.1:2222", "10.0.0.2:2222", "[fe80::1]:2222")
    ]
    assert json.loads(config)["task"]["index"] == 1
    assert job == "sky-1"


def test_a_worker_may_have_data_workers_of_its_own(tmp_path: Path) -> None:
    show = "import os; print(os.environ['TFACCEL_DATA_SERVICE'])"
    words = ["--data-workers=1", "--log-dir", str(tmp_path), "--show=all"]
    workers = '{"cluster": {"worker": ["a:1", "b:1"]}, "task": {"type": "worker", "index": 1}}'
    process = start(*words, "--", sys.executable, "-c", show, TF_CONFIG=workers)
    code, out, err = finish(process)
    assert (code, err) == (0, "")
    assert re.fullmatch(r"\[1\] 127\.0\.0\.1:\d+\n", out)
    assert {path.name for path in tmp_path.iterdir()} == {
        *("rank-1.log", "rank-1-data-dispatcher.log", "rank-1-data-worker-0.log")
    }


def test_a_worker_that_is_not_shown_tells_its_warnings_and_its_end(tmp_path: Path) -> None:
    script = "echo out; echo WARNING: odd >&2; echo err >&2; exit $CODE"
    workers = '{"cluster": {"worker": ["a:1", "b:1"]}, "task": {"type": "worker", "index": 1}}'
    words = ["--log-dir", str(tmp_path), "--", "sh", "-c", script]
    # The engine starts all again after 33, and shows nobody's end.
    assert finish(start(*words, TF_CONFIG=workers, CODE="33")) == (33, "", "[1] WARNING: odd\n")
    code, out, err = finish(start(*words, TF_CONFIG=workers, CODE="7"))
    assert (code, out) == (7, "")
    first, *lines = err.removeprefix("[1] WARNING: odd\n").splitlines()
    assert first.startswith("tfaccel launch: rank 1 failed: exit code 7 (pid ")
    assert lines == [
        f"full log: {tmp_path}/rank-1.log",
        "the end of its stdout:",
        "  out",
        "the end of its stderr:",
        "  WARNING: odd",
        "  err",
    ]


def test_a_program_that_cannot_be_started_is_an_error(tmp_path: Path) -> None:
    assert "cannot start 'no-program'" in finish(start("--", "no-program"))[2]
    (tmp_path / "file").touch()
    code, _, err = finish(start("--log-dir", str(tmp_path / "file"), "--", "true"))
    assert code == 2
    assert err.startswith("python -m tfaccel.launch.worker: error: cannot write ")
    assert err.count("\n") == 1
