"""Many tensors as one: each message has a fixed cost, whatever its size."""

from __future__ import annotations

from collections.abc import Sequence

import tensorflow as tf


def pack(tensors: Sequence[tf.Tensor], multiple: int = 1) -> tf.Tensor:
    """All tensors concatenated, zero-padded to a multiple of `multiple`.

    >>> pack([tf.constant([[1, 2]]), tf.constant(3)], multiple=4).numpy().tolist()
    [1, 2, 3, 0]
    """
    flat = [tf.reshape(t, [-1]) for t in tensors]
    if multiple > 1:
        length = tf.add_n([tf.size(t) for t in flat])
        flat.append(tf.zeros(tf.math.floormod(-length, multiple), flat[0].dtype))
    return tf.concat(flat, axis=0)


def unpack(flat: tf.Tensor, like: Sequence[tf.Tensor]) -> list[tf.Tensor]:
    """The inverse of `pack(like)`; drops the padding."""
    sizes = tf.stack([tf.size(t) for t in like])
    parts = tf.split(flat[: tf.reduce_sum(sizes)], sizes, num=len(like))
    shaped = (tf.reshape(part, tf.shape(t)) for part, t in zip(parts, like, strict=True))
    return [tf.ensure_shape(part, t.shape) for part, t in zip(shaped, like, strict=True)]
