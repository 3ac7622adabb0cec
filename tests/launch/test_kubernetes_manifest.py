"""The manifests, against the types of the API and the rules that those do not hold."""

from __future__ import annotations

import copy
import os
import re
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.docs.fences import ROOT, fences
from tests.launch import kubernetes_types
from tfaccel import cluster
from tfaccel.errors import LaunchError
from tfaccel.exit_codes import NO_PROGRESS, PREEMPTED
from tfaccel.launch import kubernetes
from tfaccel.launch.options import values_of
from tfaccel.launch.spec import Job

yaml = pytest.importorskip("yaml", reason="PyYAML reads the manifests: pip install pyyaml")

FULL: dict[str, object] = {
    "namespace": "team",
    "cpus": "8",
    "memory": "32Gi",
    "gpus": 2,
    "volume": ["checkpoints:/checkpoints", "data:/data"],
    "node_selector": ["cloud.google.com/gke-tpu-topology=2x4"],
    "grace": 60.0,
}


def options(**values: object) -> dict[str, object]:
    values = {"image": "gcr.io/mine/train:1", **values}
    return dict(values_of("kubernetes", kubernetes.OPTIONS, values, {}))


def objects(job: Job, **values: object) -> list[dict[str, Any]]:
    """What a reader of the YAML gets, each checked."""
    manifests = list(yaml.safe_load_all(kubernetes.render(job, options(**values))))
    for one in manifests:
        kubernetes_types.check(one)
    return manifests


def pod(manifest: dict[str, Any]) -> dict[str, Any]:
    spec = manifest["spec"]
    if manifest["kind"] == "JobSet":
        spec = spec["replicatedJobs"][0]["template"]["spec"]
    found: dict[str, Any] = spec["template"]["spec"]
    return found


JOB = Job(("train.py", "--lr", "1e-3"), name="digits", workers=4, max_restarts=3)


@pytest.mark.parametrize("values", [{}, FULL], ids=["few", "all"])
@pytest.mark.parametrize("kind", ["jobset", "job"])
def test_every_option_gives_what_the_api_takes(kind: str, values: dict[str, object]) -> None:
    job = Job(("train.py",), env=(("A", "b"),), log_dir="/checkpoints/logs")
    manifests = objects(job, kind=kind, **values)
    assert [one["kind"] for one in manifests] == (
        ["JobSet"] if kind == "jobset" else ["Service", "Job"]
    )
    assert all(one["metadata"].get("namespace") == values.get("namespace") for one in manifests)


