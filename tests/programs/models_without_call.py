"""Kind 10: models with a `train_step` and no `call`, or one that takes something else."""

from __future__ import annotations

from typing import Any

import keras
import numpy as np
import tensorflow as tf
from keras import layers, ops

from tests.programs.data import labels, one_hot, reals, weights
from tests.programs.program import Numbers, program


class Vae(keras.Model):
    """The noise of a row comes with the row, so that it is the same everywhere."""

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        inputs = keras.Input((6,))
        h = layers.Dense(8, "tanh")(inputs)
        self.encoder = keras.Model(inputs, [layers.Dense(2)(h), layers.Dense(2)(h)])
        self.decoder = keras.Sequential(
            [keras.Input((2,)), layers.Dense(8, "tanh"), layers.Dense(6)]
        )
        self.total = keras.metrics.Mean(name="total")
        self.divergence = keras.metrics.Mean(name="divergence")

    @property
    def metrics(self) -> list[Any]:
        return [self.total, self.divergence]

    def losses_of(self, data: Any) -> tuple[Any, Any]:
        x, noise = data
        mean, log_var = self.encoder(x)
        made = self.decoder(mean + ops.exp(0.5 * log_var) * noise)
        error = ops.mean(ops.sum(ops.square(x - made), axis=-1))
        rows = -0.5 * ops.sum(1 + log_var - ops.square(mean) - ops.exp(log_var), axis=1)
        return error + ops.mean(rows), ops.mean(rows)

    def train_step(self, data: Any) -> dict[str, Any]:
        with tf.GradientTape() as tape:
            total, divergence = self.losses_of(data)
        grads = tape.gradient(total, self.trainable_weights)
        self.optimizer.apply_gradients(zip(grads, self.trainable_weights, strict=True))
        self.total.update_state(total)
        self.divergence.update_state(divergence)
        return {m.name: m.result() for m in self.metrics}

    def test_step(self, data: Any) -> dict[str, Any]:
        total, divergence = self.losses_of(data)
        self.total.update_state(total)
        self.divergence.update_state(divergence)
        return {m.name: m.result() for m in self.metrics}


@program(10, always=True)
def autoencoder_with_noise(strategy: Any) -> Numbers:
    """A variational autoencoder without call, trained, validated, evaluated and decoded"""
    x, noise = reals(32, 6), reals(32, 2, seed=4)
    data = tf.data.Dataset.from_tensor_slices((x, noise)).batch(8)
    with strategy.scope():
        model = Vae()
        model.compile(keras.optimizers.SGD(0.02))
    run = model.fit(data, epochs=2, validation_data=data.take(2), verbose=0)
    return {
        "history": run.history,
        "evaluate": model.evaluate(data, return_dict=True, verbose=0),
        "decoded": model.decoder.predict(noise[:5], verbose=0),
        "weights": weights(model),
    }


class Gan(keras.Model):
    """The guide's GAN: trackers made in compile, both networks given from outside."""

    def __init__(self, judge: Any, maker: Any) -> None:
        super().__init__()
        self.judge, self.maker = judge, maker

    def compile(self, judge_optimizer: Any, maker_optimizer: Any, loss_fn: Any) -> None:
        super().compile()
        self.judge_optimizer, self.maker_optimizer = judge_optimizer, maker_optimizer
        self.loss_fn = loss_fn
        self.judge_loss = keras.metrics.Mean(name="judge_loss")
        self.maker_loss = keras.metrics.Mean(name="maker_loss")

    @property
    def metrics(self) -> list[Any]:
        return [self.judge_loss, self.maker_loss]

    def train_step(self, data: Any) -> dict[str, Any]:
        real, noise = data
        rows = ops.shape(real)[0]
        made = self.maker(noise)
        both = ops.concatenate([made, real], axis=0)
        which = ops.concatenate([ops.ones((rows, 1)), ops.zeros((rows, 1))], axis=0)
        with tf.GradientTape() as tape:
            judge_loss = self.loss_fn(which, self.judge(both))
        of = self.judge.trainable_weights
        self.judge_optimizer.apply_gradients(zip(tape.gradient(judge_loss, of), of, strict=True))
        with tf.GradientTape() as tape:
            maker_loss = self.loss_fn(ops.zeros((rows, 1)), self.judge(self.maker(noise)))
        of = self.maker.trainable_weights
        self.maker_optimizer.apply_gradients(zip(tape.gradient(maker_loss, of), of, strict=True))
        self.judge_loss.update_state(judge_loss)
        self.maker_loss.update_state(maker_loss)
        return {"judge_loss": self.judge_loss.result(), "maker_loss": self.maker_loss.result()}


