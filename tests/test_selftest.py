"""`tfaccel test`: what it says of good cases, bad ones and slow ones."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

from tests.support import environment
from tfaccel import selftest
from tfaccel.errors import LaunchError
from tfaccel.selftest.cases import CASES, Case, Trained, missing, verdict

pytestmark = pytest.mark.slow

ONE = Trained(0.5, 9.0, "a")


@pytest.mark.parametrize(
    ("workers", "says"),
    [
        ([ONE], ""),
        ([ONE, ONE], ""),
        ([ONE, dataclasses.replace(ONE, digest="b")], "the workers ended with different weights"),
        ([dataclasses.replace(ONE, loss=0.51)], "loss is 0.51, on one device 0.5"),
        ([dataclasses.replace(ONE, checksum=8.0)], "the weights' checksum is 8, on one device 9"),
        ([dataclasses.replace(ONE, loss=float("nan"))], "loss is nan, on one device 0.5"),
    ],
)
def test_verdict(workers: list[Trained], says: str) -> None:
    assert verdict(ONE, workers) == says


def test_missing() -> None:
    needed = {case.name: missing(case, gpus=0, tpus=0) for case in CASES}
    assert needed["mirrored-gpus"] == "GPUs needed: 2, found: 0"
    assert needed["tpu"] == "TPU cores needed: 1, found: 0"
    assert [name for name, what in needed.items() if not what] == [
        "one_device",
        "mirrored-2-cpus",
        "multi_worker_mirrored-2-workers",
        "model_parallel-4-cpus",
        "model_parallel-2-workers",
    ]


def test_the_command_reports_every_case_as_json() -> None:
    only = ["--only=one_device", "--only=multi_worker_mirrored-2-workers", "--only=mirrored-gpus"]
    done = subprocess.run(
        [sys.executable, "-m", "tfaccel.cli", "test", "--json", *only],
        cwd=Path(__file__).parents[1],
        env=environment({"TF_CONFIG": "not JSON"}),
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    told = {outcome["name"]: outcome for outcome in json.loads(done.stdout)}
    assert told["one_device"]["status"] == "pass"
    assert told["multi_worker_mirrored-2-workers"]["status"] == "pass"
    assert told["one_device"]["detail"] == told["multi_worker_mirrored-2-workers"]["detail"]
    assert told["mirrored-gpus"]["status"] == "unavailable"


def test_a_case_that_cannot_be_fails_with_the_workers_words() -> None:
    (outcome,) = selftest.case_results([Case("no-gpu", "mirrored", "gpu", reference="no-gpu")])
    assert outcome.status == "fail"
    assert "a GPU was requested and TensorFlow sees CPU:0" in outcome.detail


def test_a_case_that_takes_too_long_is_ended(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    with pytest.raises(LaunchError, match=r"timeout after 2 s"):
        selftest.run(CASES[2], time_limit_s=2)
    commands = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        with contextlib.suppress(OSError):
            commands.append(path.read_bytes())
    assert not [c for c in commands if str(tmp_path).encode() in c], "a worker is left"
