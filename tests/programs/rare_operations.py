"""Kind 17: operations that few models use, and of which a mesh knows no layout."""

from __future__ import annotations

from typing import Any

import keras
import numpy as np
import tensorflow as tf
from keras import layers, ops

from tests.programs.data import labels, one_hot, reals, shares, weights
from tests.programs.program import Numbers, program


class VectorQuantizer(layers.Layer):
    """The nearest code of each place; gradients go straight through."""

    def __init__(self, codes: int, width: int) -> None:
        super().__init__()
        self.codes, self.width = codes, width
        start = reals(width, codes, seed=8)
        self.table = self.add_weight(shape=(width, codes), initializer=lambda *_, **__: start)

    def call(self, x: Any) -> Any:
        flat = tf.reshape(x, [-1, self.width])
        table = tf.convert_to_tensor(self.table)
        distances = (
            tf.reduce_sum(flat**2, axis=1, keepdims=True)
            + tf.reduce_sum(table**2, axis=0)
            - 2 * tf.matmul(flat, table)
        )
        chosen = tf.one_hot(tf.argmin(distances, axis=1), self.codes)
        quantized = tf.reshape(tf.matmul(chosen, table, transpose_b=True), tf.shape(x))
        self.add_loss(0.25 * tf.reduce_mean((tf.stop_gradient(quantized) - x) ** 2))
        self.add_loss(tf.reduce_mean((quantized - tf.stop_gradient(x)) ** 2))
        return x + tf.stop_gradient(quantized - x)


@program(17, always=True)
def vector_quantized_autoencoder(strategy: Any) -> Numbers:
    """VQ-VAE: a convolutional autoencoder with the nearest codes between, in a train_step"""

    class Trainer(keras.Model):
        def __init__(self) -> None:
            super().__init__()
            image = keras.Input((8, 8, 1))
            h = layers.Conv2D(4, 3, 2, "same", activation="relu")(image)
            h = VectorQuantizer(5, 3)(layers.Conv2D(3, 1)(h))
            h = layers.Conv2DTranspose(4, 3, 2, "same", activation="relu")(h)
            self.net = keras.Model(image, layers.Conv2DTranspose(1, 3, padding="same")(h))
            self.total = keras.metrics.Mean(name="loss")
            self.rebuilt = keras.metrics.Mean(name="rebuilt")

        @property
        def metrics(self) -> list[Any]:
            return [self.total, self.rebuilt]

        def train_step(self, x: Any) -> dict[str, Any]:
            with tf.GradientTape() as tape:
                y = self.net(x)
                rebuilt = tf.reduce_mean((x - y) ** 2) / 0.5
                total = rebuilt + sum(self.net.losses)
            of = self.net.trainable_variables
            self.optimizer.apply_gradients(zip(tape.gradient(total, of), of, strict=True))
            self.total.update_state(total)
            self.rebuilt.update_state(rebuilt)
            return {m.name: m.result() for m in self.metrics}

    x = reals(24, 8, 8, 1)
    with strategy.scope():
        model = Trainer()
        model.compile(keras.optimizers.SGD(0.1))
    run = model.fit(x, batch_size=8, epochs=2, verbose=0)
    return {"history": run.history, "weights": weights(model.net)}


