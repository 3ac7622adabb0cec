"""Models whose own steps make what they need: without `call`, built late, called in other ways."""

from __future__ import annotations

from typing import Any

import keras
import numpy as np
import tensorflow as tf

from tests.conformance.data import BATCH, CLASSES, FEATURES, arrays, dataset, rows
from tests.conformance.models import crossentropy, sgd

dense = keras.layers.Dense


def one_hot(y: Any) -> Any:
    return tf.one_hot(tf.cast(y, tf.int32), CLASSES)


class Autoencoder(keras.Model):
    """As the variational one of Keras's examples, with noise that follows from its input."""

    def __init__(self) -> None:
        super().__init__()
        x = keras.Input((FEATURES,))
        h = dense(8, "tanh")(x)
        self.encoder = keras.Model(x, [dense(2)(h), dense(2)(h)])
        self.decoder = keras.Sequential([dense(8, "tanh"), dense(FEATURES)])  # without a shape
        self.total = keras.metrics.Mean(name="total")
        self.rebuilt = keras.metrics.Mean(name="rebuilt")

    @property
    def metrics(self) -> list[Any]:
        return [self.total, self.rebuilt]

    def losses_of(self, x: Any) -> tuple[Any, Any]:
        mean, spread = self.encoder(x)
        z = mean + tf.exp(0.5 * spread) * tf.sin(7.0 * x[:, :2])
        rebuilt = tf.reduce_mean(tf.reduce_sum(tf.square(x - self.decoder(z)), axis=1))
        apart = -0.5 * (1 + spread - tf.square(mean) - tf.exp(spread))
        return rebuilt + tf.reduce_mean(tf.reduce_sum(apart, axis=1)), rebuilt

    def train_step(self, data: Any) -> dict[str, Any]:
        x = data[0]
        with tf.GradientTape() as tape:
            total, rebuilt = self.losses_of(x)
        grads = tape.gradient(total, self.trainable_weights)
        self.optimizer.apply_gradients(zip(grads, self.trainable_weights, strict=True))
        rows = tf.shape(x)[0]
        self.total.update_state(total, sample_weight=rows)
        self.rebuilt.update_state(rebuilt, sample_weight=rows)
        return {m.name: m.result() for m in self.metrics}

    def test_step(self, data: Any) -> dict[str, Any]:
        x = data[0]
        total, rebuilt = self.losses_of(x)
        self.total.update_state(total, sample_weight=tf.shape(x)[0])
        self.rebuilt.update_state(rebuilt, sample_weight=tf.shape(x)[0])
        return {m.name: m.result() for m in self.metrics}

    def predict_step(self, data: Any) -> Any:
        x = data[0] if isinstance(data, tuple) else data
        return self.decoder(self.encoder(x)[0])


def without_call(scope: Any, folder: str) -> dict[str, Any]:
    keras.utils.set_random_seed(7)
    with scope():
        model = Autoencoder()
        model.compile(sgd(0.05))
    x, y = rows()
    fitted = model.fit(**arrays(), epochs=2, validation_data=(x, y), verbose=0).history
    logs = [model.train_on_batch(x[:10], y[:10]), model.test_on_batch(x[:9], y[:9])]
    return {
        "history": {**fitted, "on_batch": logs, "evaluate": model.evaluate(**arrays(), verbose=0)},
        "predict": [model.predict(x, batch_size=BATCH, verbose=0)],
        "weights": model.get_weights(),
    }


class Unbuilt(keras.Model):
    """Nothing has a shape before the first step, and the step makes metrics and an optimizer."""

    def __init__(self) -> None:
        super().__init__()
        self.hidden, self.out = dense(8, "tanh"), dense(CLASSES)
        self.f1 = keras.metrics.F1Score(average="macro", name="f1")
        self.r2 = keras.metrics.R2Score(name="r2")
        self.auc = keras.metrics.AUC(multi_label=True, name="auc")
        self.own: Any = None
        self.second: Any = None

    def answer(self, a: Any, b: Any) -> Any:
        return tf.nn.softmax(self.out(tf.concat([self.hidden(a), b], axis=1)))

    def seen(self, y: Any, p: Any) -> dict[str, Any]:
        for metric in (self.f1, self.r2, self.auc):
            metric.update_state(y, p)
        self.own.update_state(tf.reduce_mean(p[:, 0]), sample_weight=tf.shape(p)[0])
        return {m.name: m.result() for m in (self.f1, self.r2, self.auc, self.own)}

    def train_step(self, data: Any) -> dict[str, Any]:
        x, y = data
        if self.own is None:
            self.own = keras.metrics.Mean(name="first")
            self.second = keras.optimizers.SGD(0.2, momentum=0.9)
        y = one_hot(y)
        with tf.GradientTape(persistent=True) as tape:
            p = self.answer(x[:, :4], x[:, 4:])
            loss = tf.reduce_mean(tf.square(y - p))
        for part, optimizer in ((self.hidden, self.optimizer), (self.out, self.second)):
            of = part.trainable_variables
            optimizer.apply_gradients(zip(tape.gradient(loss, of), of, strict=True))
        return self.seen(y, p)

    def test_step(self, data: Any) -> dict[str, Any]:
        x, y = data
        return self.seen(one_hot(y), self.answer(x[:, :4], x[:, 4:]))


