"""Tells from a line of a help text which package it is of; the vocabulary is made in the dataset.

    python examples/text_classification.py                      # what fits this machine
    python examples/text_classification.py --strategy=mirrored --device_type=cpu --devices=2
    tfaccel launch --nproc 2 examples/text_classification.py --strategy=multi_worker_mirrored

The texts are the docstrings of NumPy, Keras and scikit-learn as they are installed: no download.
`TextVectorization` learns its vocabulary from the training rows and runs in `dataset.map`; the
network is an embedding, a bidirectional LSTM over padded rows, and a classifier.

Reaches a held-out accuracy of at least 0.68 under every strategy (guessing: 0.33).
"""

import importlib
import inspect

import keras
import numpy as np
import sklearn
import tensorflow as tf
from absl import app, logging
from absl import flags as absl_flags
from keras import layers
from sklearn.utils.discovery import all_estimators

import pictures
import tfaccel
from tfaccel import flags

FLAGS = absl_flags.FLAGS
WORDS = 24  # of a line


def lines(objects):
    """The sentences of the docstrings of `objects`, each once."""
    texts = (inspect.getdoc(each) or "" for each in objects)
    found = {line.strip() for text in texts for line in text.splitlines()}
    return sorted(line for line in found if len(line.split()) >= 6 and ">>>" not in line)


def members(*modules):
    found = [importlib.import_module(m).__dict__ for m in modules]
    return [each for names in found for each in names.values() if callable(each)]


def load_data():
    """Lines and the number of their package; a fifth is held out, and all are in a fixed order."""
    estimators = [cls for _, cls in all_estimators()]
    packages = (
        lines(members("numpy", "numpy.linalg", "numpy.fft")),
        lines(members("keras.layers", "keras.ops", "keras.losses", "keras.optimizers")),
        lines([sklearn, *estimators]),
    )
    order = np.random.default_rng(0)
    packages = [order.permutation(p)[:1500] for p in packages]
    texts = np.concatenate(packages)
    labels = np.repeat(np.arange(len(packages)), [len(p) for p in packages])
    rows = order.permutation(len(texts))
    held_out, kept = rows[: len(rows) // 5], rows[len(rows) // 5 :]
    return texts[kept], labels[kept], texts[held_out], labels[held_out]


def build_model(vocabulary, width=32):
    """Numbers of words `(batch, WORDS)`, 0 for none, to logits `(batch, 3)`."""
    words = keras.Input((WORDS,), dtype="int64")
    x = layers.Embedding(vocabulary, width, mask_zero=True)(words)
    x = layers.Bidirectional(layers.LSTM(width))(x)
    x = layers.Dropout(0.5)(x)
    return keras.Model(words, layers.Dense(3, dtype="float32")(x))


def main(_):
    strategy = flags.strategy()
    print(tfaccel.describe(strategy))
    texts, labels, held_out_texts, held_out_labels = load_data()

    vectorize = layers.TextVectorization(FLAGS.vocabulary, output_sequence_length=WORDS)
    vectorize.adapt(tf.data.Dataset.from_tensor_slices(texts).batch(256))

    def batches(texts, labels):
        rows = tf.data.Dataset.from_tensor_slices((texts, labels))
        return rows.batch(FLAGS.batch_size).map(lambda t, y: (vectorize(t), y)).cache().prefetch(2)

    with strategy.scope():
        model = build_model(vectorize.vocabulary_size())
        model.compile(
            optimizer=keras.optimizers.Adam(3e-3),
            loss=keras.losses.SparseCategoricalCrossentropy(from_logits=True),
            metrics=["accuracy"],
        )
    held_out = batches(held_out_texts, held_out_labels)
    model.fit(batches(texts, labels), epochs=FLAGS.epochs, verbose=2)
    _, accuracy = model.evaluate(held_out, verbose=0)
    if FLAGS.picture:
        found = model.predict(held_out, verbose=0).argmax(axis=-1)
        pictures.confusion(
            FLAGS.picture, held_out_labels, found, ["NumPy", "Keras", "scikit-learn"]
        )
    print(f"held-out accuracy: {accuracy:.4f}")


if __name__ == "__main__":
    FLAGS.verbosity = logging.WARNING  # app.run turns on INFO, where TensorFlow tells of every step
    flags.define(seed=1)
    absl_flags.DEFINE_integer("epochs", 4, "Passes over the lines.")
    absl_flags.DEFINE_integer("batch_size", 64, "Lines per step, over all replicas together.")
    absl_flags.DEFINE_integer("vocabulary", 4000, "Words that are known.")
    absl_flags.DEFINE_string("picture", None, "Draw the result into this file.")
    app.run(main)
