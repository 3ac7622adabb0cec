"""The task file of SkyPilot, against the schema that SkyPilot checks it with."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from tfaccel.errors import LaunchError
from tfaccel.exit_codes import PREEMPTED
from tfaccel.launch import skypilot
from tfaccel.launch.options import values_of
from tfaccel.launch.spec import Job

yaml = pytest.importorskip("yaml", reason="PyYAML reads the tasks: pip install pyyaml")

# What sky/utils/schemas.py of SkyPilot (https://github.com/skypilot-org/skypilot, at commit
# 00052dfe0d132c5ad6aa9a175572b0695f747c80) accepts in a task: `get_task_schema`,
# `get_resources_schema` and `get_storage_schema`, but for keys with an underscore, which are its
# own, and what is within a section that we never write (`Any`). A dictionary has these keys and no
# others; `Named` has a user's own; a tuple is any of its kinds, a list one of its items.


class Named(NamedTuple):
    """A mapping whose keys are a user's own."""

    key: str
    value: Any


STORAGE = {
    "name": str,
    "source": (str, [str]),
    "store": str,
    "persistent": bool,
    "mode": re.compile("MOUNT|COPY|MOUNT_CACHED"),
    "mount_options": str,
    "type": str,
    "config": Any,
}
EXIT_CODE = re.compile("[01]?[0-9]?[0-9]|2[0-4][0-9]|25[0-5]")
RESOURCES = {
    **dict.fromkeys(("cloud", "region", "zone", "instance_type", "disk_tier"), str),
    **dict.fromkeys(("network_tier", "local_disk", "priority_class"), str),
    **dict.fromkeys(("accelerator_args", "image_id", "autostop", "any_of", "ordered"), Any),
    **dict.fromkeys(("disk_size", "ephemeral_storage"), (str, int)),
    **dict.fromkeys(("cpus", "memory"), (str, int, float)),
    "infra": re.compile(r"(?i:k8s|kubernetes)(/.+)?|([a-z]+|\*)(/[^/]+(/[^/]+)?)?"),
    "accelerators": (str, [str], Named(".*", (int, float, None))),
    "use_spot": bool,
    "job_recovery": (
        str,
        {
            "strategy": (str, None),
            "max_restarts_on_errors": re.compile("[0-9]+"),
            "recover_on_exit_codes": (EXIT_CODE, [EXIT_CODE]),
        },
    ),
    "volumes": [Any],
    "max_hourly_cost": (int, float),
    "ports": (str, int, [(str, int)], None),
    "labels": Named(".*", str),
    "priority": int,
}
TASK = {
    "name": str,
    "num_nodes": int,
    "workdir": (str, {"url": str, "ref": str}),
    "resources": RESOURCES,
    "envs": Named("[a-zA-Z_][a-zA-Z0-9_]*", (str, None)),
    "secrets": (Named(".*", (str, None)), [str]),
    "file_mounts": Named("/.*", (str, STORAGE)),
    "setup": str,
    "run": str,
    "event_callback": str,
    **dict.fromkeys(("service", "pool", "managed_secrets", "inputs", "outputs", "config"), Any),
    **dict.fromkeys(("file_mounts_mapping", "volumes", "volume_mounts"), Any),
    "api_server_access": bool,
}


def check(value: Any, kind: Any = TASK, path: str = "task") -> None:
    """Raises ValueError for a key that SkyPilot does not have, or a value of another kind."""
    if kind is Any or (kind is None and value is None):
        pass
    elif isinstance(kind, tuple) and not isinstance(kind, Named):
        check_any(value, kind, path)
    elif isinstance(kind, dict | Named) and isinstance(value, dict):
        for key, inner in value.items():
            if isinstance(kind, Named) and re.fullmatch(kind.key, key):
                check(inner, kind.value, f"{path}.{key}")
            elif isinstance(kind, dict) and key in kind:
                check(inner, kind[key], f"{path}.{key}")
            else:
                raise ValueError(f"SkyPilot has no {path}.{key}")
    elif isinstance(kind, list) and isinstance(value, list):
        for inner in value:
            check(inner, kind[0], f"{path}[]")
        if len({str(inner) for inner in value}) < len(value):
            raise ValueError(f"{path} is {value!r}")
    elif isinstance(kind, re.Pattern):
        if isinstance(value, bool | list | dict) or not kind.fullmatch(str(value)):
            raise ValueError(f"{path} is {value!r}")
    elif not isinstance(kind, type) or type(value) is not kind:
        raise ValueError(f"{path} is {value!r}")


def check_any(value: Any, kinds: tuple[Any, ...], path: str) -> None:
    """The same for one of several kinds."""
    wrong = []
    for kind in kinds:
        try:
            check(value, kind, path)
        except ValueError as error:
            wrong.append(str(error))
    if len(wrong) == len(kinds):
        raise ValueError("; ".join(wrong))


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


def paths(value: Any, kind: Any = TASK, path: tuple[str, ...] = ()) -> Iterator[tuple[str, ...]]:
    """Those of all keys that are not a user's own."""
    kinds = kind if isinstance(kind, tuple) and not isinstance(kind, Named) else (kind,)
    for key, inner in value.items() if isinstance(value, dict) else ():
        for one in kinds:
            if isinstance(one, dict):
                yield (*path, key)
                yield from paths(inner, one[key], (*path, key))
            elif isinstance(one, Named):
                yield from paths(inner, one.value, (*path, key))


def test_a_misspelt_key_is_caught_everywhere() -> None:
    found = list(paths(task(JOB, **FULL)))
    assert ("resources", "job_recovery", "recover_on_exit_codes") in found
    assert ("file_mounts", "/checkpoints", "mode") in found
    assert len(found) > 15
    for path in found:
        wrong = task(JOB, **FULL)
        inner = wrong
        for key in path[:-1]:
            inner = inner[key]
        inner[f"{path[-1]}x"] = inner.pop(path[-1])
        with pytest.raises(ValueError, match=f"SkyPilot has no .*{path[-1]}x"):
            check(wrong)


@pytest.mark.parametrize(
    ("path", "value"),
    [
        (("num_nodes",), "2"),
        (("workdir",), ["."]),
        (("envs", "PYTHONUNBUFFERED"), 1),
        (("envs", "A B"), "1"),
        (("resources", "use_spot"), "yes"),
        (("resources", "infra"), "gcp/us-central1/a/b"),
        (("resources", "job_recovery", "max_restarts_on_errors"), -1),
        (("resources", "job_recovery", "recover_on_exit_codes"), [256]),
        (("resources", "job_recovery", "recover_on_exit_codes"), [33, 33]),
        (("file_mounts", "/checkpoints", "mode"), "WRITE"),
    ],
)
def test_a_value_that_skypilot_would_not_take_is_caught(
    path: tuple[str, ...], value: object
) -> None:
    wrong = task(JOB, **FULL)
    inner = wrong
    for key in path[:-1]:
        inner = inner[key]
    inner[path[-1]] = value
    with pytest.raises(ValueError, match=path[-1]):
        check(wrong)


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
