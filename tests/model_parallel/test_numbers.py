"""Losses and weights on every mesh are those of one device."""

from __future__ import annotations

import contextlib
import functools
from typing import Any

import keras
import numpy as np
import pytest
import tensorflow as tf

from tests.distribute.pages import Pages, own_rows
from tests.model_parallel.models import MODELS, RTOL, train
from tfaccel.distribute.model_parallel.mesh_rows import MeshRows
from tfaccel.errors import InputError

RUNS = [
    *(
        (name, mesh, "auto")
        for name in MODELS
        for mesh in ("batch=4", "batch=2,model=2", "model=4")
    ),
    ("mlp", "batch=4", "fully_sharded"),
    ("cnn", "batch=4", "fully_sharded"),
    ("transformer", "batch=2,model=2", "fully_sharded"),
]
# Models, meshes and ways to lay them out, each at least once. The transformer is generated from in
# test_generate.py; of batch=2,model=2 in two processes tests/conformance has a column.
ALWAYS = [
    ("mlp", "batch=4", "auto"),
    ("grouped", "model=4", "auto"),
    ("cnn", "batch=4", "fully_sharded"),
]


@functools.cache
def one_device(name: str) -> dict[str, Any]:
    return train(name, contextlib.nullcontext)


@functools.cache
def strategy(mesh: str, layouts: str, devices: int) -> Any:
    import tfaccel

    return tfaccel.strategy(
        "model_parallel",
        mesh=mesh,
        layouts=layouts,
        device_type="cpu",
        devices=devices,
        check="off",  # the test compares with one device itself
    )


def assert_equals_one_device(name: str, mesh: str, layouts: str, devices: int) -> None:
    got = train(name, strategy(mesh, layouts, devices).scope)
    want = one_device(name)
    for i, (a, b) in enumerate(zip(want["initial"], got["initial"], strict=True)):
        assert a.tobytes() == b.tobytes(), f"initial weight {i} differs"
    rtol = RTOL.get(name, 1e-5)
    np.testing.assert_allclose(got["losses"], want["losses"], rtol=rtol)
    for a, b in zip(want["weights"], got["weights"], strict=True):
        # Some numbers, such as the bias of the keys, are nought but rounding.
        np.testing.assert_allclose(b, a, rtol=rtol, atol=max(1e-6, rtol * np.abs(a).max()))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "mesh", "layouts"),
    [run if run in ALWAYS else pytest.param(*run, marks=pytest.mark.exhaustive) for run in RUNS],
)
@pytest.mark.child(devices=4)
def test_one_process(name: str, mesh: str, layouts: str) -> None:
    assert_equals_one_device(name, mesh, layouts, devices=4)


# The conformance table has a column of this mesh.
@pytest.mark.exhaustive
@pytest.mark.slow
@pytest.mark.parametrize("name", MODELS)
@pytest.mark.child(workers=2, group="2x2")
def test_two_processes_data_and_model(name: str) -> None:
    assert_equals_one_device(name, "batch=2,model=2", "auto", devices=2)


@pytest.mark.exhaustive
@pytest.mark.slow
@pytest.mark.parametrize("name", ["transformer"])
@pytest.mark.child(workers=2, group="4x1")
def test_two_processes_fully_sharded(name: str) -> None:
    assert_equals_one_device(name, "batch=4", "fully_sharded", devices=2)


@pytest.mark.exhaustive
@pytest.mark.slow
@pytest.mark.parametrize("name", ["grouped"])
@pytest.mark.child(workers=2, group="1x4")
def test_two_processes_model(name: str) -> None:
    assert_equals_one_device(name, "model=4", "auto", devices=2)


def small(host: bool = False) -> keras.Model:
    layers = [keras.layers.Dense(4), *([OnHost()] if host else []), keras.layers.Dense(1)]
    model = keras.Sequential([keras.Input((3,)), *layers])
    model.compile(keras.optimizers.SGD(1e-4), "mse", metrics=["mae"])
    return model


class OnHost(keras.layers.Layer):
    """Cannot be divided, which is found when a step is traced."""

    def call(self, x: Any) -> Any:
        return tf.map_fn(lambda row: 2 * row, x)


