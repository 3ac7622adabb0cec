"""The models, custom steps, losses and optimizers of the table."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import keras
import tensorflow as tf

from tests.conformance.data import BATCH, CLASSES, FEATURES


def mlp(**last: Any) -> keras.Model:
    return keras.Sequential(
        [
            keras.Input((FEATURES,)),
            keras.layers.Dense(8, activation="tanh"),
            keras.layers.Dense(CLASSES, **last),
        ]
    )


def yes_no() -> keras.Model:
    return keras.Sequential([keras.Input((FEATURES,)), keras.layers.Dense(1, activation="sigmoid")])


def deferred() -> keras.Model:
    return keras.Sequential([keras.layers.Dense(8, "tanh"), keras.layers.Dense(CLASSES)])


def regularized() -> keras.Model:
    return keras.Sequential(
        [
            keras.Input((FEATURES,)),
            keras.layers.Dense(8, kernel_regularizer="l2", activity_regularizer="l2"),
            keras.layers.Dense(CLASSES, bias_regularizer="l1"),
        ]
    )


class AddsLoss(keras.layers.Layer):
    def call(self, x: Any) -> Any:
        self.add_loss(0.1 * keras.ops.mean(keras.ops.square(x)))
        return x


def with_add_loss() -> keras.Model:
    return keras.Sequential(
        [keras.Input((FEATURES,)), keras.layers.Dense(8), AddsLoss(), keras.layers.Dense(CLASSES)]
    )


class AddsLossOfRows(keras.layers.Layer):
    """Adds a number for each row, which Keras sums over rows."""

    def call(self, x: Any) -> Any:
        self.add_loss(0.02 * keras.ops.mean(keras.ops.square(x), axis=-1, keepdims=True))
        return x


def with_add_loss_of_rows() -> keras.Model:
    adds = AddsLossOfRows()
    return keras.Sequential(
        [keras.Input((FEATURES,)), keras.layers.Dense(8), adds, keras.layers.Dense(CLASSES)]
    )


class Ledger(keras.layers.Layer):
    """Counts steps and rows, and keeps the largest features and their mean."""

    def build(self, shape: Any) -> None:
        features = (shape[-1],)
        own: dict[str, Any] = {"initializer": "zeros", "trainable": False}
        self.steps = self.add_weight(shape=(), dtype="int32", name="steps", **own)
        self.rows = self.add_weight(shape=(), name="rows", **own)
        self.largest = self.add_weight(shape=features, name="largest", **own)
        self.mean = self.add_weight(shape=features, name="mean", aggregation="mean", **own)

    def call(self, x: Any, training: bool = False) -> Any:
        ops = keras.ops
        if training:
            self.steps.assign_add(1)
            self.rows.assign_add(ops.cast(ops.shape(x)[0], "float32"))
            self.largest.assign(ops.maximum(self.largest, ops.max(x, axis=0)))
            self.mean.assign_add((ops.mean(x, axis=0) - self.mean) * 0.1)
        return x


class Newest(keras.layers.Layer):
    """Scores rows against the newest twelve."""

    def build(self, shape: Any) -> None:
        self.kept = self.add_weight(
            shape=(12, shape[-1]), initializer="zeros", trainable=False, name="kept"
        )

    def call(self, x: Any, training: bool = False) -> Any:
        scores = keras.ops.matmul(x, keras.ops.transpose(self.kept))
        if training:
            rows = keras.ops.concatenate([keras.ops.stop_gradient(x), self.kept], axis=0)
            self.kept.assign(rows[:12])
        return keras.ops.concatenate([x, scores], axis=-1)


def with_state() -> keras.Model:
    keeps = [keras.layers.Dense(8, "tanh"), Ledger(), Newest()]
    return keras.Sequential([keras.Input((FEATURES,)), *keeps, keras.layers.Dense(CLASSES)])


class Largest(keras.metrics.Metric):
    """The largest prediction: no sum."""

    def __init__(self) -> None:
        super().__init__(name="largest")
        self.value = self.add_weight(name="value", initializer="zeros")

    def update_state(self, y_true: Any, y_pred: Any, sample_weight: Any = None) -> None:
        self.value.assign(keras.ops.maximum(self.value, keras.ops.max(y_pred)))

    def result(self) -> Any:
        return keras.ops.convert_to_tensor(self.value)


def cnn(**norm: Any) -> keras.Model:
    return keras.Sequential(
        [
            keras.Input((6, 6, 1)),
            keras.layers.Rescaling(1 / 255),
            keras.layers.Conv2D(4, 3, activation="relu"),
            keras.layers.BatchNormalization(**norm),
            keras.layers.GlobalAveragePooling2D(),
            keras.layers.Dense(CLASSES),
        ]
    )


def strided(kind: type[keras.Model] = keras.Model) -> keras.Model:
    layers = keras.layers
    stack = keras.Sequential(
        [
            keras.Input((6, 6, 1)),
            layers.Conv2D(4, 3, strides=2, padding="same", use_bias=False),
            layers.BatchNormalization(synchronized=True),
            layers.Conv2DTranspose(2, 2, strides=2),
            layers.MaxPooling2D(),
            layers.Flatten(),
            layers.Dense(3, "softmax"),
        ]
    )
    return stack if kind is keras.Model else kind(stack.inputs, stack.outputs)


def embedded(*layers: Any, mask: bool = True) -> keras.Model:
    return keras.Sequential(
        [keras.Input((5,)), keras.layers.Embedding(9, 4, mask_zero=mask), *layers]
    )


def tagger() -> keras.Model:
    return embedded(keras.layers.GRU(6, return_sequences=True), keras.layers.Dense(9))


def attention() -> keras.Model:
    x = keras.Input((5,))
    h = keras.layers.Embedding(9, 8)(x)
    h = h + keras.layers.MultiHeadAttention(2, 4)(h, h, use_causal_mask=True)
    h = keras.layers.GlobalAveragePooling1D()(keras.layers.LayerNormalization()(h))
    return keras.Model(x, keras.layers.Dense(CLASSES)(h))


def rematerialized() -> keras.Model:
    """Computes its layers again under a strategy; plain Keras on TensorFlow cannot."""
    with keras.RematScope("full" if tf.distribute.has_strategy() else None):
        return attention()


def two_heads() -> keras.Model:
    a, b = keras.Input((2,), name="a"), keras.Input((4,), name="b")
    h = keras.layers.Dense(8, "tanh")(keras.layers.Concatenate()([a, b]))
    c, d = keras.layers.Dense(CLASSES, name="c")(h), keras.layers.Dense(1, name="d")(h)
    return keras.Model({"a": a, "b": b}, {"c": c, "d": d})


class Sum(keras.layers.Layer):
    """Adds a projection of each input that is given."""

    def build(self, a_shape: Any, b_shape: Any = None) -> None:
        self.of_a, self.of_b = keras.layers.Dense(8), keras.layers.Dense(8)
        self.of_a.build((None, FEATURES))
        self.of_b.build((None, FEATURES))

    def call(self, a: Any, b: Any = None) -> Any:
        return self.of_a(a) if b is None else self.of_a(a) + self.of_b(b)

    def compute_output_shape(self, a_shape: Any, b_shape: Any = None) -> tuple[None, int]:
        return None, 8


def with_option() -> keras.Model:
    a = keras.Input((FEATURES,), name="a")
    b = keras.Input((FEATURES,), name="b", optional=True)
    return keras.Model({"a": a, "b": b}, keras.layers.Dense(CLASSES)(Sum()(a, b)))


@keras.saving.register_keras_serializable("tests")
class Subclassed(keras.Model):
    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.hidden = keras.layers.Dense(8, "tanh")
        self.out = keras.layers.Dense(CLASSES)

    def call(self, x: Any) -> Any:
        return self.out(self.hidden(x))


class TakesOwnStep:
    """The custom train_step of Keras's guide."""

    def train_step(self, data: Any) -> dict[str, Any]:
        x, y = data
        with tf.GradientTape() as tape:
            loss = self.compute_loss(y=y, y_pred=self(x, training=True))
        grads = tape.gradient(loss, self.trainable_variables)
        self.optimizer.apply(grads, self.trainable_variables)
        for metric in self.metrics:
            if metric.name == "loss":
                metric.update_state(loss, sample_weight=tf.shape(x)[0])
            else:
                metric.update_state(y, self(x))
        return {m.name: m.result() for m in self.metrics}