@program(17)
def captcha_reader(strategy: Any) -> Numbers:
    """Captchas: convolutions, a bidirectional LSTM, a layer that adds the CTC loss; decoded"""

    class Endpoint(layers.Layer):
        def call(self, y_true: Any, y_pred: Any) -> Any:
            rows = ops.cast(ops.shape(y_true)[0], "int64")
            ones = ops.ones((rows,), "int32")
            cost = ops.ctc_loss(
                ops.cast(y_true, "int32") + 1,
                y_pred,
                ones * ops.shape(y_true)[1],
                ones * ops.shape(y_pred)[1],
            )
            self.add_loss(cost)
            return y_pred

    x, y = shares(18, 16, 8, 1), labels(4, 18, 3).astype("float32")
    with strategy.scope():
        image = keras.Input((16, 8, 1), name="image")
        wanted = keras.Input((None,), name="label")
        h = layers.Conv2D(4, 3, activation="relu", padding="same")(image)
        h = layers.MaxPooling2D((2, 2))(h)
        h = layers.Dense(6, "relu")(layers.Reshape((8, 16))(h))
        h = layers.Bidirectional(layers.LSTM(4, return_sequences=True))(h)
        h = layers.Dense(6, "softmax", name="letters")(h)
        model = keras.Model([image, wanted], Endpoint()(wanted, h))
        model.compile(keras.optimizers.SGD(0.001))
        read = keras.Model(image, h)
    run = model.fit({"image": x, "label": y}, batch_size=8, epochs=2, verbose=0)
    return {
        "history": run.history,
        "read": read.predict(x[:5], verbose=0),
        "weights": weights(model),
    }


@program(17)
def masked_autoencoder(strategy: Any) -> Numbers:
    """MAE: a part of the patches, chosen by argsort, is seen, the others are told again"""

    class Masked(keras.Model):
        def __init__(self) -> None:
            super().__init__()
            self.project = layers.Dense(8)
            self.places = layers.Embedding(6, 8)
            self.attend = layers.MultiHeadAttention(2, 4)
            self.norm = layers.LayerNormalization()
            self.decode = layers.Dense(4)

        def patches(self, images: Any) -> Any:
            cut = tf.image.extract_patches(
                images, [1, 2, 2, 1], [1, 2, 2, 1], [1, 1, 1, 1], "VALID"
            )
            return tf.reshape(cut, (-1, 6, 4))

        def call(self, images: Any) -> Any:
            patches = self.patches(images)
            rows = tf.shape(patches)[0]
            order = tf.argsort(tf.reduce_sum(patches, axis=-1), axis=-1)
            hidden, seen = order[:, :4], order[:, 4:]
            h = self.project(patches) + self.places(tf.range(6))
            shown = tf.gather(h, seen, axis=1, batch_dims=1)
            shown = self.norm(shown + self.attend(shown, shown))
            empty = tf.repeat(self.places(tf.zeros([1, 1], tf.int32)), rows, axis=0)
            told = tf.gather(self.places(tf.broadcast_to(tf.range(6), [rows, 6])), hidden, axis=1,
                             batch_dims=1)  # fmt: skip
            h = tf.concat([shown, empty + told], axis=1)
            target = tf.gather(patches, hidden, axis=1, batch_dims=1)
            return target, self.decode(self.norm(h + self.attend(h, h)))[:, 2:]

        def train_step(self, images: Any) -> dict[str, Any]:
            with tf.GradientTape() as tape:
                target, output = self(images)
                loss = self.compute_loss(y=target, y_pred=output)
            of = self.trainable_variables
            grads = tape.gradient(loss, of)
            pairs = [(g, v) for g, v in zip(grads, of, strict=True) if g is not None]
            self.optimizer.apply_gradients(pairs)
            return self.compute_metrics(None, target, output)

    x = reals(22, 6, 4, 1)
    with strategy.scope():
        model = Masked()
        model.compile(keras.optimizers.SGD(0.1), "mse", metrics=["mae"])
    run = model.fit(x, batch_size=8, epochs=2, verbose=0)
    return {"history": run.history, "weights": weights(model)}


