"""What is chosen, from plain data: no device is touched."""

from __future__ import annotations

from typing import Any

import pytest

from tests.support import run_child
from tfaccel import strategies
from tfaccel.cluster import Cluster
from tfaccel.errors import StrategyError
from tfaccel.hardware import Device, count
from tfaccel.strategies import FACTORIES, accepted_options, choose, options, selection
from tfaccel.strategies.devices import kind_of, pick
from tfaccel.strategies.process_settings import precision
from tfaccel.strategies.request import Request

CPU = [Device("CPU", 0)]
ONE_GPU = [*CPU, Device("GPU", 0, compute_capability=(8, 0))]
TWO_GPUS = [*ONE_GPU, Device("GPU", 1, compute_capability=(7, 5))]
TPU = [*CPU, Device("TPU", 0), Device("TPU", 1)]
TWO_WORKERS = Cluster(("a:1", "b:1"), 0, "TF_CONFIG")


@pytest.mark.parametrize(
    ("devices", "cluster", "requested", "name", "why"),
    [
        (CPU, None, {}, "one_device", "no accelerator and no cluster"),
        (ONE_GPU, None, {}, "one_device", "one GPU"),
        (TWO_GPUS, None, {}, "mirrored", "2 GPUs"),
        (TWO_GPUS, None, {"devices": 1}, "one_device", "one GPU"),
        (TWO_GPUS, None, {"device_type": "cpu"}, "one_device", "no accelerator"),
        (TWO_GPUS, None, {"device_type": "cpu", "devices": 2}, "mirrored", "2 logical CPUs"),
        (CPU, None, {"devices": 4}, "mirrored", "4 logical CPUs"),
        (CPU, TWO_WORKERS, {}, "multi_worker_mirrored", "2 workers in TF_CONFIG"),
        (TWO_GPUS, TWO_WORKERS, {}, "multi_worker_mirrored", "2 workers"),
        (TWO_GPUS, Cluster(("a:1",), 0, "TF_CONFIG"), {}, "mirrored", "2 GPUs"),
        (TPU, None, {}, "tpu", "2 TPU cores"),
        (TPU, TWO_WORKERS, {}, "tpu", "2 TPU cores"),
        (TPU, None, {"device_type": "cpu"}, "one_device", "no accelerator"),
    ],
)
def test_auto(devices: Any, cluster: Any, requested: dict[str, Any], name: str, why: str) -> None:
    choice = choose("auto", devices, cluster, **requested)
    assert choice.name == name
    assert why in choice.reason


NAMED = """
import tfaccel
from tfaccel import hardware
gpus = [hardware.Device("GPU", i) for i in range(2)]
found = hardware.detect
hardware.detect = lambda: (*found(), *gpus)
strategy = tfaccel.strategy("auto", devices="CPU:2,CPU:3", gradient_compression="bfloat16")
print(tfaccel.describe(strategy))
import keras, numpy as np
with strategy.scope():
    model = keras.Sequential([keras.Input((2,)), keras.layers.Dense(1)])
    model.compile("sgd", "mse")
model.fit(np.ones((8, 2)), np.ones((8, 1)), batch_size=4, verbose=0)
print("trained on", *(device[-5:] for device in strategy.extended.worker_devices))
"""


def test_devices_with_names_are_those_and_decide_the_kind() -> None:
    said = run_child(["-c", NAMED])
    assert "strategy   mirrored (2 logical CPUs were requested)" in said
    assert "replicas   2: CPU:2, CPU:3" in said
    assert "gradients as bfloat16" in said
    assert "trained on CPU:2 CPU:3" in said


ALONE = """
import gc, weakref, tfaccel
options = {"device_type": "cpu", "gradient_compression": "bfloat16"}
strategy = tfaccel.strategy("mirrored", devices=1, **options)
print(tfaccel.describe(strategy))
held = weakref.ref(strategy)
del strategy
gc.collect()
print("kept alive" if held() else "gone")
"""


def test_of_one_replica_no_gradient_travels_and_nothing_keeps_a_strategy_alive() -> None:
    said = run_child(["-c", ALONE])
    assert "replicas   1: CPU:0" in said
    assert "bfloat16" not in said
    assert "gone" in said


def test_a_name_stands_for_itself() -> None:
    assert choose("mirrored", CPU, TWO_WORKERS) == strategies.Choice("mirrored", "requested")


