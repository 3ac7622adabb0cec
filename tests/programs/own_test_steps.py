"""Kind 18: `test_step` and `predict_step` of the user's own, and models that never train."""

from __future__ import annotations

from typing import Any

import keras
import tensorflow as tf
from keras import layers, ops

from tests.programs.data import reals, shares, weights
from tests.programs.program import Numbers, program


class Retriever(keras.Model):
    """Trains row by row; its quality is told by comparing each row with all others."""

    def __init__(self) -> None:
        super().__init__()
        self.net = keras.Sequential([keras.Input((6,)), layers.Dense(8, "tanh"), layers.Dense(4)])
        self.loss_tracker = keras.metrics.Mean(name="loss")
        self.contrast = keras.metrics.Mean(name="contrast")
        self.found = keras.metrics.SparseCategoricalAccuracy(name="found")

    @property
    def metrics(self) -> list[Any]:
        return [self.loss_tracker, self.contrast, self.found]

    def call(self, x: Any) -> Any:
        return self.net(x)

    def _loss(self, x: Any, y: Any) -> Any:
        return ops.mean(ops.square(self(x) - y))

    def train_step(self, data: Any) -> Any:
        x, y, _ = keras.utils.unpack_x_y_sample_weight(data)
        with tf.GradientTape() as tape:
            loss = self._loss(x, y)
        of = self.trainable_variables
        self.optimizer.apply(tape.gradient(loss, of), of)
        self.loss_tracker.update_state(loss)
        return {"loss": self.loss_tracker.result()}

    def test_step(self, data: Any) -> Any:
        x, y, _ = keras.utils.unpack_x_y_sample_weight(data)
        rows = ops.normalize(self(x), axis=1)
        alike = ops.matmul(rows, ops.transpose(rows))
        own = ops.arange(ops.shape(x)[0])
        entropy = keras.losses.sparse_categorical_crossentropy(own, alike, from_logits=True)
        self.found.update_state(own, alike - ops.eye(ops.shape(x)[0]))
        self.contrast.update_state(ops.mean(entropy))
        self.loss_tracker.update_state(self._loss(x, y))
        return {m.name: m.result() for m in self.metrics}

    def predict_step(self, data: Any) -> Any:
        x, _, _ = keras.utils.unpack_x_y_sample_weight(data)
        return {"ranks": ops.softmax(self(x), axis=0), "rows": self(x)}


@program(18, all_rows=True, always=True)
def rows_ranked_in_the_test_step(strategy: Any) -> Numbers:
    """Trained row by row; a test_step and a predict_step compare the rows, before training too"""
    x, y = reals(20, 6), reals(20, 4, seed=1)
    with strategy.scope():
        model = Retriever()
        model.compile(keras.optimizers.SGD(0.1))
    first = model.evaluate(x, y, batch_size=8, verbose=0, return_dict=True)
    data = {"validation_data": (x, y), "validation_batch_size": 8}
    run = model.fit(x, y, batch_size=8, epochs=2, shuffle=False, verbose=0, **data)
    return {
        "first": first,
        "history": run.history,
        "weights": weights(model),
        "predicted": model.predict(x, batch_size=8, verbose=0),
        "of_a_batch": model.test_on_batch(x[:7], y[:7], return_dict=True),
        "predicted_of_a_batch": model.predict_on_batch(x[:7]),
    }


class KernelDistance(keras.metrics.Metric):
    """How far generated rows are from real ones, of a whole batch (KID)."""

    def __init__(self) -> None:
        super().__init__(name="distance")
        self.mean = keras.metrics.Mean()

    def update_state(self, real: Any, generated: Any, sample_weight: Any = None) -> None:
        def kernel(a: Any, b: Any) -> Any:
            return (ops.matmul(a, ops.transpose(b)) / a.shape[1] + 1.0) ** 3.0

        others = 1.0 - ops.eye(ops.shape(real)[0])
        among = ops.sum((kernel(real, real) + kernel(generated, generated)) * others)
        between = ops.mean(kernel(real, generated))
        self.mean.update_state(among / ops.sum(others) - 2.0 * between)

    def result(self) -> Any:
        return self.mean.result()

    def reset_state(self) -> None:
        self.mean.reset_state()


class Denoiser(keras.Model):
    """Learns noise; generates from an average of its weights, which validation judges."""

    def __init__(self) -> None:
        super().__init__()
        self.normalizer = layers.Normalization()
        self.network, self.average = self._network(), self._network()
        self.average.set_weights(self.network.get_weights())

    @staticmethod
    def _network() -> keras.Model:
        return keras.Sequential([keras.Input((5,)), layers.Dense(8, "swish"), layers.Dense(5)])

    def compile(self, **options: Any) -> None:
        super().compile(**options)
        self.noise_loss, self.distance = keras.metrics.Mean(name="noise_loss"), KernelDistance()

    @property
    def metrics(self) -> list[Any]:
        return [self.noise_loss, self.distance]

    def train_step(self, data: Any) -> Any:
        rows, noise = data
        noisy = 0.8 * self.normalizer(rows) + 0.6 * noise
        with tf.GradientTape() as tape:
            loss = self.loss(noise, self.network(noisy, training=True))
        of = self.network.trainable_weights
        self.optimizer.apply_gradients(zip(tape.gradient(loss, of), of, strict=True))
        self.noise_loss.update_state(loss)
        for weight, average in zip(self.network.weights, self.average.weights, strict=True):
            average.assign(0.9 * average + 0.1 * weight)
        return {"noise_loss": self.noise_loss.result()}

    def test_step(self, data: Any) -> Any:
        rows, noise = data
        rows = self.normalizer(rows)
        self.noise_loss.update_state(self.loss(noise, self.average(0.8 * rows + 0.6 * noise)))
        self.distance.update_state(rows, noise - 0.6 * self.average(noise))
        return {m.name: m.result() for m in self.metrics}


@program(18, all_rows=True)
def diffusion_judged_by_its_batch(strategy: Any) -> Numbers:
    """A diffusion model with averaged weights, judged in test_step by a distance of two batches"""
    rows, noise = shares(20, 5), reals(20, 5, seed=2)
    dataset = tf.data.Dataset.from_tensor_slices((rows, noise)).batch(8)
    with strategy.scope():
        model = Denoiser()
        loss = keras.losses.mean_absolute_error
        model.compile(optimizer=keras.optimizers.SGD(0.1, momentum=0.9), loss=loss)
        model.normalizer.adapt(rows)
    run = model.fit(dataset, epochs=2, validation_data=dataset, verbose=0)
    return {"history": run.history, "weights": weights(model)}


@program(18, all_rows=True)
def mixed_rows_that_only_predict(strategy: Any) -> Numbers:
    """A model that is loaded with weights and predicts, whose layers mix the rows of a batch"""
    x = reals(20, 6)
    with strategy.scope():
        inputs = keras.Input((6,))
        hidden = layers.Dense(8)(inputs)
        hidden = hidden - ops.mean(hidden, axis=0, keepdims=True)
        model = keras.Model(inputs, [layers.Dense(2)(hidden), layers.Softmax(axis=0)(hidden)])
    return {
        "predicted": model.predict(x, batch_size=8, verbose=0),
        "of_a_batch": model.predict_on_batch(x[:7]),
    }
