"""Own rows: if several workers read a `tf.data` pipeline, each computes only its own rows.

The pipeline ends in global batches. Cutting these would make every worker decode and augment all
rows, only to discard most of them. So the cut moves up: before `batch`, and before every `map`
whose result for a row depends only on that row. Everything above the cut runs on every worker:
reading of file names or records, `shuffle`, `filter`, and maps that draw random numbers or call
Python, which would give different rows if called for fewer.

    files -> shuffle -> map(decode) -> batch            as the user writes it
    files -> shuffle -> batch -> cut -> map(decode)     as a worker reads it

Global batches stay the same, row by row.
"""

from __future__ import annotations

import inspect
import os
import weakref
from collections.abc import Callable
from dataclasses import dataclass, field
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
# Datasets that yield the same elements in each pass.
_REPRODUCIBLE = frozenset(
    {
        *("map", "batch", "prefetch", "options", "repeat", "take", "skip", "zip", "cache"),
        *("from_tensor_slices", "from_tensors", "range", "concatenate"),
        *("tfrecord", "text_line", "fixed_length_record"),
    }
)
_SEEDED = frozenset({"shuffle", "shard"})  # by seeds on which all workers agree
_PYTHON = ("PyFunc", "EagerPyFunc", "PyFuncStateless")


@dataclass(frozen=True)
class MovedCut:
    """A pipeline whose cut has moved up.

    Attributes:
        batches: global batches at the cut.
        compute: maps one of their rows to a user's row.
        output: the structure of a user's row.
        after: later transformations of the batches: cache, repeat, take, skip.
        size: of a batch, as text valid in a file name.
    """

    batches: tf.data.Dataset
    compute: Callable[[Any], Any]
    output: Any
    after: tuple[tuple[tf.data.Dataset, _private.Stage], ...]
    size: str

    def compute_rows(self, rows: Any) -> Any:
        """The user's rows (a nest of tensors) from some rows at the cut."""
        return tf.map_fn(self.compute, rows, fn_output_signature=self.output)

    def finish(self, cut: tf.data.Dataset, key: str) -> tf.data.Dataset:
        """The dataset of cut batches with the later transformations.

        Args:
            cut: the dataset.
            key: what distinguishes this cut from others of the dataset; letters and digits.
        """
        key = f"{self.size}-{key}"
        for dataset, stage in self.after:
            if stage.kind == "cache":
                # The rows of an in-memory cache are kept from one fit to the next.
                kept = _caches.setdefault(dataset, {})
                name = stage.filename and f"{stage.filename}.{key}"
                cut = kept[key] = kept[key] if key in kept else cut.cache(name)
            else:
                cut = getattr(cut, stage.kind)(stage.number)
        return cut


_caches: weakref.WeakKeyDictionary[Any, dict[str, Any]] = weakref.WeakKeyDictionary()


@dataclass
class _Report:
    """The functions that run over all rows, and the reasons."""

    lines: list[str] = field(default_factory=list)
    readers: list[str] = field(default_factory=list)

    def of_all(self) -> list[str]:
        """The lines where no row is computed by its worker alone: also of what reads rows."""
        return [*self.lines, *self.readers]

    def stays(self, kind: str, function: Any, why: str) -> None:
        self.lines.append(f"{kind} of {_place(function)}: {why}")

    def last(self, dataset: tf.data.Dataset) -> None:
        """The last transformation, which the cut cannot pass."""
        found, function = _private.stage(dataset), _private.user_function(dataset)
        why = f"{found.kind} comes after it"
        if found.function is not None:
            self.stays(
                "map", function, "it is after batch, and before it would run on own rows alone"
            )
            why = f"the map of {_place(function)} is after batch"
        elif function is not None and found.kind != "filter":
            why_not = "it may give any number of rows for each element"
            self.readers.append(f"{found.kind} of {_place(function)}: {why_not}")
        for each in found.inputs:
            self.all_below(each, why)

    def all_below(self, dataset: tf.data.Dataset, why: str) -> None:
        found, function = _private.stage(dataset), _private.user_function(dataset)
        if found.function is not None:
            self.stays("map", function, why)
        for each in found.inputs:
            self.all_below(each, why)


def move_cut(dataset: tf.data.Dataset) -> tuple[MovedCut | None, list[str]]:
    """Finds the place in a pipeline of global batches where rows can be cut.

    Args:
        dataset: of global batches.

    Returns:
        The pipeline in parts, or None when it would gain nothing; and, for each `map`, `interleave`
        or `flat_map` that every worker runs over all rows, its location and the reason.
    """
    report, after, node = _Report(), list[Any](), dataset
    found = _private.stage(node)
    while found.kind in ("options", "prefetch", "repeat", "take", "skip", "cache", "batch"):
        if found.kind == "cache" and not _is_reproducible(node):
            break
        if found.kind not in ("options", "prefetch"):
            after.insert(0, (node, found))
        if found.kind == "batch":
            break
        (node,) = found.inputs
        found = _private.stage(node)
    if found.kind != "batch":
        report.last(node)
        return None, report.of_all()
    (node,) = found.inputs
    output = node.element_spec
    node = _without_prefetch(node)
    cache = _private.stage(node)
    if cache.kind == "cache" and _is_reproducible(node):
        after[0] = (node, cache)
        (node,) = cache.inputs
    else:
        del after[0]
    rows = _rows(node, report)
    if rows.compute is None:
        return None, report.of_all()
    batches = rows.source.batch(found.number, found.drop_remainder)
    size = f"{found.number}{'-whole' if found.drop_remainder else ''}"
    return MovedCut(batches, rows.compute, output, tuple(after), size), report.lines


