"""Learns to read handwritten digits: scikit-learn's 1,797 images of 8x8 pixels, no download.

    python examples/digits.py                                   # what fits this machine
    python examples/digits.py --strategy=mirrored --device_type=cpu --devices=2
    tfaccel launch --nproc 2 examples/digits.py --strategy=multi_worker_mirrored
    tfaccel launch --nproc 2 --max-restarts 3 examples/digits.py --checkpoints=run  # kill a worker

Reaches a held-out accuracy of at least 0.95 (0.97 to 0.99 are usual) under every strategy.
"""

import time

import keras
from absl import app, logging
from absl import flags as absl_flags
from keras import layers
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split

import pictures
import tfaccel
from tfaccel import flags

FLAGS = absl_flags.FLAGS


def load_data():
    """A fifth of the images, of every digit alike, is held out."""
    digits = load_digits()
    images = digits.images[..., None].astype("float32") / 16
    return train_test_split(
        images, digits.target, test_size=0.2, random_state=0, stratify=digits.target
    )


def build_model():
    return keras.Sequential(
        [
            keras.Input((8, 8, 1)),
            layers.Conv2D(32, 3, padding="same", activation="relu"),
            layers.Conv2D(64, 3, padding="same", activation="relu"),
            layers.MaxPooling2D(),
            layers.Flatten(),
            layers.Dropout(0.25),
            layers.Dense(64, activation="relu"),
            layers.Dense(10, dtype="float32"),  # logits, in full precision under any policy
        ]
    )


def main(_):
    strategy = flags.strategy()
    print(tfaccel.describe(strategy))
    x, x_held_out, y, y_held_out = load_data()

    with strategy.scope():
        model = build_model()
        model.compile(
            optimizer=keras.optimizers.Adam(2e-3),
            loss=keras.losses.SparseCategoricalCrossentropy(from_logits=True),
            metrics=["accuracy"],
        )

    ends = []  # of the epochs; the first one compiles, so it is not timed
    callbacks = [keras.callbacks.LambdaCallback(on_epoch_end=lambda *_: ends.append(time.time()))]
    if FLAGS.checkpoints:
        callbacks.append(tfaccel.checkpoint.resume(FLAGS.checkpoints, every=FLAGS.every))
    fit = {"batch_size": FLAGS.batch_size, "validation_data": (x_held_out, y_held_out)}
    model.fit(x, y, epochs=FLAGS.epochs, callbacks=[*callbacks, *flags.callbacks(strategy)], **fit)
    _, accuracy = model.evaluate(x_held_out, y_held_out, batch_size=FLAGS.batch_size)

    model.save(FLAGS.out)  # on every worker: each may hold a part of the model
    if tfaccel.is_chief(strategy):
        reloaded = keras.models.load_model(FLAGS.out)
        _, again = reloaded.evaluate(x_held_out, y_held_out, verbose=0)
        if abs(again - accuracy) > 1.5 / len(x_held_out):  # rounding may tip one image
            raise SystemExit(f"{FLAGS.out} reloads with accuracy {again}, trained to {accuracy}")
        print(f"saved {FLAGS.out}, which reloads on one device with accuracy {again:.4f}")
    if FLAGS.picture:
        read = model.predict(x_held_out, verbose=0).argmax(axis=-1)
        pictures.confusion(FLAGS.picture, y_held_out, read, range(10))
    if len(ends) > 1:  # a resumed run may have had less to do
        speed = len(x) * (len(ends) - 1) / (ends[-1] - ends[0])
        print(f"throughput: {speed:,.0f} examples/s")
    print(f"held-out accuracy: {accuracy:.4f}")


if __name__ == "__main__":
    FLAGS.verbosity = logging.WARNING  # app.run turns on INFO, where TensorFlow tells of every step
    flags.define(seed=1)
    absl_flags.DEFINE_integer("epochs", 12, "Passes over the images.", lower_bound=2)
    absl_flags.DEFINE_integer("batch_size", 64, "Images per step, over all replicas together.")
    absl_flags.DEFINE_string("out", "digits.keras", "Where to save the trained model.")
    absl_flags.DEFINE_string("checkpoints", None, "Save into this directory, and resume from it.")
    absl_flags.DEFINE_integer("every", 100, "Steps from one checkpoint to the next.")
    absl_flags.DEFINE_string("picture", None, "Draw the result into this file.")
    app.run(main)
