"""Programs of several kinds, as public flows, experts and self-supervised learners are written."""

from __future__ import annotations

from typing import Any

import keras
import numpy as np
import tensorflow as tf
from keras import layers, ops

from tests.programs.data import labels, reals, weights
from tests.programs.program import Numbers, program


def coupling() -> keras.Model:
    """Scale and shift of one half, told from the other."""
    x = keras.Input((2,))
    parts = []
    for activation in ("tanh", "linear"):
        hidden = layers.Dense(8, "relu", kernel_regularizer="l2")(x)
        parts.append(layers.Dense(2, activation, kernel_regularizer="l2")(hidden))
    return keras.Model(x, parts)


class Flow(keras.Model):
    """A normalizing flow of masked couplings; `training` is the direction."""

    def __init__(self, number: int) -> None:
        super().__init__()
        self.masks = np.array([[0, 1], [1, 0]] * (number // 2), "float32")
        self.couplings = [coupling() for _ in range(number)]
        self.loss_tracker = keras.metrics.Mean(name="loss")

    @property
    def metrics(self) -> list[Any]:
        return [self.loss_tracker]

    def call(self, x: Any, training: bool = True) -> Any:
        log_det, direction = 0.0, -1 if training else 1
        for i in range(len(self.couplings))[::direction]:
            kept, moved = x * self.masks[i], 1 - self.masks[i]
            scale, shift = (part * moved for part in self.couplings[i](kept))
            gate = (direction - 1) / 2
            x = kept + moved * (
                x * tf.exp(direction * scale) + direction * shift * tf.exp(gate * scale)
            )
            log_det += gate * tf.reduce_sum(scale, axis=1)
        return x, log_det

    def log_loss(self, x: Any) -> Any:
        y, log_det = self(x)
        likelihood = -0.5 * tf.reduce_sum(tf.square(y), axis=1) - np.log(2 * np.pi)
        return -tf.reduce_mean(likelihood + log_det)

    def train_step(self, data: Any) -> Any:
        with tf.GradientTape() as tape:
            loss = self.log_loss(data)
        of = self.trainable_variables
        self.optimizer.apply_gradients(zip(tape.gradient(loss, of), of, strict=True))
        self.loss_tracker.update_state(loss)
        return {"loss": self.loss_tracker.result()}

    def test_step(self, data: Any) -> Any:
        self.loss_tracker.update_state(self.log_loss(data))
        return {"loss": self.loss_tracker.result()}


@program(18)
def density_of_a_flow(strategy: Any) -> Numbers:
    """Real NVP: couplings with masks of NumPy, log determinants, train_step and test_step"""
    x = reals(40, 2)
    with strategy.scope():
        normalization = layers.Normalization()
        normalization.adapt(x)
        x = np.asarray(normalization(x))
        model = Flow(4)
        model.compile(optimizer=keras.optimizers.SGD(0.05))
    run = model.fit(x, batch_size=8, epochs=2, shuffle=False, verbose=0, validation_split=0.2)
    z, _ = model(x[:6])
    back, log_det = model.predict(x[:6], verbose=0)
    return {
        "history": run.history,
        "weights": weights(model),
        "z": np.asarray(z),
        "back": back,
        "log_det": log_det,
    }


class NearestNeighbours(keras.Model):
    """Contrasts two views, of which one is replaced by its nearest in a queue."""

    def __init__(self, queue: np.ndarray) -> None:
        super().__init__()
        self.encoder = keras.Sequential([keras.Input((6,)), layers.Dense(8, "tanh")])
        self.head = keras.Sequential([keras.Input((8,)), layers.Dense(8, "tanh"), layers.Dense(4)])
        self.probe = keras.Sequential([keras.Input((8,)), layers.Dense(3)])
        self.probe_loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
        self.probe_accuracy = keras.metrics.SparseCategoricalAccuracy()
        self.contrastive_accuracy = keras.metrics.SparseCategoricalAccuracy()
        self.queue = keras.Variable(queue, trainable=False)

    def compile(self, contrastive: Any, probe: Any, **more: Any) -> None:
        super().compile(**more)
        self.contrastive_optimizer, self.probe_optimizer = contrastive, probe

    def nearest(self, rows: Any) -> Any:
        alike = ops.matmul(rows, ops.transpose(self.queue))
        found = ops.take(self.queue, ops.argmax(alike, axis=1), axis=0)
        return rows + ops.stop_gradient(found - rows)

    def loss_between(self, one: Any, other: Any) -> Any:
        one, other = ops.normalize(one, axis=1), ops.normalize(other, axis=1)
        alike = [
            ops.matmul(self.nearest(one), ops.transpose(other)) / 0.5,
            ops.matmul(self.nearest(other), ops.transpose(one)) / 0.5,
        ]
        own = ops.arange(ops.shape(one)[0])
        loss = keras.losses.sparse_categorical_crossentropy(
            ops.concatenate([own, own]), ops.concatenate(alike), from_logits=True
        )
        self.contrastive_accuracy.update_state(ops.concatenate([own, own]), ops.concatenate(alike))
        rows = ops.shape(one)[0]
        self.queue.assign(ops.concatenate([one, self.queue[:-rows]], axis=0))
        return ops.mean(loss)

    def train_step(self, data: Any) -> Any:
        unlabelled, (labelled, y) = data
        x = ops.concatenate([unlabelled, labelled], axis=0)
        of = self.encoder.trainable_weights + self.head.trainable_weights
        with tf.GradientTape() as tape:
            one, other = self.encoder(x), self.encoder(0.9 * x + 0.1)
            loss = self.loss_between(self.head(one), self.head(other))
        self.contrastive_optimizer.apply_gradients(zip(tape.gradient(loss, of), of, strict=True))
        with tf.GradientTape() as tape:
            logits = self.probe(self.encoder(labelled))
            probe_loss = self.probe_loss(y, logits)
        of = self.probe.trainable_weights
        self.probe_optimizer.apply_gradients(zip(tape.gradient(probe_loss, of), of, strict=True))
        self.probe_accuracy.update_state(y, logits)
        return {
            "c_loss": loss,
            "c_acc": self.contrastive_accuracy.result(),
            "p_loss": probe_loss,
            "p_acc": self.probe_accuracy.result(),
        }

    def test_step(self, data: Any) -> Any:
        x, y = data
        logits = self.probe(self.encoder(x, training=False), training=False)
        self.probe_accuracy.update_state(y, logits)
        return {"p_loss": self.probe_loss(y, logits), "p_acc": self.probe_accuracy.result()}


@program(6, all_rows=True)
def neighbours_in_a_queue(strategy: Any) -> Numbers:
    """NNCLR: the nearest of a queue that a train_step renews, and a probe with its own optimizer"""
    unlabelled = tf.data.Dataset.from_tensor_slices(reals(24, 6)).batch(8)
    labelled = tf.data.Dataset.from_tensor_slices((reals(12, 6, seed=1), labels(3, 12))).batch(4)
    with strategy.scope():
        model = NearestNeighbours(keras.utils.normalize(reals(16, 4, seed=2), axis=1))
        model.compile(keras.optimizers.SGD(0.1), keras.optimizers.SGD(0.2))
    data = tf.data.Dataset.zip((unlabelled, labelled))
    run = model.fit(data, epochs=2, validation_data=labelled, verbose=0)
    return {"history": run.history, "weights": weights(model), "queue": np.asarray(model.queue)}


class LearnsByItself(layers.Layer):
    """A layer that takes its own steps: good rows shall excite it, bad ones shall not."""

    def __init__(self, units: int, optimizer: Any) -> None:
        super().__init__()
        self.dense, self.optimizer = layers.Dense(units), optimizer
        self.loss_metric = keras.metrics.Mean()

    def call(self, x: Any) -> Any:
        return tf.nn.relu(self.dense(x / (tf.norm(x, ord=2, axis=1, keepdims=True) + 1e-4)))

    def learn(self, good: Any, bad: Any) -> Any:
        for _ in range(2):
            with tf.GradientTape() as tape:
                g = tf.reduce_mean(self.call(good) ** 2, 1)
                b = tf.reduce_mean(self.call(bad) ** 2, 1)
                far = tf.concat([0.5 - g, b - 0.5], 0)
                loss = tf.reduce_mean(tf.math.log(1 + tf.exp(far)))
                self.loss_metric.update_state([loss])
            of = self.dense.trainable_weights
            self.optimizer.apply_gradients(zip(tape.gradient(loss, of), of, strict=True))
        return (
            tf.stop_gradient(self.call(good)),
            tf.stop_gradient(self.call(bad)),
            self.loss_metric.result(),
        )


class ForwardForward(keras.Model):
    """Layers that learn one after the other, and no gradient between them."""

    def __init__(self, units: list[int]) -> None:
        super().__init__()
        self.learners = [LearnsByItself(n, keras.optimizers.SGD(0.3)) for n in units]
        self.total = tf.Variable(0.0, trainable=False)
        self.count = tf.Variable(0.0, trainable=False)

    def told(self, x: Any, y: Any) -> Any:
        return tf.concat([tf.one_hot(y, 3), x[:, 3:]], axis=1)

    @tf.function
    def train_step(self, data: Any) -> Any:
        x, y = data
        good, bad = self.told(x, y), self.told(x, (y + 1) % 3)
        for layer in self.layers:
            good, bad, loss = layer.learn(good, bad)
            self.total.assign_add(loss)
            self.count.assign_add(1.0)
        return {"loss": tf.math.divide(self.total, self.count)}

    def call(self, x: Any) -> Any:
        found = []
        for label in range(3):
            h, good = self.told(x, tf.fill([tf.shape(x)[0]], label)), 0.0
            for layer in self.layers:
                h = layer(h)
                good += tf.reduce_mean(h**2, 1)
            found.append(good)
        return tf.stack(found, axis=1)


@program(4, all_rows=True)
def layers_that_learn_by_themselves(strategy: Any) -> Numbers:
    """Forward-Forward: layers that take steps of their own, a train_step that is a tf.function"""
    x, y = reals(22, 9), labels(3, 22)
    with strategy.scope():
        model = ForwardForward([8, 6])
        model.compile(optimizer=keras.optimizers.SGD(0.1), loss="mse")
    run = model.fit(x, y, batch_size=8, epochs=2, shuffle=False, verbose=0)
    return {
        "history": run.history,
        "weights": weights(model),
        "told": model.predict(x, batch_size=8, verbose=0),
        "total": model.total.numpy(),
    }


class Experts(layers.Layer):
    """Each row through the best two of four experts; keeps how often each was used."""

    def __init__(self, units: int) -> None:
        super().__init__()
        self.experts = [layers.Dense(units) for _ in range(4)]
        self.gating = layers.Dense(4)
        self.used = tf.Variable(tf.zeros((4,)), trainable=False)

    def call(self, x: Any) -> Any:
        gates = tf.nn.softmax(self.gating(x))
        importance = tf.reduce_sum(gates, axis=0)
        self.importance_loss = tf.reduce_mean(tf.square(importance - tf.reduce_mean(importance)))
        self.diversity_loss = tf.reduce_mean(tf.reduce_sum(gates * tf.math.log(gates), axis=1))
        best, which = tf.math.top_k(gates, k=2)
        flat = tf.reshape(which, [-1, 1])
        ones = tf.ones_like(flat[:, 0], tf.float32)
        self.used.assign(tf.tensor_scatter_nd_add(self.used, flat, ones))
        outputs = tf.stack([expert(x) for expert in self.experts], axis=1)
        rows = tf.tile(tf.expand_dims(tf.range(tf.shape(x)[0]), 1), [1, 2])
        chosen = tf.gather_nd(outputs, tf.stack([rows, which], axis=2))
        return tf.reduce_sum(chosen * tf.expand_dims(best, -1), axis=1)


class MixtureOfExperts(keras.Model):
    """Reads losses that its layer leaves as attributes."""

    def __init__(self) -> None:
        super().__init__()
        self.features = layers.Dense(8, "relu")
        self.experts = Experts(3)

    def call(self, x: Any, training: bool = False) -> Any:
        return tf.nn.softmax(self.experts(self.features(x)))

    def losses_of(self, x: Any, y: Any, training: bool) -> Any:
        p = self(x, training=training)
        of_experts = 0.05 * (self.experts.diversity_loss + self.experts.importance_loss)
        return p, self.compute_loss(x, y, p), of_experts

    def train_step(self, data: Any) -> Any:
        x, y = data
        with tf.GradientTape() as tape:
            p, loss, of_experts = self.losses_of(x, y, training=True)
            total = loss + of_experts
        of = self.trainable_variables
        self.optimizer.apply_gradients(zip(tape.gradient(total, of), of, strict=True))
        found = self.compute_metrics(x, y, p)
        return {**found, "total": total, "of_experts": of_experts}

    def test_step(self, data: Any) -> Any:
        x, y = data
        p, loss, of_experts = self.losses_of(x, y, training=False)
        return {**self.compute_metrics(x, y, p), "total": loss + of_experts}


@program(6, all_rows=True)
def mixture_of_experts(strategy: Any) -> Numbers:
    """Rows sent to the best two of four experts, sums over the batch in the loss, a usage count"""
    x, y = reals(20, 6), keras.utils.to_categorical(labels(3, 20), 3)
    with strategy.scope():
        model = MixtureOfExperts()
        loss = keras.losses.CategoricalCrossentropy()
        model.compile(keras.optimizers.SGD(0.2), loss, metrics=["accuracy"])
    fit = {"batch_size": 8, "epochs": 2, "shuffle": False, "verbose": 0}
    run = model.fit(x, y, **fit, validation_data=(x[:8], y[:8]))
    return {
        "history": run.history,
        "weights": weights(model),
        "used": model.experts.used.numpy(),
        "evaluated": model.evaluate(x, y, batch_size=8, verbose=0, return_dict=True),
    }


class CrossCorrelation(keras.losses.Loss):
    """How far the features of two views, normalized over the batch, are from the same ones."""

    def __init__(self, weight: float) -> None:
        super().__init__()
        self.weight = weight

    def call(self, one: Any, other: Any) -> Any:
        def normalized(z: Any) -> Any:
            return (z - tf.reduce_mean(z, axis=0)) / (tf.math.reduce_std(z, axis=0) + 1e-4)

        rows = tf.cast(tf.shape(one)[0], tf.float32)
        correlation = tf.matmul(normalized(one), normalized(other), transpose_a=True) / rows
        own = tf.eye(tf.shape(correlation)[0])
        apart = tf.square(correlation - own)
        return tf.reduce_sum(apart * (own + self.weight * (1 - own)))


class Twins(keras.Model):
    """Two views of each row through one network; its loss is about features, not rows."""

    def __init__(self) -> None:
        super().__init__()
        hidden = layers.Dense(8, "relu")
        self.network = keras.Sequential([keras.Input((6,)), hidden, layers.Dense(4)])
        self.loss_tracker = keras.metrics.Mean(name="loss")

    @property
    def metrics(self) -> list[Any]:
        return [self.loss_tracker]

    def train_step(self, data: Any) -> Any:
        one, other = data
        with tf.GradientTape() as tape:
            z, other_z = self.network(one, training=True), self.network(other, training=True)
            loss = self.loss(z, other_z)
        of = self.network.trainable_variables
        self.optimizer.apply_gradients(zip(tape.gradient(loss, of), of, strict=True))
        self.loss_tracker.update_state(loss)
        return {"loss": self.loss_tracker.result()}


@program(1)
def twins_without_redundancy(strategy: Any) -> Numbers:
    """Barlow twins: the correlation of two views' features over the batch, in a Loss of its own"""
    x = reals(24, 6)
    views = tf.data.Dataset.from_tensor_slices((x, 0.8 * x + 0.1 * reals(24, 6, seed=1))).batch(8)
    with strategy.scope():
        model = Twins()
        model.compile(optimizer=keras.optimizers.SGD(0.05), loss=CrossCorrelation(0.1))
    run = model.fit(views, epochs=2, verbose=0)
    return {"history": run.history, "weights": weights(model)}