@program(17)
def image_critic_with_penalty(strategy: Any) -> Numbers:
    """WGAN-GP of images: the norm of the critic's gradient with respect to mixed images"""

    class Game(keras.Model):
        def __init__(self) -> None:
            super().__init__()
            self.make = keras.Sequential(
                [
                    keras.Input((3,)),
                    layers.Dense(16),
                    layers.LeakyReLU(0.2),
                    layers.Reshape((4, 4, 1)),
                    layers.UpSampling2D(2),
                    layers.Conv2D(1, 3, padding="same", activation="tanh"),
                ]
            )
            self.critic = keras.Sequential(
                [
                    keras.Input((8, 8, 1)),
                    layers.ZeroPadding2D(1),
                    layers.Conv2D(4, 3, 2),
                    layers.LeakyReLU(0.2),
                    layers.Flatten(),
                    layers.Dense(1),
                ]
            )

        def compile(self, critic: Any, make: Any) -> None:
            super().compile()
            self.of_critic, self.of_make = critic, make

        def penalty(self, real: Any, made: Any, mix: Any) -> Any:
            mixed = real + mix[:, :, None, None] * (made - real)
            with tf.GradientTape() as tape:
                tape.watch(mixed)
                told = self.critic(mixed, training=True)
            grads = tape.gradient(told, [mixed])[0]
            norm = tf.sqrt(tf.reduce_sum(tf.square(grads), axis=[1, 2, 3]))
            return tf.reduce_mean((norm - 1.0) ** 2)

        def train_step(self, data: Any) -> dict[str, Any]:
            (real, noise, mix), _ = data
            with tf.GradientTape() as tape:
                made = self.make(noise, training=True)
                cost = tf.reduce_mean(self.critic(made, training=True))
                cost -= tf.reduce_mean(self.critic(real, training=True))
                total = cost + 10.0 * self.penalty(real, made, mix)
            of = self.critic.trainable_variables
            self.of_critic.apply_gradients(zip(tape.gradient(total, of), of, strict=True))
            with tf.GradientTape() as tape:
                fooled = -tf.reduce_mean(self.critic(self.make(noise, training=True)))
            of = self.make.trainable_variables
            self.of_make.apply_gradients(zip(tape.gradient(fooled, of), of, strict=True))
            return {"critic": total, "made": fooled}

    x = (reals(24, 8, 8, 1), reals(24, 3, seed=2), shares(24, 1, seed=3))
    with strategy.scope():
        model = Game()
        model.compile(keras.optimizers.SGD(0.02), keras.optimizers.SGD(0.05))
    run = model.fit(x, reals(24, 1), batch_size=8, epochs=2, verbose=0)
    return {"history": run.history, "weights": weights(model.critic, model.make)}


@program(17, undivided=True)
def error_of_what_is_known(strategy: Any) -> Numbers:
    """tf.boolean_mask in a loss: the mean over the entries that are no NaN"""

    def known(y_true: Any, y_pred: Any) -> Any:
        there = tf.logical_not(tf.math.is_nan(y_true))
        return tf.reduce_mean(
            (tf.boolean_mask(y_true, there) - tf.boolean_mask(y_pred, there)) ** 2
        )

    x, y = reals(22, 5), reals(22, 3, seed=4)
    y[reals(22, 3, seed=5) > 0.5] = float("nan")
    with strategy.scope():
        model = keras.Sequential([keras.Input((5,)), layers.Dense(8, "tanh"), layers.Dense(3)])
        model.compile(keras.optimizers.SGD(0.1), known)
    run = model.fit(x, y, batch_size=8, epochs=2, verbose=0)
    return {"history": run.history, "weights": weights(model)}


@program(17)
def places_gathered_and_scattered(strategy: Any) -> Numbers:
    """tf.slice, gather_nd, take_along_axis and scattered updates of divided features in a layer"""

    class Moves(layers.Layer):
        def __init__(self) -> None:
            super().__init__()
            self.wide = layers.Dense(8, "tanh")

        def call(self, x: Any) -> Any:
            h = self.wide(x)
            rows = tf.range(tf.shape(h)[0])
            best = tf.argmax(h, axis=-1, output_type=tf.int32)
            picked = tf.gather_nd(h, tf.stack([rows, best], axis=1))
            turned = tf.concat([tf.slice(h, [0, 5], [-1, 3]), tf.slice(h, [0, 0], [-1, 5])], 1)
            sorted_ = ops.take_along_axis(h, ops.argsort(h, axis=1), axis=1)
            places = tf.stack([rows, (best + 1) % 8], axis=1)
            put = tf.tensor_scatter_nd_add(turned, places, picked)
            spread = tf.scatter_nd(places, picked * 2.0, tf.shape(h))
            return put + spread + tf.cumsum(sorted_, axis=1, reverse=True)

    x, y = reals(22, 5), labels(3, 22)
    with strategy.scope():
        inputs = keras.Input((5,))
        model = keras.Model(inputs, layers.Dense(3)(Moves()(inputs)))
        loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
        model.compile(keras.optimizers.SGD(0.05), loss)
    run = model.fit(x, y, batch_size=8, epochs=2, verbose=0)
    return {"history": run.history, "weights": weights(model)}