def _without_prefetch(dataset: tf.data.Dataset) -> tf.data.Dataset:
    while (found := _private.stage(dataset)).kind in ("options", "prefetch"):
        (dataset,) = found.inputs
    return dataset


def is_deterministic(dataset: tf.data.Dataset) -> bool:
    """Whether all workers that run the same program on the same data get the same rows."""
    arrays = _private.array_pipeline(dataset) is not None
    return arrays or _consists_of(dataset, _REPRODUCIBLE | _SEEDED)


def _is_reproducible(dataset: tf.data.Dataset) -> bool:
    """Whether each pass gives the same rows, so that a cache may be refilled."""
    return _consists_of(dataset, _REPRODUCIBLE)


def _consists_of(dataset: tf.data.Dataset, kinds: frozenset[str]) -> bool:
    """Whether a pipeline has only these transformations, and maps without a state."""
    found = _private.stage(dataset)
    if found.kind not in kinds:
        return False
    if found.function is not None and _state(found.function):
        return False
    return all(_consists_of(each, kinds) for each in found.inputs)


@dataclass(frozen=True)
class _Rows:
    """A dataset as a source and a function of each element."""

    source: tf.data.Dataset
    compute: Callable[[Any], Any] | None = None  # None: identity


def _rows(dataset: tf.data.Dataset, report: _Report) -> _Rows:
    """`dataset` as `source.map(compute)`."""
    found = _private.stage(dataset)
    match found.kind:
        case "options" | "prefetch":
            inner = _rows(found.inputs[0], report)
            return inner if inner.compute else _Rows(dataset)
        case "map":
            return _mapped(dataset, found, report)
        case "repeat" | "take" | "skip":
            inner = _rows(found.inputs[0], report)
            if inner.compute is None:
                return _Rows(dataset)
            return _Rows(getattr(inner.source, found.kind)(found.number), inner.compute)
        case "zip":
            return _zipped(dataset, found, report)
    report.last(dataset)
    return _Rows(dataset)


def _mapped(dataset: tf.data.Dataset, found: _private.Stage, report: _Report) -> _Rows:
    function, (source,) = found.function, found.inputs
    assert function is not None
    why = _why_not(function, source.element_spec)
    if why:
        report.stays("map", function.source, why)
        report.all_below(source, f"the map of {_place(function.source)} comes after it")
        return _Rows(dataset)
    inner = _rows(source, report)
    first = inner.compute
    if first is None:
        return _Rows(inner.source, function.call)
    return _Rows(inner.source, lambda element: function.call(first(element)))


def _zipped(dataset: tf.data.Dataset, found: _private.Stage, report: _Report) -> _Rows:
    inner = [_rows(each, report) for each in found.inputs]
    if all(each.compute is None for each in inner):
        return _Rows(dataset)
    structure = tf.nest.map_structure(lambda _: None, found.structure)
    sources = tf.nest.pack_sequence_as(structure, [each.source for each in inner])

    def compute(element: Any) -> Any:
        parts = _up_to(structure, element)
        done = [row.compute(p) if row.compute else p for row, p in zip(inner, parts, strict=True)]
        return tf.nest.pack_sequence_as(structure, done)

    return _Rows(tf.data.Dataset.zip(sources), compute)


def _up_to(structure: Any, element: Any) -> list[Any]:
    """The elements of the datasets in `structure`, from one of their zip."""
    if structure is None:
        return [element]
    keys = sorted(structure) if isinstance(structure, dict) else range(len(structure))
    return [part for key in keys for part in _up_to(structure[key], element[key])]


def _why_not(function: _private.MapFunction, given: Any) -> str:
    """Why a map must run over all rows; empty when it need not."""
    if not (_is_dense(given) and _is_dense(function.output)):
        return "it takes or gives ragged or sparse tensors, datasets or None"
    return _state(function)


def _state(function: _private.MapFunction) -> str:
    """Why a map may give different rows when called for fewer; empty when it does not."""
    try:
        operations = function.operations()
    except ValueError:
        return "its constants are larger than 2 GB"
    for op in sorted(operations):
        if op in _PYTHON:
            return "it calls Python, which may keep a state from row to row"
        if "Random" in op and not op.startswith("Stateless"):
            return "it draws random numbers, which would be others for fewer rows"
        if not (_private.is_pure(op) or _private.only_calls(op) or op in _ROW_BY_ROW):
            return f"{op} in it may keep a state from row to row"
    return ""


def _is_dense(structure: Any) -> bool:
    leaves = tf.nest.flatten(structure)
    return bool(leaves) and all(type(leaf) is tf.TensorSpec for leaf in leaves)


def _place(function: Any) -> str:
    """The location of a user's function: ``decode at train.py:40``."""
    code = getattr(inspect.unwrap(function), "__code__", None)
    name = getattr(function, "__name__", type(function).__name__)
    if code is None:
        return name
    return f"{name} at {os.path.basename(code.co_filename)}:{code.co_firstlineno}"
