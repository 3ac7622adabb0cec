"""A character-level transformer that learns the English of Python's own help texts, no download.

    python examples/language_model.py                           # what fits this machine
    python examples/language_model.py --strategy=mirrored --device_type=cpu --devices=2
    python examples/language_model.py --strategy=model_parallel --mesh=batch=2,model=2
    tfaccel launch --nproc 2 examples/language_model.py --strategy=multi_worker_mirrored
    tfaccel launch --nproc 2 examples/language_model.py --strategy=model_parallel --mesh=model=2

Predicts a held-out paragraph's next character with an accuracy of at least 0.58, which is at most
2.2 bits per character, under every strategy; in about two minutes on two cores.
"""

import math
import time
from pydoc_data.topics import topics

import keras
import numpy as np
from absl import app, logging
from absl import flags as absl_flags
from keras import layers, ops

import pictures
import tfaccel
from tfaccel import flags

FLAGS = absl_flags.FLAGS
LENGTH = 128  # characters of context


def load_data():
    """Rows of characters, and the same moved on by one; a tenth of the paragraphs is held out."""
    # Topics repeat each other: with each paragraph kept once, none is in both parts.
    text = "\n\n".join(topics[key] for key in sorted(topics))
    paragraphs = list(dict.fromkeys(text.split("\n\n")))
    held_out = paragraphs[::10]
    del paragraphs[::10]
    return *to_rows(paragraphs), *to_rows(held_out)


def to_rows(paragraphs):
    codes = np.frombuffer("\n\n".join(paragraphs).encode("ascii", "replace"), np.uint8)
    size = (len(codes) - 1) // LENGTH * LENGTH
    return [
        part.reshape(-1, LENGTH).astype("int32") for part in (codes[:size], codes[1 : size + 1])
    ]


def build_model(length=LENGTH, vocabulary=128, width=128, heads=4, blocks=2):
    """Tokens `(batch, length)` to logits `(batch, length, vocabulary)`."""
    tokens = keras.Input((length,), dtype="int32")
    positions = ops.cumsum(ops.ones_like(tokens), axis=1) - 1
    x = layers.Embedding(vocabulary, width)(tokens) + layers.Embedding(length, width)(positions)
    x += layers.Conv1D(width, 5, padding="causal", activation="gelu")(x)
    for _ in range(blocks):
        y = layers.LayerNormalization()(x)
        x += layers.MultiHeadAttention(heads, width // heads)(y, y, use_causal_mask=True)
        y = layers.LayerNormalization()(x)
        x += layers.Dense(width)(layers.Dense(4 * width, activation="gelu")(y))
    x = layers.LayerNormalization()(x)
    return keras.Model(tokens, layers.Dense(vocabulary, dtype="float32")(x))


def main(_):
    strategy = flags.strategy()
    print(tfaccel.describe(strategy))
    x, y, x_held_out, y_held_out = load_data()
    x, y = x[: FLAGS.rows], y[: FLAGS.rows]

    steps = FLAGS.epochs * math.ceil(len(x) / FLAGS.batch_size)
    with strategy.scope():
        model = build_model()
        rate = keras.optimizers.schedules.CosineDecay(
            0.0, steps - steps // 10, warmup_target=3e-3, warmup_steps=steps // 10
        )
        model.compile(
            optimizer=keras.optimizers.AdamW(rate),
            loss=keras.losses.SparseCategoricalCrossentropy(from_logits=True),
            metrics=["accuracy"],
        )

    ends = []  # of the epochs; the first one compiles, so it is not timed
    callbacks = [keras.callbacks.LambdaCallback(on_epoch_end=lambda *_: ends.append(time.time()))]
    if FLAGS.checkpoints:
        callbacks.append(tfaccel.checkpoint.resume(FLAGS.checkpoints, every=FLAGS.every))
    fit = {"batch_size": FLAGS.batch_size, "validation_data": (x_held_out, y_held_out)}
    model.fit(x, y, epochs=FLAGS.epochs, callbacks=[*callbacks, *flags.callbacks(strategy)], **fit)
    loss, accuracy = model.evaluate(x_held_out, y_held_out, batch_size=FLAGS.batch_size)

    model.save(FLAGS.out)  # on every worker: each may hold a part of the model
    if tfaccel.is_chief(strategy):
        _, again = keras.models.load_model(FLAGS.out).evaluate(x_held_out, y_held_out, verbose=0)
        if abs(again - accuracy) > 1e-3:
            raise SystemExit(f"{FLAGS.out} reloads with accuracy {again}, trained to {accuracy}")
        print(f"saved {FLAGS.out}, which reloads on one device with accuracy {again:.4f}")
    if FLAGS.picture:
        shown, logits = y_held_out[:4], model.predict(x_held_out[:4], verbose=0)
        losses = keras.losses.sparse_categorical_crossentropy(shown, logits, from_logits=True)
        bits = np.asarray(losses).ravel() / math.log(2)
        line = {"held out": ("".join(map(chr, shown.ravel())), bits)}
        pictures.text(FLAGS.picture, line, LENGTH // 2)
    if len(ends) > 1:  # a resumed run may have had less to do
        speed = len(x) * (len(ends) - 1) / (ends[-1] - ends[0])
        print(f"throughput: {speed:,.0f} examples/s")
    print(f"held-out: accuracy {accuracy:.4f}, {loss / math.log(2):.3f} bits per character")


if __name__ == "__main__":
    FLAGS.verbosity = logging.WARNING  # app.run turns on INFO, where TensorFlow tells of every step
    flags.define(seed=1)
    absl_flags.DEFINE_integer("epochs", 7, "Passes over the text.", lower_bound=2)
    absl_flags.DEFINE_integer("batch_size", 32, "Rows per step, over all replicas together.")
    absl_flags.DEFINE_integer("rows", None, "Take only the first rows of the text: a quick trial.")
    absl_flags.DEFINE_string("out", "language_model.keras", "Where to save the trained model.")
    absl_flags.DEFINE_string("checkpoints", None, "Save into this directory, and resume from it.")
    absl_flags.DEFINE_integer("every", 100, "Steps from one checkpoint to the next.")
    absl_flags.DEFINE_string("picture", None, "Draw the result into this file.")
    app.run(main)
