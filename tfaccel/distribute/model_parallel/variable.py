"""A variable stored on the mesh that looks like any other to Keras."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import tensorflow as tf
from tensorflow.experimental import dtensor

from tfaccel.distribute import _private
from tfaccel.distribute.model_parallel import (
    fork,
    host_copies,
    host_transfer,
    phase,
    user_functions,
)
from tfaccel.distribute.model_parallel.layout_planner import VariablePlan

# A user's function calls these, which AutoGraph would convert with it, and cannot.
_not_converted = tf.autograph.experimental.do_not_convert


class MeshVariable(_private.ReadByValue, dtensor.DVariable):  # type: ignore[misc]
    """A DTensor inside a step; on the host it reads and assigns whole arrays.

    Args:
        initial_value: on the host.
        plan: its layout on the mesh.
        mesh: a DTensor mesh.
        strategy: the strategy that owns it.
        **kwargs: as for `tf.Variable`.

    Attributes:
        plan: its layout on the mesh.
        in_datasets: a copy on the host, for functions of datasets that use it.
        drawn: whether such a function assigns to it.
    """

    in_datasets: Any = None
    drawn = False
    _seen_by_tapes: Any = None

    def __init__(
        self, *, initial_value: Any, plan: VariablePlan, mesh: Any, strategy: Any, **kwargs: Any
    ) -> None:
        self.plan = plan
        self._owner = weakref.ref(strategy)
        self._mesh = mesh
        self._gathered = plan.storage != plan.compute
        super().__init__(host_transfer.scatter(initial_value, plan.storage, mesh), **kwargs)
        if strategy.created_variables is not None:
            strategy.created_variables.append((self, self.stored()))

    @property
    def distribute_strategy(self) -> Any:
        """The strategy under whose scope it was made."""
        return self._owner()

    def reads_by_value(self) -> bool:
        """On the host, every process reads the whole value."""
        return host_copies.in_use() or phase.current() in (phase.HOST, phase.COPY)

    @property
    def handle(self) -> Any:
        """The handle read and assigned here; gradients are with respect to it."""
        copied = host_copies.current()
        return super().handle if copied is None else copied.of(self).handle

    def stored(self) -> tf.Tensor:
        """The stored value: a DTensor."""
        fork.check()
        return super().read_value()

    def store(self, value: tf.Tensor) -> None:
        """Sets the value to one returned by `stored`."""
        super().assign(value)

    def numpy(self) -> np.ndarray:
        """The whole value; with several processes, every one of them must call."""
        if host_copies.in_use():
            return host_copies.current().of(self).numpy()  # type: ignore[union-attr, no-any-return]
        gathered = self._owner().gathered_values  # type: ignore[union-attr]
        if gathered is not None:
            if id(self) not in gathered:
                raise KeyError(f"{self.name!r} is not a variable of the model")
            return gathered[id(self)]  # type: ignore[no-any-return]
        with tf.init_scope():
            if self.drawn:
                return self.in_datasets.numpy()  # type: ignore[no-any-return]
            return host_transfer.gather(self.stored())

    def shards(self) -> Iterator[tuple[host_transfer.Slices, tf.Tensor]]:
        """The slices on the devices of this process, without duplicates of other processes.

        Over all processes every slice appears once: from the first device that holds it.
        """
        shape, storage = tuple(self.shape), self.plan.storage
        parts = dtensor.unpack(self.stored())
        for place, part in zip(self._mesh.local_device_locations(), parts, strict=True):
            if all(place[axis] == 0 for axis in place if axis not in storage):
                yield host_transfer.slices_of(storage, shape, self._mesh, place), part

    def assign_shards(self, read: Callable[[host_transfer.Slices], Any]) -> None:
        """Sets the value from slices; each process reads those of its own devices."""
        shape = tuple(self.shape)
        super().assign(host_transfer.scatter_from(read, shape, self.plan.storage, self._mesh))

    @property
    def on_tape(self) -> Any:
        """The copy read on the host while a tape records; None in a step, or before."""
        return self._seen_by_tapes if phase.current() == phase.HOST else None

    def _watched(self) -> tf.Tensor:
        """The whole value on the host, differentiable by a tape."""
        value = self.numpy()
        if self._seen_by_tapes is None:
            with phase.entered(phase.COPY), tf.device("/CPU:0"):
                self._seen_by_tapes = tf.Variable(value, trainable=self.trainable)
        else:
            self._seen_by_tapes.assign(value)
        return self._seen_by_tapes.value()

    def _used(self) -> None:
        user_functions.before_use(self._owner())

    @_not_converted
    def value(self) -> tf.Tensor:
        """A DTensor in its compute layout; on the host, the whole value."""
        self._used()
        if (copied := host_copies.current()) is not None:
            return copied.of(self).value()
        if phase.current() == phase.HOST and tf.executing_eagerly():
            if _private.is_recording():
                return self._watched()
            return tf.convert_to_tensor(self.numpy())
        stored = super().value()
        # On the host a graph is for a file (SavedModel), to be read on other devices.
        if not any(self.plan.storage) or phase.current() != phase.STEP:
            return stored
        return self._as_computed(stored)

    def read_value(self) -> tf.Tensor:
        """As `value`."""
        return self.value()

    @_not_converted
    def sparse_read(self, indices: Any, name: Any = None) -> tf.Tensor:
        """The rows at `indices`."""
        if (copied := host_copies.current()) is not None:
            return copied.of(self).sparse_read(indices, name)
        if self.reads_by_value() or self._gathered:
            return tf.gather(self.value(), indices)
        return super().sparse_read(indices, name)

    def gather_nd(self, indices: Any, name: Any = None) -> tf.Tensor:
        """The slices at `indices`."""
        return tf.gather_nd(self.value(), indices)

    @_not_converted
    def assign(self, value: Any, *args: Any, **kwargs: Any) -> Any:
        """Sets the value, from a DTensor in a step, or from an array on the host."""
        self._used()
        if (copied := host_copies.current()) is not None:
            return copied.of(self, assigned=True).assign(value, *args, **kwargs)
        if self.in_datasets is not None and tf.executing_eagerly():
            self.in_datasets.assign(value)
        return super().assign(self._laid_out(value), *args, **kwargs)

    @_not_converted
    def assign_add(self, delta: Any, *args: Any, **kwargs: Any) -> Any:
        """Adds to the value."""
        self._used()
        if (copied := host_copies.current()) is not None:
            return copied.of(self, assigned=True).assign_add(delta, *args, **kwargs)
        return super().assign_add(self._laid_out(delta), *args, **kwargs)

    @_not_converted
    def assign_sub(self, delta: Any, *args: Any, **kwargs: Any) -> Any:
        """Subtracts from the value."""
        self._used()
        if (copied := host_copies.current()) is not None:
            return copied.of(self, assigned=True).assign_sub(delta, *args, **kwargs)
        return super().assign_sub(self._laid_out(delta), *args, **kwargs)

    def scatter_add(self, slices: tf.IndexedSlices, *args: Any, **kwargs: Any) -> Any:
        """Adds rows, densely: DTensor cannot lay out ResourceScatter operations."""
        return self.assign_add(tf.convert_to_tensor(slices))

    def scatter_sub(self, slices: tf.IndexedSlices, *args: Any, **kwargs: Any) -> Any:
        """Subtracts rows, densely."""
        return self.assign_sub(tf.convert_to_tensor(slices))

    def scatter_update(self, slices: tf.IndexedSlices, *args: Any, **kwargs: Any) -> Any:
        """Replaces rows, densely."""
        indices = slices.indices[:, None]
        return self.assign(tf.tensor_scatter_nd_update(self.value(), indices, slices.values))

    def _as_computed(self, stored: tf.Tensor) -> tf.Tensor:
        """`stored` in its compute layout; its gradient comes back in its storage layout.

        DTensor would lay out a gradient as its consumers prefer (the check of a loss scale: whole),
        and cannot always do so: the sum that makes a bias's gradient does not gather.
        """
        compute, storage = (
            host_transfer.layout(a, self._mesh) for a in (self.plan.compute, self.plan.storage)
        )

        @tf.custom_gradient
        def laid_out(stored: tf.Tensor) -> Any:
            def back(gradient: Any) -> Any:
                if isinstance(gradient, tf.IndexedSlices):
                    return gradient  # of an embedding: optimizers count its rows one by one
                # In two steps, or the storage layout propagates to the operations that made the
                # gradient, some of which DTensor then cannot expand.
                return dtensor.relayout(dtensor.relayout(gradient, compute), storage)

            return dtensor.relayout(stored, compute), back

        return laid_out(stored)

    def _laid_out(self, value: Any) -> Any:
        if phase.current() == phase.HOST and tf.executing_eagerly():
            value = np.asarray(value, self.dtype.as_numpy_dtype)
            whole = np.broadcast_to(value, self.shape) if value.ndim == 0 else value
            if whole.shape != tuple(self.shape):
                return value  # TensorFlow raises the error
            return host_transfer.scatter(whole, self.plan.storage, self._mesh)
        value = tf.convert_to_tensor(value, self.dtype)
        if value.shape.rank != len(self.plan.storage):
            return value
        return dtensor.relayout(value, host_transfer.layout(self.plan.storage, self._mesh))

    def _gather_saveables_for_checkpoint(self) -> dict[str, Any]:
        return tf.Variable._gather_saveables_for_checkpoint(self)  # type: ignore[no-any-return]

    def _serialize_to_tensors(self) -> dict[str, tf.Tensor]:
        return {"VARIABLE_VALUE": tf.convert_to_tensor(self.numpy())}

    def _restore_from_tensors(self, restored: dict[str, tf.Tensor]) -> Any:
        return self.assign(restored["VARIABLE_VALUE"])

    def _copy_trackable_to_cpu(self, object_map: Any) -> None:
        if self not in object_map:
            object_map[self] = tf.Variable(self.numpy(), name=self.name.partition(":")[0])
        else:
            object_map[self].assign(self.numpy())
