"""Two-byte floats summed in float32, over collectives that would sum them in two bytes.

A ring all-reduce in bfloat16 rounds at every replica. Here every replica gets its own part of all
replicas' numbers (an all-to-all), sums it in float32, rounds it once, and sends it to all (an
all-gather). As many bytes are sent as in a ring, `2 * (n - 1) / n` times two for each number, and
as each part is summed in one place only, all replicas hold bit-identical results.
"""

from __future__ import annotations

from typing import Any

import tensorflow as tf

from tfaccel.distribute import _private, step
from tfaccel.distribute.compression.pack import pack, unpack

_TWO_BYTES = (tf.bfloat16, tf.float16)


def all_reduce_sum(values: list[Any]) -> list[Any]:
    """Sums tensors and IndexedSlices over all replicas, two-byte floats in float32.

    Eagerly replicas run one after the other and cannot meet in an exchange, and on GPUs NCCL does
    its own sums: there two-byte floats are summed without conversion.
    """
    values = list(values)
    sums = dict[int, Any]()
    for dtype in _TWO_BYTES:
        dense = [i for i, v in enumerate(values) if _is_dense(v) and v.dtype == dtype]
        if dense and _private.exchange_group_size():
            sums |= zip(dense, _all_reduce_by_exchange([values[i] for i in dense]), strict=True)
    others = [i for i in range(len(values)) if i not in sums]
    if others:
        sums |= zip(others, step.all_reduce_sum([values[i] for i in others]), strict=True)
    return [sums[i] for i in range(len(values))]


def _all_reduce_by_exchange(tensors: list[tf.Tensor]) -> list[tf.Tensor]:
    replicas = _private.exchange_group_size()
    dtype = tensors[0].dtype
    # Two numbers are sent as one int32: TensorFlow's gather does not support bfloat16.
    parts = tf.reshape(pack(tensors, multiple=2 * replicas), [replicas, -1, 2])
    received = tf.bitcast(_private.all_to_all(tf.bitcast(parts, tf.int32)), dtype)
    total = tf.cast(tf.reduce_sum(tf.cast(received, tf.float32), axis=0), dtype)
    everyones = tf.bitcast(_private.all_gather(tf.bitcast(total, tf.int32)), dtype)
    return unpack(tf.reshape(everyones, [-1]), tensors)


def _is_dense(value: Any) -> bool:
    return not isinstance(value, tf.IndexedSlices)
