"""What reads ahead: a `PyDataset`'s threads, which Keras stops after it has looked at one batch.

And `tf.data`, which would begin the next pass of repeated rows.
"""

from __future__ import annotations

import queue
import random
import time
from typing import Any

import keras
import numpy as np
import pytest
import tensorflow as tf

from tests.distribute.watched import data, linear, mirrored, under
from tfaccel.distribute import _private

pytestmark = [pytest.mark.slow, pytest.mark.child(devices=3)]

X, Y = data(120)


class Pages(keras.utils.PyDataset):
    """More batches than Keras's queue of ten holds."""

    def __init__(self, pause_s: float = 0.0, **kwargs: Any) -> None:
        super().__init__(workers=2, **kwargs)
        self.pause_s = pause_s

    def __len__(self) -> int:
        return 30

    def __getitem__(self, index: int) -> Any:
        time.sleep(self.pause_s)
        rows = slice(4 * index, 4 * index + 4)
        return X[rows], Y[rows]


class Endless(Pages):
    num_batches = None

    def __getitem__(self, index: int) -> Any:
        return super().__getitem__(index % 30)


def same(train: Any, **compiled: Any) -> None:
    """`train` takes a compiled model, and returns a nest of numbers: on one device and on ours."""
    alone, ours = train(linear(**compiled)), train(under(mirrored(), linear, **compiled))
    for want, got in zip(*map(keras.tree.flatten, (alone, ours)), strict=True):
        np.testing.assert_allclose(got, want, rtol=1e-5)


@pytest.mark.parametrize("pause_s", [0.0, pytest.param(0.01, marks=pytest.mark.exhaustive)])
def test_every_batch_is_evaluated_once(pause_s: float) -> None:
    same(lambda model: [model.evaluate(Pages(pause_s), verbose=0) for _ in range(3)])


@pytest.mark.exhaustive  # what is drawn below is an order too
def test_batches_come_in_order_in_every_epoch() -> None:
    def train(model: Any) -> Any:
        shown = {"shuffle": False, "epochs": 2, "verbose": 0}
        fits = [model.fit(Pages(), validation_data=Pages(), **shown).history for _ in range(2)]
        return fits, model.predict(Pages(), verbose=0)

    same(train)


class Draws(keras.callbacks.Callback):
    """Draws from Python's generator, as Keras does for the order of an epoch."""

    def on_train_begin(self, logs: Any = None) -> None:
        random.random()

    def on_epoch_end(self, epoch: int, logs: Any = None) -> None:
        random.random()


@pytest.mark.parametrize("threads", [pytest.param(1, marks=pytest.mark.exhaustive), 2])
def test_keras_draws_the_same_order_as_on_one_device(threads: int) -> None:
    def train(model: Any) -> Any:
        pages = Pages()
        pages.workers = threads
        keras.utils.set_random_seed(3)
        how = {"epochs": 2, "verbose": 0, "callbacks": [Draws()]}
        fits = [model.fit(pages, validation_data=pages, **how).history for _ in range(2)]
        return fits, random.random()

    same(train)


def test_an_endless_one_loses_no_batch() -> None:
    def train(model: Any) -> Any:
        fits = [{"steps_per_epoch": 7, "epochs": 3}, {"steps_per_epoch": 12, "epochs": 2}]
        return [model.fit(Endless(), shuffle=False, verbose=0, **how).history for how in fits]

    same(train)


def test_several_steps_an_execution() -> None:
    def train(model: Any) -> Any:
        history = model.fit(Pages(), shuffle=False, verbose=0).history
        return history, model.evaluate(Pages(), verbose=0)

    same(train, steps_per_execution=4)


def test_a_plain_one_is_read_by_keras_alone() -> None:
    """Without threads there is nothing to stop."""

    class Alone(Pages):
        workers = 1

    same(lambda model: model.fit(Alone(), shuffle=False, epochs=2, verbose=0).history)


def test_the_threads_can_be_seen() -> None:
    """Watches `calling_model().threads` of `_private`, and what `restart_threads` does to them."""
    model = under(mirrored(), linear)
    for made, restarts in ((Pages(), True), (Endless(), False)):
        model.evaluate(made, steps=2, verbose=0)
        caller = mirrored().callers[-1]
        assert caller.threads.py_dataset is made
        assert caller.inspected is restarts
        assert isinstance(caller.threads.ready_queue, queue.Queue)
        assert not caller.threads.ready_queue.empty(), "Keras keeps nothing its threads have read"
        _private.restart_threads(caller.threads)
        assert caller.threads.ready_queue.empty()
    model.evaluate(X, Y, verbose=0)
    assert mirrored().callers[-1].threads is None


class Reordered(Pages):
    """Orders its rows anew after each epoch, in place, and notes what it is asked for."""

    def __init__(self) -> None:
        super().__init__()
        self.workers = 1
        self.order, self.draws = np.arange(120), np.random.default_rng(4)

    def __getitem__(self, index: int) -> Any:
        rows = self.order[4 * index : 4 * index + 4].copy()
        time.sleep(0.001)  # so that not all is read ahead before the epoch ends
        return X[rows], Y[rows]

    def on_epoch_end(self) -> None:
        self.draws.shuffle(self.order)


def test_rows_that_are_reordered_after_an_epoch_come_once() -> None:
    """Keras looks at a batch and ends an epoch, before the first one begins."""

    def train(model: Any) -> Any:
        return model.fit(Reordered(), epochs=2, shuffle=False, verbose=0).history

    same(train, metrics=["mae"])


def test_no_pass_of_repeated_data_is_begun_before_a_fit_takes_it() -> None:
    """Else the next fit would have a later order, and each worker another one."""

    def repeated() -> tf.data.Dataset:
        rows = tf.data.Dataset.from_tensor_slices((X[:24], Y[:24]))
        return rows.shuffle(24, seed=3).batch(8).repeat()

    class Losses(keras.callbacks.Callback):
        def on_train_batch_end(self, batch: int, logs: Any = None) -> None:
            losses.append(logs["loss"] * (batch + 1))  # of all batches of the epoch so far

    losses: list[float] = []
    model, dataset = (
        under(mirrored(), linear, optimizer=lambda: keras.optimizers.SGD(0.0)),
        repeated(),
    )
    want = [float(model.evaluate(x, y, verbose=0)) for x, y in repeated().take(4 * 3)]
    for epochs in (1, 2):
        shown = {"verbose": 0, "callbacks": [Losses()]}
        model.fit(dataset, steps_per_epoch=3, epochs=epochs, **shown)
    seen = model.evaluate(dataset, steps=3, verbose=0)
    ended = {"steps_per_epoch": 3, "epochs": 2, "initial_epoch": 2, "verbose": 0}
    assert not under(mirrored(), linear).fit(dataset, **ended).history
    got = [loss - (losses[i - 1] if i % 3 else 0) for i, loss in enumerate(losses)]
    np.testing.assert_allclose([*got, seen], [*want[:9], np.mean(want[9:])], rtol=1e-4)
