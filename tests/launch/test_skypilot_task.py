"""The task file of SkyPilot, against the keys that its documentation names."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from tfaccel.errors import LaunchError
from tfaccel.exit_codes import PREEMPTED
from tfaccel.launch import skypilot
from tfaccel.launch.options import values_of
from tfaccel.launch.spec import Job

yaml = pytest.importorskip("yaml", reason="PyYAML reads the tasks: pip install pyyaml")

# https://docs.skypilot.co/en/latest/reference/yaml-spec.html: the keys that we may use, and the
# types of their values; None for a mapping whose keys are a user's own.
KEYS: dict[str, Any] = {
    "name": str,
    "num_nodes": int,
    "workdir": str,
    "resources": {
        "infra": str,
        "accelerators": str,
        "cpus": str,
        "memory": str,
        "use_spot": bool,
        "job_recovery": {"max_restarts_on_errors": int, "recover_on_exit_codes": list},
    },
    "envs": None,
    "secrets": None,
    "file_mounts": None,
    "setup": str,
    "run": str,
}


def check(value: dict[str, Any], keys: dict[str, Any] = KEYS) -> None:
    for key, inner in value.items():
        if key not in keys:
            raise ValueError(f"SkyPilot has no {key}")
        if isinstance(keys[key], dict):
            check(inner, keys[key])
        elif keys[key] is not None and not isinstance(inner, keys[key]):
            raise ValueError(f"{key} is {inner!r}")


def options(**values: object) -> dict[str, object]:
    return dict(values_of("skypilot", skypilot.OPTIONS, values, {}))


def task(job: Job, **values: object) -> dict[str, Any]:
    manifest: dict[str, Any] = yaml.safe_load(skypilot.render(job, options(**values)))
    check(manifest)
    return manifest


JOB = Job(("train.py", "it's", "$HOME"), name="digits", workers=2, max_restarts=3)
FULL: dict[str, object] = {
    "infra": "gcp/us-central1",
    "accelerators": "H100:8",
    "cpus": "8+",
    "memory": "32+",
    "spot": True,
    "setup": "pip install 'tfaccel[gpu]'",
    "mount": ["/checkpoints=gs://mine/checkpoints"],
}


def test_the_contents_of_a_task() -> None:
    manifest = task(JOB, **FULL)
    assert manifest["num_nodes"] == 2
    assert manifest["resources"] == {
        "infra": "gcp/us-central1",
        "accelerators": "H100:8",
        "cpus": "8+",
        "memory": "32+",
        "use_spot": True,
        "job_recovery": {"max_restarts_on_errors": 3, "recover_on_exit_codes": [PREEMPTED]},
    }
    mount = {"source": "gs://mine/checkpoints", "mode": "MOUNT"}
    assert manifest["file_mounts"] == {"/checkpoints": mount}
    assert manifest["setup"] == "pip install 'tfaccel[gpu]'\n"
    assert set(task(JOB)["resources"]) == {"job_recovery"}


def test_a_misspelt_key_is_caught() -> None:
    found = task(JOB)
    recovery = found["resources"]["job_recovery"]
    recovery["recover_on_exit_code"] = recovery.pop("recover_on_exit_codes")
    with pytest.raises(ValueError, match="SkyPilot has no recover_on_exit_code"):
        check(found)


def test_what_a_machine_runs_is_a_worker(tmp_path: Path) -> None:
    """With the variables of SkyPilot, as its documentation gives them."""
    show = "import os, sys; print(sys.argv[1:], os.environ['TF_CONFIG'])"
    (tmp_path / "train.py").write_text(show)
    run = task(replace(JOB, show="all"))["run"]
    folder = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    sky = {"SKYPILOT_NODE_IPS": "10.0.0.1\n10.0.0.2", "SKYPILOT_NODE_RANK": "1"}
    environment = {**os.environ, "PATH": folder, "PYTHONPATH": os.getcwd(), **sky}
    done = subprocess.run(
        ["bash", "-c", run],
        cwd=tmp_path,
        env={**environment, "SKYPILOT_TASK_ID": "sky-managed-1"},
        capture_output=True,
        text=True,
        timeout=60,
    )
    said = "[1] [\"it's\", '$HOME'] "
    assert done.stdout.startswith(said), done.stdout + done.stderr
    config = json.loads(done.stdout.removeprefix(said))
    assert config["cluster"]["worker"] == ["10.0.0.1:2222", "10.0.0.2:2222"]
    assert config["task"]["index"] == 1


@pytest.mark.parametrize(
    ("values", "says"),
    [
        ({"cpus": "many"}, r"--cpus is 'many'; expected such as 8\+"),
        ({"infra": "a b"}, "--infra is 'a b'; expected such as gcp/us-central1"),
        ({"mount": ["checkpoints"]}, "--mount is 'checkpoints'; expected an absolute path and a b"),
    ],
)
def test_what_skypilot_would_refuse_is_refused_first(values: dict[str, Any], says: str) -> None:
    with pytest.raises(LaunchError, match=says):
        skypilot.render(JOB, options(**values))


def test_sky_gets_what_a_dry_run_prints(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "sky").write_text(
        f'#!/bin/bash\necho "${{@:1:5}}" > {tmp_path}/w\ncat "$6" > {tmp_path}/t\n'
        f"echo $TFACCEL_JOB_SECRET >> {tmp_path}/secrets\n"
    )
    (tmp_path / "sky").chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    for _ in range(2):
        assert skypilot.launch(JOB, options()) == 0
    assert (tmp_path / "w").read_text() == "jobs launch --yes --secret TFACCEL_JOB_SECRET\n"
    first, second = (tmp_path / "secrets").read_text().splitlines()
    assert len(first) == len(second) == 32
    assert first != second
    assert (tmp_path / "t").read_text() == skypilot.render(JOB, options())
    monkeypatch.setenv("PATH", "/nonexistent")
    with pytest.raises(LaunchError, match="sky is not installed; expected SkyPilot"):
        skypilot.launch(JOB, options())
