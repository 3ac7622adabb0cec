"""A TPU that is found, and each way in which one is not, through TensorFlow's own resolver."""

from __future__ import annotations

import importlib.util
import re
from typing import Any

import keras
import pytest
import tensorflow as tf

import tfaccel
from tests.distribute.fake_tpu import Resolver
from tfaccel import installed
from tfaccel.cluster.tpu_address import TpuAddress, find
from tfaccel.errors import StrategyError
from tfaccel.strategies import tpu, tpu_errors

pytestmark = pytest.mark.child(group="tpu")

MINE = TpuAddress("mine", "us-east1-d", "ours")
REAL = tf.distribute.cluster_resolver.TPUClusterResolver


class GoogleCloud:
    """The part of Google's API client that TensorFlow calls: one TPU, or what goes wrong."""

    def __init__(self, node: dict[str, Any] | Exception) -> None:
        self._node = node
        self.requests: list[str] = []

    def projects(self) -> GoogleCloud:
        return self

    locations = nodes = projects

    def get(self, name: str) -> GoogleCloud:
        self.requests.append(name)
        return self

    def execute(self) -> dict[str, Any]:
        if isinstance(self._node, Exception):
            raise self._node
        return self._node


def hosts(number: int, state: str = "READY") -> dict[str, Any]:
    endpoints = [{"ipAddress": f"10.0.0.{i}", "port": 8470} for i in range(number)]
    return {"state": state, "health": "HEALTHY", "networkEndpoints": endpoints}


def resolved(address: TpuAddress, node: Any) -> tuple[list[str], GoogleCloud]:
    """The hosts TensorFlow would connect to."""
    cloud = GoogleCloud(node)
    resolver = REAL(address.name, zone=address.zone, project=address.project, service=cloud)
    spec = resolver.cluster_spec().as_dict()
    return spec.get("worker", []), cloud


@pytest.mark.parametrize("number", [1, 4])
def test_a_name_becomes_the_addresses_of_its_hosts(number: int) -> None:
    workers, cloud = resolved(MINE, hosts(number))
    assert workers == [f"10.0.0.{i}:8470" for i in range(number)]
    assert set(cloud.requests) == {"projects/ours/locations/us-east1-d/nodes/mine"}


def test_gke_names_the_hosts_itself(monkeypatch: Any) -> None:
    endpoints = "grpc://10.4.0.3:8470,grpc://10.4.0.4:8470"
    monkeypatch.setenv("KUBE_GOOGLE_CLOUD_TPU_ENDPOINTS", endpoints)
    address = find(None, None, None, {"KUBE_GOOGLE_CLOUD_TPU_ENDPOINTS": endpoints})
    workers, cloud = resolved(address, RuntimeError("nobody is to be asked"))
    assert workers == ["10.4.0.3:8470", "10.4.0.4:8470"]
    assert cloud.requests == []


def test_an_address_is_taken_as_it_is_and_local_needs_none() -> None:
    assert resolved(TpuAddress("grpc://1.2.3.4:8470"), None)[0] == ["1.2.3.4:8470"]
    assert resolved(TpuAddress("local"), None)[0] == []


@pytest.mark.parametrize(
    ("node", "says"),
    [
        (hosts(1, "CREATING"), "it is CREATING: wait until"),
        (hosts(1, "PREEMPTED"), "it is PREEMPTED: wait until .* must be recreated"),
        (
            RuntimeError("<HttpError 404 ... was not found>"),
            "no TPU of that name was found: check tpu,",
        ),
        (
            RuntimeError("<HttpError 403 ... Permission>"),
            "denied by Google Cloud: run `gcloud auth applic",
        ),
        (RuntimeError("connection reset"), "no response from Google Cloud: check tpu"),
    ],
)
def test_errors_of_google_cloud_become_advice(node: Any, says: str) -> None:
    with pytest.raises((RuntimeError, ValueError)) as reason:
        resolved(MINE, node)
    line = tpu_errors.explain(MINE, reason.value)
    assert line.startswith("tfaccel: TPU 'mine' (us-east1-d, ours) from tpu cannot be used; ")
    assert re.search(says, line)
    assert "\n" not in line


def make(**options: Any) -> tf.distribute.Strategy:
    return tfaccel.strategy("tpu", **options)


