"""Tabular data with preprocessing layers in the model: how diabetes progresses in a year.

    python examples/tabular.py                                  # what fits this machine
    python examples/tabular.py --strategy=mirrored --device_type=cpu --devices=2
    tfaccel launch --nproc 2 examples/tabular.py --strategy=multi_worker_mirrored

The rows are the 442 patients of Efron et al. (2004) that scikit-learn holds: no download. Numbers
go through `Normalization`, the age also through `Discretization`, the sex (a text) through
`StringLookup`; the layers learn from the training rows before they train, and are saved with the
model, which takes raw rows.

The mean absolute error is at most 0.8 of the training mean's under every strategy.
"""

import keras
import numpy as np
import tensorflow as tf
from absl import app, logging
from absl import flags as absl_flags
from keras import layers
from sklearn.datasets import load_diabetes
from sklearn.model_selection import train_test_split

import pictures
import tfaccel
from tfaccel import flags

FLAGS = absl_flags.FLAGS


def load_data():
    """Columns by name, and the disease's progression; a fifth of the rows is held out."""
    held = load_diabetes(as_frame=False, scaled=False)
    rows, held_out = train_test_split(np.arange(len(held.target)), test_size=0.2, random_state=0)
    numbers = {n: c.astype("float32") for n, c in zip(held.feature_names, held.data.T, strict=True)}
    sex = np.where(numbers.pop("sex") == 1, "female", "male")

    def part(chosen):
        columns = {name: column[chosen, None] for name, column in numbers.items()}
        return {**columns, "sex": sex[chosen, None]}, held.target[chosen].astype("float32")

    return *part(rows), *part(held_out)


def build_model(columns):
    """Raw columns to a number; what is there to learn of them is learnt from `columns`."""
    inputs = {n: keras.Input((1,), name=n, dtype=_dtype(c)) for n, c in columns.items()}
    encoded = []
    for name, column in columns.items():
        if name == "sex":
            layer = layers.StringLookup(output_mode="one_hot", vocabulary=["female", "male"])
        else:
            layer = layers.Normalization()
            layer.adapt(column)
        encoded.append(layer(inputs[name]))
    ages = layers.Discretization(num_bins=5, output_mode="one_hot")
    ages.adapt(columns["age"])
    encoded.append(ages(inputs["age"]))
    x = layers.Dense(32, activation="relu")(layers.concatenate(encoded))
    x = layers.Dropout(0.2)(x)
    return keras.Model(inputs, layers.Dense(1, dtype="float32")(x))


def _dtype(column):
    return "string" if column.dtype.kind == "U" else "float32"


def main(_):
    strategy = flags.strategy()
    print(tfaccel.describe(strategy))
    x, y, x_held_out, y_held_out = load_data()

    with strategy.scope():
        model = build_model(x)
        model.compile(keras.optimizers.Adam(2e-2), "mae")
    rows = tf.data.Dataset.from_tensor_slices((x, y)).shuffle(len(y), seed=1)
    model.fit(rows.batch(FLAGS.batch_size), epochs=FLAGS.epochs, verbose=2)
    held_out = tf.data.Dataset.from_tensor_slices((x_held_out, y_held_out))
    error = model.evaluate(held_out.batch(FLAGS.batch_size), verbose=0)
    if FLAGS.picture:
        found = model.predict(held_out.batch(FLAGS.batch_size), verbose=0)[:, 0]
        pictures.scatter(FLAGS.picture, y_held_out, found, "progression in a year", "predicted")
    model.save(FLAGS.out)  # on every worker: each may hold a part of the model
    print(f"held-out error: {error:.2f}, the mean's {np.abs(y_held_out - y.mean()).mean():.2f}")


if __name__ == "__main__":
    FLAGS.verbosity = logging.WARNING  # app.run turns on INFO, where TensorFlow tells of every step
    flags.define(seed=1)
    absl_flags.DEFINE_integer("epochs", 60, "Passes over the rows.")
    absl_flags.DEFINE_integer("batch_size", 64, "Rows per step, over all replicas together.")
    absl_flags.DEFINE_string("out", "tabular.keras", "Where to save the trained model.")
    absl_flags.DEFINE_string("picture", None, "Draw the result into this file.")
    app.run(main)