class OwnStep(TakesOwnStep, Subclassed):
    """In a subclassed model."""


class OwnFunctionalStep(TakesOwnStep, keras.Model):
    """In a functional one."""


class OwnLoss(Subclassed):
    """A step that knows nothing of replicas and writes its loss as a plain mean."""

    def train_step(self, data: Any) -> dict[str, Any]:
        x, y = data
        with tf.GradientTape() as tape:
            per_row = keras.losses.sparse_categorical_crossentropy(y, self(x), from_logits=True)
            loss = keras.ops.mean(per_row)
        self.optimizer.apply(
            tape.gradient(loss, self.trainable_variables), self.trainable_variables
        )
        return {"loss": loss}


class OwnMeans(Subclassed):
    """Keeps its loss in metrics of its own, as Keras's guide does."""

    def __init__(self) -> None:
        super().__init__()
        self.mean = keras.metrics.Mean(name="mean")

    @property
    def metrics(self) -> list[Any]:
        return [self.mean]

    def train_step(self, data: Any) -> dict[str, Any]:
        x, y = data
        with tf.GradientTape() as tape:
            loss = tf.reduce_mean(crossentropy(reduction="none")(y, self(x, training=True)))
        of = self.trainable_variables
        self.optimizer.apply_gradients(zip(tape.gradient(loss, of), of, strict=True))
        self.mean.update_state(loss)
        return {"mean": self.mean.result()}


