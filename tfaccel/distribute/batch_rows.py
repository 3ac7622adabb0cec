"""Rows of the batches of a `keras.utils.PyDataset`: each process computes those it trains on.

A `PyDataset` returns whole batches, so each of several workers would compute all rows of each. One
that also has the two methods of `BatchRows` is read by rows instead. Keras calls these where it
would have requested a batch: in the same order, with the dataset's own threads or processes.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable, Iterator
from typing import Any, Protocol

import keras
import numpy as np
import numpy.typing as npt
import tensorflow as tf
from absl import logging

from tfaccel.distribute import _private, dataset_consistency
from tfaccel.errors import InputError, TfaccelError

Numbers = npt.NDArray[np.int64]

_METHODS = ("batch_rows", "get_rows")
_LOOKED_AT = 8  # rows of the first batch of a pass, on every worker
_NOTHING = np.zeros([0], np.int64)
_ONE_ORDER = (
    "expected one order of rows on all workers; draw the order, in on_epoch_end too, from a "
    "generator of its own with one seed everywhere, from which get_rows draws nothing."
)
_warned = False


class BatchRows(Protocol):
    """Two methods that a `keras.utils.PyDataset` may have, so that workers share its rows.

    There is nothing to import: a dataset with both is read by them on several workers, and by
    `__getitem__` elsewhere. A `__getitem__` that calls them is consistent with them:

    >>> import keras
    >>> class Squares(keras.utils.PyDataset):
    ...     def __len__(self):
    ...         return 2
    ...     def batch_rows(self, index):
    ...         return (4, 3)[index]
    ...     def get_rows(self, index, rows):
    ...         return (4 * index + rows) ** 2
    ...     def __getitem__(self, index):
    ...         return self.get_rows(index, np.arange(self.batch_rows(index)))
    >>> Squares()[1], Squares().get_rows(1, np.array([0, 2]))
    (array([16, 25, 36]), array([16, 36]))
    """

    def batch_rows(self, index: int) -> int:
        """The number of rows of a batch; called before each, so it should not compute them.

        Args:
            index: of the batch, as in `__getitem__`.
        """

    def get_rows(self, index: int, rows: Numbers) -> Any:
        """Some rows of what `__getitem__` returns for this batch.

        Args:
            index: of the batch.
            rows: their positions in the batch (int64, shape `[n]`), from 0, in ascending order.

        Returns:
            A batch whose parts all have `n` rows. Values that depend on other rows (the length that
            texts are padded to) are those of the whole batch.
        """


def adapter_of(caller: _private.Caller, worker: str = "worker") -> Any:
    """Keras's adapter of a `PyDataset` that can be read by rows; None for other data.

    Logs when a `PyDataset` cannot.

    Args:
        caller: that requests its data.
        worker: the word for a process in the log.
    """
    adapter = caller.epoch.data_adapter
    if not isinstance(adapter, _private.PyDatasetAdapter):
        return None
    dataset = adapter.py_dataset
    missing = [name for name in _METHODS if not callable(getattr(dataset, name, None))]
    if not missing:
        return adapter
    logging.info(
        "tfaccel: input: every %s computes all rows of %s: it has no %s.",
        worker,
        _name(dataset),
        " and no ".join(missing),
    )
    return None


class PyDatasetRows:
    """The batches of a `PyDataset` of which this process computes only its own rows.

    The first batch is computed whole once more, to compare: Keras has read the first two, to
    inspect shapes, before it calls a strategy.

    Args:
        adapter: Keras's, of a dataset that can be read by rows; it reads them from now on.
        own: returns the indices of our rows, ascending, for the number of rows of a batch.
            Processes of the dataset get a copy.

    Attributes:
        dataset: of our rows of each batch, the indices of our rows (int64, shape `[n]`), the number
            of all of its rows (int64), and the input of `check_order` (int64, shape `[k]`), which
            is empty except for the first batch of a pass.

    Raises:
        InputError: when the dataset's methods disagree on its first batch.
    """

    def __init__(self, adapter: Any, own: Callable[[int], Numbers]) -> None:
        self._reader = _Reader(adapter.py_dataset, own)
        _compare(self._reader)
        self._failure: TfaccelError | None = None
        self._told = False
        integer, integers = (tf.TensorSpec(shape, tf.int64) for shape in ([], [None]))
        beside = (integers, integer, integers)
        self.dataset = _private.read_instead(adapter, self._reader, self._with_order, beside)

    def elements(self, source: Iterator[Any]) -> Iterator[Any]:
        """The elements of an iterator over a dataset made from ours; re-raises our errors."""
        try:
            yield from source
        except tf.errors.InvalidArgumentError as error:
            raise self._failure or error from None

    def check_order(self, first: tf.Tensor, all_gather: dataset_consistency.AllGather) -> None:
        """Compares the order of the workers' rows at the beginning of a pass; all must call.

        Workers may read different data; and computing different rows may consume different random
        numbers, from which the order of rows is drawn too. If all parts have different values, as
        augmentation also causes, it logs a warning.

        Args:
            first: the index of the first batch, and integers for some rows of it.
            all_gather: returns the numbers of every worker, in rank order.

        Raises:
            InputError: on every worker, when they begin with different batches.
        """
        gathered = all_gather([int(number) for number in first])
        indices = [each[0] for each in gathered]
        if len(set(indices)) > 1:
            raise InputError(
                f"tfaccel: a pass begins with batch {', '.join(map(str, indices))} (by rank) of "
                f"{_name(self._reader.source)}, {_ONE_ORDER}"
            )
        parts = range(1, len(gathered[0]))
        alike = any(len({each[part] for each in gathered}) == 1 for part in parts)
        if parts and not alike and not self._told:
            self._told = True
            logging.warning(
                "tfaccel: input: a pass begins with other values on each worker of %s. If they "
                "come from random augmentation, nothing is wrong. Else most rows train nothing: %s",
                _name(self._reader.source),
                _ONE_ORDER,
            )

    def _with_order(self, items: Iterator[Any]) -> Iterator[Any]:
        first = True
        try:
            for batch, index, own, rows in items:
                order = self._order(index, rows) if first else _NOTHING
                yield batch, own, rows, order
                first = False
        except TfaccelError as error:  # of which `tf.data` would only report the text
            self._failure = error
            raise

    def _order(self, index: int, rows: int) -> Numbers:
        looked_at = self._reader.rows(index, np.arange(min(rows, _LOOKED_AT)))
        found = (_fingerprint(leaf) for leaf in keras.tree.flatten(looked_at))
        return np.asarray([index, *(each for each in found if each is not None)], np.int64)


class _Reader(keras.utils.PyDataset):  # type: ignore[misc]
    """Returns own rows where a `PyDataset` returns batches, together with their indices."""

    def __init__(self, source: Any, own: Callable[[int], Numbers]) -> None:
        super().__init__(source.workers, source.use_multiprocessing, source.max_queue_size)
        self.source, self._own = source, own

    def __getitem__(self, index: int) -> Any:
        rows = int(self.source.batch_rows(index))
        own = self._own(rows)
        return self.rows(index, own), index, own, rows

    def rows(self, index: int, numbers: Numbers) -> Any:
        """These rows of a batch.

        Raises:
            InputError: when there are more or fewer.
        """
        batch = self.source.get_rows(index, numbers.copy())  # which the user may modify
        for leaf in keras.tree.flatten(batch):
            found = _rows_of(leaf)
            if found not in (None, len(numbers)):
                raise InputError(
                    f"tfaccel: get_rows({index}, rows) of {_name(self.source)} returned a part of "
                    f"{found} rows for {len(numbers)} positions, expected one row for each in all "
                    "parts; or leave batch_rows and get_rows out, and every worker computes all."
                )
        return batch

    @property
    def num_batches(self) -> int | None:
        number: int | None = self.source.num_batches
        return number

    def on_epoch_begin(self) -> None:
        self.source.on_epoch_begin()

    def on_epoch_end(self) -> None:
        self.source.on_epoch_end()


def _name(dataset: Any) -> str:
    return f"PyDataset {type(dataset).__name__}"


def _rows_of(leaf: Any) -> int | None:
    """The number of rows of a part of a batch; None for an absent one."""
    if leaf is None:
        return None
    shape = getattr(leaf, "shape", None)
    if shape is None:
        shape = np.shape(leaf)
    return int(shape[0]) if len(shape) else 0


def _compare(reader: _Reader) -> None:
    """Compares our rows of the first batch with those of the whole batch."""
    global _warned
    first = reader.source[0]
    batch, _, own, rows = reader[0]
    name = _name(reader.source)
    parts, whole = keras.tree.flatten(batch), keras.tree.flatten(first)
    found = {_rows_of(leaf) for leaf in whole} - {None}
    if found != {rows}:
        raise InputError(
            f"tfaccel: batch_rows(0) of {name} returned {rows} and batch 0 has parts of "
            f"{', '.join(map(str, sorted(filter(None, found))))} rows, expected the same in every "
            "part; or leave batch_rows and get_rows out, and every worker computes all rows."
        )
    if len(parts) != len(whole):
        raise InputError(
            f"tfaccel: get_rows(0, rows) of {name} returned {len(parts)} arrays and batch 0 has "
            f"{len(whole)}, expected what dataset[0] returns, of these rows."
        )
    for part, leaf in zip(parts, whole, strict=True):
        given, expected = (tuple(getattr(each, "shape", ()))[1:] for each in (part, leaf))
        if given != expected:
            raise InputError(
                f"tfaccel: get_rows(0, rows) of {name} returned rows of shape {given} and those of "
                f"batch 0 have {expected}, expected what dataset[0] returns, of these rows."
            )
    same = all(
        np.array_equal(part, np.asarray(leaf)[own])
        for part, leaf in zip(parts, whole, strict=True)
        if isinstance(part, (np.ndarray, tf.Tensor)) and isinstance(leaf, (np.ndarray, tf.Tensor))
    )
    if not same and not _warned:
        _warned = True
        logging.warning(
            "tfaccel: input: get_rows(0, rows) of %s returned other values than those rows of "
            "dataset[0]. If they come from random augmentation, nothing is wrong; else training "
            "is on other rows than on one worker.",
            name,
        )


def _fingerprint(leaf: Any) -> int | None:
    """A fingerprint of an array's values; None for anything else."""
    if not isinstance(leaf, (np.ndarray, tf.Tensor)):
        return None
    array = np.asarray(leaf)
    text = repr(array.tolist()).encode() if array.dtype == object else array.tobytes()
    return zlib.crc32(text)
