"""Replaces the reader of a `PyDataset` for which Keras has created its adapter.

Keras reads a `PyDataset` whole, in one order and with its own threads, which are kept: it gets
another `PyDataset` to read, and passes through what that adds to each batch. Seen with TensorFlow
2.21 and Keras 3.15, watched by `tests/distribute/test_batch_rows.py`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import tensorflow as tf

from tfaccel.distribute.mixins import mix_in

__all__ = ["read_instead", "source_of_py_dataset"]


def read_instead(
    adapter: Any,
    reader: Any,
    through: Callable[[Iterator[Any]], Iterator[Any]],
    beside: tuple[tf.TypeSpec, ...],
) -> tf.data.Dataset:
    """The dataset that Keras builds from a `PyDataset`, read through another one.

    Args:
        adapter: Keras's, of the user's dataset, which has been inspected but not read.
        reader: a `PyDataset` with the user's as its `source`, whose items are tuples of a batch and
            its extra values.
        through: applied to the items of each pass; it may add more extra values.
        beside: the types of all the extra values.

    Returns:
        A dataset of such tuples, with batches in Keras's form.
    """
    mix_in(adapter, _HandsOnWhatIsBeside)
    adapter._through = through
    adapter.py_dataset = reader
    if adapter.enqueuer is not None:
        adapter.enqueuer.py_dataset = reader
    adapter._output_signature = (adapter._output_signature, *beside)
    made: tf.data.Dataset = adapter.get_tf_dataset()
    return made


def source_of_py_dataset(adapter: Any) -> Any:
    """The user's own `PyDataset`."""
    return getattr(adapter.py_dataset, "source", adapter.py_dataset)


class _HandsOnWhatIsBeside:
    """Mixin for Keras's adapter of a `PyDataset`."""

    _through: Callable[[Iterator[Any]], Iterator[Any]]

    def _standardize_batch(self, batch: Any) -> Any:
        data, *beside = batch
        return (super()._standardize_batch(data), *beside)  # type: ignore[misc]

    def _get_iterator(self) -> Iterator[Any]:
        return self._through(super()._get_iterator())  # type: ignore[misc]
