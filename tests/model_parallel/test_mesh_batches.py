"""Batches are put on the mesh one ahead of the step that runs."""

from __future__ import annotations

import threading
from collections.abc import Iterator

import pytest
import tensorflow as tf

from tfaccel.distribute.model_parallel.mesh_batches import prefetch, to_dtensors, to_mesh


def test_the_next_one_is_taken_while_a_step_runs() -> None:
    third = threading.Event()

    def source() -> Iterator[int]:
        yield 1
        yield 2
        third.set()
        yield 3

    batches = prefetch(source())
    assert next(batches) == 1
    assert not _threads(), "the batch that shows shapes has made it read another one"
    assert next(batches) == 2
    assert third.wait(10)
    assert list(batches) == [3]


def test_an_error_of_the_data_comes_where_its_batch_would() -> None:
    def source() -> Iterator[int]:
        yield 1
        raise ValueError("a broken file")

    batches = prefetch(source())
    assert next(batches) == 1
    with pytest.raises(ValueError, match="a broken file"):
        next(batches)


def test_nothing_of_nothing() -> None:
    assert list(prefetch(iter(()))) == []


def test_no_thread_stays_when_a_pass_is_abandoned() -> None:
    batches = prefetch(iter(range(5)))
    next(batches)
    next(batches)
    (thread,) = _threads()
    batches.close()
    thread.join(10)
    assert not _threads()


def test_none_is_a_distributed_value_until_the_step() -> None:
    nothing = tf.experimental.Optional.empty(None)  # so a generator of Keras says it
    batch = to_mesh({"a": None, "b": (nothing, None)}, mesh=None, axis=None)
    leaves = tf.nest.flatten(batch)
    assert all(isinstance(leaf, tf.distribute.DistributedValues) for leaf in leaves)
    assert to_dtensors(batch) == {"a": None, "b": (None, None)}


def _threads() -> list[threading.Thread]:
    running = [t for t in threading.enumerate() if t.name.startswith("tfaccel-batches")]
    return [thread for thread in running if not thread.join(1) and thread.is_alive()]