def built_by_steps(scope: Any, folder: str) -> dict[str, Any]:
    keras.utils.set_random_seed(7)
    with scope():
        model = Unbuilt()
        model.compile(sgd(0.1, momentum=0.9))
    history = model.fit(**arrays(), epochs=2, validation_data=rows(), verbose=0).history
    return {"history": history, "weights": [*model.hidden.get_weights(), *model.out.get_weights()]}


def metrics_built_late(scope: Any, folder: str) -> dict[str, Any]:
    """Compiled metrics that learn their shape from data, in Keras's steps and in one's own."""
    x, y = rows()
    y = one_hot(y).numpy()
    history: dict[str, Any] = {}
    for kind in (keras.Sequential, OwnSequential):
        keras.utils.set_random_seed(7)
        with scope():
            model = kind([dense(8, "tanh"), dense(CLASSES, "softmax")])
            metrics = [
                keras.metrics.F1Score(average="macro"),
                keras.metrics.R2Score(),
                keras.metrics.AUC(multi_label=True),
                "accuracy",
            ]
            model.compile(sgd(0.1), "categorical_crossentropy", metrics=metrics)
        evaluated = model.evaluate(x, y, batch_size=BATCH, verbose=0)
        fitted = model.fit(x, y, batch_size=BATCH, epochs=2, verbose=0, validation_data=(x, y))
        history |= {f"{kind.__name__} {k}": v for k, v in fitted.history.items()}
        history[kind.__name__] = evaluated
    return {"history": history, "weights": model.get_weights()}


class OwnSequential(keras.Sequential):
    def train_step(self, data: Any) -> dict[str, Any]:
        x, y = data
        with tf.GradientTape() as tape:
            p = self(x, training=True)
            loss = self.compute_loss(x, y, p)
        of = self.trainable_variables
        self.optimizer.apply(tape.gradient(loss, of), of)
        for metric in self.metrics:
            if metric.name == "loss":
                metric.update_state(loss, sample_weight=tf.shape(x)[0])
            else:
                metric.update_state(y, p)
        return {m.name: m.result() for m in self.metrics}


class Pairs(keras.Model):
    """`call` takes what no batch holds: two arguments, one of them a dict."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = dense(4), dense(CLASSES)

    def call(self, left: Any, right: Any, training: bool = False) -> Any:
        return self.b(self.a(left) * self.a(right["other"]))

    def train_step(self, data: Any) -> dict[str, Any]:
        x, y = data
        with tf.GradientTape() as tape:
            p = self(x[:, :3], {"other": x[:, 3:]}, training=True)
            loss = self.compute_loss(y=y, y_pred=p)
        of = self.trainable_variables
        self.optimizer.apply(tape.gradient(loss, of), of)
        return {"loss": loss}

    def predict_step(self, data: Any) -> Any:
        x = data[0] if isinstance(data, tuple) else data
        return self(x[:, :3], {"other": x[:, 3:]})


def called_in_another_way(scope: Any, folder: str, **how: Any) -> dict[str, Any]:
    keras.utils.set_random_seed(7)
    with scope():
        model = Pairs()
        model.compile(sgd(0.1), crossentropy(), **how)
    x, y = rows()
    first = model.predict(x, batch_size=BATCH, verbose=0)  # before anything is built
    fitted = model.fit(x[:32], y[:32], batch_size=BATCH, epochs=2, shuffle=False, verbose=0)
    return {
        "history": fitted.history,
        "predict": [first, model.predict(x, batch_size=BATCH, verbose=0)],
        "weights": model.get_weights(),
    }


def called_eagerly(scope: Any, folder: str) -> dict[str, Any]:
    return called_in_another_way(scope, folder, run_eagerly=True)


class Distiller(keras.Model):
    """Keras's example: a teacher that is not trained, a student, and `compute_loss`."""

    def __init__(self, student: Any, teacher: Any) -> None:
        super().__init__()
        self.student, self.teacher = student, teacher

    def compile(self, optimizer: Any, metrics: Any, student_loss: Any, teacher_loss: Any) -> None:
        super().compile(optimizer=optimizer, metrics=metrics)
        self.student_loss, self.teacher_loss = student_loss, teacher_loss

    def compute_loss(
        self,
        x: Any = None,
        y: Any = None,
        y_pred: Any = None,
        sample_weight: Any = None,
        training: bool = True,
    ) -> Any:
        soft = keras.ops.softmax(self.teacher(x, training=False) / 3)
        loss = self.teacher_loss(soft, keras.ops.softmax(y_pred / 3)) * 9
        return 0.3 * self.student_loss(y, y_pred) + 0.7 * loss

    def call(self, x: Any) -> Any:
        return self.student(x)


def distilled(scope: Any, folder: str) -> dict[str, Any]:
    keras.utils.set_random_seed(7)
    with scope():
        student = keras.Sequential([dense(4, "tanh"), dense(CLASSES)])
        teacher = keras.Sequential([keras.Input((FEATURES,)), dense(8, "tanh"), dense(CLASSES)])
        model = Distiller(student, teacher)
        metrics = [keras.metrics.SparseCategoricalAccuracy()]
        model.compile(sgd(0.1), metrics, crossentropy(), keras.losses.KLDivergence())
    x, y = rows()
    data = dataset().batch(14)
    history = model.fit(data, epochs=2, validation_data=(x, y), verbose=0).history
    evaluated = model.evaluate(x, y, verbose=0)
    return {
        "history": {**history, "evaluate": np.array(evaluated)},
        "weights": student.get_weights(),
    }


OWN_STEPS = (
    without_call,
    built_by_steps,
    metrics_built_late,
    called_in_another_way,
    called_eagerly,
    distilled,
)
