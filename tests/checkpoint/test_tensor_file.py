"""What is written is a safetensors file, and every tensor and slice of one is read back exactly."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tensorflow as tf
from safetensors import safe_open

from tfaccel.checkpoint import direct_write
from tfaccel.checkpoint.sharded_reader import ShardedReader, open_checkpoint
from tfaccel.checkpoint.tensor_file import Shard, TensorFile
from tfaccel.errors import CheckpointError

NUMBERS = [tf.float16, tf.bfloat16, tf.float32, tf.float64, tf.int32, tf.int64, tf.uint16, tf.bool]
OTHERS = [tf.int8, tf.uint8, tf.complex64, tf.complex128, tf.dtypes.experimental.int4]
SHAPES = [(2, 3), (), (0, 3)]


def values(dtype: Any, shape: tuple[int, ...] = (2, 3)) -> tf.Tensor:
    return tf.cast(tf.reshape(tf.range(int(np.prod(shape))) % 7, shape), dtype)


def write(path: Any, shards: list[Shard], rank: int = 0) -> None:
    name = f"{path}/variables-{rank:05d}.safetensors"
    content = TensorFile(shards)
    assert direct_write.write(name, content.pieces())[0] == content.size


@pytest.mark.parametrize("where", ["local", "ram://tensor_file"])
def test_every_type_is_read_back(where: str, tmp_path: Path) -> None:
    tensors = {
        f"{dtype.name} {shape}": values(dtype, shape)
        for dtype in [*NUMBERS, *OTHERS]
        for shape in SHAPES
    }
    tensors["string"] = tf.constant([["a", "bc"]])
    path = str(tmp_path) if where == "local" else where
    tf.io.gfile.makedirs(path)
    write(path, [Shard(name, tensor) for name, tensor in tensors.items()])
    reader = open_checkpoint(path)
    assert reader.shapes() == {name: tuple(tensor.shape) for name, tensor in tensors.items()}
    for name, tensor in tensors.items():
        found = reader.read(name)
        assert (found.dtype, reader.dtype(name)) == (tensor.dtype, tensor.dtype)
        np.testing.assert_array_equal(found.numpy(), tensor.numpy())


def test_safetensors_reads_it(tmp_path: Path) -> None:
    tensors = {f"layer/{d.name}": values(d) for d in (tf.float32, tf.bool, tf.int64, tf.float16)}
    write(tmp_path, [Shard(name, tensor) for name, tensor in tensors.items()])
    with safe_open(tmp_path / "variables-00000.safetensors", "numpy") as file:
        assert set(file.keys()) == set(tensors)
        for name, tensor in tensors.items():
            np.testing.assert_array_equal(file.get_tensor(name), tensor.numpy())


def sliced(tmp_path: Path) -> np.ndarray:
    """A tensor of which two processes wrote two slices each, one of them both."""
    whole = np.arange(48, dtype=np.float32).reshape(6, 8)
    cuts = [(0, [(0, 3), (0, 4)]), (0, [(0, 3), (4, 8)]), (1, [(3, 6), (0, 4)])]
    cuts += [(1, [(3, 6), (4, 8)]), (1, [(0, 3), (4, 8)])]
    for rank in (0, 1):
        shards = []
        for owner, ((a, b), (c, d)) in cuts:
            if owner == rank:
                slices = (slice(a, b), slice(c, d))
                shards.append(Shard("w", tf.constant(whole[slices]), slices, whole.shape))
        write(tmp_path, shards, rank)
    return whole


@pytest.mark.parametrize(
    "wanted",
    [
        None,
        (slice(0, 3), slice(4, 8)),
        (slice(2, 5), slice(3, 7)),
        (slice(None), slice(1, 2)),
        (slice(4, 6), slice(None)),
    ],
)
def test_any_slice_of_slices_is_read(wanted: Any, tmp_path: Path) -> None:
    whole = sliced(tmp_path)
    found = open_checkpoint(str(tmp_path)).read("w", wanted)
    np.testing.assert_array_equal(found, whole if wanted is None else whole[wanted])


def test_what_was_read_does_not_change_with_the_file(tmp_path: Path) -> None:
    for length in range(64):  # of the header, and so where the values begin
        write(tmp_path, [Shard("n" * length, tf.ones([1024]))])
        found = open_checkpoint(str(tmp_path)).read("n" * length)
        file = tmp_path / "variables-00000.safetensors"
        with file.open("r+b") as opened:
            opened.write(bytes(file.stat().st_size))
        np.testing.assert_array_equal(found, np.ones(1024))


def test_a_file_that_ends_before_its_values_is_an_error(tmp_path: Path) -> None:
    write(tmp_path, [Shard("w", tf.ones([1024]))])
    file = tmp_path / "variables-00000.safetensors"
    file.write_bytes(file.read_bytes()[:-1])
    with pytest.raises(
        CheckpointError, match=r"is not a checkpoint \(ValueError: the file ends before 'w'\)"
    ):
        open_checkpoint(str(tmp_path))


def test_values_that_no_file_has_are_an_error(tmp_path: Path) -> None:
    sliced(tmp_path)
    (tmp_path / "variables-00001.safetensors").unlink()
    reader = open_checkpoint(str(tmp_path))
    assert reader.read("w", (slice(0, 3), slice(None))).shape == (3, 8)
    with pytest.raises(
        CheckpointError, match=r"has 24 of the 48 values of 'w' .*; restore another"
    ):
        reader.read("w")


@pytest.mark.parametrize(
    "content", [None, b"", b"1234567", b"\x10" + bytes(7) + b"{", b"\x10" + bytes(6) + b"\x7f{}"]
)
def test_a_directory_of_nothing_readable_is_an_error(content: Any, tmp_path: Path) -> None:
    if content is not None:
        (tmp_path / "variables-00000.safetensors").write_bytes(content)
    with pytest.raises(
        CheckpointError, match=r"is not a checkpoint \(.*\); expected a directory written"
    ):
        open_checkpoint(str(tmp_path))


def test_a_checkpoint_in_tensorflows_format_is_read(tmp_path: Path) -> None:
    whole = np.arange(12, dtype=np.float32).reshape(3, 4)
    tf.raw_ops.SaveV2(
        prefix=f"{tmp_path}/variables",
        tensor_names=["w"],
        shape_and_slices=[""],
        tensors=[tf.constant(whole)],
    )
    reader = open_checkpoint(str(tmp_path))
    assert not isinstance(reader, ShardedReader)
    assert (reader.shapes(), reader.dtype("w")) == ({"w": (3, 4)}, tf.float32)
    np.testing.assert_array_equal(reader.read("w"), whole)
    np.testing.assert_array_equal(reader.read("w", (slice(1, 3), slice(None))), whole[1:])
