"""Reads checkpoints in TensorFlow's own format, which earlier versions wrote."""

from __future__ import annotations

from typing import Any

import tensorflow as tf

from tfaccel.distribute.files.atomic import inside

_NAME = "variables"


class TensorFlowReader:
    """An open directory; see `sharded_reader.Reader`.

    Args:
        prefix: of TensorFlow's files in it.
        index: TensorFlow's own reader, which knows names, shapes and types.
    """

    def __init__(self, prefix: str, index: Any) -> None:
        self._prefix, self._index = prefix, index

    @classmethod
    def open(cls, path: str) -> TensorFlowReader | None:
        """Opens a directory, if it is one."""
        prefix = inside(path, _NAME)
        try:
            return cls(prefix, tf.compat.v1.train.NewCheckpointReader(prefix))
        except (ValueError, tf.errors.OpError):
            return None

    def shapes(self) -> dict[str, tuple[int, ...]]:
        """The shapes of all tensors, by name."""
        return {name: tuple(s) for name, s in self._index.get_variable_to_shape_map().items()}

    def dtype(self, name: str) -> tf.DType:
        """The type of a tensor."""
        return self._index.get_variable_to_dtype_map()[name]

    def read(self, name: str, slices: tuple[slice, ...] | None = None) -> tf.Tensor:
        """A tensor, or a slice of it, on the host.

        Raises:
            tf.errors.OpError: the files are damaged.
        """
        with tf.device("/CPU:0"):
            (value,) = tf.raw_ops.RestoreV2(
                prefix=self._prefix,
                tensor_names=[name],
                shape_and_slices=[_spec(self.shapes()[name], slices)],
                dtypes=[self.dtype(name)],
            )
        return value


def _spec(shape: tuple[int, ...], slices: tuple[slice, ...] | None) -> str:
    """A slice in the notation of TensorFlow's checkpoints; empty for the whole.

    >>> _spec((8, 16), (slice(None), slice(4, 8)))
    '8 16 0,8:4,4'
    """
    if slices is None or all(s == slice(None) for s in slices):
        return ""
    ranges = [s.indices(n) for s, n in zip(slices, shape, strict=True)]
    return f"{' '.join(map(str, shape))} " + ":".join(f"{a},{b - a}" for a, b, _ in ranges)
