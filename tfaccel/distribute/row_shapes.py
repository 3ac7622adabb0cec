"""Rows of any shape in one batch, and rows padded to one shape: functions of a single row."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import tensorflow as tf


def have_one_shape(spec: Any) -> bool:
    """Whether the shapes of all components are known, so that rows can be batched."""
    return all(leaf.shape.is_fully_defined() for leaf in tf.nest.flatten(spec))


def no_rows(spec: Any) -> Any:
    """A batch without rows, which `tf.map_fn` cannot make where a shape is not known.

    Args:
        spec: the structure of a row. A size that it leaves open is 0: no row tells it.
    """

    def none(leaf: tf.TensorSpec) -> tf.Tensor:
        sizes = leaf.shape.as_list() if leaf.shape.rank is not None else []
        return tf.zeros([0, *(size or 0 for size in sizes)], leaf.dtype)

    return tf.nest.map_structure(none, spec)


@dataclass(frozen=True)
class Packing:
    """Rows as they can be batched, whatever their shapes are.

    What has no known shape is a string in them, since `batch` takes rows of one shape alone. Rows
    whose shapes are known stay as they are.

    Attributes:
        given: the structure of the rows, of dense tensors.
    """

    given: Any

    @property
    def is_needed(self) -> bool:
        """Whether packed rows differ from those given."""
        return not have_one_shape(self.given)

    @property
    def packed(self) -> Any:
        """The structure of the packed rows."""
        if not self.is_needed:
            return self.given
        string = tf.TensorSpec([], tf.string)
        leaves = tf.nest.flatten(self.given)
        return tuple(leaf if leaf.shape.is_fully_defined() else string for leaf in leaves)

    def pack(self, row: Any) -> Any:
        """A packed row."""
        if not self.is_needed:
            return row
        parts = zip(tf.nest.flatten(row), tf.nest.flatten(self.given), strict=True)
        return tuple(
            part if leaf.shape.is_fully_defined() else tf.io.serialize_tensor(part)
            for part, leaf in parts
        )

    def unpack(self, row: Any) -> Any:
        """The row that was given, of a packed one."""
        if not self.is_needed:
            return row
        parts = zip(tf.nest.flatten(row), tf.nest.flatten(self.given), strict=True)
        return tf.nest.pack_sequence_as(self.given, [_unpacked(part, leaf) for part, leaf in parts])

    def rows(self, rows: tf.data.Dataset) -> tf.data.Dataset:
        """The packed rows of a dataset."""
        if not self.is_needed:
            return rows

        @tf.autograph.experimental.do_not_convert
        def pack(*row: Any) -> Any:
            return self.pack(row)

        return rows.map(pack)


def _unpacked(part: tf.Tensor, spec: tf.TensorSpec) -> tf.Tensor:
    if spec.shape.is_fully_defined():
        return part
    return tf.ensure_shape(tf.io.parse_tensor(part, spec.dtype), spec.shape)


def padded(output: Any, padding: Any) -> Callable[[Any], Any]:
    """Pads a row as `padded_batch` does.

    Args:
        output: the structure of a padded row, whose shapes are known.
        padding: the value for each component.
    """
    specs, values = tf.nest.flatten(output), tf.nest.flatten(padding)

    def pad(row: Any) -> Any:
        each = zip(tf.nest.flatten(row), specs, values, strict=True)
        return tf.nest.pack_sequence_as(output, [_padded(*one) for one in each])

    return pad


def _padded(part: tf.Tensor, spec: tf.TensorSpec, value: tf.Tensor) -> tf.Tensor:
    if spec.shape.rank == 0:
        return part
    after = tf.constant(spec.shape.as_list()) - tf.shape(part)
    paddings = tf.stack([tf.zeros_like(after), after], 1)
    return tf.ensure_shape(tf.pad(part, paddings, constant_values=value), spec.shape)