class Unlabelled(OwnMeans):
    """Trains on three rows without a label for each with one, and on a table that is no row."""

    def train_step(self, data: Any) -> dict[str, Any]:
        free, (x, y), table = data
        with tf.GradientTape() as tape:
            loss = tf.reduce_mean(crossentropy(reduction="none")(y, self(x, training=True)))
            loss += tf.reduce_mean(tf.square(self(free, training=True)) * table)
        of = self.trainable_variables
        self.optimizer.apply_gradients(zip(tape.gradient(loss, of), of, strict=True))
        self.mean.update_state(loss)
        return {"mean": self.mean.result()}


class Penalised(Subclassed):
    """A step that penalises slopes, clips, and hands its gradients to two optimizers."""

    def compile(self, **kwargs: Any) -> None:
        super().compile(**kwargs)
        self.of_hidden = sgd(0.05, momentum=0.5)
        self.told = keras.metrics.Mean(name="told")

    def train_step(self, data: Any) -> dict[str, Any]:
        x, y = data
        with tf.GradientTape() as tape:
            with tf.GradientTape() as inner:
                inner.watch(x)
                out = self(x, training=True)
            slopes = inner.gradient(out, x)
            loss = self.compute_loss(y=y, y_pred=out)
            loss += 0.1 * tf.reduce_mean(tf.square(tf.norm(slopes, axis=1) - 1))
            scaled = self.optimizer.scale_loss(loss)
        of = [self.hidden.trainable_variables, self.out.trainable_variables]
        hidden, out = tape.gradient(scaled, of)
        norm = tf.linalg.global_norm([*hidden, *out])
        self.of_hidden.apply([g * 0.5 / norm for g in hidden], of[0])
        self.optimizer.apply([tf.clip_by_norm(g, 0.1) for g in out], of[1])
        self.told.update_state(loss)
        return {"told": self.told.result(), "norm": norm}


class GlobalBatch(Subclassed):
    """A step as TensorFlow's guides write it: a sum over rows, by the rows of the global batch."""

    def train_step(self, data: Any) -> dict[str, Any]:
        x, y = data
        with tf.GradientTape() as tape:
            per_row = keras.losses.sparse_categorical_crossentropy(y, self(x), from_logits=True)
            loss = tf.nn.compute_average_loss(per_row, global_batch_size=BATCH)
        of = self.trainable_variables
        self.optimizer.apply(tape.gradient(loss, of), of)
        return {"loss": loss}


