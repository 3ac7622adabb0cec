"""A variational autoencoder of handwritten digits, with its loss in a `train_step` of its own.

    python examples/autoencoder.py                              # what fits this machine
    python examples/autoencoder.py --strategy=mirrored --device_type=cpu --devices=2
    tfaccel launch --nproc 2 examples/autoencoder.py --strategy=multi_worker_mirrored

Says how many nats describe a held-out image of scikit-learn (no download): the bound of Kingma and
Welling (2014), of pixels that are taken as probabilities.

Needs at most 26 nats an image under every strategy (27.2 with the mean of each pixel).
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


class VAE(keras.Model):
    """Images `(batch, 64)` from 0 to 1, through `code` numbers each, and back."""

    def __init__(self, code=8):
        super().__init__()
        images, codes = keras.Input((64,)), keras.Input((code,))
        x = layers.Dense(128, activation="relu")(images)
        self.encoder = keras.Model(images, [layers.Dense(code)(x), layers.Dense(code)(x)])
        x = layers.Dense(128, activation="relu")(codes)
        self.decoder = keras.Model(codes, layers.Dense(64)(x))
        self.seeds = keras.random.SeedGenerator(1)
        self.nats = keras.metrics.Mean(name="nats")

    @property
    def metrics(self):
        return [self.nats]

    def bound(self, images, training):
        """The nats of each row: of its pixels, given a drawn code, and of the code."""
        mean, log_variance = self.encoder(images, training=training)
        noise = keras.random.normal(ops.shape(mean), seed=self.seeds)
        logits = self.decoder(mean + ops.exp(0.5 * log_variance) * noise, training=training)
        pixels = ops.sum(ops.softplus(logits) - images * logits, axis=1)
        variance = ops.exp(log_variance)
        code = 0.5 * ops.sum(variance + ops.square(mean) - 1.0 - log_variance, axis=1)
        return pixels + code

    def train_step(self, images):
        with tf.GradientTape() as tape:
            loss = ops.mean(self.bound(images, training=True))
        weights = self.trainable_weights
        self.optimizer.apply(tape.gradient(loss, weights), weights)
        self.nats.update_state(loss)
        return {"nats": self.nats.result()}

    def test_step(self, images):
        self.nats.update_state(self.bound(images, training=False))
        return {"nats": self.nats.result()}


def main(_):
    strategy = flags.strategy()
    print(tfaccel.describe(strategy))
    images = (load_digits().data / 16).astype("float32")
    images, held_out = train_test_split(images, test_size=0.2, random_state=0)

    with strategy.scope():
        model = VAE()
        model.compile(keras.optimizers.Adam(2e-3))
    model.fit(images, batch_size=FLAGS.batch_size, epochs=FLAGS.epochs, verbose=2)
    found = model.evaluate(held_out, batch_size=FLAGS.batch_size, verbose=0, return_dict=True)
    if FLAGS.picture:
        mean, _ = model.encoder.predict(held_out, verbose=0)
        codes = np.random.default_rng(0).normal(size=mean.shape).astype("float32")
        back, drawn = (
            1 / (1 + np.exp(-model.decoder.predict(c, verbose=0))) for c in (mean, codes)
        )
        rows = {"held out": held_out, "from its code": back, "from a drawn code": drawn}
        rows = {name: row[:12].reshape(-1, 8, 8) for name, row in rows.items()}
        pictures.grid(FLAGS.picture, rows)
    print(f"held-out nats an image: {found['nats']:.3f}")


if __name__ == "__main__":
    FLAGS.verbosity = logging.WARNING  # app.run turns on INFO, where TensorFlow tells of every step
    flags.define(seed=1)
    absl_flags.DEFINE_integer("epochs", 40, "Passes over the images.")
    absl_flags.DEFINE_integer("batch_size", 64, "Images per step, over all replicas together.")
    absl_flags.DEFINE_string("picture", None, "Draw the result into this file.")
    app.run(main)