@pytest.mark.parametrize(
    ("available", "device_type", "devices", "names"),
    [
        (CPU, "auto", None, ("CPU:0",)),
        (CPU, "cpu", 3, ("CPU:0", "CPU:1", "CPU:2")),
        (TWO_GPUS, "auto", None, ("GPU:0", "GPU:1")),
        (TWO_GPUS, "gpu", 1, ("GPU:0",)),
        (TWO_GPUS, "cpu", None, ("CPU:0",)),
        (TWO_GPUS, "auto", ("GPU:1",), ("GPU:1",)),
        ([Device("CPU", i) for i in range(2)], "auto", None, ("CPU:0", "CPU:1")),
    ],
)
def test_devices(available: Any, device_type: str, devices: Any, names: tuple[str, ...]) -> None:
    assert pick(available, device_type, devices) == names


@pytest.mark.parametrize(
    ("available", "device_type", "devices", "says"),
    [
        (CPU, "gpu", None, "a GPU was requested and TensorFlow sees CPU:0"),
        (TWO_GPUS, "gpu", 4, "GPU:2, GPU:3 was requested and this machine has 2 GPUs"),
        (ONE_GPU, "auto", ("GPU:3",), "GPU:3 was requested and this machine has 1 GPU;"),
        (TWO_GPUS, "cpu", ("GPU:0",), "device_type is 'cpu'; expected the same kind"),
    ],
)
def test_missing_devices_are_an_error(
    available: Any, device_type: str, devices: Any, says: str
) -> None:
    with pytest.raises(StrategyError, match=says):
        pick(available, device_type, devices)


def test_kind_and_count() -> None:
    assert kind_of(TPU, "auto", None) == "TPU"
    assert kind_of(TWO_GPUS, "auto", ("CPU:0",)) == "CPU"
    assert count(TWO_GPUS, "GPU") == 2


@pytest.mark.parametrize(
    ("devices", "names", "policy"),
    [
        (CPU, ["CPU:0"], "float32"),
        (ONE_GPU, ["GPU:0"], "mixed_bfloat16"),
        (TWO_GPUS, ["GPU:0", "GPU:1"], "mixed_float16"),
        (TWO_GPUS, ["GPU:0"], "mixed_bfloat16"),
        ([Device("GPU", 0, compute_capability=(6, 1))], ["GPU:0"], "float32"),
        ([Device("GPU", 0)], ["GPU:0"], "float32"),
        (TPU, ["TPU:0", "TPU:1"], "mixed_bfloat16"),
        (CPU, ["TPU"], "mixed_bfloat16"),  # one that has not been started
        (ONE_GPU, ["CPU:0"], "float32"),
    ],
)
def test_auto_precision(devices: Any, names: list[str], policy: str) -> None:
    assert precision("auto", devices, names) == policy
    assert precision("mixed_float16", devices, names) == "mixed_float16"


GIVEN = {
    "devices": (2, "3", 3),
    "device_type": ("cpu", "gpu", "gpu"),
    "precision": ("float32", "mixed_bfloat16", "mixed_bfloat16"),
    "xla": (True, "yes", True),
    "memory_growth": (False, "0", False),
    "seed": (1, "7", 7),
    "deterministic": (True, "TRUE", True),
    "communication": ("ring", "nccl", "nccl"),
    "gradient_compression": ("float16", "powersgd:2", "powersgd:2"),
    "gradient_accumulation": ("reduced", "local", "local"),
    "local_steps": (2, "4", 4),
    "partial_batch": ("pad", "drop", "drop"),
    "batch_norm": ("replica", "synchronized", "synchronized"),
    "rematerialization": ("activations", "full", "full"),
    "input": ("global", "per_worker", "per_worker"),
    "check": ("off", "always", "always"),
    "steps_per_execution": (2, "4", 4),
    "data_service": ("a:1", "b:2", "b:2"),
    "profile": ((1, 1), "10:20", (10, 20)),
    "profile_dir": ("a", "gs://b", "gs://b"),
    "start_timeout": (5.0, "20", 20.0),
    "collective_timeout": (5.0, "2.5", 2.5),
    "stall_timeout": (5.0, "0", 0.0),
    "tpu": ("mine", "local", "local"),
    "tpu_zone": ("us-east1-d", "eu-west4-a", "eu-west4-a"),
    "tpu_project": ("ours", "theirs", "theirs"),
    "mesh": ("batch=2", "model=2", "model=2"),
    "layouts": ("fully_sharded", "auto", "auto"),
}