class Positions(keras.layers.Layer):
    """Adds an embedding of each place of a text."""

    def build(self, shape: Any) -> None:
        self.places = keras.layers.Embedding(shape[1], shape[2])
        self.places.build(shape)

    def call(self, x: Any) -> Any:
        return x + self.places(keras.ops.arange(x.shape[1]))


class DecoratedStep(Subclassed):
    @tf.function
    def train_step(self, data: Any) -> dict[str, Any]:
        return super().train_step(data)


class Gan(keras.Model):
    def __init__(self) -> None:
        super().__init__()
        self.make = keras.Sequential([keras.Input((FEATURES,)), keras.layers.Dense(FEATURES)])
        self.judge = keras.Sequential([keras.Input((FEATURES,)), keras.layers.Dense(1)])
        self.built = True

    def compile(self, **kwargs: Any) -> None:
        super().compile(optimizer=keras.optimizers.SGD(0.1), loss="mse", **kwargs)
        self.judge_optimizer = keras.optimizers.Adam(0.02, global_clipnorm=0.1)

    def call(self, x: Any) -> Any:
        return self.judge(self.make(x))

    def train_step(self, data: Any) -> dict[str, Any]:
        x, _ = data
        with tf.GradientTape() as tape:
            spread = tf.reduce_mean(tf.square(self.judge(x) - 1)) + tf.reduce_mean(
                tf.square(self.judge(self.make(x)))
            )
        of = self.judge.trainable_variables
        self.judge_optimizer.apply(tape.gradient(spread, of), of)
        with tf.GradientTape() as tape:
            fooled = tf.reduce_mean(tf.square(self.judge(self.make(x)) - 1))
        of = self.make.trainable_variables
        self.optimizer.apply(tape.gradient(fooled, of), of)
        return {"spread": spread, "fooled": fooled}


def crossentropy(**kwargs: Any) -> keras.losses.Loss:
    return keras.losses.SparseCategoricalCrossentropy(from_logits=True, **kwargs)


def classify(optimizer: Any = None, **more: Any) -> dict[str, Any]:
    # Not Adam, whose steps are the same if all gradients are half as large.
    made = optimizer() if optimizer else keras.optimizers.SGD(0.1)
    return {"optimizer": made, "loss": crossentropy(), "metrics": ["accuracy"], **more}


def compiled(**more: Any) -> Callable[[], dict[str, Any]]:
    return lambda: classify(
        **{k: v() if callable(v) and k == "loss" else v for k, v in more.items()}
    )


def optimized(kind: Any, *args: Any, **kwargs: Any) -> Callable[[], dict[str, Any]]:
    return lambda: classify(lambda: kind(*args, **kwargs))


def scalar_loss(y_true: Any, y_pred: Any) -> Any:
    return keras.ops.mean(
        keras.losses.sparse_categorical_crossentropy(y_true, y_pred, from_logits=True)
    )


def hard_triplets(y_true: Any, y_pred: Any) -> Any:
    """Each row against its farthest and its nearest in the batch."""
    labels = tf.reshape(y_true, [-1])
    rows = tf.math.l2_normalize(y_pred, axis=1)
    apart = tf.expand_dims(rows, 1) - tf.expand_dims(rows, 0)
    far = tf.reduce_sum(tf.square(apart), axis=2)
    same = tf.equal(tf.expand_dims(labels, 1), tf.expand_dims(labels, 0))
    positive = tf.reduce_max(tf.where(same, far, 0.0), axis=1)
    negative = tf.reduce_min(tf.where(same, 1e3, far), axis=1)
    return tf.maximum(positive - negative + 0.5, 0.0)


def loss_scaled(initial: float = 2.0**15) -> Any:
    return keras.optimizers.LossScaleOptimizer(
        keras.optimizers.SGD(0.1, global_clipnorm=0.3),
        initial_scale=initial,
        dynamic_growth_steps=2,
    )


adam, sgd = keras.optimizers.Adam, keras.optimizers.SGD
