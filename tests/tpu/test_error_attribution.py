"""The layer and the line that an operation came from; no TPU's compiler is asked."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import keras
import pytest
import tensorflow as tf
from keras import layers

from tests.tpu import builders
from tfaccel.target import load
from tfaccel.tpu.error_attribution import UnsupportedError
from tfaccel.tpu.lower import lower
from tfaccel.tpu.source_location import own_line

pytestmark = pytest.mark.child(group="tpu-check")

BUILDERS = builders.__file__


def line_of(text: str) -> int:
    lines = Path(BUILDERS).read_text().splitlines()
    return next(i for i, line in enumerate(lines, 1) if text in line)


def refusal(builder: str) -> str:
    with pytest.raises(UnsupportedError) as error:
        lower(load(f"{BUILDERS}:{builder}"), 8)
    assert len(str(error.value).splitlines()) == 1
    return str(error.value)


@pytest.mark.parametrize(
    ("builder", "operation", "layer", "text"),
    [
        ("py_function", "EagerPyFunc", "on_the_host", "tf.py_function"),
        ("printing", "StringFormat", "says", "tf.print"),
        ("inner_gamma", "StatelessRandomGammaV3", "drawn", "stateless_gamma"),
    ],
)
def test_a_layer_of_one_s_own(builder: str, operation: str, layer: str, text: str) -> None:
    said = refusal(builder)
    assert said.startswith(
        f"operation {operation} (layer '{layer}', builders.py line {line_of(text)}) cannot be"
    )


def test_a_layer_of_keras_is_named_with_keras_s_line() -> None:
    said = refusal("rotated")
    assert "ImageProjectiveTransformV3 (layer 'random_rotation', random_rotation.py line" in said


@pytest.mark.parametrize(
    ("builder", "says"),
    [
        ("strings", "operation LookupTableFindV2 (layer 'string_lookup', index_lookup.py line"),
        ("integers", "operation LookupTableFindV2 (layer 'integer_lookup', index_lookup.py line"),
        ("hashed", "operation StringToHashBucketFast (layer 'hashing', hashing.py line"),
    ],
)
def test_tables_and_strings_which_xla_cannot_name(builder: str, says: str) -> None:
    assert says in refusal(builder)


def frame(file: str) -> tuple[str, str, str]:
    return file, "7", "f"


@pytest.mark.parametrize(
    ("files", "says"),
    [
        (["<frozen runpy>"], ""),
        (["/home/me/tfaccel/train.py"], ", train.py line 7"),
        (["/home/me/keras/a.py", tf.__file__, "<string>"], ", a.py line 7"),
        ([keras.layers.__file__, tf.__file__], ""),
        ([sys.modules["tfaccel"].__file__, layers.Dense.call.__code__.co_filename], "own"),
    ],
)
def test_the_line_is_one_s_own_wherever_that_lies(files: list[Any], says: str) -> None:
    found = own_line(map(frame, files))
    if says == "own":
        assert found.endswith(".py line 7")
        assert "__init__" not in found
    else:
        assert found == says
