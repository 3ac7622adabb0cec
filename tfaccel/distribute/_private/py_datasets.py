"""Puts another reader in the place of a `PyDataset` that Keras has made its adapter of.

Keras reads a `PyDataset` whole, in one order and with threads of its own, which are kept: it is
given another `PyDataset` to read, and hands on beside each batch what that tells of it. Seen with
TensorFlow 2.21 and Keras 3.15, watched by `tests/distribute/test_batch_rows.py`.
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
    """The dataset that Keras makes of a `PyDataset`, read through another one.

    Args:
        adapter: Keras's, of the user's dataset, which has been looked at and not been read.
        reader: a `PyDataset` with the user's as its `source`, whose items are tuples of a batch and
            of what goes beside it.
        through: what the items of each pass go through; it may put more beside them.
        beside: of which types all of that is.

    Returns:
        Of such tuples, with batches as Keras hands them on.
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
