"""Host memory into which the state is captured, kept from one checkpoint to the next.

Copying 1 GB into it takes 0.1 s. Into fresh memory it takes several times as long, since the kernel
clears each page on first use.
"""

from __future__ import annotations

import threading
from collections.abc import Sequence

import numpy as np
import tensorflow as tf

from tfaccel.checkpoint import low_priority

_ALIGNMENT = 64  # bytes; a tensor is not made of less aligned memory without a copy


class HostBuffers:
    """Copies of tensors, in memory that the next copies use again."""

    def __init__(self) -> None:
        self._buffers: dict[int, np.ndarray] = {}
        self._reserving: threading.Thread | None = None

    def reserve(self, tensors: Sequence[tf.Tensor]) -> None:
        """Allocates the memory for copies of tensors like these, in the background."""
        # Sizes alone: a tensor that is held makes the next step copy its variable.
        sizes = {i: nbytes(one) for i, one in enumerate(tensors) if _is_kept(one)}

        def touch() -> None:
            for place, size in sizes.items():
                self._buffer(place, size).fill(0)

        self._reserving = low_priority.start(touch, "memory of checkpoints")

    def copy(self, tensors: Sequence[tf.Tensor]) -> list[tf.Tensor]:
        """Copies on the host, which do not change while training continues.

        They are made here, though TensorFlow would update a variable in a copy while a value read
        from it is in use: one by one, as the operations of the next step need them, those copies
        took five times as long (2.21, on CPUs).

        Args:
            tensors: read from the variables.

        Returns:
            Their copies, valid until the next call.
        """
        if self._reserving is not None:
            self._reserving.join()
            self._reserving = None
        with tf.device("/CPU:0"):
            return [self._copy(place, tensor) for place, tensor in enumerate(tensors)]

    def _copy(self, place: int, tensor: tf.Tensor) -> tf.Tensor:
        if not _is_kept(tensor):
            return tf.identity(tensor)
        source, buffer = np.asarray(tensor), self._buffer(place, nbytes(tensor))
        np.copyto(buffer, source.reshape(-1).view(np.uint8))
        # As integers: DLPack has no name for bfloat16 in NumPy.
        integers = buffer.view(f"uint{8 * source.itemsize}").reshape(source.shape)
        shared = tf.experimental.dlpack.from_dlpack(integers.__dlpack__())
        return tf.bitcast(shared, tensor.dtype)

    def _buffer(self, place: int, size: int) -> np.ndarray:
        buffer = self._buffers.get(place)
        if buffer is None or buffer.size != size:
            memory = np.empty(size + _ALIGNMENT, np.uint8)
            start = -memory.ctypes.data % _ALIGNMENT
            buffer = self._buffers[place] = memory[start : start + size]
        return buffer


def nbytes(tensor: tf.Tensor) -> int:
    """The size of a tensor's values in bytes."""
    return int(tensor.shape.num_elements() * tensor.dtype.size)


def _is_kept(tensor: tf.Tensor) -> bool:
    """Whether a buffer can hold it: a GPU's values are new memory of the host in any case."""
    dtype = tensor.dtype
    number = dtype.is_floating or dtype.is_integer
    on_host = "CPU" in tensor.device.upper()
    return bool(on_host and number and dtype.size in (2, 4, 8) and tensor.shape.rank)
