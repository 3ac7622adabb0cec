"""Transfers values between the host and the mesh, one slice per device."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import tensorflow as tf
from tensorflow.experimental import dtensor

from tfaccel.distribute.model_parallel.layout_map import Axes

Slices = tuple[slice, ...]


def layout(axes: Axes, mesh: Any) -> Any:
    """DTensor's layout for `axes`, on a DTensor `mesh`."""
    return dtensor.Layout([axis or dtensor.UNSHARDED for axis in axes], mesh)


def slices_of(axes: Axes, shape: tuple[int, ...], mesh: Any, place: Mapping[str, int]) -> Slices:
    """The part of an array of `shape` that the device at `place` holds.

    Args:
        axes: the axis of each dimension, or None.
        shape: the global shape.
        mesh: a DTensor mesh.
        place: the device's coordinate on each axis.
    """
    slices = []
    for axis, size in zip(axes, shape, strict=True):
        if axis is None:
            slices.append(slice(None))
        else:
            part = size // mesh.dim_size(axis)
            slices.append(slice(place[axis] * part, (place[axis] + 1) * part))
    return tuple(slices)


def scatter(value: Any, axes: Axes, mesh: Any) -> tf.Tensor:
    """Puts a host array or tensor on the mesh; each device gets only its slice.

    Args:
        value: of a shape whose sharded dimensions divide.
        axes: the axis of each dimension, or None.
        mesh: a DTensor mesh.
    """
    if not any(axes):
        return scatter_from(lambda slices: value, tuple(value.shape), axes, mesh)
    array = np.asarray(value)
    # A copy of each slice: TensorFlow's own would share, and thus keep alive, the memory of the
    # whole.
    return scatter_from(lambda slices: array[slices].copy(), array.shape, axes, mesh)


def scatter_from(
    read: Callable[[Slices], Any], shape: tuple[int, ...], axes: Axes, mesh: Any
) -> tf.Tensor:
    """As `scatter`, for a value that `read` returns one slice at a time."""
    with tf.device("/CPU:0"):
        parts: dict[Any, tf.Tensor] = {}
        packed = []
        for place in mesh.local_device_locations():
            slices = slices_of(axes, shape, mesh, place)
            key = tuple((s.start, s.stop) for s in slices)
            if key not in parts:
                parts[key] = tf.convert_to_tensor(read(slices))
            packed.append(parts[key])
    return dtensor.pack(packed, layout(axes, mesh))


def is_on_mesh(value: Any) -> bool:
    """Whether `value` is an eager tensor of a mesh."""
    return tf.is_tensor(value) and hasattr(value, "numpy") and bool(dtensor.is_dtensor(value))


def gather(tensor: tf.Tensor) -> np.ndarray:
    """The whole value of a DTensor on the host.

    With several processes every one of them must call, as it fetches slices of the others.
    """
    layout = dtensor.fetch_layout(tensor)
    mesh = layout.mesh
    axes: Axes = tuple(None if s == dtensor.UNSHARDED else s for s in layout.sharding_specs)
    if any(axes) and len(mesh.local_device_locations()) < mesh.size:
        tensor = dtensor.relayout(tensor, dtensor.Layout.replicated(mesh, len(axes)))
        axes = (None,) * len(axes)
    parts = dtensor.unpack(tensor)
    if not any(axes):
        return np.asarray(parts[0].numpy())
    whole = np.empty(tuple(tensor.shape), tensor.dtype.as_numpy_dtype)
    for place, part in zip(mesh.local_device_locations(), parts, strict=True):
        whole[slices_of(axes, whole.shape, mesh, place)] = part.numpy()
    return whole


def sum_over_processes(tensors: list[tf.Tensor], size: int, devices: Sequence[str]) -> list[Any]:
    """Sums each tensor over all processes, which must all call.

    Args:
        tensors: of one shape and dtype in all processes.
        size: the number of processes.
        devices: the devices of this one; every process has as many.
    """
    mesh = _line_of_devices(size, tuple(devices))
    sums = []
    for tensor in tensors:
        with tf.device("/CPU:0"):
            own = tf.convert_to_tensor(tensor)[None]
            zeros = tf.zeros_like(own)
        parts = [own, *[zeros] * (len(devices) - 1)]
        stacked = dtensor.pack(parts, layout(("all", *[None] * (own.shape.rank - 1)), mesh))
        sums.append(tf.convert_to_tensor(gather(tf.reduce_sum(stacked, axis=0))))
    return sums


@functools.cache
def _line_of_devices(size: int, devices: tuple[str, ...]) -> Any:
    return dtensor.create_distributed_mesh(
        [("all", size * len(devices))],
        local_devices=list(devices),
        device_type=devices[0].partition(":")[0],
    )
