"""Rows of any shape in one batch, and rows padded to one shape: functions of a single row."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import tensorflow as tf


def have_one_shape(spec: Any) -> bool:
    """Whether the shapes of all components are known, so that rows can be batched."""
    return all(leaf.shape.is_fully_defined() for leaf in tf.nest.flatten(spec))


def packed(rows: tf.data.Dataset) -> tuple[tf.data.Dataset, Callable[[Any], Any]]:
    """Rows that can be batched, whatever their shapes are.

    What has no known shape is a string in them, since `batch` takes rows of one shape alone.

    Args:
        rows: of dense tensors.

    Returns:
        The rows, and a function that makes the given one of each.
    """
    spec = rows.element_spec
    leaves = tf.nest.flatten(spec)
    if have_one_shape(spec):
        return rows, lambda row: row

    @tf.autograph.experimental.do_not_convert
    def pack(*row: Any) -> Any:
        parts = zip(tf.nest.flatten(row), leaves, strict=True)
        return tuple(
            part if leaf.shape.is_fully_defined() else tf.io.serialize_tensor(part)
            for part, leaf in parts
        )

    def unpack(row: Any) -> Any:
        parts = zip(tf.nest.flatten(row), leaves, strict=True)
        return tf.nest.pack_sequence_as(spec, [_unpacked(part, leaf) for part, leaf in parts])

    return rows.map(pack), unpack


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
