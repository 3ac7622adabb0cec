"""Datasets: the iterator of `tf.data`, and the pipelines that Keras makes of arrays and threads.

`tf.data` exports no step of a dataset that exists, and Keras none of its adapters. Seen with
TensorFlow 2.21 and Keras 3.15, watched by `tests/distribute/test_private.py` and
`tests/distribute/test_threads.py`.
"""

from __future__ import annotations

from typing import Any

import tensorflow as tf

# What `iter(dataset)` is, which Keras lets take its batches inside a function. Public is only its
# base, which has no batches.
from tensorflow.python.data.ops.iterator_ops import OwnedIterator as DatasetIterator

__all__ = ["DatasetIterator", "array_pipeline", "restart_threads"]


def array_pipeline(dataset: tf.data.Dataset) -> tuple[tf.data.Dataset, list[Any]] | None:
    """Takes the dataset that Keras makes of in-memory arrays apart.

    Keras gathers every row of a global batch and would leave the choosing of rows for later. To
    gather only our own, the indices must be split before they are used, and `tf.data` has no public
    way to insert a step into a dataset that exists.

    Returns:
        The innermost dataset, of `(row indices, arrays)` pairs, and the functions mapped over it
        in order (the first is Keras's gather); None when `dataset` is not of that shape.
    """
    functions: list[Any] = []
    node = dataset
    while not type(node).__name__.startswith("_ZipDataset"):
        mapped = getattr(node, "_map_func", None)
        if mapped is not None:
            functions.insert(0, mapped._func)
        elif type(node).__name__ not in ("_PrefetchDataset", "_OptionsDataset"):
            return None
        node = getattr(node, "_input_dataset", None)
        if node is None:
            return None
    if not functions or getattr(functions[0], "__name__", "") != "grab_batch":
        return None
    return node, functions


def restart_threads(threads: Any) -> bool:
    """Lets the threads of a `PyDataset`, stopped after a look at its first batch, begin anew.

    Keras 3.15 keeps what they have read by then for the next pass, which begins with the first
    batch all the same: up to ten batches would come twice, and as many of the last ones never.

    Args:
        threads: of `Caller`; stopped, and perhaps started again, since.

    Returns:
        False when the dataset has no end: its threads go on where they were, and lose nothing.
    """
    if threads.py_dataset.num_batches is None:
        return False
    while not threads.ready_queue.empty():
        threads.ready_queue.get_nowait()
    return True
