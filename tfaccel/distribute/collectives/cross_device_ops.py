"""How one device takes part in a collective of all devices of all workers."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import tensorflow as tf

from tfaccel.distribute import _private
from tfaccel.distribute.collectives.ops import WorkerCollectives
from tfaccel.distribute.step import transport_dtype


class CrossWorkerCollectives(_private.CollectiveAllReduce):  # type: ignore[misc]
    """TensorFlow's collectives among the devices of a worker, MPI among the workers.

    Args:
        devices: of this worker.
        workers: the collectives between workers.
        options: TensorFlow's, for the devices of this worker.
        keys: TensorFlow's collective keys.
    """

    def __init__(
        self, devices: Sequence[str], workers: WorkerCollectives, options: Any, keys: Any
    ) -> None:
        super().__init__(devices, len(devices), options, keys)
        self._group_size = len(devices) * workers.size  # the divisor of a mean
        launchers: list[Any] = self._launchers  # type: ignore[has-type]
        self._launchers = [
            _Launcher(local, i, len(devices), workers) for i, local in enumerate(launchers)
        ]


class _Launcher:
    """One device's part; the first device represents its worker, the others get its result."""

    def __init__(self, local: Any, index: int, devices: int, workers: WorkerCollectives) -> None:
        self._local = local
        self._is_first_device = index == 0
        self._alone = devices == 1
        self._workers = workers

    def can_order_nccl(self) -> bool:
        return bool(self._local.can_order_nccl())

    def batch_all_reduce(self, packs: list[list[tf.Tensor]], options: Any) -> list[tf.Tensor]:
        if self._alone:
            return self._in_reverse(tf.nest.flatten(packs))
        # Within a worker 16 bits gain nothing, and TensorFlow cannot add them on CPUs.
        gradients = tf.nest.flatten(packs)
        wide = [[tf.cast(t, transport_dtype(t.dtype)) for t in pack] for pack in packs]
        sums = self._local.batch_all_reduce(wide, options)
        if self._is_first_device:
            narrow = [tf.cast(s, g.dtype) for s, g in zip(sums, gradients, strict=True)]
            totals = self._in_reverse(narrow)
        else:
            totals = [tf.zeros_like(g) for g in gradients]
        wide = [tf.cast(t, transport_dtype(t.dtype)) for t in totals]
        sums = self._local.batch_all_reduce([wide], options)
        return [tf.cast(s, g.dtype) for s, g in zip(sums, gradients, strict=True)]

    def _in_reverse(self, values: list[tf.Tensor]) -> list[tf.Tensor]:
        # TensorFlow passes gradients in reverse order, and so does this: undo one of the two.
        return self._workers.sum(values[::-1])[::-1]

    def all_reduce_indexed_slices(self, slices: tf.IndexedSlices, options: Any) -> tf.IndexedSlices:
        values, indices = (
            self.all_gather(part, 0, options) for part in (slices.values, slices.indices)
        )
        return tf.IndexedSlices(values, indices, slices.dense_shape)

    def all_gather(self, value: tf.Tensor, axis: Any, options: Any) -> tf.Tensor:
        axis = int(tf.get_static_value(axis))
        if self._alone:
            return self._workers.gather(value, axis)
        local = self._gather_local(value, axis, options)
        nothing = tf.gather(local, tf.zeros([0], tf.int32), axis=axis)
        whole = self._workers.gather(local, axis) if self._is_first_device else nothing
        return self._gather_local(whole, axis, options)

    def _gather_local(self, value: tf.Tensor, axis: int, options: Any) -> tf.Tensor:
        """Gathers among the devices of this worker.

        TensorFlow 2.21 crashes when all of them are empty, so each sends one extra slice, which is
        removed again.
        """
        shape = tf.unstack(tf.shape(value))
        extra_slice = tf.zeros([*shape[:axis], 1, *shape[axis + 1 :]], value.dtype)
        mask = tf.concat([[0], tf.ones([shape[axis]], tf.int32)], 0)
        gathered = self._local.all_gather(tf.concat([extra_slice, value], axis), axis, options)
        keep = self._local.all_gather(mask, 0, options)
        return tf.boolean_mask(gathered, tf.equal(keep, 1), axis=axis)
