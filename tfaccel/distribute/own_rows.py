"""Own rows: if several workers read a `tf.data` pipeline, each computes only its own rows.

The pipeline ends in global batches. Cutting these would make every worker decode and augment all
rows, only to discard most of them. So the cut moves up: before `batch`, and before every `map`
whose result for a row depends only on that row. Everything above the cut runs on every worker:
reading of file names or records, `shuffle`, `filter`, and maps that draw random numbers or call
Python, which would give different rows if called for fewer. A cache below the cut holds own rows.

    files -> map(decode) -> cache -> map(augment) -> batch            as the user writes it
    files -> batch -> cut -> map(decode) -> cache -> map(augment)     as a worker reads it

Global batches stay the same, row by row.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass, replace
from typing import Any

import tensorflow as tf

from tfaccel.distribute import _private, batch_functions, row_shapes
from tfaccel.distribute.cut_steps import (
    ByPosition,
    Caching,
    Computed,
    Computing,
    CutStep,
    RowFunction,
    of_batches,
)
from tfaccel.distribute.own_rows_report import Report
from tfaccel.distribute.row_functions import is_dense, is_reproducible
from tfaccel.distribute.row_pipeline import (
    BY_POSITION,
    UNCHANGING,
    cache_hint,
    rows_of,
    shuffle_hint,
    unbatched,
)


@dataclass(frozen=True)
class MovedCut:
    """A pipeline whose cut has moved up.

    Attributes:
        batches: global batches at the cut.
        steps: make the user's batches of them, for some rows as for all.
        size: of a batch, as text valid in a file name.
    """

    batches: tf.data.Dataset
    steps: tuple[CutStep, ...]
    size: str

    @property
    def begins_elsewhere(self) -> bool:
        """Whether a pass may begin with another than the first batch at the cut."""
        return any(isinstance(step, ByPosition) and step.moves_first for step in self.steps)

    def finish(self, cut: tf.data.Dataset, key: str, computed: Computed) -> tf.data.Dataset:
        """The user's batches, of a dataset with some rows of each batch at the cut.

        Args:
            cut: the dataset.
            key: what distinguishes this cut from others of the dataset; letters and digits.
            computed: applies a function of rows to the rows in each element of `cut`.
        """
        for step in self.steps:
            cut = step.applied_to(cut, f"{self.size}-{key}", computed)
        return cut


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
    return replace(moved, steps=(*moved.steps, Computing(lambda rows: weigh(*rows)))), lines


def _move(dataset: tf.data.Dataset) -> tuple[MovedCut | None, list[str]]:
    """As `move_cut`, of a dataset without the weights of classes."""
    report, after, node = Report(), list[CutStep](), dataset
    found = _private.stage(node)
    while found.kind in (*UNCHANGING, *BY_POSITION, "cache", "map"):
        if found.function is not None:
            if batch_functions.why_not_by_row(found.function, found.inputs[0].element_spec):
                break
            after.insert(0, Computing(found.function.call))
        elif found.kind == "cache":
            if not is_reproducible(node):
                break
            after.insert(0, Caching(node, found.filename))
        elif found.kind == "shuffle" and shuffle_hint(node):
            break
        elif found.kind in BY_POSITION:
            after.insert(0, ByPosition(found))
        (node,) = found.inputs
        found = _private.stage(node)
    batched = _batched(node, found)
    if batched is None:
        report.last(node, _hint(node, found))
        return None, report.of_all()
    rows = rows_of(batched, found.number, report)
    if not rows.steps and not _computes(after, rows.source):
        return None, report.of_all()
    if found.kind == "padded_batch":
        output = _row_of(node)
        rows = rows.then(RowFunction(row_shapes.padded(output, found.padding), output))
    packing = row_shapes.Packing(rows.source.element_spec)
    batches = packing.rows(rows.source).batch(found.number, found.drop_remainder)
    batches, after = (batches, after) if rows.are_cached else _taken(batches, after)
    size = f"{found.number}{'-whole' if found.drop_remainder else ''}"
    return MovedCut(batches, (*of_batches(packing, rows.steps), *after), size), report.lines


def _computes(after: list[CutStep], rows: tf.data.Dataset) -> bool:
    """Whether own rows of a dataset are worth taking for what steps after `batch` do with them."""
    one_shape = row_shapes.have_one_shape(rows.element_spec)
    return one_shape and any(isinstance(step, Computing) for step in after)


def _taken(batches: tf.data.Dataset, after: list[CutStep]) -> tuple[tf.data.Dataset, list[CutStep]]:
    """Some batches, by the first of the steps `after` them, and the other steps.

    So no order is drawn, nor row read, for batches that are computed ahead and then not taken.
    """
    first = list(itertools.takewhile(lambda step: isinstance(step, ByPosition), after))
    for step in first:
        assert isinstance(step, ByPosition)
        batches = step.stage.applied_to(batches)
    return batches, after[len(first) :]


def _batched(dataset: tf.data.Dataset, found: _private.Stage) -> tf.data.Dataset | None:
    """The rows of a dataset of batches; None where it does not just put them together."""
    match found.kind:
        case "batch":
            return found.inputs[0]
        case "rebatch" if found.number:
            return unbatched(found.inputs[0])
        case "padded_batch" if row_shapes.have_one_shape(_row_of(dataset)):
            return found.inputs[0]
    return None


def _row_of(dataset: tf.data.Dataset) -> Any:
    """The structure of a row of batches."""
    return tf.nest.map_structure(
        lambda spec: tf.TensorSpec(spec.shape[1:], spec.dtype), dataset.element_spec
    )


def _hint(dataset: tf.data.Dataset, found: _private.Stage) -> str:
    match found.kind:
        case "map" if found.function is not None:
            why = batch_functions.why_not_by_row(found.function, found.inputs[0].element_spec)
            return f", where {why}"
        case "cache":
            return cache_hint(dataset)
        case "shuffle":
            return shuffle_hint(dataset)
        case "padded_batch":
            sizes = "with padded_shapes of known sizes it may move"
            return f", and pads to the longest row of a batch; {sizes}"
    return ""
