"""A captured content is a copy, in memory that is used again."""

from __future__ import annotations

import numpy as np
import tensorflow as tf

from tfaccel.checkpoint.host_buffer import HostBuffer
from tfaccel.checkpoint.tensor_file import Shard, TensorFile

PIECES = [np.arange(200, dtype=np.uint8), np.empty(0, np.uint8), np.arange(9, dtype=np.uint8)]


def test_the_content_keeps_its_values_when_a_variable_is_updated() -> None:
    variable = tf.Variable([1.0, 2.0])
    file = TensorFile([Shard("v", tf.convert_to_tensor(variable))])
    content = HostBuffer().fill(file.size, file.pieces())
    variable.assign_add([1.0, 1.0])
    variable.assign_add([1.0, 1.0])
    assert content.size == file.size
    np.testing.assert_array_equal(content[-8:].view(np.float32), [1.0, 2.0])


def test_the_next_content_is_in_the_memory_of_the_last_where_it_fits() -> None:
    buffer = HostBuffer()
    first = buffer.fill(209, PIECES)
    np.testing.assert_array_equal(first, np.concatenate(PIECES))
    second = buffer.fill(9, PIECES[2:])
    assert second.ctypes.data == first.ctypes.data
    np.testing.assert_array_equal(second, PIECES[2])
    large = [*PIECES, np.random.default_rng(0).integers(0, 256, 5_000_001, np.uint8), *PIECES]
    larger = buffer.fill(sum(piece.size for piece in large), large)
    np.testing.assert_array_equal(larger, np.concatenate(large))


def test_memory_is_reserved_before_the_first_content() -> None:
    buffer = HostBuffer()
    buffer.reserve(5000)
    assert buffer._reserving is not None
    buffer._reserving.join()
    reserved = buffer._memory
    content = buffer.fill(209, PIECES)
    assert content.ctypes.data == reserved.ctypes.data
    assert content.ctypes.data % 4096 == 0
