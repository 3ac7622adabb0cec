"""Kind 8: parts of a batch that differ in their numbers of rows."""

from __future__ import annotations

import json
import os
from typing import Any

import keras
import numpy as np
import tensorflow as tf
from keras import layers, ops

from tests.programs.data import labels, reals, weights
from tests.programs.program import Numbers, program


@program(8, always=True)
def labelled_and_unlabelled(strategy: Any) -> Numbers:
    """Semi-supervised: batches of 4 rows with labels beside 8 without, in one train_step"""

    class Semi(keras.Model):
        def __init__(self) -> None:
            super().__init__()
            self.body = keras.Sequential(
                [keras.Input((5,)), layers.Dense(6, "tanh"), layers.Dense(3)]
            )

        def call(self, x: Any) -> Any:
            return self.body(x)

        def train_step(self, data: Any) -> dict[str, Any]:
            (x, y), free = data
            with tf.GradientTape() as tape:
                rows = tf.nn.sparse_softmax_cross_entropy_with_logits(y, self(x, training=True))
                sure = tf.nn.softmax(self(free, training=True))
                entropy = -tf.reduce_sum(sure * tf.math.log(sure + 1e-6), axis=1)
                loss = tf.reduce_mean(rows) + 0.5 * tf.reduce_mean(entropy)
            of = self.trainable_variables
            self.optimizer.apply(tape.gradient(loss, of), of)
            return {"loss": loss}

    some = tf.data.Dataset.from_tensor_slices((reals(16, 5), labels(3, 16))).batch(4)
    many = tf.data.Dataset.from_tensor_slices(reals(32, 5, seed=3)).batch(8)
    with strategy.scope():
        model = Semi()
        model.compile(keras.optimizers.SGD(0.3))
    run = model.fit(tf.data.Dataset.zip((some, many)), epochs=2, verbose=0)
    return {"history": run.history, "weights": weights(model)}


@program(8)
def several_negatives_a_row(strategy: Any) -> Numbers:
    """A ranker whose batch holds three negatives for each row in one longer part"""

    class Ranker(keras.Model):
        def __init__(self) -> None:
            super().__init__()
            self.score = keras.Sequential(
                [keras.Input((4,)), layers.Dense(5, "tanh"), layers.Dense(1)]
            )

        def call(self, x: Any) -> Any:
            good = self.score(x["good"])
            bad = ops.reshape(self.score(x["bad"]), (-1, 3))
            return ops.concatenate([good, bad], axis=1)

    data = tf.data.Dataset.from_tensor_slices((reals(18, 4), reals(18, 3, 4, seed=3)))
    data = data.batch(6).map(
        lambda good, bad: (
            {"good": good, "bad": tf.reshape(bad, (-1, 4))},
            tf.zeros(tf.shape(good)[0], tf.int32),
        )
    )
    with strategy.scope():
        model = Ranker()
        loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
        model.compile(keras.optimizers.SGD(0.2), loss)
    run = model.fit(data, epochs=2, verbose=0)
    return {"history": run.history, "weights": weights(model)}