@pytest.mark.parametrize("name", GIVEN)
def test_an_option_comes_from_the_argument_then_from_the_environment(name: str) -> None:
    argument, text, value = GIVEN[name]
    environ = {f"TFACCEL_{name.upper()}": text}
    assert getattr(options.resolve({name: argument}, environ), name) == argument
    assert getattr(options.resolve({name: None}, environ), name) == value
    assert getattr(options.resolve({}, environ), name) == value
    assert options.resolve({}, {f"TFACCEL_{name.upper()}": ""}) == options.Options()


def test_every_option_is_in_the_table_above() -> None:
    assert set(GIVEN) == set(options.Options.__dataclass_fields__)


@pytest.mark.parametrize(
    ("values", "environ", "says"),
    [
        ({"device": 2}, {}, "unknown option 'device'; expected one of .*devices"),
        ({"devices": 0}, {}, "devices is 0; expected at least 1"),
        ({"devices": True}, {}, "devices is True; expected a number of devices, or names"),
        ({"devices": 1.5}, {}, "devices is 1.5; expected a number of devices, or names"),
        ({"start_timeout": float("nan")}, {}, "start_timeout is nan; expected a number"),
        ({"devices": "GPU"}, {}, "devices is 'GPU'; expected a number of devices, or names"),
        ({"devices": "GPU:0,CPU:0"}, {}, "expected different devices of one kind"),
        ({"devices": ["GPU:0", "GPU:0"]}, {}, "expected different devices of one kind"),
        ({"precision": "fp8"}, {}, "precision is 'fp8'; expected one of float32, mixed_bfloat16"),
        ({}, {"TFACCEL_XLA": "maybe"}, "TFACCEL_XLA is 'maybe'; expected true or false"),
        ({}, {"TFACCEL_SEED": "x"}, "TFACCEL_SEED is 'x'; expected a number"),
        ({"start_timeout": -1}, {}, "start_timeout is -1; expected a number of at least 0"),
        ({"data_service": "here"}, {}, "data_service is 'here'; expected an address such as"),
        ({"profile": "5"}, {}, "profile is '5'; expected a first and a last step, counted from 1"),
        ({"profile": "0:5"}, {}, "profile is '0:5'; expected a first and a last step"),
        ({}, {"TFACCEL_PROFILE": "5:4"}, "TFACCEL_PROFILE is '5:4'; expected a first and a last"),
        ({"local_steps": 0}, {}, "local_steps is 0; expected a number of steps of at least 1"),
        (
            {"gradient_compression": "int8"},
            {},
            "gradient_compression is 'int8'; expected bfloat16, float16, powersgd or powersgd:",
        ),
        (
            {"gradient_compression": "powersgd:0"},
            {},
            "gradient_compression is 'powersgd:0'; expected bfloat16",
        ),
        (
            {"gradient_compression": "powersgd:x"},
            {},
            "gradient_compression is 'powersgd:x'; expected bfloat16",
        ),
        (
            {"gradient_accumulation": "yes"},
            {},
            "gradient_accumulation is 'yes'; expected one of reduced, local",
        ),
        (
            {"communication": "tcp"},
            {},
            "communication is 'tcp'; expected one of auto, ring, nccl, mpi",
        ),
    ],
)
def test_a_wrong_option_is_named(values: Any, environ: Any, says: str) -> None:
    with pytest.raises(StrategyError, match=says):
        options.resolve(values, environ)


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("parameter_server", "Keras 3 does not support ParameterServerStrategy"),
        ("central_storage", "Keras 3 does not support CentralStorageStrategy"),
        ("miroredd", "unknown strategy 'miroredd'; expected one of auto, one_device, mirrored"),
    ],
)
def test_refused_names(name: str, says: str) -> None:
    with pytest.raises(StrategyError, match=says):
        strategies.strategy(name)


REFUSED = {
    "one_device": [
        "gradient_accumulation",
        "collective_timeout",
        "communication",
        "layouts",
        "local_steps",
    ],
    "mirrored": ["collective_timeout", "layouts", "mesh", "steps_per_execution", "tpu"],
    "multi_worker_mirrored": ["layouts", "mesh", "steps_per_execution", "tpu", "tpu_zone"],
    "tpu": [
        "gradient_accumulation",
        "communication",
        "devices",
        "local_steps",
        "mesh",
        "gradient_compression",
    ],
    "model_parallel": [
        "collective_timeout",
        "communication",
        "tpu",
        "tpu_project",
        "gradient_compression",
    ],
}


