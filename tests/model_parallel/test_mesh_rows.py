"""Own rows on a mesh: a process computes of each global batch what its devices hold."""

from __future__ import annotations

import functools
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import tensorflow as tf

from tests.distribute import own_rows_pipelines as pipelines
from tests.distribute.test_data_service import Service
from tests.distribute.test_own_rows import assert_same
from tfaccel.distribute import _private, data_service
from tfaccel.distribute.dataset_sharding import with_data_workers
from tfaccel.distribute.model_parallel.mesh_rows import MeshRows, of_own_rows, why_whole


@functools.cache
def two_data_workers() -> Service:
    return Service()


def mesh(*batch: int) -> Any:
    """One of four parts of rows, of which these are here, each on two devices."""
    places = [{"batch": part, "model": model} for part in batch for model in range(2)]
    return SimpleNamespace(local_device_locations=lambda: places, dim_size=lambda axis: 4)


def test_a_process_holds_the_rows_of_its_devices() -> None:
    assert MeshRows.of(mesh(1, 0), "batch") == MeshRows(4, (0, 1))
    assert MeshRows.of(mesh(0, 1, 2, 3), "batch") is None, "it holds all of them"
    assert MeshRows.of(mesh(1), None) is None


def test_the_numbers_in_a_graph_are_those_of_python() -> None:
    rows = MeshRows(4, (0, 2))
    for number in range(13):
        found = rows.numbers_in_graph(tf.constant(number, tf.int64))
        assert found.numpy().tolist() == rows.numbers(number).tolist()
        assert found.dtype == tf.int64
    assert rows.numbers(8).tolist() == [0, 1, 4, 5]
    assert rows.numbers(6).tolist() == list(range(6)), "which do not divide"


def together(datasets: list[Any]) -> list[Any]:
    """The global batches of all processes, from their own rows of each."""
    batches = []
    for elements in zip(*datasets, strict=True):
        (rows,) = {int(rows) for *_, rows, _ in elements}
        numbers = np.concatenate([numbers for _, numbers, *_ in elements])
        assert set(numbers) == set(range(rows))
        order = np.argsort(numbers)[:: len(numbers) // max(rows, 1)]
        first = [fingerprints.numpy().tolist() for *_, fingerprints in elements]
        assert first[0] == first[1]
        batches.append(
            tf.nest.map_structure(
                lambda *leaves, order=order: tf.gather(tf.concat(leaves, 0), order),
                *(own for own, *_ in elements),
            )
        )
    return batches


# The others' cuts are moved in tests/distribute/test_own_rows.py in every run.
ALWAYS = (pipelines.mapped, pipelines.concatenated, pipelines.cached_and_zipped)


@pytest.mark.parametrize(
    "make",
    [
        pytest.param(make, marks=() if make in ALWAYS else pytest.mark.exhaustive)
        for make in pipelines.MOVED
    ],
    ids=lambda make: make.__name__,
)
def test_global_batches_are_the_same_row_by_row(make: Callable[[], Any]) -> None:
    made = [of_own_rows(make(), MeshRows(2, (part,))) for part in range(2)]
    assert None not in made
    assert_same(together(made), make())


@pytest.mark.parametrize("make", [pipelines.mapped, pipelines.padded_to_a_known_size])
def test_data_workers_compute_the_same_rows(make: Callable[[], Any]) -> None:
    data_service.use(two_data_workers().address)
    try:
        made = [of_own_rows(make(), MeshRows(2, (part,))) for part in range(2)]
        assert None not in made
        assert_same(together(made), make())
        whole = with_data_workers(make())
        for served, given in zip(
            *(tf.nest.flatten(each.element_spec) for each in (whole, make())), strict=True
        ):
            assert served.shape[1:] == given.shape[1:]
        assert_same(list(whole), make())
    finally:
        data_service.use("")


def test_arrays_are_gathered_for_own_rows_alone() -> None:
    x = np.arange(22, dtype="float32")[:, None]

    def dataset() -> Any:
        tf.random.set_seed(3)
        return _private.ArrayDataAdapter(x, batch_size=8, shuffle=True).get_tf_dataset()

    made = [of_own_rows(dataset(), MeshRows(2, (part,))) for part in range(2)]
    found = list(together(made))
    assert_same(found, dataset())
    assert [len(fingerprints) for *_, fingerprints in made[0]] == [1, 0, 0]
    assert [len(tf.nest.flatten(own)[0]) for own, *_ in made[0]] == [4, 4, 3]


def test_what_would_change_the_rows_is_read_whole() -> None:
    assert of_own_rows(pipelines.draws(), MeshRows(2, (0,))) is None
    assert of_own_rows(pipelines.filtered_after(), MeshRows(2, (0,))) is None


def test_rows_without_a_fixed_shape_are_read_whole() -> None:
    fixed, free = (tf.TensorSpec((None, n), tf.int64) for n in (3, None))
    assert why_whole((fixed, {"a": fixed})) == ""
    assert why_whole((fixed, free)) == "its rows have no fixed shape"
    assert why_whole(tf.RaggedTensorSpec((None, None))) == "its rows have no fixed shape"
