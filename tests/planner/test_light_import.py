"""TensorFlow's import for a plan: without optional packages, which a builder may still import."""

from __future__ import annotations

import pytest

from tests.support import run_child

# Stand-ins: whether the real ones are installed differs from machine to machine.
SCRIPT = """
import sys, pathlib, tempfile
folder = pathlib.Path(tempfile.mkdtemp())
for name in ("jax", "sklearn"):
    (folder / name).mkdir()
    (folder / name / "__init__.py").write_text("")
sys.path.insert(0, str(folder))
from tfaccel.planner import light_import
finders = list(sys.meta_path)
light_import.import_tensorflow()
assert "tensorflow" in sys.modules and "keras" in sys.modules
assert not light_import.OPTIONAL & sys.modules.keys()
import jax, sklearn
assert jax.__file__.startswith(str(folder)), jax
import gc
assert gc.isenabled()
assert finders[0] in sys.meta_path
assert not any(type(one).__module__ == light_import.__name__ for one in sys.meta_path)
"""


@pytest.mark.slow
def test_optional_packages_are_hidden_during_the_import_alone() -> None:
    run_child(["-c", SCRIPT], full=True)


LAZY = """
import sys
from tfaccel.planner import light_import
light_import.import_tensorflow()
import tensorflow as tf
unused = "tensorflow.python.feature_column", "tensorflow.lite.python.interpreter"
assert not any(name in sys.modules for name in unused)
assert float(tf.nn.relu(-1.0)) == float(tf.compat.v1.nn.relu(-1.0)) == 0
assert tf.compat.v1.layers is not None
assert not hasattr(tf.nn, "no_such_function")
assert "conv2d" in dir(tf.nn)
assert tf.lite.Interpreter.__name__ == "Interpreter"
assert unused[1] in sys.modules
from tensorflow.compat.v1 import logging
from tensorflow.experimental import dtensor
assert dtensor.Layout is tf.experimental.dtensor.Layout
@tf.function
def step(x):
    with tf.GradientTape() as tape:
        tape.watch(x)
        waves = tf.signal.fft(tf.cast(x, tf.complex64))
        y = tf.reduce_sum(tf.linalg.inv(x)) + tf.math.real(waves)[0, 0]
    return tape.gradient(y, x)
assert step(tf.eye(2)).shape == (2, 2)
"""


@pytest.mark.slow
def test_public_modules_are_imported_when_used() -> None:
    run_child(["-c", LAZY], full=True)
