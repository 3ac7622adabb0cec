"""Fine-tunes a keras.applications network: what it learnt of five digits helps with five others.

    python examples/fine_tune.py                                # what fits this machine
    python examples/fine_tune.py --strategy=mirrored --device_type=cpu --devices=2
    tfaccel launch --nproc 2 examples/fine_tune.py --strategy=multi_worker_mirrored

MobileNet learns the digits 0 to 4 of scikit-learn (no download), is saved, and loaded again under
the strategy without its classifier. A new classifier learns 5 to 9 on top of it, first alone, then
with all of the network at a fifth of its rate. `--weights=imagenet` starts from Keras's weights.

Reaches a held-out accuracy of at least 0.85 on the new digits under every strategy.
"""

import keras
import numpy as np
from absl import app, logging
from absl import flags as absl_flags
from keras import layers
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split

import pictures
import tfaccel
from tfaccel import flags

FLAGS = absl_flags.FLAGS


def load_data(digits):
    """Images `(rows, 32, 32, 3)` and labels from 0 of these digits; a fifth is held out."""
    held = load_digits()
    chosen = np.isin(held.target, digits)
    images = np.kron(held.images[chosen] / 8 - 1, np.ones((4, 4)))[..., None].repeat(3, axis=-1)
    labels = held.target[chosen] - digits[0]
    return train_test_split(
        images.astype("float32"), labels, test_size=0.2, random_state=0, stratify=labels
    )


def build_backbone(weights=None):
    backbone = keras.applications.MobileNet(
        (32, 32, 3), alpha=0.25, include_top=False, pooling="avg", weights=weights
    )
    for layer in backbone.layers:
        if isinstance(layer, layers.BatchNormalization):
            layer.momentum = 0.9  # the statistics of a few hundred steps, not of thousands
    return backbone


def classifier_on(backbone, training=None):
    """A classifier of five; with `training=False` batch normalization keeps what it has counted."""
    images = keras.Input((32, 32, 3))
    features = backbone(images, training=training)
    return keras.Model(images, layers.Dense(5, dtype="float32")(layers.Dropout(0.2)(features)))


def train(model, data, rate):
    """Compiles and fits a model, and returns its accuracy on what is held out by epoch."""
    x, x_held_out, y, y_held_out = data
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile(keras.optimizers.Adam(rate), loss, metrics=["accuracy"])
    fit = {"batch_size": FLAGS.batch_size, "epochs": FLAGS.epochs, "verbose": 2}
    history = model.fit(x, y, validation_data=(x_held_out, y_held_out), **fit)
    return history.history["val_accuracy"]


def main(_):
    strategy = flags.strategy()
    print(tfaccel.describe(strategy))
    old, new = load_data(range(5)), load_data(range(5, 10))
    lines = {}

    with strategy.scope():
        backbone = build_backbone(FLAGS.weights)
        if FLAGS.weights is None:
            lines["all of it, digits 0 to 4"] = train(classifier_on(backbone), old, 2e-3)
        backbone.save(FLAGS.out)  # on every worker: each may hold a part of the model

    with strategy.scope():
        backbone = keras.models.load_model(FLAGS.out)
        backbone.trainable = False
        model = classifier_on(backbone, training=False)
        lines["the new layer, digits 5 to 9"] = train(model, new, 1e-2)
        backbone.trainable = True
        lines["all of it, digits 5 to 9"] = train(model, new, 2e-3)
    if FLAGS.picture:
        pictures.curves(FLAGS.picture, lines, "epoch", "held-out accuracy", first=1)
    for name, (*_, accuracy) in lines.items():
        print(f"{name}: held-out accuracy {accuracy:.4f}")
    print(f"held-out accuracy: {accuracy:.4f}")


if __name__ == "__main__":
    FLAGS.verbosity = logging.WARNING  # app.run turns on INFO, where TensorFlow tells of every step
    flags.define(seed=1)
    absl_flags.DEFINE_integer("epochs", 10, "Passes over the images, in each of the three stages.")
    absl_flags.DEFINE_integer("batch_size", 32, "Images per step, over all replicas together.")
    absl_flags.DEFINE_enum("weights", None, ["imagenet"], "Start from these (they are downloaded).")
    absl_flags.DEFINE_string("out", "backbone.keras", "Where to save the network in between.")
    absl_flags.DEFINE_string("picture", None, "Draw the result into this file.")
    app.run(main)
