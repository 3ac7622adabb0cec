"""Rows of several datasets, zipped or concatenated, as one source and the steps after it.

Their caches become caches of all of them, one for the first of each, one for the second, and so on.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from itertools import zip_longest
from typing import Any

import tensorflow as tf

from tfaccel.distribute.cut_steps import Caching, RowFunction, Rows

_Functions = Sequence[RowFunction | None]  # None: identity


def zipped(dataset: tf.data.Dataset, datasets: Any, inner: list[Rows]) -> Rows:
    """The rows of a zip.

    Args:
        dataset: the zip.
        datasets: what it was made of, in the user's structure.
        inner: the rows of each, of which some have steps, and none is repeated after a cache.
    """
    structure = tf.nest.map_structure(lambda _: None, datasets)
    done = Rows(tf.data.Dataset.zip(_packed_as(structure, [each.source for each in inner])))
    specs = [each.source.element_spec for each in inner]
    for number, functions in enumerate(_between_caches(inner)):
        if number:
            done = done.then(Caching(dataset, "", f"-joined{number}"))
        if any(functions):
            specs = [f.output if f else spec for f, spec in zip(functions, specs, strict=True)]
            done = done.then(_of_parts(structure, functions, specs))
    return done


def concatenated(dataset: tf.data.Dataset, inner: list[Rows]) -> Rows | None:
    """The rows of datasets one after the other; None where they differ in structure before.

    Args:
        dataset: all together.
        inner: as for `zipped`.
    """
    spec, *others = [each.source.element_spec for each in inner]
    if any(other != spec for other in others):
        return None
    numbered = (_numbered(each.source, number) for number, each in enumerate(inner))
    done = Rows(functools.reduce(tf.data.Dataset.concatenate, numbered))
    for number, functions in enumerate(_between_caches(inner)):
        if number:
            done = done.then(Caching(dataset, "", f"-joined{number}"))
        if any(functions):
            spec, *others = [f.output if f else spec for f in functions]
            if any(other != spec for other in others):
                return None
            done = done.then(_of_one(functions, spec))
    return done.then(RowFunction(lambda element: element[1], spec))


def _between_caches(inner: list[Rows]) -> list[tuple[RowFunction | None, ...]]:
    """What is done to the rows of each dataset before, between and after the caches."""
    return list(zip_longest(*map(_functions, inner)))


def _functions(rows: Rows) -> _Functions:
    found: list[RowFunction | None] = [None]
    for step in rows.steps:
        if isinstance(step, Caching):
            found.append(None)
        else:
            assert isinstance(step, RowFunction)
            found[-1] = step
    return found


def _numbered(dataset: tf.data.Dataset, number: int) -> tf.data.Dataset:
    @tf.autograph.experimental.do_not_convert
    def numbered(*row: Any) -> Any:
        return tf.constant(number), row if len(row) > 1 else row[0]

    return dataset.map(numbered)


def _of_one(functions: _Functions, spec: Any) -> RowFunction:
    """A function of numbered rows."""

    def call(element: Any) -> Any:
        number, row = element
        calls = (f.call if f else _same for f in functions)
        return number, tf.switch_case(number, [functools.partial(each, row) for each in calls])

    return RowFunction(call, (tf.TensorSpec([], tf.int32), spec))


def _same(row: Any) -> Any:
    return tf.nest.map_structure(tf.identity, row)


def _of_parts(structure: Any, functions: _Functions, specs: list[Any]) -> RowFunction:
    """A function of a zip of rows, from those of its datasets."""

    def call(element: Any) -> Any:
        parts = zip(functions, _up_to(structure, element), strict=True)
        return _packed_as(structure, [f.call(part) if f else part for f, part in parts])

    return RowFunction(call, _packed_as(structure, specs))


def _packed_as(structure: Any, parts: list[Any]) -> Any:
    return tf.nest.pack_sequence_as(structure, parts)


def _up_to(structure: Any, element: Any) -> list[Any]:
    """The elements of the datasets in `structure`, from one of their zip."""
    if structure is None:
        return [element]
    keys = sorted(structure) if isinstance(structure, dict) else range(len(structure))
    return [part for key in keys for part in _up_to(structure[key], element[key])]
