"""Gradients with fewer bits on the wire: what they cost, and that replicas stay equal."""

from __future__ import annotations

import functools
import importlib.metadata
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import keras
import numpy as np
import pytest
import tensorflow as tf

import tfaccel
from tests.support import environment
from tfaccel.distribute import _private, compression, step
from tfaccel.errors import StrategyError

pytestmark = [pytest.mark.slow, pytest.mark.child(devices=2, group="compression")]

ROOT = Path(__file__).parents[2]
EPOCHS = 5


def digits() -> tuple[np.ndarray, np.ndarray]:
    """Those of scikit-learn, which is not imported for them."""
    file = importlib.metadata.distribution("scikit-learn").locate_file(
        "sklearn/datasets/data/digits.csv.gz"
    )
    held = np.loadtxt(str(file), delimiter=",")
    return (held[:, :-1] / 16).astype("float32"), held[:, -1].astype(int)


def trained(wire: str | None) -> tuple[float, Any]:
    """The loss after training on two replicas, and the model."""
    strategy = tfaccel.strategy("mirrored", devices=2, device_type="cpu", gradient_compression=wire)
    keras.utils.set_random_seed(1)
    with strategy.scope():
        layers = [keras.layers.Dense(128, "relu"), keras.layers.Dense(128, "relu")]
        model = keras.Sequential([keras.Input((64,)), *layers, keras.layers.Dense(10)])
        loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
        model.compile(keras.optimizers.Adam(1e-3), loss)
    x, y = digits()
    fitted = model.fit(x, y, batch_size=64, epochs=EPOCHS, verbose=0)
    return fitted.history["loss"][-1], model


@functools.cache
def of_float32() -> float:
    # No fixture: that would train in the process that collects the tests, too.
    return trained(None)[0]


@pytest.mark.parametrize(
    ("wire", "rtol"),
    [
        pytest.param("float16", 0.02, marks=pytest.mark.exhaustive),
        ("bfloat16", 0.02),
        ("powersgd", 0.5),
    ],
)
def test_the_loss_after_training_is_near_float32_s(wire: str, rtol: float) -> None:
    loss, model = trained(wire)
    assert loss == pytest.approx(of_float32(), rel=rtol)
    assert loss != of_float32(), "nothing was compressed"
    for variable in model.weights:
        first, second = variable.value.values
        np.testing.assert_array_equal(first.numpy(), second.numpy(), err_msg=variable.path)


def sent(wire: str, monkeypatch: pytest.MonkeyPatch) -> int:
    """Bytes of a gradient of 512 x 256 as it is sent in a step."""
    strategy = tfaccel.strategy("mirrored", devices=2, device_type="cpu")
    counted: list[int] = []
    reduce, exchange, gather = step.all_reduce_sum, _private.all_to_all, _private.all_gather

    def counting(call: Any, times: int, *values: Any) -> Any:
        # An all-reduce sends what it is given about twice: to be added, and the sum.
        leaves = tf.nest.flatten(values)
        counted.extend(times * v.shape.num_elements() * v.dtype.size for v in leaves)
        return call(*values)

    monkeypatch.setattr(step, "all_reduce_sum", functools.partial(counting, reduce, 2))
    monkeypatch.setattr(_private, "all_to_all", functools.partial(counting, exchange, 1))
    monkeypatch.setattr(_private, "all_gather", functools.partial(counting, gather, 2))
    way = compression.parse(wire)
    owner = keras.optimizers.SGD(name="owner")
    way.prepare(owner, [tf.zeros([512, 256])], strategy)
    grad = tf.ones([512, 256])
    strategy.run(tf.function(lambda: way.sum(owner, [grad])))
    return sum(counted) // 4  # two replicas, and there and back


@pytest.mark.parametrize(
    ("wire", "size"),
    [("float16", 2 * 512 * 256), ("bfloat16", 2 * 512 * 256), ("powersgd:4", 4 * 4 * (512 + 256))],
)
def test_fewer_bytes_are_sent(wire: str, size: int, monkeypatch: pytest.MonkeyPatch) -> None:
    assert sent(wire, monkeypatch) == size


def test_what_is_lost_is_sent_later() -> None:
    """A gradient of full rank that stays the same is sent whole, little by little."""
    strategy = tfaccel.strategy("mirrored", devices=2, device_type="cpu")
    way, owner = compression.parse("powersgd:1"), keras.optimizers.SGD(name="owner")
    grad = np.random.default_rng(0).normal(size=(8, 8)).astype("float32")
    way.prepare(owner, [tf.zeros([8, 8])], strategy)

    @tf.function
    def one_step() -> Any:
        return strategy.run(lambda: way.sum(owner, [tf.constant(grad)])[0])

    total = sum(one_step().values[0].numpy() for _ in range(200)) / 200
    np.testing.assert_allclose(total, 2 * grad, atol=0.2)


def test_a_rank_above_the_rows_of_the_batch_loses_nothing() -> None:
    """The gradient of a dense layer is a product over those 8 rows; more only tames rounding."""
    strategy = tfaccel.strategy("mirrored", devices=2, device_type="cpu")
    way, owner = compression.parse("powersgd:12"), keras.optimizers.SGD(name="owner")
    way.prepare(owner, [tf.zeros([64, 48])], strategy)

    @tf.function
    def one_step(rows: Any, slopes: Any) -> Any:
        def replica() -> Any:
            ours = 4 * tf.distribute.get_replica_context().replica_id_in_sync_group
            mine = rows[ours : ours + 4], slopes[ours : ours + 4]
            return way.sum(owner, [tf.matmul(*mine, transpose_a=True)])[0]

        return strategy.run(replica)

    draw = np.random.default_rng(0)
    for _ in range(5):  # each step another batch
        rows = draw.normal(size=(8, 64)).astype("float32")
        slopes = draw.normal(size=(8, 48)).astype("float32")
        total = one_step(rows, slopes).values[0].numpy()
        exact = rows.T @ slopes
        assert np.linalg.norm(total - exact) < 1e-3 * np.linalg.norm(exact)