@pytest.fixture
def built_for_tpus(monkeypatch: Any) -> None:
    monkeypatch.setattr(
        installed, "packages", lambda: {"tensorflow-tpu": "2.20.0", "libtpu": "0.0.31"}
    )


def test_a_build_for_cpus_is_refused_with_the_install_line() -> None:
    with pytest.raises(StrategyError, match=r"expected tensorflow-tpu; .*'tensorflow-tpu==2\."):
        make()


@pytest.mark.usefixtures("built_for_tpus")
def test_a_machine_without_a_tpu_is_an_error() -> None:
    with pytest.raises(StrategyError, match="TPU 'local' from this machine cannot be used; no"):
        make()


def test_a_name_without_google_s_client_or_network_is_one_line(monkeypatch: Any) -> None:
    monkeypatch.setenv("GCE_METADATA_IP", "127.0.0.1:9")
    with pytest.raises(StrategyError, match=r"not in Google Cloud.*give tpu_zone and tpu_pro"):
        make(tpu="mine")
    if importlib.util.find_spec("googleapiclient") is None:
        with pytest.raises(StrategyError, match="pip install google-api-python-client"):
            make(tpu="mine", tpu_zone="us-east1-d", tpu_project="ours")


@pytest.fixture
def fake_tpu(monkeypatch: Any, built_for_tpus: None) -> None:
    monkeypatch.setattr(tpu, "initialize", lambda address: Resolver(4))


@pytest.mark.usefixtures("fake_tpu")
def test_a_tpu_that_is_started_has_a_replica_on_each_core() -> None:
    strategy = make(tpu="local")
    assert strategy.num_replicas_in_sync == 4
    assert strategy.partial_batch == "pad"
    assert make(partial_batch="drop").partial_batch == "drop"
    said = str(tfaccel.describe(strategy))
    assert re.search(r"strategy +tpu", said)
    assert re.search(r"replicas +4", said)
    assert "over the TPU's own links" in said
    assert re.search("batches +of one shape, padded", said)


@pytest.mark.usefixtures("fake_tpu")
def test_one_process_drives_a_slice(monkeypatch: Any) -> None:
    monkeypatch.setenv("TPU_WORKER_HOSTNAMES", "t-0,t-1")
    monkeypatch.setenv("TPU_WORKER_ID", "0")
    assert make(tpu="mine").num_replicas_in_sync == 4
    with pytest.raises(StrategyError, match=r"'local' from tpu .* but GKE TPU describes 2 workers"):
        make(tpu="local")
    monkeypatch.setenv("TPU_WORKER_ID", "1")
    with pytest.raises(StrategyError, match="of which this is number 1; expected one process: run"):
        make(tpu="mine")
    # Another launcher's workers would each start the TPU anew.
    monkeypatch.setenv("TPU_WORKER_HOSTNAMES", "localhost")
    monkeypatch.setenv("PMI_RANK", "0")
    monkeypatch.setenv("PMI_SIZE", "2")
    with pytest.raises(StrategyError, match="but mpiexec describes 2 workers"):
        make(tpu="mine")


@pytest.mark.usefixtures("fake_tpu")
def test_options_that_a_tpu_has_not() -> None:
    with pytest.raises(
        StrategyError, match="partial_batch='exact' was requested with strategy 'tpu'"
    ):
        make(partial_batch="exact")
    with pytest.raises(StrategyError, match="xla=True was requested without a GPU"):
        make(xla=True)
    with pytest.raises(
        StrategyError, match="gradient_compression='bfloat16' was requested with strategy 'tpu'"
    ):
        make(gradient_compression="bfloat16")
    policy = keras.config.dtype_policy()
    try:
        with pytest.raises(StrategyError, match="expected 'mixed_bfloat16', which needs no loss"):
            make(precision="mixed_float16")
    finally:
        keras.config.set_dtype_policy(policy)


@pytest.mark.usefixtures("fake_tpu")
def test_float32_logs_a_hint_at_bfloat16_which_auto_chooses(caplog: Any) -> None:
    policy = keras.config.dtype_policy()
    try:
        make()
        assert [one.levelname for one in caplog.records] == ["WARNING"], "shown unasked"
        assert "precision='mixed_bfloat16'" in caplog.text
        caplog.clear()
        make(precision="auto")
        assert keras.config.dtype_policy().name == "mixed_bfloat16"
        assert "mixed_bfloat16" not in caplog.text
    finally:
        keras.config.set_dtype_policy(policy)
