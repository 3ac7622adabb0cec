"""A GAN with a `train_step` of its own, as Keras's guide writes it, that draws digits.

    python examples/gan.py                                      # what fits this machine
    python examples/gan.py --strategy=mirrored --device_type=cpu --devices=2
    tfaccel launch --nproc 2 examples/gan.py --strategy=multi_worker_mirrored

How near the drawn images are to held-out ones of scikit-learn (no download) is the Frechet distance
of the two distributions of pixels, taken as normal (Heusel et al. 2017, there of features).

The distance is at most half of an untrained generator's under every strategy.
"""

import keras
import numpy as np
import tensorflow as tf
from absl import app, logging
from absl import flags as absl_flags
from keras import layers, ops
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split

import pictures
import tfaccel
from tfaccel import flags

FLAGS = absl_flags.FLAGS
NOISE = 16


class GAN(keras.Model):
    """A generator and a discriminator, each with an optimizer."""

    def __init__(self):
        super().__init__()
        self.generator = keras.Sequential(
            [
                keras.Input((NOISE,)),
                layers.Dense(128, activation="leaky_relu"),
                layers.Dense(128, activation="leaky_relu"),
                layers.Dense(64, activation="sigmoid"),
            ]
        )
        self.discriminator = keras.Sequential(
            [
                keras.Input((64,)),
                layers.Dense(128, activation="leaky_relu"),
                layers.Dropout(0.3),
                layers.Dense(1),
            ]
        )
        self.seeds = keras.random.SeedGenerator(1)
        self.d_loss = keras.metrics.Mean(name="d_loss")
        self.g_loss = keras.metrics.Mean(name="g_loss")

    @property
    def metrics(self):
        return [self.d_loss, self.g_loss]

    def compile(self, d_optimizer, g_optimizer, loss):
        super().compile()
        self.d_optimizer, self.g_optimizer, self.loss_fn = d_optimizer, g_optimizer, loss

    def train_step(self, images):
        rows = ops.shape(images)[0]
        drawn = self.generator(keras.random.normal((rows, NOISE), seed=self.seeds), training=True)
        both = ops.concatenate([images, drawn], axis=0)
        real = ops.concatenate([ops.ones((rows, 1)), ops.zeros((rows, 1))], axis=0)
        with tf.GradientTape() as tape:
            d_loss = self.loss_fn(0.9 * real, self.discriminator(both, training=True))
        weights = self.discriminator.trainable_weights
        self.d_optimizer.apply(tape.gradient(d_loss, weights), weights)

        noise = keras.random.normal((rows, NOISE), seed=self.seeds)
        with tf.GradientTape() as tape:
            judged = self.discriminator(self.generator(noise, training=True), training=True)
            g_loss = self.loss_fn(ops.ones((rows, 1)), judged)
        weights = self.generator.trainable_weights
        self.g_optimizer.apply(tape.gradient(g_loss, weights), weights)

        self.d_loss.update_state(d_loss)
        self.g_loss.update_state(g_loss)
        return {"d_loss": self.d_loss.result(), "g_loss": self.g_loss.result()}


def distance(images, others):
    """The squared Frechet distance of two sets of rows."""
    one, other = np.cov(images.T), np.cov(others.T)
    means = np.sum((images.mean(axis=0) - others.mean(axis=0)) ** 2)
    # The trace of the root of a product of two covariances, whose eigenvalues are not negative.
    roots = np.sqrt(np.maximum(np.linalg.eigvals(one @ other).real, 0))
    return float(means + np.trace(one + other) - 2 * roots.sum())


def main(_):
    strategy = flags.strategy()
    print(tfaccel.describe(strategy))
    images = (load_digits().data / 16).astype("float32")
    images, held_out = train_test_split(images, test_size=0.2, random_state=0)

    with strategy.scope():
        gan = GAN()
        gan.compile(
            keras.optimizers.Adam(1e-3, beta_1=0.5),
            keras.optimizers.Adam(1e-3, beta_1=0.5),
            keras.losses.BinaryCrossentropy(from_logits=True),
        )
    noise = np.random.default_rng(0).normal(size=(len(held_out), NOISE)).astype("float32")

    def far():
        return distance(held_out, gan.generator.predict(noise, verbose=0))

    before = far()
    gan.fit(images, batch_size=FLAGS.batch_size, epochs=FLAGS.epochs, verbose=2)
    if FLAGS.picture:
        drawn = gan.generator.predict(noise, verbose=0)
        rows = {"held out": held_out[:12], "drawn": drawn[:12], "": drawn[12:24], " ": drawn[24:36]}
        pictures.grid(FLAGS.picture, {name: row.reshape(-1, 8, 8) for name, row in rows.items()})
    print(f"Frechet distance to held-out digits: {far():.3f}, untrained {before:.3f}")


if __name__ == "__main__":
    FLAGS.verbosity = logging.WARNING  # app.run turns on INFO, where TensorFlow tells of every step
    flags.define(seed=1)
    absl_flags.DEFINE_integer("epochs", 60, "Passes over the images.")
    absl_flags.DEFINE_integer("batch_size", 64, "Images per step, over all replicas together.")
    absl_flags.DEFINE_string("picture", None, "Draw the result into this file.")
    app.run(main)
