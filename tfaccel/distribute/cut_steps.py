"""What becomes of rows behind a cut: functions of a row, caches, repeat, shuffle and the like.

A cache there holds a worker's rows of each batch. So it holds them as they come from one pass over
the cut, in which every batch begins with the same row as in all others.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import tensorflow as tf

from tfaccel.distribute import _private, row_shapes
from tfaccel.distribute.row_shapes import Packing

Computed = Callable[[tf.data.Dataset, Callable[[Any], Any]], tf.data.Dataset]
"""Applies a function of rows to the rows of each element of a dataset."""

_caches: weakref.WeakKeyDictionary[Any, dict[str, Any]] = weakref.WeakKeyDictionary()


@dataclass(frozen=True)
class RowFunction:
    """A function of a row.

    Attributes:
        call: takes a row and returns one.
        output: the structure of what it returns.
    """

    call: Callable[[Any], Any]
    output: Any

    def then(self, other: RowFunction) -> RowFunction:
        """The same, and then another function."""
        return RowFunction(lambda row: other.call(self.call(row)), other.output)


@dataclass(frozen=True)
class Computing:
    """Computes rows.

    Attributes:
        rows: a function of some rows, that gives as many.
    """

    rows: Callable[[Any], Any]

    def applied_to(self, cut: tf.data.Dataset, key: str, computed: Computed) -> tf.data.Dataset:
        """`cut` after this step; `key` tells the cut from others of the same pipeline."""
        return computed(cut, self.rows)


@dataclass(frozen=True)
class Caching:
    """Keeps a worker's rows.

    Attributes:
        owner: the user's dataset that has these rows. A cache in memory lives as long: from one
            fit to the next.
        filename: of the user's cache; empty for one in memory.
        of: what distinguishes these rows from others of `owner`; valid in the name of a file.
    """

    owner: tf.data.Dataset
    filename: str
    of: str = ""

    def applied_to(self, cut: tf.data.Dataset, key: str, computed: Computed) -> tf.data.Dataset:
        """As in `Computing`."""
        key += self.of
        kept = _caches.setdefault(self.owner, {})
        if key not in kept:
            kept[key] = cut.cache(self.filename and f"{self.filename}.{key}")
        return kept[key]

    def also_of(self, what: str) -> Caching:
        """The same of fewer, or other, rows of its owner."""
        return replace(self, of=f"{self.of}-{what}")


@dataclass(frozen=True)
class ByPosition:
    """A repeat, take, skip, shard, shuffle or assert_cardinality.

    Attributes:
        stage: the user's.
    """

    stage: _private.Stage

    @property
    def moves_first(self) -> bool:
        """Whether it may begin with another than the first element."""
        return self.stage.kind in ("skip", "shard", "shuffle")

    def applied_to(self, cut: tf.data.Dataset, key: str, computed: Computed) -> tf.data.Dataset:
        """As in `Computing`."""
        return self.stage.applied_to(cut)


RowStep = RowFunction | Caching | ByPosition
CutStep = Computing | Caching | ByPosition


@dataclass(frozen=True)
class Rows:
    """A dataset as a source and the steps that follow it.

    Attributes:
        source: a dataset.
        steps: none, or first a function.
    """

    source: tf.data.Dataset
    steps: tuple[RowStep, ...] = ()

    @property
    def are_cached(self) -> bool:
        """Whether one of the steps is a cache."""
        return any(isinstance(step, Caching) for step in self.steps)

    def then(self, step: RowStep) -> Rows:
        """The same, and then another step."""
        last = self.steps[-1] if self.steps else None
        if isinstance(last, RowFunction) and isinstance(step, RowFunction):
            return Rows(self.source, (*self.steps[:-1], last.then(step)))
        return Rows(self.source, (*self.steps, step))

    def of_source(self, found: _private.Stage) -> Rows:
        """The same of some rows of the source, by their position."""
        what = f"{found.kind}{found.number}" + (f"from{found.index}" if found.index else "")
        steps = (s.also_of(what) if isinstance(s, Caching) else s for s in self.steps)
        return Rows(found.applied_to(self.source), tuple(steps))


def of_batches(given: Packing, steps: tuple[RowStep, ...]) -> tuple[CutStep, ...]:
    """The steps of rows, for batches of them.

    Args:
        given: of the rows at the cut, which are packed.
        steps: of rows; none, or first a function.
    """
    last = max((i for i, step in enumerate(steps) if isinstance(step, RowFunction)), default=-1)
    done: list[CutStep] = []
    for i, step in enumerate(steps):
        if isinstance(step, RowFunction):
            made = Packing(step.output)
            done.append(Computing(_of_rows(given, step, made if i < last else None)))
            given = made
        elif isinstance(step, Caching) and i < last and given.is_needed:
            done.append(step.also_of("packed"))
        else:
            done.append(step)
    return tuple(done)


def _of_rows(given: Packing, step: RowFunction, made: Packing | None) -> Callable[[Any], Any]:
    """`step` of each of some rows; `made` packs what it returns."""
    output = step.output if made is None else made.packed

    def one(row: Any) -> Any:
        result = step.call(given.unpack(row))
        return result if made is None else made.pack(result)

    def of_some(rows: Any) -> Any:
        return tf.map_fn(one, rows, fn_output_signature=output)

    def of_any_number(rows: Any) -> Any:
        some = tf.shape(tf.nest.flatten(rows)[0])[0] > 0
        return tf.cond(some, lambda: of_some(rows), lambda: row_shapes.no_rows(output))

    return of_some if row_shapes.have_one_shape(output) else of_any_number