@pytest.mark.parametrize(("name", "option"), [(n, o) for n, os in REFUSED.items() for o in os])
def test_an_option_that_a_strategy_does_not_accept_is_refused(name: str, option: str) -> None:
    requested = {option: "fully_sharded" if option == "layouts" else GIVEN[option][2]}
    expected = f"^tfaccel: {option}=.* was requested with strategy '{name}', (which does|expected)"
    with pytest.raises(StrategyError, match=expected):
        selection.select(name, requested, {}, CPU, None)


def test_the_refusal_names_the_strategies_that_accept_the_option() -> None:
    expected = "use 'mirrored' or 'multi_worker_mirrored', or leave it out"
    with pytest.raises(StrategyError, match=expected):
        strategies.strategy("one_device", gradient_compression="bfloat16")
    with pytest.raises(StrategyError, match="expected 'pad' or 'drop'; or leave it out"):
        selection.select("tpu", {"partial_batch": "exact"}, {}, CPU, None)


@pytest.mark.parametrize("name", FACTORIES)
def test_every_factory_declares_options_that_there_are(name: str) -> None:
    declared = accepted_options.accepted_by(FACTORIES[name])
    assert set(declared) <= set(options.Options.__dataclass_fields__)
    for option, values in declared.items():
        for value in values or ():
            assert getattr(options.resolve({option: value}, {}), option) == value


@pytest.mark.parametrize("option", options.Options.__dataclass_fields__)
def test_every_option_is_accepted_by_some_strategy(option: str) -> None:
    assert any(
        accepted_options.accepted_by(module).get(option, ()) != () for module in FACTORIES.values()
    )


@pytest.mark.parametrize(
    ("name", "values", "environ", "chosen"),
    [
        (None, {}, {"TFACCEL_STRATEGY": "mirrored"}, "mirrored"),
        (None, {}, {"TFACCEL_STRATEGY": ""}, "one_device"),
        ("auto", {}, {"TFACCEL_STRATEGY": "mirrored"}, "one_device"),
        ("one_device", {}, {"TFACCEL_STRATEGY": "mirrored"}, "one_device"),
        (None, {}, {"TFACCEL_MESH": "model=2"}, "model_parallel"),
        (None, {"mesh": "model=2"}, {}, "model_parallel"),
        (None, {"devices": "CPU:0,CPU:1"}, {}, "mirrored"),
        (None, {}, {"TFACCEL_DEVICES": "2"}, "mirrored"),
        (None, {"devices": 1}, {"TFACCEL_DEVICES": "2"}, "one_device"),
    ],
)
def test_code_takes_precedence_over_the_environment(
    name: str | None, values: Any, environ: dict[str, str], chosen: str
) -> None:
    assert selection.select(name, values, environ, CPU, None).choice.name == chosen


@pytest.mark.parametrize(
    ("name", "values", "devices"),
    [
        ("one_device", {}, ("CPU:0",)),
        ("mirrored", {"devices": 2}, ("CPU:0", "CPU:1")),
        ("model_parallel", {"mesh": "batch=2,model=2"}, tuple(f"CPU:{i}" for i in range(4))),
        ("tpu", {}, ("TPU",)),
    ],
)
def test_devices_of_a_strategy(name: str, values: Any, devices: tuple[str, ...]) -> None:
    assert selection.select(name, values, {}, CPU, None).devices == devices


def test_one_process_of_several_is_refused() -> None:
    alone = Request(options.Options(), ("CPU:0",), TWO_WORKERS)
    with pytest.raises(StrategyError, match="'mirrored' uses this process alone, but TF_CONFIG"):
        alone.refuse_cluster("mirrored")
    Request(options.Options(), ("CPU:0",), None).refuse_cluster("mirrored")


@pytest.mark.parametrize("devices", [("GPU:0", "GPU:1"), ("CPU:0", "CPU:1")])
def test_one_device_takes_one(devices: tuple[str, ...]) -> None:
    from tfaccel.strategies import one_device

    with pytest.raises(StrategyError, match=f"got {', '.join(devices)}; expected one device"):
        one_device.make(Request(options.Options(), devices, None))