def fields(value: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """The path of every field, but keys that are a user's own."""
    if isinstance(value, dict):
        for key, inner in value.items():
            own = path[-1:] in (("requests",), ("limits",), ("nodeSelector",), ("selector",))
            if not own:
                yield (*path, key)
            yield from fields(inner, (*path, key))
    elif isinstance(value, list):
        for place, inner in enumerate(value):
            yield from fields(inner, (*path, place))


@pytest.mark.parametrize("kind", ["jobset", "job"])
def test_a_misspelt_field_is_caught_everywhere(kind: str) -> None:
    misspelt = 0
    for manifest in objects(JOB, kind=kind, **FULL):
        for path in fields(manifest):
            wrong = copy.deepcopy(manifest)
            inner: Any = wrong
            for step in path[:-1]:
                inner = inner[step]
            if path[-1] == "kind":
                continue
            inner[f"{path[-1]}x"] = inner.pop(path[-1])
            with pytest.raises(ValueError, match=f"there is no field .*{path[-1]}x"):
                kubernetes_types.check(wrong)
            misspelt += 1
    assert misspelt > 60


@pytest.mark.parametrize(
    ("path", "value"),
    [
        (("spec", "failurePolicy", "maxRestarts"), "3"),
        (("spec", "replicatedJobs"), {}),
        (("spec", "network", "publishNotReadyAddresses"), "yes"),
        (("metadata", "name"), {"a": "b"}),
        (("spec", "failurePolicy", "rules"), "all"),
    ],
)
def test_a_value_of_another_type_is_caught(path: tuple[str, ...], value: object) -> None:
    (manifest,) = objects(JOB)
    inner: Any = manifest
    for step in path[:-1]:
        inner = inner[step]
    inner[path[-1]] = value
    with pytest.raises(ValueError, match=path[-1]):
        kubernetes_types.check(manifest)


def test_a_jobset_starts_all_workers_again() -> None:
    (jobset,) = objects(JOB)
    spec = jobset["spec"]
    assert spec["failurePolicy"]["maxRestarts"] == 3
    assert spec["failurePolicy"]["restartStrategy"] == "BlockingRecreate"
    (workers,) = spec["replicatedJobs"]
    inner = workers["template"]["spec"]
    assert inner["backoffLimit"] == 0, "no pod is started again by itself"
    assert (inner["completionMode"], inner["completions"], inner["parallelism"]) == (
        "Indexed",
        4,
        4,
    )
    assert pod(jobset)["restartPolicy"] == "Never", "as a pod failure policy needs"


def test_a_preemption_is_a_restart_that_does_not_count() -> None:
    """A pod's code or condition fails the Job by its policy, and the JobSet knows that reason."""
    (jobset,) = objects(JOB)
    _, rule = jobset["spec"]["failurePolicy"]["rules"]
    assert rule["action"] == "RestartJobSetAndIgnoreMaxRestarts"
    assert rule["onJobFailureReasons"] == ["PodFailurePolicy"]
    inner = jobset["spec"]["replicatedJobs"][0]["template"]["spec"]
    _, by_code, by_condition = inner["podFailurePolicy"]["rules"]
    assert by_code["action"] == by_condition["action"] == "FailJob"
    assert by_code["onExitCodes"]["values"] == [PREEMPTED]
    assert by_code["onExitCodes"]["containerName"] == pod(jobset)["containers"][0]["name"]
    assert by_condition["onPodConditions"] == [{"type": "DisruptionTarget", "status": "True"}]
    _, job = objects(JOB, kind="job")
    preempted = job["spec"]["podFailurePolicy"]["rules"][1:]
    assert {one["action"] for one in preempted} == {"Ignore"}
    assert [one.get("onExitCodes") for one in preempted] == [by_code["onExitCodes"], None]
    assert job["spec"]["backoffLimit"] == 3 * 4, "all four fail when one does"


def test_without_progress_nothing_is_started_again() -> None:
    """The first rule of each list that applies is taken."""
    (jobset,) = objects(JOB)
    rule, preempted = jobset["spec"]["failurePolicy"]["rules"]
    assert rule["action"] == "FailJobSet"
    assert rule["onJobFailureReasons"] == preempted["onJobFailureReasons"]
    (pattern,) = rule["onJobFailureMessagePatterns"]
    # As Kubernetes words it, for a pod of another name and for one whose name misleads.
    by_code = "Container workers for pod team/{} failed with exit code {} matching {}"
    rule_of = "FailJob rule at index {}"
    stopped = by_code.format("digits-workers-0-3-x7k2p", NO_PROGRESS, rule_of.format(0))
    saved = by_code.format("exit-code-93-workers-0-0-x7k2p", PREEMPTED, rule_of.format(1))
    drained = f"Pod team/a-93 has condition DisruptionTarget matching {rule_of.format(2)}"
    found = [bool(re.search(pattern, message)) for message in (stopped, saved, drained)]
    assert found == [True, False, False]
    for kind in ("jobset", "job"):
        spec = objects(JOB, kind=kind)[-1]["spec"]
        spec = spec["replicatedJobs"][0]["template"]["spec"] if kind == "jobset" else spec
        first = spec["podFailurePolicy"]["rules"][0]
        assert first["action"] == "FailJob"
        assert first["onExitCodes"]["values"] == [NO_PROGRESS]


def variables(manifest: dict[str, Any]) -> dict[str, str]:
    env = pod(manifest)["containers"][0]["env"]
    return {one["name"]: one["value"] for one in env if "value" in one}


def test_the_workers_find_each_other() -> None:
    (jobset,) = objects(JOB)
    environment = variables(jobset)
    assert environment["TFACCEL_NUM_WORKERS"] == "4"
    assert environment["TFACCEL_WORKER_PORT"] == "2222"
    assert environment["TFACCEL_WORKER_HOSTS"] == "digits-workers-0-{rank}.digits"
    assert jobset["spec"]["network"]["subdomain"] == "digits"
    assert jobset["spec"]["network"]["publishNotReadyAddresses"] is True
    uid = "metadata.labels['batch.kubernetes.io/controller-uid']"
    env = pod(jobset)["containers"][0]["env"]
    assert [(one["name"], one["valueFrom"]) for one in env if "valueFrom" in one] == [
        (name, {"fieldRef": {"fieldPath": uid}})
        for name in ("TFACCEL_JOB_ID", "TFACCEL_JOB_SECRET")
    ]


@pytest.mark.parametrize("kind", ["jobset", "job"])
def test_a_pod_knows_who_it_is(kind: str) -> None:
    told = variables(objects(JOB, kind=kind)[-1])
    found = cluster.resolve({**told, "JOB_COMPLETION_INDEX": "2", "TFACCEL_JOB_ID": "a uid"})
    assert found is not None
    assert found.rank == 2
    hosts = [told["TFACCEL_WORKER_HOSTS"].replace("{rank}", str(rank)) for rank in range(4)]
    assert found.workers == tuple(f"{host}:2222" for host in hosts)


def test_an_indexed_job_has_its_service() -> None:
    service, job = objects(JOB, kind="job")
    assert variables(job)["TFACCEL_WORKER_HOSTS"] == "digits-{rank}.digits"
    assert pod(job)["subdomain"] == service["metadata"]["name"] == "digits"
    assert service["spec"]["clusterIP"] == "None"
    assert service["spec"]["publishNotReadyAddresses"] is True
    assert service["spec"]["selector"] == {"batch.kubernetes.io/job-name": job["metadata"]["name"]}
    assert service["spec"]["ports"][0]["port"] == int(variables(job)["TFACCEL_WORKER_PORT"])


def test_resources_and_volumes() -> None:
    (jobset,) = objects(JOB, **FULL)
    container = pod(jobset)["containers"][0]
    assert container["resources"] == {
        "requests": {"cpu": "8", "memory": "32Gi"},
        "limits": {"memory": "32Gi", "nvidia.com/gpu": "2"},
    }
    assert [one["mountPath"] for one in container["volumeMounts"]] == [
        *("/checkpoints", "/data", "/dev/shm")
    ]
    assert [one["name"] for one in container["volumeMounts"]] == [
        one["name"] for one in pod(jobset)["volumes"]
    ]
    assert pod(jobset)["volumes"][0]["persistentVolumeClaim"]["claimName"] == "checkpoints"
    assert pod(jobset)["terminationGracePeriodSeconds"] == 60
    assert pod(jobset)["nodeSelector"] == {"cloud.google.com/gke-tpu-topology": "2x4"}
    (tpu,) = objects(JOB, tpus=4)
    assert pod(tpu)["containers"][0]["resources"] == {"limits": {"google.com/tpu": "4"}}


def test_words_and_values_reach_the_worker_as_they_are() -> None:
    nasty = ["$(HOME)", "$$", "$", "a b", "it's", '"', "\n", "{x}", "- a", "#", "ü😀", "no", ""]
    job = Job(("train.py", *nasty), env=tuple((f"A{i}", text) for i, text in enumerate(nasty)))
    (found,) = objects(job)
    words = pod(found)["containers"][0]["command"]
    assert [word.replace("$$", "$") for word in words] == ["python", "train.py", *nasty]
    assert all("$(" not in word.replace("$$", "") for word in words), "Kubernetes would expand it"
    told = variables(found)
    assert [told[f"A{i}"].replace("$$", "$") for i in range(len(nasty))] == nasty


def test_the_page_s_volume_claim_is_one() -> None:
    page = ROOT / "docs" / "many_machines" / "kubernetes.md"
    (claim,) = (
        yaml.safe_load(fence.text)
        for fence in fences(page)
        if "kind: PersistentVolumeClaim" in fence.text
    )
    kubernetes_types.check(claim)
    assert claim["spec"]["accessModes"] == ["ReadWriteMany"]
    assert f"--volume {claim['metadata']['name']}:/checkpoints" in page.read_text("utf-8")


@pytest.mark.parametrize(
    ("values", "says"),
    [
        ({"image": "a b"}, "--image is 'a b'; expected such as gcr.io/mine/train:1"),
        ({"cpus": "many"}, "--cpus is 'many'; expected such as 4"),
        ({"memory": "16 GB"}, "--memory is '16 GB'; expected such as 16Gi"),
        ({"volume": ["checkpoints"]}, "--volume is 'checkpoints'; expected a claim and an absol"),
        ({"volume": ["A:/a"]}, "the claim of --volume is 'A'; expected up to 40"),
        ({"node_selector": ["gpu"]}, "--node-selector is 'gpu'; expected LABEL=VALUE"),
        ({"namespace": "My"}, "--namespace is 'My'; expected up to 40 lower-case"),
    ],
)
def test_what_kubernetes_would_refuse_is_refused_first(values: dict[str, Any], says: str) -> None:
    with pytest.raises(LaunchError, match=says):
        kubernetes.render(JOB, options(**values))


def test_kubectl_gets_what_a_dry_run_prints(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "kubectl").write_text(
        f'#!/bin/bash\necho "$*" > {tmp_path}/w; cat > {tmp_path}/m\n'
    )
    (tmp_path / "kubectl").chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    assert kubernetes.launch(JOB, options(namespace="team")) == 0
    assert (tmp_path / "w").read_text() == "apply -f -\n"
    assert (tmp_path / "m").read_text() == kubernetes.render(JOB, options(namespace="team"))
    assert "kubectl logs --namespace team --follow --selector jobset.sigs" in capfd.readouterr().out
    (tmp_path / "kubectl").write_text("#!/bin/bash\nexit 3\n")
    assert kubernetes.launch(JOB, options()) == 3


def test_a_missing_kubectl_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "/nonexistent")
    with pytest.raises(LaunchError, match="kubectl is not installed; expected Kubernetes"):
        kubernetes.launch(JOB, options())


def test_the_command_of_a_pod_with_logs_runs(tmp_path: Path) -> None:
    """What the manifest says, run as a container would."""
    (tmp_path / "train.py").write_text("print('trained')")
    (found,) = objects(Job(("train.py",), log_dir="logs"))
    words = pod(found)["containers"][0]["command"]
    done = subprocess.run(words, cwd=tmp_path, capture_output=True, text=True, timeout=60,
                          env={**os.environ, "PATH": f"{os.path.dirname(os.sys.executable)}:"
                               f"{os.environ['PATH']}", "PYTHONPATH": os.getcwd()})  # fmt: skip
    assert done.stdout == "[0] trained\n", done.stderr
    assert (tmp_path / "logs" / "rank-0.log").read_text() == "trained\n"