@program(10, always=True)
def gan_of_two_networks(strategy: Any) -> Numbers:
    """A GAN of images without call, two optimizers, batches of real images and noise"""
    with strategy.scope():
        judge = keras.Sequential(
            [
                keras.Input((8, 8, 1)),
                layers.Conv2D(4, 3, strides=2, padding="same"),
                layers.LeakyReLU(negative_slope=0.2),
                layers.GlobalMaxPooling2D(),
                layers.Dense(1),
            ]
        )
        maker = keras.Sequential(
            [
                keras.Input((3,)),
                layers.Dense(4 * 4 * 2),
                layers.Reshape((4, 4, 2)),
                layers.Conv2DTranspose(4, 4, strides=2, padding="same"),
                layers.LeakyReLU(negative_slope=0.2),
                layers.Conv2D(1, 3, padding="same", activation="sigmoid"),
            ]
        )
        model = Gan(judge, maker)
        model.compile(
            keras.optimizers.SGD(0.05),
            keras.optimizers.SGD(0.1),
            keras.losses.BinaryCrossentropy(from_logits=True),
        )
    data = tf.data.Dataset.from_tensor_slices((reals(24, 8, 8, 1), reals(24, 3, seed=2))).batch(8)
    run = model.fit(data, epochs=2, verbose=0)
    return {"history": run.history, "weights": weights(judge, maker)}


@program(10)
def distillation(strategy: Any) -> Numbers:
    """A student taught by a trained teacher: compute_loss of its own, call is the student's"""

    class Distiller(keras.Model):
        def __init__(self, student: Any, teacher: Any) -> None:
            super().__init__()
            self.student, self.teacher = student, teacher

        def compile(self, optimizer: Any, metrics: Any, student_loss: Any, soft_loss: Any) -> None:
            super().compile(optimizer=optimizer, metrics=metrics)
            self.student_loss, self.soft_loss = student_loss, soft_loss

        def compute_loss(
            self,
            x: Any = None,
            y: Any = None,
            y_pred: Any = None,
            sample_weight: Any = None,
            allow_empty: bool = False,
            **kwargs: Any,
        ) -> Any:
            taught = self.teacher(x, training=False)
            hard = self.student_loss(y, y_pred)
            soft = self.soft_loss(ops.softmax(taught / 3, axis=1), ops.softmax(y_pred / 3, axis=1))
            return 0.2 * hard + 0.8 * soft * 9

        def call(self, x: Any) -> Any:
            return self.student(x)

    x, y = reals(28, 6), labels(3, 28)
    loss = keras.losses.SparseCategoricalCrossentropy
    with strategy.scope():
        teacher = keras.Sequential([keras.Input((6,)), layers.Dense(9, "tanh"), layers.Dense(3)])
        teacher.compile(keras.optimizers.SGD(0.2), loss(from_logits=True), metrics=["accuracy"])
    first = teacher.fit(x, y, batch_size=8, epochs=2, verbose=0)
    with strategy.scope():
        student = keras.Sequential([keras.Input((6,)), layers.Dense(4, "tanh"), layers.Dense(3)])
        model = Distiller(student, teacher)
        model.compile(
            keras.optimizers.SGD(0.2),
            [keras.metrics.SparseCategoricalAccuracy()],
            loss(from_logits=True),
            keras.losses.KLDivergence(),
        )
    run = model.fit(x, y, batch_size=8, epochs=2, verbose=0)
    return {
        "teacher": first.history,
        "history": run.history,
        "evaluate": model.evaluate(x, y, batch_size=8, return_dict=True, verbose=0),
        "weights": weights(student, teacher),
    }