@program(8, all_rows=True)
def molecules_of_atoms(strategy: Any) -> Numbers:
    """Graphs of five atoms and six bonds, numbered over the batch, for each row of targets"""
    graphs, atoms, bonds = 4, 5, 6

    class Messages(layers.Layer):
        def build(self, shapes: Any) -> None:
            self.kernel = self.add_weight(shape=(shapes[1][-1], shapes[0][-1]))

        def call(self, inputs: Any) -> Any:
            atom, bond, ends = inputs
            sent = ops.matmul(bond, self.kernel) * ops.take(atom, ends[:, 1], axis=0)
            return ops.segment_sum(sent, ends[:, 0], num_segments=graphs * atoms)

    class Readout(layers.Layer):
        def call(self, inputs: Any) -> Any:
            return ops.segment_sum(*inputs, num_segments=graphs)

    class Molecules(keras.utils.PyDataset):
        def __len__(self) -> int:
            return 3

        def __getitem__(self, batch: int) -> Any:
            ends = (
                labels(atoms, graphs, bonds, 2, seed=batch)
                + atoms * np.arange(graphs)[:, None, None]
            )
            x = {
                "atom": reals(graphs * atoms, 3, seed=batch),
                "bond": reals(graphs * bonds, 2, seed=batch + 9),
                "ends": ends.reshape(-1, 2).astype("int32"),
                "graph": np.repeat(np.arange(graphs), atoms).astype("int32"),
            }
            return x, labels(2, graphs, 1, seed=batch).astype("float32")

    with strategy.scope():
        atom, bond = keras.Input((3,), name="atom"), keras.Input((2,), name="bond")
        ends = keras.Input((2,), dtype="int32", name="ends")
        graph = keras.Input((), dtype="int32", name="graph")
        read = Readout()([Messages()([atom, bond, ends]), graph])
        model = keras.Model([atom, bond, ends, graph], layers.Dense(1, "sigmoid")(read))
        model.compile(keras.optimizers.SGD(0.1), "binary_crossentropy", metrics=["mae"])
    run = model.fit(Molecules(), epochs=2, verbose=0, class_weight={0: 2.0, 1: 0.5})
    told = model.evaluate(Molecules(), verbose=0)
    predicted = model.predict(Molecules(), verbose=0)
    return {
        "history": run.history,
        "weights": weights(model),
        "evaluated": told,
        "predicted": predicted,
    }


@program(8, all_rows=True)
def pairs_along_the_first_axis(strategy: Any) -> Numbers:
    """Metric learning: batches of (anchors, positives), whose first axis is the pair"""

    class Pairs(keras.utils.PyDataset):
        def __len__(self) -> int:
            return 3

        def __getitem__(self, number: int) -> Any:
            return reals(2, 5, 6, seed=number)

    class Similar(keras.Model):
        def __init__(self) -> None:
            super().__init__()
            self.body = keras.Sequential([layers.Dense(4), layers.UnitNormalization()])

        def call(self, x: Any) -> Any:
            return self.body(x)

        def train_step(self, data: Any) -> dict[str, Any]:
            x = data[0] if isinstance(data, tuple) else data
            classes = ops.arange(5)
            with tf.GradientTape() as tape:
                anchors, positives = self(x[0], training=True), self(x[1], training=True)
                similarities = ops.matmul(anchors, ops.transpose(positives)) / 0.2
                loss = self.compute_loss(y=classes, y_pred=similarities)
            of = self.trainable_variables
            self.optimizer.apply_gradients(zip(tape.gradient(loss, of), of, strict=True))
            for metric in self.metrics:
                told = (loss,) if metric.name == "loss" else (classes, similarities)
                metric.update_state(*told)
            return {m.name: m.result() for m in self.metrics}

    with strategy.scope():
        model = Similar()
        loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
        accuracy = keras.metrics.SparseCategoricalAccuracy()
        model.compile(keras.optimizers.SGD(0.5), loss, metrics=[accuracy])
    history = model.fit(Pairs(), epochs=2, shuffle=False, verbose=0).history
    return {"history": history, "weights": weights(model)}


def _place() -> tuple[int, int]:
    """How many workers there are, and the number of this one, as scripts find out."""
    config = json.loads(os.environ.get("TF_CONFIG", "{}"))
    workers = config.get("cluster", {}).get("worker", ["only"])
    return len(workers), int(config.get("task", {}).get("index", 0))


_DIFFERS = "the first batch differs between workers"


@program(8, refused={"workers": _DIFFERS, "mesh_of_workers": _DIFFERS})
def sharded_by_the_script(strategy: Any) -> Numbers:
    """dataset.shard with the number of the worker, all of equal length, as for Horovod"""
    workers, rank = _place()
    rows = tf.data.Dataset.from_tensor_slices((reals(24, 5), reals(24, 1, seed=3)))
    with strategy.scope():
        model = keras.Sequential([keras.Input((5,)), layers.Dense(1)])
        model.compile(keras.optimizers.SGD(0.1), "mse")
    run = model.fit(rows.shard(workers, rank).shuffle(24, seed=1).batch(6), epochs=2, verbose=0)
    return {"history": run.history, "weights": weights(model)}
