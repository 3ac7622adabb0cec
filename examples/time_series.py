"""Forecasts a chaotic series with an LSTM: the equation of Mackey and Glass (1977), no download.

    python examples/time_series.py                              # what fits this machine
    python examples/time_series.py --strategy=mirrored --device_type=cpu --devices=2
    tfaccel launch --nproc 2 examples/time_series.py --strategy=multi_worker_mirrored

From 64 values it says the one 12 steps later. The last fifth of the series is held out; windows are
cut by `keras.utils.timeseries_dataset_from_array`.

The error (root mean square) is at most a quarter of "it stays as it is" under every strategy.
"""

import keras
import numpy as np
from absl import app, logging
from absl import flags as absl_flags
from keras import layers

import pictures
import tfaccel
from tfaccel import flags

FLAGS = absl_flags.FLAGS
WINDOW, AHEAD = 64, 12


def series(length, delay=17):
    """The Mackey-Glass equation with steps of 1: dx/dt = 0.2 x(t-17) / (1 + x(t-17)^10) - 0.1 x."""
    x = list(1.2 + 0.1 * np.sin(np.arange(delay + 1)))
    for _ in range(length + 200):
        x.append(0.9 * x[-1] + 0.2 * x[-delay - 1] / (1 + x[-delay - 1] ** 10))
    return np.array(x[-length:], "float32")


def windows(values, shuffle):
    """Batches of windows `(batch, WINDOW, 1)` and what comes `AHEAD` steps after each."""
    return keras.utils.timeseries_dataset_from_array(
        values[: -AHEAD + 1, None],
        values[WINDOW + AHEAD - 1 :, None],
        WINDOW,
        batch_size=FLAGS.batch_size,
        shuffle=shuffle,
        seed=1,
    )


def build_model():
    return keras.Sequential(
        [keras.Input((WINDOW, 1)), layers.LSTM(32), layers.Dense(1, dtype="float32")]
    )


def main(_):
    strategy = flags.strategy()
    print(tfaccel.describe(strategy))
    values = series(2500)
    values = (values - values[:2000].mean()) / values[:2000].std()

    with strategy.scope():
        model = build_model()
        metric = keras.metrics.RootMeanSquaredError(name="error")
        model.compile(keras.optimizers.Adam(5e-3), "mse", metrics=[metric])
    model.fit(windows(values[:2000], shuffle=True), epochs=FLAGS.epochs, verbose=2)
    found = model.evaluate(windows(values[2000:], shuffle=False), verbose=0, return_dict=True)
    still = np.sqrt(np.mean((values[2000 + AHEAD :] - values[2000:-AHEAD]) ** 2))
    if FLAGS.picture:
        forecast = model.predict(windows(values[2000:], shuffle=False), verbose=0)[:, 0]
        lines = {
            "the series": values[2000 + WINDOW + AHEAD - 1 :],
            "forecast 12 steps before": forecast,
        }
        pictures.curves(FLAGS.picture, lines, "step", "value")
    print(f"held-out error: {found['error']:.4f}, as it is {still:.4f}")


if __name__ == "__main__":
    FLAGS.verbosity = logging.WARNING  # app.run turns on INFO, where TensorFlow tells of every step
    flags.define(seed=1)
    absl_flags.DEFINE_integer("epochs", 15, "Passes over the windows.")
    absl_flags.DEFINE_integer("batch_size", 64, "Windows per step, over all replicas together.")
    absl_flags.DEFINE_string("picture", None, "Draw the result into this file.")
    app.run(main)
