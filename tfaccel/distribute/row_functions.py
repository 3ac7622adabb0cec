"""What a `tf.data` pipeline does to its rows: whether a row depends on others, a pass on the last.

Decided by the operations of the functions in it, and by its transformations.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import tensorflow as tf

from tfaccel.distribute import _private

# Operations that TensorFlow does not consider pure, but whose result for a row does not depend on
# the other rows.
_ROW_BY_ROW = frozenset(
    {
        *("Assert", "ReadVariableOp"),
        *("LookupTableFind", "LookupTableFindV2", "LookupTableSize", "LookupTableSizeV2"),
        *("TensorListFromTensor", "TensorListGetItem", "TensorListLength", "TensorListReserve"),
        *("TensorListSetItem", "TensorListStack", "EmptyTensorList", "TensorListPushBack"),
    }
)
# Transformations that yield the same elements in each pass.
_REPRODUCIBLE = frozenset(
    {
        *("map", "batch", "prefetch", "options", "repeat", "take", "skip", "zip", "cache"),
        *("assert_cardinality", "padded_batch", "ragged_batch", "unbatch", "rebatch", "shard"),
        *("from_tensor_slices", "from_tensors", "range", "concatenate", "window"),
        *("tfrecord", "text_line", "fixed_length_record"),
    }
)
_SEEDED = frozenset({"shuffle"})  # by seeds on which all workers agree
# These too, if their function keeps no state, and what datasets it makes are of the operations
# below.
_BY_FUNCTION = frozenset({"filter", "interleave", "flat_map"})
_NUMBERS = frozenset({"numbers of enumerate"})
_MAPS = frozenset({"MapDataset", "ParallelMapDataset", "ParallelMapDatasetV2"})
_MAKE_DATASETS = _MAPS | {
    *("TensorDataset", "TensorSliceDataset", "RangeDataset", "ZipDataset", "ConcatenateDataset"),
    *("TFRecordDataset", "TFRecordDatasetV2", "TextLineDataset"),
    *("FixedLengthRecordDataset", "FixedLengthRecordDatasetV2"),
    *("BatchDataset", "BatchDatasetV2", "ParallelBatchDataset", "UnbatchDataset"),
    *("PrefetchDataset", "OptionsDataset", "RepeatDataset", "TakeDataset", "SkipDataset"),
    *("FlatMapDataset", "InterleaveDataset", "ParallelInterleaveDatasetV4"),
}
_PYTHON = ("PyFunc", "EagerPyFunc", "PyFuncStateless")


def is_deterministic(dataset: tf.data.Dataset) -> bool:
    """Whether all workers that run the same program on the same data get the same rows."""
    arrays = _private.array_pipeline(dataset) is not None
    return arrays or _consists_of(dataset, _REPRODUCIBLE | _SEEDED)


def is_reproducible(dataset: tf.data.Dataset, given_order: bool = False) -> bool:
    """Whether each pass gives the same rows, so that a cache may be refilled.

    Args:
        dataset: of rows, or batches.
        given_order: whether shuffles are taken to give one order.
    """
    kinds = _REPRODUCIBLE | _BY_FUNCTION | _NUMBERS
    return _consists_of(dataset, kinds | _SEEDED if given_order else kinds)


def _consists_of(dataset: tf.data.Dataset, kinds: frozenset[str]) -> bool:
    """Whether a pipeline has only these transformations, and functions without a state."""
    found = _private.stage(dataset)
    if found.kind not in kinds and not found.keeps_order:
        return False
    if found.function is not None and state(found.function.operations):
        return False
    if found.kind in _BY_FUNCTION and state(_operations_of(dataset), _MAKE_DATASETS):
        return False
    return all(_consists_of(each, kinds) for each in found.inputs)


def _operations_of(dataset: tf.data.Dataset) -> Callable[[], frozenset[str]]:
    return lambda: _private.called_operations(dataset)


def maps_in_reader(dataset: tf.data.Dataset) -> bool:
    """Whether the function of an interleave or flat map does more than read: it maps rows too."""
    try:
        return not _MAPS.isdisjoint(_private.called_operations(dataset))
    except ValueError:  # of large constants, which something computes with
        return True


def why_not_row_by_row(function: _private.MapFunction, given: Any) -> str:
    """Why a map must run over all rows; empty when it need not.

    Args:
        function: of the map.
        given: the structure of what it takes.
    """
    if not (is_dense(given) and is_dense(function.output)):
        return "it takes or gives ragged or sparse tensors, datasets or None"
    return state(function.operations)


def state(operations: Callable[[], frozenset[str]], also: frozenset[str] = frozenset()) -> str:
    """Why a function may give different rows when called for fewer; empty when it does not.

    Args:
        operations: gives the types of all its operations.
        also: types that keep no state either.
    """
    try:
        called = operations()
    except ValueError:
        return "its constants are larger than 2 GB"
    for op in sorted(called - also):
        if op in _PYTHON:
            return "it calls Python, which may keep a state from row to row"
        if "Random" in op and not op.startswith("Stateless"):
            return "it draws random numbers, which would be others for fewer rows"
        if not (_private.is_pure(op) or _private.only_calls(op) or op in _ROW_BY_ROW):
            return f"{op} in it may keep a state from row to row"
    return ""


def is_dense(structure: Any) -> bool:
    """Whether all components are plain tensors, and there are some."""
    leaves = tf.nest.flatten(structure)
    return bool(leaves) and all(type(leaf) is tf.TensorSpec for leaf in leaves)
