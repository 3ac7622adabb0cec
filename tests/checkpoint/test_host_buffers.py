"""Captured tensors are copies of any type, in memory that is used again."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import tensorflow as tf

from tfaccel.checkpoint.host_buffers import HostBuffers

NUMBERS = [tf.float16, tf.bfloat16, tf.float32, tf.float64, tf.int32, tf.int64, tf.uint16]
OTHERS = [tf.bool, tf.int8, tf.uint8, tf.complex64, tf.complex128, tf.dtypes.experimental.int4]


def address(tensor: tf.Tensor) -> int:
    return int(np.asarray(tensor).ctypes.data)


def values(dtype: Any, shape: tuple[int, ...] = (2, 3)) -> tf.Tensor:
    return tf.cast(tf.reshape(tf.range(int(np.prod(shape))) % 7, shape), dtype)


@pytest.mark.parametrize("dtype", [*NUMBERS, *OTHERS], ids=lambda dtype: dtype.name)
def test_every_type_is_copied(dtype: Any) -> None:
    buffers = HostBuffers()
    for shape in ((2, 3), (), (0, 3)):
        tensor = values(dtype, shape)
        (copy,) = buffers.copy([tensor])
        assert (copy.dtype, copy.shape) == (tensor.dtype, tensor.shape)
        np.testing.assert_array_equal(copy.numpy(), tensor.numpy())


def test_strings_are_copied() -> None:
    (copy,) = HostBuffers().copy([tf.constant(["a", "b"])])
    assert copy.numpy().tolist() == [b"a", b"b"]


@pytest.mark.parametrize("dtype", [tf.float32, tf.bfloat16, tf.int8], ids=lambda dtype: dtype.name)
def test_a_copy_keeps_its_values_when_the_variable_is_updated(dtype: Any) -> None:
    variable = tf.Variable(values(dtype))
    (copy,) = HostBuffers().copy([tf.convert_to_tensor(variable)])
    variable.assign_add(values(dtype))
    variable.assign_add(values(dtype))
    np.testing.assert_array_equal(np.asarray(copy), np.asarray(values(dtype)))


def test_the_next_copies_are_in_the_memory_of_the_last() -> None:
    buffers = HostBuffers()
    tensors = [values(tf.float32), values(tf.bfloat16)]
    first = [address(copy) for copy in buffers.copy(tensors)]
    assert [address(copy) for copy in buffers.copy(tensors)] == first
    (larger,) = buffers.copy([values(tf.float32, (4, 3))])
    np.testing.assert_array_equal(larger, values(tf.float32, (4, 3)))


def test_memory_is_reserved_before_the_first_copy() -> None:
    buffers = HostBuffers()
    buffers.reserve([values(tf.float32), values(tf.bool)])
    assert buffers._reserving is not None
    buffers._reserving.join()
    (reserved,) = buffers._buffers.values()
    numbers, _ = buffers.copy([values(tf.float32), values(tf.bool)])
    assert address(numbers) == reserved.ctypes.data
