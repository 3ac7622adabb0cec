"""Names the source of a `fit`'s batches, and its parts that steps can wait for."""

from __future__ import annotations

import inspect
import os
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import tensorflow as tf

from tfaccel.distribute import _private

_READS = ("tfrecord", "text_line", "fixed_length_record", "csv", "sql", "list_files", "snapshot")


@dataclass(frozen=True)
class InputSource:
    """The source of batches.

    Attributes:
        name: in words.
        candidates: the parts that compute or read, in order, as `map of decode at train.py:40`.
        advice: how to make it faster, by its form.
        dataset: the user's `tf.data.Dataset`; None for another source.
    """

    name: str
    candidates: tuple[str, ...] = ()
    advice: str = ""
    dataset: Any = None


def source_of(adapter: Any, workers: int) -> InputSource:
    """The source that a Keras adapter reads.

    Args:
        adapter: Keras's, of the data of a `fit`.
        workers: how many read it.
    """
    if isinstance(adapter, _private.TFDatasetAdapter):
        return of_dataset(adapter.get_tf_dataset(), workers)
    if isinstance(adapter, _private.ArrayDataAdapter):
        return InputSource("arrays in memory")
    if isinstance(adapter, _private.PyDatasetAdapter):
        return _of_py_dataset(adapter)
    if isinstance(adapter, _private.GrainDatasetAdapter):
        advice = "Read with several of Grain's workers and a larger read buffer."
        return InputSource("Grain's dataset", ("Grain's dataset",), advice)
    advice = "A generator runs in one Python thread: use tf.data, or a PyDataset with workers."
    return InputSource("a Python generator", ("a Python generator",), advice)


def _of_py_dataset(adapter: Any) -> InputSource:
    dataset = _private.source_of_py_dataset(adapter)
    # On several workers rows may be read instead of batches (`batch_rows.py`).
    method = "__getitem__" if dataset is adapter.py_dataset else "get_rows"
    what = f"{type(dataset).__name__}.{method}{place(getattr(type(dataset), method))}"
    workers = int(getattr(dataset, "workers", 1))
    advice = "Give it more workers" if workers > 1 else "Give it workers=N"
    advice += ", and use_multiprocessing=True where Python takes the time"
    return InputSource(f"PyDataset with workers={workers}", (what,), f"{advice}, or use tf.data.")


def of_dataset(dataset: tf.data.Dataset, workers: int = 1) -> InputSource:
    """The parts of a pipeline."""
    stages = list(_stages(dataset))
    kinds = [found.kind for _, found in stages]
    candidates = tuple(
        name for each, found in reversed(stages) if (name := _name(each, found)) is not None
    )
    advice = []
    sequential = any(
        found.function is not None and not _private.is_parallel(each) for each, found in stages
    )
    if sequential:
        advice.append("map with num_parallel_calls=tf.data.AUTOTUNE")
    after_batch = stages[: kinds.index("batch")] if "batch" in kinds else []
    if workers > 1 and any(found.function is not None for _, found in after_batch):
        advice.append("put it before batch, so that workers share its rows")
    if "prefetch" not in kinds:
        advice.append("end the pipeline with prefetch(2)")
    if "cache" not in kinds:
        advice.append("cache() what does not change")
    text = "; ".join(advice)
    name = " > ".join(dict.fromkeys(kinds[::-1]))
    return InputSource(
        f"tf.data: {name}", candidates, f"{text[:1].upper()}{text[1:]}." if text else "", dataset
    )


def _stages(dataset: Any) -> Iterator[tuple[Any, Any]]:
    """All transformations of a dataset, the last one first."""
    stage = _private.stage(dataset)
    yield dataset, stage
    for each in stage.inputs:
        yield from _stages(each)


def _name(dataset: Any, operation: Any) -> str | None:
    """A transformation that computes or reads, in words; None for any other."""
    function = _private.user_function(dataset)
    if function is not None:
        module = str(getattr(inspect.unwrap(function), "__module__", ""))
        if module.startswith("keras."):
            return None  # adds the weight of a class
        if module.startswith("tensorflow."):
            return "`from_generator`" if "from_generator" in module else f"`{operation.kind}`"
        name = getattr(inspect.unwrap(function), "__name__", type(function).__name__)
        name = "a lambda" if name == "<lambda>" else name
        return f"`{operation.kind}` of {name}{place(function)}"
    if operation.kind in _READS:
        return f"`{operation.kind}`"
    return None


def place(function: Any) -> str:
    """The location of a user's function: `` at train.py:40``."""
    code = getattr(inspect.unwrap(function), "__code__", None)
    if code is None:
        return ""
    return f" at {os.path.basename(code.co_filename)}:{code.co_firstlineno}"