class Bytes(Pages):
    """Rows of small integers."""

    def made_of(self, chosen: Any) -> Any:
        x, y = super().made_of(chosen)
        return x.astype("uint8"), y


def of_rows(make: Any, scope: Any, **more: Any) -> list[Any]:
    """Numbers of all that reads the data that `make` makes, and of what was trained."""
    keras.utils.set_random_seed(3)
    with scope():
        model = small(**more)
    given = {"epochs": 2, "validation_data": make(), "verbose": 0}
    fitted = model.fit(make(), **given).history
    read = [model.evaluate(make(), verbose=0), model.predict(make(), verbose=0)]
    return [*fitted.values(), *read, *model.get_weights()]


def pipeline() -> tf.data.Dataset:
    rows = tf.data.Dataset.range(28).shuffle(28, seed=1).map(tf.abs)
    numbers = rows.map(lambda i: (tf.cast([i, i % 3, 1], tf.float32), tf.cast([i % 2], tf.float32)))
    return numbers.batch(8)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("kind", "host"),
    [
        ("pages", False),
        ("bytes", True),
        *(
            pytest.param(*each, marks=pytest.mark.exhaustive)
            for each in (("threads", False), ("tf.data", False), ("tf.data", True))
        ),
    ],
)
@pytest.mark.child(workers=2, group="2x2")
def test_two_processes_that_compute_their_own_rows_alone(
    kind: str, host: bool, caplog: Any
) -> None:
    made: list[Pages] = []

    def pages(**more: Any) -> Pages:
        made.append((Bytes if kind == "bytes" else Pages)(reorders=not made, **more))
        return made[-1]

    makes = {
        "pages": pages,
        "bytes": pages,
        "threads": lambda: pages(threads=2),
        "tf.data": pipeline,
    }
    ours = strategy("batch=2,model=2", "auto", 2)
    given = {"host": host} if host else {}
    with caplog.at_level("INFO", logger="absl"):
        found = of_rows(makes[kind], ours.scope, **given)
    if kind == "pages":  # Keras looks at two batches of 8 rows, and we at one
        own = MeshRows.of(ours.mesh, "batch")
        assert own is not None
        # And at the first rows of a pass.
        expected = own_rows(made[2], own.numbers) | set(range(8))
        assert set(made[2].computed[24:]) == expected < set(range(28))
    rank = ours.cluster.rank
    assert ours.gather_numbers([rank, 2**40 + rank]) == [[0, 2**40], [1, 2**40 + 1]]
    whole = "every process computes all rows, since the test step"
    assert (whole in caplog.text) is host  # known when `evaluate` asks for data
    made.clear()
    for one, other in zip(
        found, of_rows(makes[kind], contextlib.nullcontext, **given), strict=True
    ):
        np.testing.assert_allclose(one, other, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize(
    ("kind", "says"),
    [
        ("arrays", "the first batch differs between workers"),
        pytest.param(
            "shard", "the first batch differs between workers", marks=pytest.mark.exhaustive
        ),
        ("lengths", r"have 2, 3 batches \(by rank\)"),
        ("a batch that does not divide", "the first batch differs between workers"),
    ],
)
@pytest.mark.child(workers=2, group="2x2")
def test_two_processes_that_read_different_rows_are_refused(kind: str, says: str) -> None:
    ours = strategy("batch=2,model=2", "auto", 2)
    rank = ours.cluster.rank
    x, y = np.arange(64, dtype="float32").reshape(16, 4), np.arange(16, dtype="float32")[:, None]
    rows = tf.data.Dataset.from_tensor_slices((x, y))
    given = {
        "arrays": (x[rank::2], y[rank::2]),
        "shard": (rows.shard(2, rank).batch(4),),
        "lengths": (rows.take(8 + 4 * rank).batch(4),),
        "a batch that does not divide": (
            rows.shard(2, rank).map(lambda x, y: (2 * x, y)).batch(3),
        ),
    }
    with ours.scope():
        model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(1)])
        model.compile("sgd", "mse")
    with pytest.raises(InputError, match=says):
        model.fit(*given[kind], verbose=0)
