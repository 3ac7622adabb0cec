"""From handwritten digits to checked firmware: trained quantized under a strategy, then exported.

    python examples/digits_fpga.py
    python examples/digits_fpga.py --strategy=mirrored --device_type=cpu --devices=2

Needs `pip install 'tfaccel[fpga]'` and g++; no FPGA and no vendor tool. The firmware is emulated
bit by bit on the held-out images, and its answers are those of the quantized Keras model.
"""

import keras
from absl import app, logging
from absl import flags as absl_flags
from keras import layers

import pictures
import tfaccel
from digits import load_data
from tfaccel import flags

FLAGS = absl_flags.FLAGS


def build_model():
    return keras.Sequential(
        [
            keras.Input((8, 8, 1)),
            layers.Conv2D(8, 3, activation="relu"),
            layers.MaxPooling2D(),
            layers.Flatten(),
            layers.Dense(32, activation="relu"),
            layers.Dense(10, activation="softmax"),
        ],
        name="digits",
    )


def main(_):
    strategy = flags.strategy()
    print(tfaccel.describe(strategy))
    x, x_held_out, y, y_held_out = load_data()

    with strategy.scope():
        model = tfaccel.fpga.quantize(build_model(), beta=FLAGS.beta)
        model.compile(
            optimizer=keras.optimizers.Adam(5e-3),
            loss=keras.losses.SparseCategoricalCrossentropy(),
            metrics=["accuracy"],
        )
    model.fit(x, y, batch_size=64, epochs=FLAGS.epochs, verbose=2)

    report = tfaccel.export_fpga(model, FLAGS.out, check=(x_held_out, y_held_out), calibrate=x)
    if FLAGS.picture:
        firmware = tfaccel.fpga.emulate(report.directory, x_held_out)
        trained = model.predict(x_held_out, verbose=0)
        pictures.scatter(
            FLAGS.picture, trained, firmware, "the Keras model's outputs", "the firmware's outputs"
        )
    if tfaccel.is_chief(strategy):
        report.show()  # its last line: bit-exact on N of N rows


if __name__ == "__main__":
    FLAGS.verbosity = logging.WARNING  # app.run turns on INFO, where TensorFlow tells of every step
    flags.define(seed=1)
    absl_flags.DEFINE_integer("epochs", 20, "Passes over the images.", lower_bound=1)
    absl_flags.DEFINE_float("beta", 1e-6, "What a bit operation costs in the loss.")
    absl_flags.DEFINE_string("out", "digits_fpga", "Directory of the firmware.")
    absl_flags.DEFINE_string("picture", None, "Draw the result into this file.")
    app.run(main)