@program(17, undivided=True)
def loops_in_a_layer(strategy: Any) -> Numbers:
    """tf.scan, tf.map_fn and a while loop with a TensorArray in a layer"""

    class Walks(layers.Layer):
        def __init__(self) -> None:
            super().__init__()
            self.inner = layers.Dense(6, "tanh")

        def build(self, shape: Any) -> None:
            self.inner.build((None, 6))

        def call(self, x: Any) -> Any:
            steps = tf.transpose(x, (1, 0, 2))
            decayed = tf.scan(lambda kept, new: 0.5 * kept + self.inner(new), steps)
            summed = tf.map_fn(lambda row: tf.cumsum(row, axis=0)[-1], x)
            _, held = tf.while_loop(
                lambda i, _: i < 4,
                lambda i, held: (i + 1, held.write(i, decayed[i] * tf.cast(i, tf.float32))),
                (0, tf.TensorArray(tf.float32, size=4)),
            )
            return tf.reduce_sum(held.stack(), axis=0) + summed

    x, y = reals(20, 4, 6), one_hot(3, 20)
    with strategy.scope():
        inputs = keras.Input((4, 6))
        model = keras.Model(inputs, layers.Dense(3)(Walks()(inputs)))
        loss = keras.losses.CategoricalCrossentropy(from_logits=True)
        model.compile(keras.optimizers.SGD(0.05), loss, metrics=["accuracy"])
    run = model.fit(x, y, batch_size=8, epochs=2, validation_data=(x[:5], y[:5]), verbose=0)
    return {"history": run.history, "weights": weights(model)}


@program(17)
def a_graph_inside_the_model(strategy: Any) -> Numbers:
    """Graph attention over edges that the model holds as a tensor, with batches of node numbers"""
    nodes, edges = 14, np.stack([np.arange(40) % 14, np.arange(40) * 5 % 14], 1).astype("int32")
    edges = edges[np.lexsort((edges[:, 1], edges[:, 0]))]

    class Attention(keras.Model):
        def __init__(self) -> None:
            super().__init__()
            self.states, self.edges = tf.constant(reals(nodes, 6)), tf.constant(edges)
            self.known = tf.constant(np.arange(nodes) % 5 > 0)
            self.transform, self.score = layers.Dense(8), layers.Dense(1)
            self.logits = layers.Dense(3)

        def call(self, numbers: Any) -> Any:
            hidden = self.transform(self.states) * ops.cast(self.known, "float32")[:, None]
            pairs = ops.reshape(ops.take(hidden, self.edges, axis=0), (-1, 16))
            score = ops.exp(ops.clip(self.score(pairs)[:, 0], -2.0, 2.0))
            whole = ops.segment_sum(score, self.edges[:, 0], num_segments=nodes)
            score = score / ops.take(whole, self.edges[:, 0])
            sent = ops.take(hidden, self.edges[:, 1], axis=0) * score[:, None]
            heard = ops.segment_sum(sent, self.edges[:, 0], num_segments=nodes)
            return ops.take(self.logits(heard + hidden), numbers, axis=0)

    numbers, y = np.arange(nodes, dtype="int32"), labels(3, nodes)
    with strategy.scope():
        model = Attention()
        loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
        model.compile(keras.optimizers.SGD(0.1), loss, metrics=["accuracy"])
    run = model.fit(numbers, y, batch_size=4, epochs=2, validation_split=0.3, verbose=0)
    predicted = model.predict(numbers, batch_size=4, verbose=0)
    return {"history": run.history, "weights": weights(model), "predicted": predicted}
