"""A file of tensors and slices of tensors, in the safetensors format.

Eight bytes with the size of the header, the header in JSON (name, type, shape and place of each
tensor), and the values: https://github.com/huggingface/safetensors#format. Any reader of that
format reads it. What the format has no type for is stored as bytes.
"""

from __future__ import annotations

import json
import struct
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, BinaryIO

import numpy as np
import tensorflow as tf

_DTYPES = {
    tf.bool: "BOOL",
    tf.int8: "I8",
    tf.uint8: "U8",
    tf.int16: "I16",
    tf.uint16: "U16",
    tf.int32: "I32",
    tf.uint32: "U32",
    tf.int64: "I64",
    tf.uint64: "U64",
    tf.float16: "F16",
    tf.bfloat16: "BF16",
    tf.float32: "F32",
    tf.float64: "F64",
    tf.complex64: "C64",
    tf.dtypes.experimental.float8_e4m3fn: "F8_E4M3",
    tf.dtypes.experimental.float8_e5m2: "F8_E5M2",
}
_FROM_NAME = {name: dtype for dtype, name in _DTYPES.items()}
_ALIGNMENT = 8  # bytes, of the values
_METADATA, _OWN = "__metadata__", "tfaccel"


@dataclass(frozen=True)
class Shard:
    """A tensor, or a slice of one.

    Attributes:
        name: of the whole.
        tensor: the values.
        slices: where they belong in it; None for the whole.
        shape: of the whole; needed where there are slices.
    """

    name: str
    tensor: tf.Tensor
    slices: tuple[slice, ...] | None = None
    shape: tuple[int, ...] = ()


@dataclass(frozen=True)
class Entry:
    """What the header says of one tensor.

    Attributes:
        name: of the whole.
        dtype: of the values.
        shape: of the values.
        start: of the values in the whole, an index for each axis.
        whole: the shape of the whole.
        offset: of the values in the file, in bytes.
        nbytes: their size in the file.
    """

    name: str
    dtype: tf.DType
    shape: tuple[int, ...]
    start: tuple[int, ...]
    whole: tuple[int, ...]
    offset: int
    nbytes: int


class TensorFile:
    """The content of a file, which copies no values before they are requested.

    Args:
        shards: what it holds.

    Attributes:
        size: in bytes.
    """

    def __init__(self, shards: Sequence[Shard]) -> None:
        # By the size of an element, so that each is aligned to it.
        shards = sorted(shards, key=lambda shard: -_element_size(shard.tensor.dtype))
        self._values = [_value(shard.tensor) for shard in shards]
        self._header = _header(shards, self._values)
        self.size = len(self._header) + sum(map(_nbytes, self._values))

    def pieces(self) -> Iterator[np.ndarray]:
        """The bytes of the file in order, in arrays that share memory with the values on a host."""
        yield np.frombuffer(self._header, np.uint8)
        for value in self._values:
            if isinstance(value, bytes):
                yield np.frombuffer(value, np.uint8)
            else:
                yield _array(value).reshape(-1).view(np.uint8)


def read_header(file: BinaryIO, file_size: int) -> list[Entry]:
    """Reads the header of a file.

    Args:
        file: open at its start.
        file_size: in bytes.

    Raises:
        ValueError: it is not of this format, or ends too early.
    """
    start = file.read(8)
    (size,) = struct.unpack("<Q", start) if len(start) == 8 else (0,)
    if not 0 < size <= file_size - 8:
        raise ValueError("the file ends in its header")
    header = json.loads(file.read(size))
    own = json.loads(header.pop(_METADATA, {}).get(_OWN, "{}"))
    entries = []
    for key, stored in header.items():
        more = own.get(key, {})
        shape = tuple(more.get("shape", stored["shape"]))
        begin, end = stored["data_offsets"]
        if not 0 <= begin <= end <= file_size - 8 - size:
            raise ValueError(f"the file ends before {key!r}")
        entries.append(
            Entry(
                name=more.get("name", key),
                dtype=tf.as_dtype(more.get("dtype") or _FROM_NAME[stored["dtype"]]),
                shape=shape,
                start=tuple(more.get("start", [0] * len(shape))),
                whole=tuple(more.get("whole", shape)),
                offset=8 + size + begin,
                nbytes=end - begin,
            )
        )
    return entries


def _header(shards: Sequence[Shard], values: Sequence[Any]) -> bytes:
    header: dict[str, Any] = {}
    own: dict[str, dict[str, Any]] = {}
    place = 0
    for shard, value in zip(shards, values, strict=True):
        dtype, shape = shard.tensor.dtype, shard.tensor.shape.as_list()
        key, more = shard.name, {}
        if shard.slices is not None and tuple(shape) != shard.shape:
            ranges = [s.indices(n)[:2] for s, n in zip(shard.slices, shard.shape, strict=True)]
            key += f"[{','.join(f'{a}:{b}' for a, b in ranges)}]"
            more = {"name": shard.name, "start": [a for a, _ in ranges], "whole": shard.shape}
        stored: dict[str, Any] = {"dtype": _DTYPES.get(dtype, "U8"), "shape": shape}
        if isinstance(value, bytes):
            more |= {"dtype": dtype.name, "shape": shape}
            stored["shape"] = [len(value)]
        end = place + _nbytes(value)
        header[key] = {**stored, "data_offsets": [place, end]}
        place = end
        if more:
            own[key] = more
    header[_METADATA] = {_OWN: json.dumps(own)}
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % _ALIGNMENT)
    return struct.pack("<Q", len(text)) + text


def _value(tensor: tf.Tensor) -> Any:
    """The tensor, or its bytes where the format has no type for it."""
    if tensor.dtype in _DTYPES:
        return tensor
    if tensor.dtype == tf.string:
        return tf.io.serialize_tensor(tensor).numpy()
    return _array(tensor).tobytes()


def _array(tensor: tf.Tensor) -> np.ndarray:
    """The values; NumPy takes no scalar of some types (bfloat16) for an array."""
    return np.ascontiguousarray(tensor if tensor.shape.rank else tensor.numpy())


def _nbytes(value: Any) -> int:
    if isinstance(value, bytes):
        return len(value)
    return int(value.shape.num_elements() * value.dtype.size)


def _element_size(dtype: tf.DType) -> int:
    return int(dtype.size) if dtype in _DTYPES else 0
