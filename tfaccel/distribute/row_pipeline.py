"""The rows of a `tf.data` pipeline, as a source and what is done to each of its rows after that.

A cache of rows that are the same in each pass is one of these steps: a cache of some rows of each
batch holds them in its place. That is so as long as each pass over it begins with a batch:
transformations after it that take rows by their position are done to the source instead, except
`repeat`, which stays after it where passes consist of whole batches. A shuffle of rows is done to
the source too, in the same order, but not of cached rows: a worker's own are others in each pass.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import tensorflow as tf

from tfaccel.distribute import _private
from tfaccel.distribute.cut_steps import ByPosition, Caching, RowFunction, Rows
from tfaccel.distribute.joined_rows import concatenated, zipped
from tfaccel.distribute.own_rows_report import Report, place
from tfaccel.distribute.row_functions import is_dense, is_reproducible, why_not_row_by_row

# Transformations that neither change elements nor their number, and those that take, repeat or move
# some by their position, of rows as well as of batches.
UNCHANGING = ("options", "prefetch")
BY_POSITION = ("repeat", "take", "skip", "shard", "assert_cardinality", "shuffle")

_CACHE_BEFORE_SHUFFLE = ", then shuffle; with shuffle after batch it may move"


@dataclass(frozen=True)
class _Way:
    """What lies between a dataset and the batches.

    Attributes:
        report: where to note what stays.
        size: the rows of a batch.
        no_cache: why the cut cannot pass a cache, as the end of a sentence; empty where it can.
        no_repeat: the same for a cache that comes before a repeat.
        no_file: the same for a cache in a file.
    """

    report: Report
    size: int
    no_cache: str = ""
    no_repeat: str = ""
    no_file: str = ""


def rows_of(dataset: tf.data.Dataset, size: int, report: Report) -> Rows:
    """The rows of a dataset.

    Args:
        dataset: of rows, that are put together to batches.
        size: the rows of a batch.
        report: where to note what stays in the source, and the reason.
    """
    return _rows(dataset, _Way(report, size))


def unbatched(dataset: tf.data.Dataset) -> tf.data.Dataset | None:
    """The rows of batches of which none is dropped."""
    found = _private.stage(_without_prefetch(dataset))
    whole = found.kind == "batch" and not found.drop_remainder
    return found.inputs[0] if whole else None


def _without_prefetch(dataset: tf.data.Dataset) -> tf.data.Dataset:
    """A dataset without what changes none of its elements at its end."""
    while (found := _private.stage(dataset)).kind in UNCHANGING:
        (dataset,) = found.inputs
    return dataset


def _rows(dataset: tf.data.Dataset, way: _Way) -> Rows:
    found = _private.stage(dataset)
    match found.kind:
        case "map":
            return _mapped(dataset, found, way)
        case "cache":
            return _cached(dataset, found, way)
        case "repeat":
            return _repeated(dataset, found, way)
        case kind if kind in UNCHANGING:
            inner = _rows(found.inputs[0], way)
            return inner if inner.steps else Rows(dataset)
        case "shuffle" if hint := shuffle_hint(dataset):
            way.report.last(dataset, hint)
            return Rows(dataset)
        case kind if kind in BY_POSITION:
            way = replace(way, no_repeat=way.no_repeat or f", then repeat and {kind}")
            if kind == "shuffle":
                way = replace(way, no_cache=way.no_cache or _CACHE_BEFORE_SHUFFLE)
            inner = _rows(found.inputs[0], way)
            return inner.of_source(found) if inner.steps else Rows(dataset)
        case "unbatch" if (rows := unbatched(found.inputs[0])) is not None:
            inner = _rows(rows, way)
            return inner if inner.steps else Rows(dataset)
        case "zip" | "concatenate":
            return _joined(dataset, found, way)
    way.report.last(dataset)
    return Rows(dataset)


def _mapped(dataset: tf.data.Dataset, found: _private.Stage, way: _Way) -> Rows:
    function, (source,) = found.function, found.inputs
    assert function is not None
    why = why_not_row_by_row(function, source.element_spec)
    if why:
        way.report.stays("map", function.source, why)
        way.report.all_below(source, f"the map of {place(function.source)} comes after it")
        return Rows(dataset)
    return _rows(source, way).then(RowFunction(function.call, function.output))


def _cached(dataset: tf.data.Dataset, found: _private.Stage, way: _Way) -> Rows:
    hint = way.no_cache or (way.no_file if found.filename else "")
    if hint or not is_reproducible(dataset):
        way.report.last(dataset, hint or cache_hint(dataset))
        return Rows(dataset)
    inner = _rows(found.inputs[0], way)
    return inner.then(Caching(dataset, found.filename)) if inner.steps else Rows(dataset)


def shuffle_hint(dataset: tf.data.Dataset) -> str:
    """Why the cut cannot pass a shuffle, as the end of a sentence; empty where it can.

    Args:
        dataset: a shuffle of rows, or batches.
    """
    if _private.has_known_order(dataset):
        return ""
    return ", whose order is not known, since it reads too much from memory; put it first"


def cache_hint(dataset: tf.data.Dataset) -> str:
    """How rows may come to be the same in each pass, as the end of a sentence.

    Args:
        dataset: a cache of rows that may not be.
    """
    if not is_reproducible(dataset, given_order=True):
        return ""
    only = "with reshuffle_each_iteration=False it may move"
    return f", of rows whose order a shuffle draws in each pass; {only}"


def _repeated(dataset: tf.data.Dataset, found: _private.Stage, way: _Way) -> Rows:
    (once,) = found.inputs
    rows = int(once.cardinality())
    hint = way.no_repeat
    if rows < 0 or rows % way.size:
        hint = f", then repeat, of rows not known to fill batches of {way.size}"
    if hint:
        hint += "; with repeat after batch it may move"
        inner = _rows(once, replace(way, no_cache=way.no_cache or hint))
    else:
        inner = _rows(once, way)
    if inner.are_cached:
        return inner.then(ByPosition(found))
    return inner.of_source(found) if inner.steps else Rows(dataset)


def _joined(dataset: tf.data.Dataset, found: _private.Stage, way: _Way) -> Rows:
    if not is_dense(dataset.element_spec):
        way.report.last(dataset, " with ragged or sparse rows")
        return Rows(dataset)
    kind = found.kind
    differs = "" if is_reproducible(dataset) else f", then {kind} with rows that may differ"
    way = replace(
        way,
        no_cache=way.no_cache or differs,
        no_repeat=way.no_repeat or f", then repeat and {kind}",
        no_file=way.no_file or f", in a file, then {kind}",
    )
    inputs = found.inputs if kind == "zip" else _concatenated(dataset)
    inner = [_rows(each, way) for each in inputs]
    if not any(each.steps for each in inner):
        return Rows(dataset)
    if kind == "zip":
        return zipped(dataset, found.structure, inner)
    rows = concatenated(dataset, inner)
    if rows is None:
        way.report.last(dataset, " of rows that differ in structure before a map")
        return Rows(dataset)
    return rows


def _concatenated(dataset: tf.data.Dataset) -> list[tf.data.Dataset]:
    """The datasets of which a dataset consists, one after the other."""
    found = _private.stage(dataset)
    if found.kind != "concatenate":
        return [dataset]
    return [part for each in found.inputs for part in _concatenated(each)]
