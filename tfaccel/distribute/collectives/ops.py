"""Collectives between workers as TensorFlow operations."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import tensorflow as tf

from tfaccel.distribute.collectives import buckets
from tfaccel.distribute.collectives.communicator import Communicator
from tfaccel.distribute.worker_activity import worker_activity

_HALF_PRECISION = (tf.float16, tf.bfloat16)


class WorkerCollectives:
    """The operations of a `Communicator` on tensors, eagerly or in a graph.

    In a graph collectives run in creation order, which is the same on every worker because all
    trace the same program. They may be in a `tf.cond` or `tf.while_loop` that takes the same path
    on every worker.

    Args:
        communicator: the workers.
        bucket_bytes: tensors smaller than this are sent together, up to this many bytes.
    """

    def __init__(self, communicator: Communicator, bucket_bytes: int) -> None:
        self._communicator = communicator
        self._bucket_bytes = bucket_bytes
        with tf.init_scope(), tf.device("/CPU:0"):
            self._order = tf.Variable(0, trainable=False, name="order_of_collectives")

    @property
    def size(self) -> int:
        """The number of workers."""
        return self._communicator.size

    def sum(self, tensors: Sequence[tf.Tensor]) -> list[tf.Tensor]:
        """Sums each tensor over all workers, in buckets, last one first.

        16-bit floats are sent unchanged and added as float32; results are bit-identical on all
        workers.

        Args:
            tensors: numbers; the same shapes and dtypes on every worker.
        """
        tensors = [tf.convert_to_tensor(t) for t in tensors]
        operands = [tf.cast(t, tf.int32) if t.dtype.is_bool else t for t in tensors]
        sizes = [_bytes(t) for t in operands]
        sums: list[Any] = [None] * len(operands)
        for bucket in buckets.plan(sizes, [t.dtype for t in operands], self._bucket_bytes):
            chosen = [operands[i] for i in bucket]
            if chosen[0].dtype in _HALF_PRECISION:
                totals = self._sum_narrow(chosen)
            else:
                totals = self._call(self._communicator.sum, chosen)
            for i, total in zip(bucket, totals, strict=True):
                sums[i] = tf.cast(tf.ensure_shape(total, operands[i].shape), tensors[i].dtype)
        return sums

    def _sum_narrow(self, tensors: list[tf.Tensor]) -> list[tf.Tensor]:
        """Sums in one message of 16-bit floats: each worker sums a part and sends it to all."""
        dtype = tensors[0].dtype
        flat = tf.concat([tf.reshape(t, [-1]) for t in tensors], 0)
        length = tf.size(flat)
        flat = tf.pad(flat, [[0, -length % self.size]])
        parts = tf.reshape(tf.bitcast(flat, tf.uint16), [self.size, -1])
        (parts,) = self._call(lambda a: [self._communicator.exchange(a[0])], [parts])
        parts = tf.cast(tf.bitcast(parts, dtype), tf.float32)
        total = tf.bitcast(tf.cast(tf.reduce_sum(parts, 0), dtype), tf.uint16)
        (whole,) = self._call(lambda a: [self._communicator.all_gatherv(a[0])], [total])
        split = tf.split(tf.bitcast(whole, dtype)[:length], [tf.size(t) for t in tensors])
        return [tf.reshape(s, tf.shape(t)) for s, t in zip(split, tensors, strict=True)]

    def gather(self, tensor: tf.Tensor, axis: int = 0) -> tf.Tensor:
        """Concatenates the tensors of all workers along `axis`, in rank order.

        Args:
            tensor: any dtype but strings; its size along `axis` may differ between workers.
            axis: where to concatenate.
        """
        # Sent as bytes, as bfloat16 and booleans would not be bytes to NumPy.
        (whole,) = self._call(
            lambda arrays: [self._communicator.gather(arrays[0], axis)], [_to_numpy_dtype(tensor)]
        )
        shape = tensor.shape.as_list()
        shape[axis] = None
        return _to_original_dtype(tf.ensure_shape(whole, shape), tensor.dtype)

    def broadcast(self, tensor: tf.Tensor) -> tf.Tensor:
        """Worker 0's tensor.

        Args:
            tensor: any dtype but strings; the same dtype and shape on every worker.
        """
        (sent,) = self._call(
            lambda arrays: [self._communicator.broadcast(arrays[0])], [_to_numpy_dtype(tensor)]
        )
        return _to_original_dtype(tf.ensure_shape(sent, tensor.shape), tensor.dtype)

    def _call(
        self,
        collective: Callable[[Sequence[np.ndarray]], list[np.ndarray]],
        operands: list[tf.Tensor],
    ) -> list[tf.Tensor]:
        """Runs `collective` on the arrays of `operands`, after all collectives created before it.

        Tracing keeps the order of operations that share a variable, including branches and loops
        that use it: so each collective is between two accesses of one. It must not be a stateful
        operation itself: those run one after the other, all replicas of this worker in a row, and
        may wait for a later one. The second access adds the result of the collective, since
        TensorFlow prunes unused operations from a graph, and a worker may use fewer results of a
        collective than the others.
        """
        collective = worker_activity.in_mpi(collective)
        with tf.device("/CPU:0"):
            if tf.executing_eagerly():
                return [tf.convert_to_tensor(a) for a in collective([t.numpy() for t in operands])]
            turn = self._order.assign_add(1)
            next_turn, *results = tf.numpy_function(
                lambda turn, *arrays: [np.int32(1), *collective(arrays)],
                [turn, *operands],
                [tf.int32, *(t.dtype for t in operands)],
                stateful=False,
            )
            self._order.assign_add(tf.ensure_shape(next_turn, []), read_value=False)
            return list(results)


def _bytes(tensor: tf.Tensor) -> int:
    elements = tensor.shape.num_elements()
    return (elements if elements is not None else 0) * int(tensor.dtype.size)


def _to_numpy_dtype(tensor: tf.Tensor) -> tf.Tensor:
    return tf.bitcast(tensor, tf.uint16) if tensor.dtype == tf.bfloat16 else tensor


def _to_original_dtype(tensor: tf.Tensor, dtype: tf.DType) -> tf.Tensor:
    return tf.bitcast(tensor, dtype) if dtype == tf.bfloat16 else tensor
