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

import weakref
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import tensorflow as tf

from tfaccel.distribute import _private, row_shapes
from tfaccel.distribute.own_rows_report import Report, place
from tfaccel.distribute.row_functions import is_dense, is_reproducible, why_not_row_by_row

# Transformations that neither change elements nor their number, and those that take or repeat some
# by their position, of rows as well as of batches.
_UNCHANGING = ("options", "prefetch")
_BY_POSITION = ("repeat", "take", "skip", "shard", "assert_cardinality")


@dataclass(frozen=True)
class MovedCut:
    """A pipeline whose cut has moved up.

    Attributes:
        batches: global batches at the cut.
        compute: maps one of their rows to a user's row.
        output: the structure of a user's row.
        after: later transformations of the batches: cache, or by their position, such as take.
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
                cut = stage.applied_to(cut)
        return cut


_caches: weakref.WeakKeyDictionary[Any, dict[str, Any]] = weakref.WeakKeyDictionary()


def move_cut(dataset: tf.data.Dataset) -> tuple[MovedCut | None, list[str]]:
    """Finds the place in a pipeline of global batches where rows can be cut.

    Args:
        dataset: of global batches.

    Returns:
        The pipeline in parts, or None when it would gain nothing; and, for each `map`, `interleave`
        or `flat_map` that every worker runs over all rows, its location and the reason.
    """
    weighted = _private.class_weighted(dataset)
    if weighted is None or not is_dense(dataset.element_spec):
        return _move(dataset)
    batches, weigh = weighted
    moved, lines = _move(batches)
    if moved is None:
        return None, lines
    if any(found.kind == "cache" for _, found in moved.after):  # weights may be others next time
        return _move(dataset)
    compute = moved.compute

    def compute_weighted(row: Any) -> Any:
        batch = tf.nest.map_structure(lambda part: tf.expand_dims(part, 0), compute(row))
        return tf.nest.map_structure(lambda part: part[0], weigh(*batch))

    return replace(moved, compute=compute_weighted, output=_row_of(dataset)), lines


def _move(dataset: tf.data.Dataset) -> tuple[MovedCut | None, list[str]]:
    """As `move_cut`, of a dataset without the weights of classes."""
    report, after, node = Report(), list[Any](), dataset
    found = _private.stage(node)
    while found.kind in (*_UNCHANGING, *_BY_POSITION, "cache"):
        if found.kind == "cache" and not is_reproducible(node):
            break
        if found.kind not in _UNCHANGING:
            after.insert(0, (node, found))
        (node,) = found.inputs
        found = _private.stage(node)
    batched = _batched(node, found)
    if batched is None:
        report.last(node, _hint(node, found))
        return None, report.of_all()
    node = _without_prefetch(batched)
    cache = _private.stage(node)
    if cache.kind == "cache" and is_reproducible(node) and found.kind != "padded_batch":
        after.insert(0, (node, cache))
        (node,) = cache.inputs
    rows, output = _rows(node, report), batched.element_spec
    if rows.compute is not None and found.kind == "padded_batch":
        output = _row_of(dataset)
        rows = rows.then(row_shapes.padded(output, found.padding))
    compute = rows.compute
    if compute is None:
        return None, report.of_all()
    source, unpack = row_shapes.packed(rows.source)
    batches = source.batch(found.number, found.drop_remainder)
    size = f"{found.number}{'-whole' if found.drop_remainder else ''}"
    moved = MovedCut(batches, lambda row: compute(unpack(row)), output, tuple(after), size)
    return moved, report.lines


def _batched(dataset: tf.data.Dataset, found: _private.Stage) -> tf.data.Dataset | None:
    """The rows of a dataset of batches; None where it does not just put them together."""
    match found.kind:
        case "batch":
            return found.inputs[0]
        case "rebatch" if found.number:
            return _unbatched(found.inputs[0])
        case "padded_batch" if row_shapes.have_one_shape(_row_of(dataset)):
            return found.inputs[0]
    return None


def _unbatched(dataset: tf.data.Dataset) -> tf.data.Dataset | None:
    """The rows of batches of which none is dropped."""
    found = _private.stage(_without_prefetch(dataset))
    whole = found.kind == "batch" and not found.drop_remainder
    return found.inputs[0] if whole else None


def _row_of(dataset: tf.data.Dataset) -> Any:
    """The structure of a row of batches."""
    return tf.nest.map_structure(
        lambda spec: tf.TensorSpec(spec.shape[1:], spec.dtype), dataset.element_spec
    )


def _hint(dataset: tf.data.Dataset, found: _private.Stage) -> str:
    if found.kind != "padded_batch":
        return ""
    return ", and pads to the longest row of a batch; with padded_shapes of known sizes it may move"


def _without_prefetch(dataset: tf.data.Dataset) -> tf.data.Dataset:
    while (found := _private.stage(dataset)).kind in _UNCHANGING:
        (dataset,) = found.inputs
    return dataset


@dataclass(frozen=True)
class _Rows:
    """A dataset as a source and a function of each element."""

    source: tf.data.Dataset
    compute: Callable[[Any], Any] | None = None  # None: identity

    def then(self, function: Callable[[Any], Any]) -> _Rows:
        """The same, and then `function` of each element."""
        first = self.compute
        if first is None:
            return _Rows(self.source, function)
        return _Rows(self.source, lambda element: function(first(element)))


def _rows(dataset: tf.data.Dataset, report: Report) -> _Rows:
    """`dataset` as `source.map(compute)`."""
    found = _private.stage(dataset)
    match found.kind:
        case "map":
            return _mapped(dataset, found, report)
        case kind if kind in (*_UNCHANGING, *_BY_POSITION):
            inner = _rows(found.inputs[0], report)
            if inner.compute is None:
                return _Rows(dataset)
            if kind in _UNCHANGING:
                return inner
            return _Rows(found.applied_to(inner.source), inner.compute)
        case "unbatch" if (rows := _unbatched(found.inputs[0])) is not None:
            inner = _rows(rows, report)
            return inner if inner.compute else _Rows(dataset)
        case "zip":
            return _zipped(dataset, found, report)
    report.last(dataset)
    return _Rows(dataset)


def _mapped(dataset: tf.data.Dataset, found: _private.Stage, report: Report) -> _Rows:
    function, (source,) = found.function, found.inputs
    assert function is not None
    why = why_not_row_by_row(function, source.element_spec)
    if why:
        report.stays("map", function.source, why)
        report.all_below(source, f"the map of {place(function.source)} comes after it")
        return _Rows(dataset)
    return _rows(source, report).then(function.call)


def _zipped(dataset: tf.data.Dataset, found: _private.Stage, report: Report) -> _Rows:
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
