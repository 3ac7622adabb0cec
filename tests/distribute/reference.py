"""What the plain strategies of TensorFlow do with Keras 3 today, as one line of JSON.

Usage: python -m tests.distribute.reference mirrored | multi_worker | half_mended

Each observation is True while the defect is there, or the message of the error it ends in. D3 and
D12 hide behind D1, so they are looked at with a tfaccel strategy from which their fixes are taken.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import sys
from collections.abc import Callable
from typing import Any
from unittest import mock

import keras
import numpy as np
import tensorflow as tf

ROWS = np.random.default_rng(0).normal(size=(16, 4)).astype("float32")


def dense(loss: Any = "mse", optimizer: Any = None, **more: Any) -> keras.Model:
    keras.utils.set_random_seed(3)
    model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(2)])
    model.compile(optimizer or keras.optimizers.SGD(0.5), loss, **more)
    return model


def trained(scope: Any, rows: int = 16, **compiled: Any) -> np.ndarray:
    with scope():
        model = dense(**{k: v() if k == "optimizer" else v for k, v in compiled.items()})
    x = ROWS[:rows]
    model.fit(x, x[:, :2] * 3, batch_size=rows, epochs=2, verbose=0)
    return np.asarray(model.get_weights()[0])


def differs(scope: Any, **how: Any) -> bool:
    """Whether two steps give other weights than on one device."""
    there, here = trained(scope, **how), trained(contextlib.nullcontext, **how)
    return not np.allclose(there, here, rtol=2e-3)


def d1_generator_loses_rows(scope: Any) -> bool:
    seen = []
    note = keras.callbacks.LambdaCallback(on_train_batch_end=lambda batch, logs: seen.append(batch))
    with scope():
        model = dense()
    batches = ((ROWS[i : i + 2], ROWS[i : i + 2, :2]) for i in range(0, 16, 2))
    model.fit(batches, verbose=0, callbacks=[note])
    return len(seen) != 8


def d1_uneven_first_batch(scope: Any) -> bool:
    trained(scope, rows=3)
    return False


def d2_statistics_differ(scope: Any) -> bool:
    with scope():
        model = keras.Sequential([keras.Input((4,)), keras.layers.BatchNormalization()])
        model.compile("sgd", "mse")
    model.fit(ROWS, ROWS, batch_size=16, verbose=0)
    mean = model.layers[0].moving_mean.value
    return not np.array_equal(*(np.asarray(v) for v in mean.values))


def d4_overflow_on_one_replica(scope: Any) -> bool:
    keras.config.set_dtype_policy("mixed_float16")
    x = ROWS.copy()
    x[0] = 1e6
    try:
        with scope():
            model = dense(optimizer=keras.optimizers.LossScaleOptimizer(keras.optimizers.SGD(0.1)))
        # The replica with the overflow is not the one that Keras asks.
        model.fit(x[::-1], ROWS[:, :2], batch_size=16, shuffle=False, verbose=0)
    finally:
        keras.config.set_dtype_policy("float32")
    return not all(np.all(np.isfinite(w)) for w in model.get_weights())


def d5_clipping(scope: Any) -> bool:
    return differs(scope, optimizer=lambda: keras.optimizers.SGD(0.5, global_clipnorm=0.1))


def d6_scalar_loss(scope: Any) -> bool:
    return differs(scope, loss=lambda y, p: keras.ops.mean(keras.ops.square(y - p)))


def d7_steps_per_execution(scope: Any) -> bool:
    with scope():
        model = dense(steps_per_execution=2)
    model.fit(ROWS, ROWS[:, :2], batch_size=4, verbose=0)
    return False


def d8_gradient_accumulation(scope: Any) -> bool:
    trained(scope, optimizer=lambda: keras.optimizers.SGD(0.5, gradient_accumulation_steps=2))
    return False


def d10_same_dropout_masks(scope: Any) -> bool:
    with scope():
        layer = keras.layers.Dropout(0.5, seed=1)
        layer.build((8, 64))
        strategy = tf.distribute.get_strategy()

    @tf.function
    def masks() -> Any:
        return strategy.run(lambda: layer(tf.ones((8, 64)), training=True))

    first, second = strategy.experimental_local_results(masks())
    return bool(np.array_equal(first, second))


def d11_predict_on_batch(scope: Any) -> bool:
    with scope():
        model = dense()
    return len(model.predict_on_batch(ROWS[:4])) != 4


def d14_ragged_batch(scope: Any) -> bool:
    def last_loss(inside: Any) -> float:
        with inside():
            model = dense()
        x = ROWS[:11]
        model.fit(x, x[:, :2] * 3, batch_size=8, shuffle=False, verbose=0)
        return float(np.sum(model.get_weights()[0]))

    return not np.isclose(last_loss(scope), last_loss(contextlib.nullcontext), rtol=1e-4)


class LogsItsLoss(keras.Model):
    def __init__(self) -> None:
        super().__init__()
        self.dense = keras.layers.Dense(2, kernel_initializer="ones")

    def call(self, x: Any) -> Any:
        return self.dense(x)

    def train_step(self, data: Any) -> dict[str, Any]:
        x, y = data
        return {"seen": self.compute_loss(y=y, y_pred=self(x))}


def d15_logged_loss(scope: Any) -> bool:
    def seen(inside: Any) -> float:
        with inside():
            model = LogsItsLoss()
            model.compile("sgd", "mse")
        return float(model.fit(ROWS, ROWS[:, :2], batch_size=16, verbose=0).history["seen"][0])

    return not np.isclose(seen(scope), seen(contextlib.nullcontext), rtol=1e-3)


def d1_fit(strategy: Any) -> bool:
    with strategy.scope():
        model = dense()
    model.fit(ROWS, ROWS[:, :2], batch_size=8, verbose=0)
    return False


def ids(strategy: Any, dataset: tf.data.Dataset) -> list[int]:
    """The row numbers that this worker sees in one pass."""
    pass_ = strategy.experimental_distribute_dataset(dataset)
    return [int(i) for batch in pass_ for i in strategy.experimental_local_results(batch)[0]]


def d9_rows_of_an_unseeded_shuffle(strategy: Any) -> list[int]:
    return ids(strategy, tf.data.Dataset.range(64).shuffle(64).batch(8))


def d13_rows_without_sharding(strategy: Any) -> list[int]:
    options = tf.data.Options()
    options.experimental_distribute.auto_shard_policy = tf.data.experimental.AutoShardPolicy.OFF
    return ids(strategy, tf.data.Dataset.range(64).batch(8).with_options(options))


def half_mended() -> Any:
    """Our multi-worker strategy without the fix of D3."""
    from tfaccel.cluster import resolve
    from tfaccel.distribute.multi_worker import MultiWorkerMirroredStrategy

    class HalfMended(MultiWorkerMirroredStrategy):
        def _prepare_callbacks(self, held: Any) -> None:
            pass

    cluster = resolve()
    assert cluster is not None
    return HalfMended(cluster)


def d3_lines_of_a_log_that_all_write(strategy: Any) -> int:
    path = os.path.join(os.environ["TFACCEL_TEST_FOLDER"], "log.csv")
    with strategy.scope():
        model = dense()
    log = keras.callbacks.CSVLogger(path, append=True)
    model.fit(ROWS, ROWS[:, :2], batch_size=8, epochs=2, verbose=0, callbacks=[log])
    strategy.reduce("SUM", tf.constant(1.0), axis=None)  # all have written
    with open(path) as file:
        return len([line for line in file if line[:1].isdigit()])


def d12_loss_when_compiled_outside(strategy: Any) -> float:
    with strategy.scope():
        model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(2)])
        optimizer = keras.optimizers.SGD()
    model.compile(optimizer, "mse")
    x = ROWS * np.arange(1, 17)[:, None]
    with mock.patch("tfaccel.distribute.scope.check"):
        return float(model.fit(x, x[:, :2], batch_size=16, verbose=0).history["loss"][0])


def observe(look: Callable[..., Any], argument: Any) -> Any:
    try:
        return look(argument)
    except Exception as error:
        return f"{type(error).__name__}: {str(error)[:300]}"


def main(kind: str) -> None:
    workers = (d1_fit, d9_rows_of_an_unseeded_shuffle, d13_rows_without_sharding)
    hidden = (d3_lines_of_a_log_that_all_write, d12_loss_when_compiled_outside)
    others = (*workers, *hidden)
    looks = [f for name, f in globals().items() if re.match(r"d\d", name) and f not in others]
    if kind == "mirrored":
        cpu = tf.config.list_physical_devices("CPU")[0]
        tf.config.set_logical_device_configuration(
            cpu, [tf.config.LogicalDeviceConfiguration()] * 2
        )
        strategy = tf.distribute.MirroredStrategy(["CPU:0", "CPU:1"])
        seen = {look.__name__: observe(look, strategy.scope) for look in looks}
    elif kind == "half_mended":
        strategy = half_mended()
        seen = {look.__name__: observe(look, strategy) for look in hidden}
    else:
        strategy = tf.distribute.MultiWorkerMirroredStrategy()
        # fit comes last: after it has failed, no collective of this process works.
        seen = {look.__name__: observe(look, strategy) for look in reversed(workers)}
    rank = json.loads(os.environ.get("TF_CONFIG", '{"task": {"index": 0}}'))["task"]["index"]
    print(f"\nobserved {rank} {json.dumps(seen)}", flush=True)


if __name__ == "__main__":
    main(sys.argv[1])