@program(10)
def siamese_distance(strategy: Any) -> Numbers:
    """A siamese network whose call takes three parts, whose x is a tuple, without targets"""

    class Siamese(keras.Model):
        def __init__(self, embed: Any) -> None:
            super().__init__()
            self.embed = embed
            self.tracker = keras.metrics.Mean(name="loss")

        def call(self, inputs: Any) -> Any:
            anchor, good, bad = (self.embed(part) for part in inputs)
            return ops.sum(ops.square(anchor - good), -1), ops.sum(ops.square(anchor - bad), -1)

        def loss_of(self, data: Any) -> Any:
            near, far = self(data)
            return ops.maximum(near - far + 0.5, 0.0)

        def train_step(self, data: Any) -> dict[str, Any]:
            with tf.GradientTape() as tape:
                loss = ops.mean(self.loss_of(data))
            of = self.embed.trainable_weights
            self.optimizer.apply_gradients(zip(tape.gradient(loss, of), of, strict=True))
            self.tracker.update_state(loss, sample_weight=ops.shape(data[0])[0])
            return {"loss": self.tracker.result()}

        def test_step(self, data: Any) -> dict[str, Any]:
            self.tracker.update_state(self.loss_of(data))
            return {"loss": self.tracker.result()}

        @property
        def metrics(self) -> list[Any]:
            return [self.tracker]

    parts = tuple(reals(22, 5, seed=i) for i in range(3))
    data = tf.data.Dataset.from_tensor_slices(parts).batch(8)
    with strategy.scope():
        model = Siamese(
            keras.Sequential([keras.Input((5,)), layers.Dense(6, "tanh"), layers.Dense(3)])
        )
        model.compile(keras.optimizers.SGD(0.1), weighted_metrics=[])
    run = model.fit(data, epochs=2, validation_data=data, verbose=0)
    return {"history": run.history, "weights": weights(model.embed)}


@program(10, always=True)
def metrics_built_late(strategy: Any) -> Numbers:
    """F1Score, R2Score and an AUC of many labels, whose variables are made in the first step"""
    x = reals(29, 5)
    kind, depth = one_hot(3, 29), reals(29, 1, seed=2)
    tags = labels(2, 29, 3, seed=8).astype("float32")
    with strategy.scope():
        inputs = keras.Input((5,))
        h = layers.Dense(8, "tanh")(inputs)
        outputs = {
            "kind": layers.Dense(3, "softmax", name="kind")(h),
            "depth": layers.Dense(1, name="depth")(h),
            "tags": layers.Dense(3, "sigmoid", name="tags")(h),
        }
        model = keras.Model(inputs, outputs)
        model.compile(
            keras.optimizers.SGD(0.1),
            {"kind": "categorical_crossentropy", "depth": "mse", "tags": "binary_crossentropy"},
            metrics={
                "kind": [keras.metrics.F1Score(average="macro")],
                "depth": [keras.metrics.R2Score()],
                "tags": [keras.metrics.AUC(multi_label=True, num_labels=3, name="auc")],
            },
        )
    y = {"kind": kind, "depth": depth, "tags": tags}
    run = model.fit(x, y, batch_size=8, epochs=2, validation_split=0.2, verbose=0)
    return {
        "history": run.history,
        "evaluate": model.evaluate(x, y, batch_size=8, return_dict=True, verbose=0),
    }


@program(10, undivided=True)
def late_metrics_of_a_step(strategy: Any) -> Numbers:
    """A custom step that calls compute_metrics and lazily built layers, run eagerly too"""

    class Lazy(keras.Model):
        def __init__(self) -> None:
            super().__init__()
            self.body, self.head = layers.Dense(5, "tanh"), layers.Dense(3, "softmax")

        def train_step(self, data: Any) -> dict[str, Any]:
            x, y = data
            with tf.GradientTape() as tape:
                y_pred = self.head(self.body(x))
                loss = self.compute_loss(y=y, y_pred=y_pred)
            of = self.trainable_variables
            self.optimizer.apply(tape.gradient(loss, of), of)
            return self.compute_metrics(x, y, y_pred)

    found = {}
    for eager in (False, True):
        keras.utils.set_random_seed(7)
        with strategy.scope():
            model = Lazy()
            model.compile(
                keras.optimizers.SGD(0.2),
                "categorical_crossentropy",
                metrics=["accuracy", keras.metrics.F1Score(average="micro")],
                run_eagerly=eager,
            )
        run = model.fit(reals(21, 4), one_hot(3, 21), batch_size=8, epochs=2, verbose=0)
        run.history.pop("loss", None)
        found["eager" if eager else "graph"] = [run.history, weights(model)]
    return found


