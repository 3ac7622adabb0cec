"""How the data of a `fit` return to their position: what is read again, and what is restored."""

from __future__ import annotations

from typing import Any

import tensorflow as tf
from absl import logging

from tfaccel.distribute import _private

# Operations of a pipeline whose passes differ only in their seeds, which each pass draws when it
# begins: only the first rows of an earlier pass need to be read.
_ALIKE = frozenset(
    {
        *("BatchDatasetV2", "MapDataset", "OptionsDataset"),
        *("ParallelBatchDataset", "ParallelMapDatasetV2", "PrefetchDataset", "RangeDataset"),
        *("RebatchDatasetV2", "ShuffleDataset", "ShuffleDatasetV2", "ShuffleDatasetV3"),
        *("SkipDataset", "TakeDataset", "TensorDataset", "TensorSliceDataset", "ZipDataset"),
        *("PaddedBatchDatasetV2", "ShardDataset", "ModelDataset"),
    }
)
_SHUFFLES = ("ShuffleDataset", "ShuffleDatasetV2", "ShuffleDatasetV3")


def source_of(adapter: Any) -> Any:
    """The user's own object whose attributes hold the position in its data; None for arrays."""
    is_py_dataset = isinstance(adapter, _private.PyDatasetAdapter)
    return _private.source_of_py_dataset(adapter) if is_py_dataset else None


def reads_in_python(adapter: Any) -> bool:
    """Whether each epoch's pass is created again in Python, from its state at that time."""
    return isinstance(adapter, (_private.PyDatasetAdapter, _private.GrainDatasetAdapter))


def has_threads(adapter: Any) -> bool:
    """Whether threads of Keras read ahead, which do not stop within a pass."""
    return isinstance(adapter, _private.PyDatasetAdapter) and adapter.enqueuer is not None


def passes_are_alike(adapter: Any) -> bool:
    """Whether a pass draws all its seeds when it begins, so that it need not be read to the end.

    Keras's own pipeline over arrays permutes the row numbers at the beginning of a pass.
    """
    if isinstance(adapter, _private.ArrayDataAdapter):
        return True
    return isinstance(adapter, _private.TFDatasetAdapter) and operations(adapter) <= _ALIKE


def warn_unseeded(adapter: Any) -> None:
    """Warns of a dataset seeded from the clock: no later run can repeat its order of rows."""
    if isinstance(adapter, _private.TFDatasetAdapter) and _unseeded(_graph(adapter)):
        logging.warning(
            "tfaccel: the dataset was shuffled without a seed before tfaccel.checkpoint.resume was "
            "called, so a run that is resumed has its rows in another order; expected "
            "dataset.shuffle(..., seed=0), keras.utils.set_random_seed(0), or the dataset made "
            "after the callback."
        )


def operations(adapter: Any) -> set[str]:
    """The types of all operations of a pipeline that depend on the pass or have a state."""
    graph = _graph(adapter)
    return {
        node.op
        for node in graph.node
        if "Dataset" in node.op or node.op in ("PyFunc", "EagerPyFunc", "PyFuncStateless")
    } | {
        node.op
        for function in graph.library.function
        for node in function.node_def
        if "Dataset" in node.op or not (_private.is_pure(node.op) or _private.only_calls(node.op))
    }


def _unseeded(graph: Any) -> bool:
    nodes = {node.name: node for node in graph.node}
    shuffles = [node for node in graph.node if node.op in _SHUFFLES]
    seeds = [
        [_constant(nodes.get(name.partition(":")[0])) for name in node.input[2:4]]
        for node in shuffles
    ]
    return [0, 0] in seeds


def _constant(node: Any) -> int | None:
    return int(tf.make_ndarray(node.attr["value"].tensor)) if node and node.op == "Const" else None


def _graph(adapter: Any) -> Any:
    """The graph of the pipeline that the user gave."""
    variant = tf.data.experimental.to_variant(adapter.get_tf_dataset())
    serialized = tf.raw_ops.DatasetToGraphV2(input_dataset=variant, external_state_policy=1)
    return tf.compat.v1.GraphDef.FromString(serialized.numpy())
