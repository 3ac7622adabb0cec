"""Fine-tunes a keras_hub decoder with LoRA: 2 % of its parameters learn another kind of text.

    python examples/lora.py                                     # what fits this machine
    python examples/lora.py --strategy=mirrored --device_type=cpu --devices=2
    tfaccel launch --nproc 2 examples/lora.py --strategy=multi_worker_mirrored

A GPT-2 of two blocks learns Python's help texts, character by character (no download); then its
weights are frozen and low-rank changes of its attention (Hu et al. 2021) learn NumPy's docstrings.
A preset of keras_hub takes the same lines: `GPT2CausalLM.from_preset(...)`, `enable_lora`, `fit`.

LoRA takes at least 0.3 bits per character off what the plain model needs for the new texts, under
every strategy.
"""

import inspect
import math
from pydoc_data.topics import topics

import keras
import keras_hub
import numpy as np
from absl import app, logging
from absl import flags as absl_flags

import pictures
import tfaccel
from tfaccel import flags

FLAGS = absl_flags.FLAGS
LENGTH = 64  # characters of context


def rows(text):
    """Codes of characters `(rows, LENGTH)`, and the same moved on by one."""
    codes = np.frombuffer(text.encode("ascii", "replace"), np.uint8).astype("int32")
    size = (len(codes) - 1) // LENGTH * LENGTH
    return codes[:size].reshape(-1, LENGTH), codes[1 : size + 1].reshape(-1, LENGTH)


def load_data():
    """Python's help texts; NumPy's docstrings, of which a fifth of the rows is held out."""
    functions = [getattr(np, name) for name in sorted(dir(np)) if callable(getattr(np, name))]
    new = rows("\n".join(inspect.getdoc(each) or "" for each in functions[::3]))
    old = rows("\n".join(topics[key] for key in sorted(topics)))
    held_out = 5 * FLAGS.rows // 4
    return [part[: FLAGS.rows] for part in old], [part[:held_out] for part in new]


def inputs(tokens):
    return {"token_ids": tokens, "padding_mask": np.ones_like(tokens)}


def train(model, x, y, rate, epochs):
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile(keras.optimizers.Adam(rate), loss)
    model.fit(inputs(x), y, batch_size=FLAGS.batch_size, epochs=epochs, verbose=2)


def bits(model, x, y):
    """The bits that a character of `y` takes."""
    found = model.evaluate(x, y, batch_size=FLAGS.batch_size, verbose=0, return_dict=True)
    return found["loss"] / math.log(2)


def characters(model, x, y):
    """The bits of each character of `y`, in its order."""
    logits = model.predict(inputs(x), verbose=0)
    losses = keras.losses.sparse_categorical_crossentropy(y, logits, from_logits=True)
    return np.asarray(losses).ravel() / math.log(2)


def main(_):
    strategy = flags.strategy()
    print(tfaccel.describe(strategy))
    (x, y), (new_x, new_y) = load_data()
    kept = FLAGS.rows
    held_out = inputs(new_x[kept:]), new_y[kept:]
    shown = new_x[kept : kept + 5], new_y[kept : kept + 5]

    with strategy.scope():
        backbone = keras_hub.models.GPT2Backbone(
            vocabulary_size=128,
            num_layers=2,
            num_heads=4,
            hidden_dim=128,
            intermediate_dim=512,
            max_sequence_length=LENGTH,
            dropout=0.0,
        )
        model = keras_hub.models.GPT2CausalLM(backbone=backbone, preprocessor=None)
        train(model, x, y, 2e-3, FLAGS.epochs)
        before, plain = bits(model, *held_out), characters(model, *shown)

        backbone.enable_lora(rank=4)
        learning = sum(math.prod(weight.shape) for weight in model.trainable_weights)
        print(f"{learning:,} of {model.count_params():,} parameters learn")
        train(model, new_x[:kept], new_y[:kept], 1e-2, FLAGS.epochs)
        after = bits(model, *held_out)
    if FLAGS.picture:
        text = "".join(map(chr, shown[1].ravel()))
        lines = {"without LoRA": (text, plain), "with LoRA": (text, characters(model, *shown))}
        pictures.text(FLAGS.picture, lines, LENGTH)
    print(f"held-out bits per character: {after:.3f}, without LoRA {before:.3f}")


if __name__ == "__main__":
    FLAGS.verbosity = logging.WARNING  # app.run turns on INFO, where TensorFlow tells of every step
    flags.define(seed=1)
    absl_flags.DEFINE_integer("epochs", 5, "Passes over the texts, of either kind.")
    absl_flags.DEFINE_integer("batch_size", 16, "Rows per step, over all replicas together.")
    absl_flags.DEFINE_integer("rows", 2000, "Rows of each text to learn from.")
    absl_flags.DEFINE_string("picture", None, "Draw the result into this file.")
    app.run(main)