@program(10, all_rows=True, always=True)
def contrastive_views(strategy: Any) -> Numbers:
    """Two views a row without call: a projection head, a similarity of all rows with all rows"""

    class Views(keras.Model):
        def __init__(self) -> None:
            super().__init__()
            self.encoder = keras.Sequential([keras.Input((6,)), layers.Dense(8, "relu")])
            self.head = keras.Sequential([keras.Input((8,)), layers.Dense(4)])
            self.accuracy = keras.metrics.SparseCategoricalAccuracy(name="accuracy")

        def compile(self, optimizer: Any, **kwargs: Any) -> None:
            super().compile(**kwargs)
            self.own_optimizer = optimizer
            self.loss_tracker = keras.metrics.Mean(name="c_loss")

        @property
        def metrics(self) -> list[Any]:
            return [self.loss_tracker, self.accuracy]

        def train_step(self, data: Any) -> dict[str, Any]:
            with tf.GradientTape() as tape:
                one, two = (ops.normalize(self.head(self.encoder(view)), axis=1) for view in data)
                scores = ops.matmul(one, ops.transpose(two)) / 0.5
                right = ops.arange(ops.shape(one)[0])
                loss = ops.mean(
                    keras.losses.sparse_categorical_crossentropy(right, scores, from_logits=True)
                    + keras.losses.sparse_categorical_crossentropy(
                        right, ops.transpose(scores), from_logits=True
                    )
                )
            of = self.encoder.trainable_weights + self.head.trainable_weights
            self.own_optimizer.apply_gradients(zip(tape.gradient(loss, of), of, strict=True))
            self.loss_tracker.update_state(loss)
            self.accuracy.update_state(right, scores)
            return {m.name: m.result() for m in self.metrics}

    views = (reals(24, 6), (reals(24, 6) + 0.2 * reals(24, 6, seed=5)).astype(np.float32))
    with strategy.scope():
        model = Views()
        model.compile(optimizer=keras.optimizers.SGD(0.2))
    run = model.fit(tf.data.Dataset.from_tensor_slices(views).batch(8), epochs=2, verbose=0)
    return {"history": run.history, "weights": weights(model.encoder, model.head)}


@program(10, all_rows=True)
def noise_for_the_global_batch(strategy: Any) -> Numbers:
    """A denoiser that makes noise for a constant number of rows and reads x.shape[0]"""
    batch = 8

    class Denoiser(keras.Model):
        def __init__(self) -> None:
            super().__init__()
            self.net = keras.Sequential([keras.Input((6,)), layers.Dense(8, "tanh")])
            self.net.add(layers.Dense(6))
            self.tracker = keras.metrics.Mean(name="noise_loss")

        @property
        def metrics(self) -> list[Any]:
            return [self.tracker]

        def loss_of(self, x: Any) -> Any:
            noise = ops.reshape(ops.arange(batch * 6, dtype="float32") % 7.0 - 3.0, (batch, 6))
            rates = ops.reshape(ops.linspace(0.1, 0.9, x.shape[0]), (-1, 1))
            made = self.net(rates * x + (1 - rates) * noise)
            return ops.mean(ops.square(made - noise))

        def train_step(self, x: Any) -> dict[str, Any]:
            with tf.GradientTape() as tape:
                loss = self.loss_of(x)
            of = self.net.trainable_weights
            self.optimizer.apply(tape.gradient(loss, of), of)
            self.tracker.update_state(loss)
            return {"noise_loss": self.tracker.result()}

        def test_step(self, x: Any) -> dict[str, Any]:
            self.tracker.update_state(self.loss_of(x))
            return {"noise_loss": self.tracker.result()}

    data = tf.data.Dataset.from_tensor_slices(reals(27, 6)).batch(batch, drop_remainder=True)
    with strategy.scope():
        model = Denoiser()
        model.compile(keras.optimizers.SGD(0.05))
    run = model.fit(data, epochs=2, validation_data=data.take(2), verbose=0)
    return {"history": run.history, "weights": weights(model)}
