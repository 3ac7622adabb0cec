"""Reads any slice of any tensor of a directory that `sharded_files.py` wrote."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Protocol

import numpy as np
import tensorflow as tf

from tfaccel.checkpoint.tensor_file import Entry, read_header
from tfaccel.checkpoint.tensorflow_reader import TensorFlowReader
from tfaccel.checkpoint.variable_shards import Slices
from tfaccel.distribute.files.atomic import inside, is_remote
from tfaccel.distribute.files.one_writer import error_text
from tfaccel.errors import CheckpointError

Range = tuple[int, int]  # of indices of one axis


class Reader(Protocol):
    """An open checkpoint."""

    def shapes(self) -> dict[str, tuple[int, ...]]:
        """The shapes of all tensors, by name."""

    def dtype(self, name: str) -> tf.DType:
        """The type of a tensor."""

    def read(self, name: str, slices: Slices | None = None) -> tf.Tensor:
        """A tensor, or a slice of it, on the host.

        Raises:
            CheckpointError: the files do not have all of it.
        """


def open_checkpoint(path: str) -> Reader:
    """Opens a checkpoint, also one of a version of tfaccel that wrote TensorFlow's format.

    Raises:
        CheckpointError: there is none.
    """
    path = path.rstrip("/")
    try:
        return ShardedReader(path)
    except (OSError, ValueError, KeyError, tf.errors.OpError) as error:
        older = TensorFlowReader.open(path)
        if older is not None:
            return older
        raise CheckpointError(
            f"tfaccel: {path} is not a checkpoint ({error_text(error)}); expected a directory "
            "written by tfaccel.checkpoint.save."
        ) from error


class ShardedReader:
    """An open directory of files of tensors.

    Raises:
        FileNotFoundError: it has none.
        ValueError: one is not of their format.
    """

    def __init__(self, path: str) -> None:
        self._path = path
        self._stored: dict[str, list[tuple[str, Entry]]] = {}
        names = [n for n in tf.io.gfile.listdir(path) if n.endswith(".safetensors")]
        if not names:
            raise FileNotFoundError("no .safetensors file")
        for file_name in sorted(inside(path, name) for name in names):
            with tf.io.gfile.GFile(file_name, "rb") as file:
                for entry in read_header(file, tf.io.gfile.stat(file_name).length):
                    self._stored.setdefault(entry.name, []).append((file_name, entry))

    def shapes(self) -> dict[str, tuple[int, ...]]:
        """See `Reader`."""
        return {name: stored[0][1].whole for name, stored in self._stored.items()}

    def dtype(self, name: str) -> tf.DType:
        """See `Reader`."""
        return self._stored[name][0][1].dtype

    def read(self, name: str, slices: Slices | None = None) -> tf.Tensor:
        """See `Reader`."""
        whole = self._stored[name][0][1].whole
        if slices is None:
            slices = (slice(None),) * len(whole)
        ranges = [s.indices(n)[:2] for s, n in zip(slices, whole, strict=True)]
        with tf.device("/CPU:0"):
            for file_name, entry in self._stored[name]:
                if _ranges(entry) == ranges:
                    # A copy: TensorFlow would use the pages of the file itself.
                    return tf.convert_to_tensor(np.array(_values(file_name, entry)))
            return tf.convert_to_tensor(self._assembled(name, ranges))

    def _assembled(self, name: str, ranges: Sequence[Range]) -> np.ndarray:
        values = np.empty([b - a for a, b in ranges], self.dtype(name).as_numpy_dtype)
        found: dict[tuple[Range, ...], int] = {}
        for file_name, entry in self._stored[name]:
            has = _ranges(entry)
            both = tuple((max(a, c), min(b, d)) for (a, b), (c, d) in zip(ranges, has, strict=True))
            if all(a < b for a, b in both) and both not in found:
                values[_within(both, ranges)] = _values(file_name, entry)[_within(both, has)]
                found[both] = math.prod(b - a for a, b in both)
        if sum(found.values()) != values.size:
            raise CheckpointError(
                f"tfaccel: the checkpoint {self._path} has {sum(found.values())} of the "
                f"{values.size} values of {name!r} that are read; expected all; a file of it is "
                "missing; restore another checkpoint."
            )
        return values


def _within(ranges: Sequence[Range], of: Sequence[Range]) -> Slices:
    """Where a part of a tensor lies within a larger one."""
    return tuple(slice(a - c, b - c) for (a, b), (c, _) in zip(ranges, of, strict=True))


def _ranges(entry: Entry) -> list[Range]:
    """Where the values belong in the whole."""
    return [(a, a + n) for a, n in zip(entry.start, entry.shape, strict=True)]


def _values(path: str, entry: Entry) -> np.ndarray:
    """The values of one entry; those of a local file are read where they are used."""
    if entry.dtype == tf.string:
        return np.asarray(tf.io.parse_tensor(bytes(_bytes(path, entry)), entry.dtype))
    stored: np.ndarray = _bytes(path, entry).view(entry.dtype.as_numpy_dtype)
    return stored.reshape(entry.shape)


def _bytes(path: str, entry: Entry) -> np.ndarray:
    if entry.nbytes == 0:
        return np.empty(0, np.uint8)
    if not is_remote(path):
        return np.memmap(path, np.uint8, "r", entry.offset, (entry.nbytes,))
    with tf.io.gfile.GFile(path, "rb") as file:
        file.seek(entry.offset)
        return np.frombuffer(file.read(entry.nbytes), np.uint8)