@pytest.mark.parametrize("wire", ["float16", "bfloat16", "powersgd:1"])
def test_sparse_gradients_and_none_travel_too(wire: str) -> None:
    strategy = tfaccel.strategy("mirrored", devices=2, device_type="cpu")
    way, owner = compression.parse(wire), keras.optimizers.SGD(name="owner")
    way.prepare(owner, [tf.zeros([9, 4]), tf.zeros([3]), tf.zeros([16, 16])], strategy)

    def replica() -> Any:
        rows = tf.IndexedSlices(tf.ones([1, 4]), tf.constant([7]), tf.constant([9, 4]))
        sparse, none, dense = way.sum(owner, [rows, None, tf.ones([16, 16])])
        assert none is None
        return tf.convert_to_tensor(sparse), dense

    sparse, dense = strategy.run(tf.function(replica))
    assert sparse.values[0].numpy()[7].tolist() == [2, 2, 2, 2]
    assert sparse.values[0].numpy().sum() == 8
    np.testing.assert_allclose(dense.values[1].numpy(), np.full([16, 16], 2), rtol=1e-5)


def test_an_overflow_is_heard_of_and_not_remembered() -> None:
    strategy = tfaccel.strategy("mirrored", devices=2, device_type="cpu")
    way, owner = compression.parse("powersgd:1"), keras.optimizers.SGD(name="owner")
    way.prepare(owner, [tf.zeros([8, 8])], strategy)
    step_ = tf.function(lambda g: strategy.run(lambda: way.sum(owner, [g])[0]))
    assert np.isnan(step_(tf.fill([8, 8], np.inf)).values[0].numpy()).all()
    np.testing.assert_allclose(step_(tf.ones([8, 8])).values[0].numpy(), 2, rtol=1e-4)


def test_an_optimizer_of_one_s_own_is_refused_by_powersgd() -> None:
    with pytest.raises(StrategyError, match="optimizer 'own' is not one that a model was compiled"):
        compression.parse("powersgd").sum(keras.optimizers.SGD(name="own"), [tf.ones([4, 4])])


def test_gradients_that_powersgd_does_not_know_are_refused() -> None:
    strategy = tfaccel.strategy("mirrored", devices=2, device_type="cpu")
    way, owner = compression.parse("powersgd"), keras.optimizers.SGD(name="some")
    way.prepare(owner, [tf.zeros([3]), tf.zeros([4])], strategy)
    with pytest.raises(
        StrategyError, match="'some' was given 1 gradients under gradient_compression='powersgd'"
    ):
        way.sum(owner, [tf.ones([4])])


def test_local_steps_send_no_gradient_to_compress() -> None:
    with pytest.raises(
        StrategyError, match="gradient_compression and local_steps=2 were requested"
    ):
        tfaccel.strategy(
            "mirrored", device_type="cpu", gradient_compression="float16", local_steps=2
        )


def test_a_strategy_without_replicas_refuses_it() -> None:
    with pytest.raises(
        StrategyError, match="gradient_compression='float16' was requested with strategy 'one_dev"
    ):
        tfaccel.strategy("one_device", device_type="cpu", gradient_compression="float16")


SCRIPT = """
import hashlib
import keras, numpy as np, tfaccel
strategy = tfaccel.strategy("multi_worker_mirrored", communication="WAY", device_type="cpu",
                            devices=DEVICES, gradient_compression="bfloat16")
keras.utils.set_random_seed(1)
with strategy.scope():
    model = keras.Sequential([keras.Input((9,)), keras.layers.Dense(7), keras.layers.Dense(1)])
    model.compile("sgd", "mse")
x = np.random.default_rng(0).normal(size=(40, 9)).astype("float32")
loss = model.fit(x, x[:, :1], batch_size=16, epochs=3, verbose=0).history["loss"][-1]
bits = hashlib.sha256(b"".join(w.tobytes() for w in model.get_weights())).hexdigest()
print(f"loss {loss:.6f} weights {bits}", flush=True)
"""


@pytest.mark.parametrize(
    ("way", "devices"),
    [
        # MPI reduces bfloat16 in every run in test_mpi_strategy.py.
        pytest.param("mpi", 1, marks=pytest.mark.exhaustive),
        pytest.param("mpi", 2, marks=pytest.mark.exhaustive),
        ("ring", 2),
    ],
)
def test_bfloat16_leaves_workers_equal(way: str, devices: int, tmp_path: Path) -> None:
    path = tmp_path / "script.py"
    path.write_text(SCRIPT.replace("DEVICES", str(devices)).replace("WAY", way))
    done = subprocess.run(
        [sys.executable, "-m", "tfaccel.cli", "launch", "--nproc=2", "--show=all", str(path)],
        env=environment(),
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
    said = re.findall(r"loss ([\d.]+) weights (\w+)", done.stdout)
    assert len(said) == 2
    assert said[0] == said[1]
