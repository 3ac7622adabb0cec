"""Two workers of two devices each: what needs a second worker to be seen."""

from __future__ import annotations

import contextlib
import functools
import random
from typing import Any

import keras
import numpy as np
import pytest
import tensorflow as tf

import tfaccel
from tests.distribute.pages import Pages
from tests.distribute.pages import own_rows as own_rows_of
from tests.distribute.watched import data, linear
from tfaccel.distribute import dataset_consistency, own_rows, random_state, step
from tfaccel.distribute.batch_sharding import own_numbers
from tfaccel.distribute.broadcast import broadcast, broadcast_text
from tfaccel.distribute.files.file_callbacks import ChiefBacksUp
from tfaccel.errors import InputError, TfaccelError

pytestmark = pytest.mark.child(workers=2, group="pairs")

RARE = pytest.mark.exhaustive


@functools.cache
def strategy() -> Any:
    # The workers arrive with different random states.
    random.seed()
    np.random.seed()
    return tfaccel.strategy("multi_worker_mirrored", devices=2, device_type="cpu")


def everywhere(values: Any) -> list[list[float]]:
    """One row of numbers of each replica, in the order of workers."""
    made = tf.constant([values], tf.float64)
    gathered = tf.function(
        lambda: strategy().gather(strategy().run(lambda: tf.identity(made)), axis=0)
    )()
    return gathered.numpy().tolist()


def test_each_worker_uses_its_two_devices() -> None:
    # TensorFlow by itself takes one CPU: `CollectiveAllReduceExtended._initialize_local_devices`.
    assert strategy().num_replicas_in_sync == 4
    assert len(strategy().extended.worker_devices) == 2
    place = strategy().placement
    assert (place.workers, place.local) == (2, 2)
    ranks = [row[0] for row in everywhere([float(place.rank)])]
    assert ranks == [0, 0, 1, 1]


def test_workers_that_were_not_seeded_draw_alike() -> None:
    strategy()
    drawn = [random.random(), np.random.random(), float(tf.random.uniform([]))]
    drawn += [float(i) for i in tf.data.Dataset.range(20).shuffle(20)]
    first, *others = everywhere(drawn)
    assert others == [first] * 3


def test_a_seed_of_an_operation_s_own_gives_one_device_s_numbers() -> None:
    """Where the script has no global seed: TensorFlow mixes the two."""
    strategy()
    tf.random.set_seed(None)
    rows = tf.data.Dataset.range(8)
    mapped = rows.map(lambda i: tf.random.uniform([], maxval=100, dtype=tf.int32, seed=5))
    orders = [rows.shuffle(8, seed=3, reshuffle_each_iteration=False), mapped]
    found = [int(i) for data in orders for i in data]
    # What one device draws with seeds (87654321, 3) and (87654321, 5), seen without a strategy.
    assert found == [7, 4, 6, 3, 0, 1, 2, 5, 91, 72, 2, 12, 93, 94, 23, 92]


def test_unseeded_noise_of_replicas_differs_from_worker_to_worker() -> None:
    strategy()
    tf.random.set_seed(None)
    noise = tf.function(lambda: strategy().run(lambda: tf.random.uniform([1, 4])))()
    rows = tf.function(lambda: strategy().gather(noise, axis=0))().numpy()
    assert len({tuple(row) for row in rows.tolist()}) == 4


def test_gather_takes_a_tensor_of_each_replica_or_of_each_worker() -> None:
    # Keras's eager `predict` gathers one tensor of each worker.
    rank = strategy().placement.rank
    of_replicas = strategy().run(lambda: tf.constant([rank]))
    assert strategy().gather(of_replicas, axis=0).numpy().tolist() == [0, 0, 1, 1]
    assert strategy().gather(tf.constant([rank, 7]), axis=0).numpy().tolist() == [0, 7, 1, 7]


def test_an_eager_predict_gives_one_device_s_rows() -> None:
    x, _ = data(10)
    keras.utils.set_random_seed(3)
    with strategy().scope():
        model = linear()
        model.compile(run_eagerly=True)
    predicted = model.predict(x, batch_size=4, verbose=0)
    np.testing.assert_allclose(predicted, x @ model.get_weights()[0], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    "dtype",
    [
        *("bfloat16", "int8", "bool"),
        *(pytest.param(d, marks=RARE) for d in ("float32", "float64", "int64")),
    ],
)
def test_broadcast_gives_every_worker_the_chief_s_value(dtype: str) -> None:
    rank = strategy().placement.rank
    mine = tf.cast(tf.constant([1.0, 0.0] if rank == 0 else [0.0, 1.0]), dtype)
    (found,) = broadcast(strategy(), [mine])
    assert found.dtype == dtype
    assert tf.cast(found, tf.int32).numpy().tolist() == [1, 0]


def test_broadcast_keeps_what_is_not_finite() -> None:
    (found,) = broadcast(strategy(), [np.array([np.nan, np.inf, 1.0], "float32")])
    np.testing.assert_array_equal(found, [np.nan, np.inf, 1.0])


def test_a_fit_whose_rows_each_worker_computes_alone_gives_the_same_numbers() -> None:
    strategy()
    x, y = data()

    def rows() -> tf.data.Dataset:
        shuffled = tf.data.Dataset.from_tensor_slices((x, y)).shuffle(len(x), seed=1)
        return shuffled.map(lambda one, label: (one / 2, label)).batch(6)

    def weights(dataset: tf.data.Dataset) -> list[Any]:
        with strategy().scope():
            model = linear(lambda: keras.optimizers.SGD(0.1))
        held_out = dataset.take(2)
        history = model.fit(dataset, epochs=2, validation_data=held_out, verbose=0).history
        return [*model.get_weights(), *history.values(), model.predict(held_out, verbose=0)]

    assert own_rows.move_cut(rows())[0] is not None
    # What takes the rows of a batch together is not moved.
    whole = rows().map(lambda x, y: (x[::-1][::-1], y))
    assert own_rows.move_cut(whole)[0] is None
    for found, expected in zip(weights(rows()), weights(whole), strict=True):
        np.testing.assert_array_equal(found, expected)


def of_pages(make: Any, under: Any = None) -> list[Any]:
    """Numbers of all that reads the `PyDataset`s that `make` makes, and of what was trained."""
    with under.scope() if under is not None else contextlib.nullcontext():
        model = linear(lambda: keras.optimizers.SGD(1e-4), metrics=["mae"])
    more = {"epochs": 3, "validation_data": make(), "verbose": 0}
    history = model.fit(make(reorders=True), **more).history
    read = [model.evaluate(make(), verbose=0), model.predict(make(), verbose=0)]
    return [*model.get_weights(), *history.values(), *read]


@pytest.mark.parametrize("threads", [1, pytest.param(3, marks=pytest.mark.exhaustive)])
def test_a_py_dataset_that_is_asked_for_rows_gives_one_device_s_numbers(threads: int) -> None:
    made: list[Pages] = []

    def pages(**more: Any) -> Pages:
        made.append(Pages(order=np.arange(28)[::-1].copy(), threads=threads, **more))
        return made[-1]

    strategy()  # whose workers adopt the chief's random state
    random.seed(3)  # Keras shuffles batches by it
    found = of_pages(pages, strategy())
    evaluated = made[-2]
    random.seed(3)
    for ours, theirs in zip(found, of_pages(pages), strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=1e-5)
    # Keras looks at two batches, and we at one, and at its first rows as the pass begins. Then
    # each worker computes its own rows alone.
    looked_at = {int(row) for row in evaluated.order[:8]}
    own = own_rows_of(evaluated, functools.partial(own_numbers, placement=strategy().placement))
    assert set(evaluated.computed[3 * 8 :]) == own | looked_at


def test_a_py_dataset_of_wrong_rows_is_told_of_on_every_worker() -> None:
    class Double(Pages):
        def get_rows(self, index: int, rows: Any) -> Any:
            is_last = index == 3 and len(rows) < 5
            return super().get_rows(index, np.tile(rows, 2) if is_last else rows)

    with strategy().scope():
        model = linear()
    says = (
        r"get_rows\(3, rows\) of PyDataset Double returned a part of [46] rows for [23] positions"
    )
    with pytest.raises(InputError, match=says):
        model.fit(Double(), shuffle=False, verbose=0)


@pytest.mark.parametrize("threads", [1, pytest.param(2, marks=pytest.mark.exhaustive)])
def test_a_fit_of_asked_rows_resumes_in_the_middle_of_an_epoch(threads: int, tmp_path: Any) -> None:
    path = broadcast_text(strategy(), str(tmp_path))

    class LostError(Exception):
        pass

    class Lost(keras.callbacks.Callback):
        def on_train_batch_end(self, batch: int, logs: Any = None) -> None:
            if int(self.model.optimizer.iterations) == 6:
                raise LostError

    def run(folder: str, *callbacks: Any) -> list[Any]:
        keras.backend.clear_session()
        keras.utils.set_random_seed(1)
        with strategy().scope():
            model = linear(lambda: keras.optimizers.SGD(1e-4), metrics=["mae"])
        resume = tfaccel.checkpoint.resume(f"{path}/{folder}", every=1, asynchronous=False)
        pages = Pages(reorders=True, threads=threads)
        more = {"callbacks": [resume, *callbacks], "epochs": 3, "verbose": 0}
        return [*model.fit(pages, **more).history.values(), *model.get_weights()]

    whole = run("whole")
    with pytest.raises(LostError):
        run("lost", Lost())
    for found, expected in zip(run("lost"), whole, strict=True):
        np.testing.assert_array_equal(found, expected)


def test_all_resume_from_the_chief_s_backup(tmp_path: Any) -> None:
    # Each worker has a folder of its own here, and only the chief's has a backup in it.
    begun: list[int] = []

    class Watch(keras.callbacks.Callback):
        def __init__(self, last: int) -> None:
            super().__init__()
            self.last = last

        def on_epoch_begin(self, epoch: int, logs: Any = None) -> None:
            begun.append(epoch)
            if epoch == self.last:
                raise InterruptedError

    def train(last: int) -> Any:
        keras.utils.set_random_seed(1)
        with strategy().scope():
            model = linear(lambda: keras.optimizers.Adam(0.1))
        backup = keras.callbacks.BackupAndRestore(tmp_path / "backup")
        held = [backup, Watch(last)]
        with contextlib.suppress(InterruptedError):
            model.fit(*data(8), batch_size=4, epochs=3, shuffle=False, verbose=0, callbacks=held)
        assert isinstance(backup, ChiefBacksUp)
        return model

    train(2)
    has = (tmp_path / "backup").exists() and any((tmp_path / "backup").iterdir())
    assert has == (strategy().placement.rank == 0)
    model = train(9)
    assert begun == [0, 1, 2, 2]
    assert int(model.optimizer.iterations.numpy()) == 6
    first, *others = everywhere(np.concatenate([w.ravel() for w in model.get_weights()]))
    assert others == [first] * 3


def test_a_backup_holds_every_optimizer(tmp_path: Any) -> None:
    class Two(keras.Model):
        def __init__(self) -> None:
            super().__init__()
            self.part = linear(lambda: keras.optimizers.Adam(0.1))
            self.others = [keras.optimizers.Adam(0.2)]
            self.others[0].build(self.part.trainable_variables)
            self.built = True

        def call(self, x: Any) -> Any:
            return self.part(x)

        def train_step(self, data: Any) -> Any:
            x, y = data
            for optimizer in (self.optimizer, *self.others, self.part.optimizer):
                with tf.GradientTape() as tape:
                    loss = tf.reduce_mean(tf.square(self(x) - tf.cast(y, tf.float32)))
                variables = self.part.trainable_variables
                optimizer.apply(tape.gradient(loss, variables), variables)
            return {"loss": loss}

    def train(epochs: int) -> Any:
        keras.utils.set_random_seed(1)
        with strategy().scope():
            model = Two()
            model.part.optimizer.build(model.part.trainable_variables)
            model.compile(keras.optimizers.Adam(0.1), "mse")
        backup = keras.callbacks.BackupAndRestore(tmp_path / "backup", delete_checkpoint=False)
        given = {"batch_size": 4, "shuffle": False, "verbose": 0, "callbacks": [backup]}
        model.fit(*data(8), epochs=epochs, **given)
        return model

    train(2)
    model = train(3)
    held = [model.optimizer, *model.others, model.part.optimizer]
    assert [int(o.iterations.numpy()) for o in held] == [6, 6, 6]
    weights = [*model.get_weights(), *(v.numpy() for o in held for v in o.variables)]
    first, *others = everywhere(np.concatenate([np.ravel(w).astype("float64") for w in weights]))
    assert others == [first] * 3


def test_every_worker_saves_a_whole_file(tmp_path: Any) -> None:
    with strategy().scope():
        model = linear()
    model.fit(*data(8), batch_size=4, verbose=0)
    model.save(tmp_path / "model.keras")
    assert [path.name for path in tmp_path.iterdir()] == ["model.keras"]
    again = keras.models.load_model(tmp_path / "model.keras")
    for mine, loaded in zip(model.get_weights(), again.get_weights(), strict=True):
        np.testing.assert_array_equal(mine, loaded)


def test_only_the_chief_s_callbacks_write(tmp_path: Any) -> None:
    with strategy().scope():
        model = linear()
    board = keras.callbacks.TensorBoard(tmp_path / "board", histogram_freq=1, update_freq=1)
    log = keras.callbacks.CSVLogger(tmp_path / "log.csv")
    kept = keras.callbacks.ModelCheckpoint(tmp_path / "kept" / "{batch}.keras", save_freq=3)
    given = {"batch_size": 4, "validation_data": data(8), "verbose": 0, "epochs": 2}
    model.fit(*data(8), callbacks=[board, log, kept], **given)
    names = sorted(path.name for path in tmp_path.iterdir())
    if strategy().placement.rank:
        assert names == []
        return
    assert names == ["board", "kept", "log.csv"]
    assert len((tmp_path / "log.csv").read_text().splitlines()) == 3
    assert [path.name for path in (tmp_path / "kept").iterdir()] == ["1.keras"]
    for part in ("train", "validation"):
        assert len(list((tmp_path / "board" / part).glob("events*"))) == 1
    assert board.log_dir == str(tmp_path / "board")


def test_what_the_chief_cannot_write_is_every_worker_s_error(tmp_path: Any) -> None:
    chief = strategy().placement.rank == 0
    (tmp_path / "file").write_text("no folder")
    path = tmp_path / "file" / "x.keras" if chief else tmp_path / "x.keras"
    with strategy().scope():
        model = linear()

    def fit(callback: Any) -> None:
        model.fit(*data(8), batch_size=4, epochs=2, verbose=0, callbacks=[callback])

    writers = {
        "ModelCheckpoint": (lambda: fit(keras.callbacks.ModelCheckpoint(path)), 2),
        "run ModelChe": (lambda: fit(keras.callbacks.ModelCheckpoint(path, save_freq=1)), 1),
        "BackupAndRestore": (lambda: fit(keras.callbacks.BackupAndRestore(path, 1)), 1),
        "TensorBoard": (lambda: fit(keras.callbacks.TensorBoard(path)), 0),
        "write nowhere://bucket/x.keras": (lambda: model.save("nowhere://bucket/x.keras"), 0),
    }
    for says, (write, steps) in writers.items():
        before = int(model.optimizer.iterations.numpy())
        expected: Any = (OSError, tf.errors.OpError) if chief else TfaccelError
        with pytest.raises(expected, match=None if chief else f"worker 0 could not .*{says}"):
            write()
        assert int(model.optimizer.iterations.numpy()) == before + steps, says
    fit(keras.callbacks.Callback())  # the job goes on, with all messages taken


def test_workers_may_export_to_one_folder(tmp_path: Any) -> None:
    with strategy().scope():
        model = linear()
    model.fit(*data(8), batch_size=4, verbose=0)
    shared = tmp_path.parent if strategy().placement.rank else tmp_path
    folder = broadcast_text(strategy(), str(shared)) + "/exported"
    for _ in range(2):
        model.export(folder, verbose=False)
    broadcast(strategy(), [np.int32(0)])  # the other one may be about to replace it
    exported = tf.saved_model.load(folder)
    served = exported.serve(data(8)[0])
    np.testing.assert_allclose(served, model.predict(data(8)[0], verbose=0), rtol=1e-5)


def shards(number: int, rows: int = 4) -> tf.data.Dataset:
    """Batches whose number nobody knows."""
    x, y = data(rows * number)
    made = tf.data.Dataset.from_tensor_slices((x, y)).batch(rows)
    return made.filter(lambda x, y: tf.shape(x)[0] > 0)


def test_every_worker_raises_when_lengths_of_data_differ() -> None:
    rank = strategy().placement.rank
    x, y = data(24)

    def model() -> Any:
        with strategy().scope():
            return linear()

    def cast(x: Any, y: Any) -> Any:
        return x, tf.cast(y, tf.int32 if rank else tf.int64)

    given: list[tuple[str, tuple[Any, ...], dict[str, Any]]] = [
        ("have 6, 3 batches", (x[: 24 // (1 + rank)], y[: 24 // (1 + rank)]), {"batch_size": 4}),
        ("has 8, 7 rows", (x[: 24 - rank], y[: 24 - rank]), {"batch_size": 8}),
        ("worker 1 ran out of data after 2 batches", (shards(3 - rank),), {}),
        ("different shapes or types", (shards(2).map(cast),), {}),
    ]
    for says, args, more in given:
        with pytest.raises(InputError, match=says):
            model().fit(*args, epochs=2, verbose=0, shuffle=False, **more)
    # The job goes on: no message of the passes that were refused is left.
    history = model().fit(x, y, batch_size=8, verbose=0, validation_data=shards(2)).history
    first, *others = everywhere([*history["loss"], *history["val_loss"]])
    assert others == [first] * 3


@pytest.mark.parametrize(
    ("kind", "told"),
    [
        pytest.param("same", "", marks=RARE),
        ("some noise", ""),
        ("noise", "warning"),
        ("arrays", "error"),
        pytest.param("arrays of which one is the same", "error", marks=RARE),
        pytest.param("shard", "error", marks=RARE),
        ("slices, then shuffled", "error"),
    ],
)
def test_workers_that_read_different_rows_are_refused_or_warned(
    kind: str, told: str, monkeypatch: Any
) -> None:
    rank = strategy().placement.rank
    monkeypatch.setattr(dataset_consistency, "_warned", False)
    x, y = data(16)
    y = y + np.arange(16)[:, None]
    rows = tf.data.Dataset.from_tensor_slices((x, y))
    own = tf.data.Dataset.from_tensor_slices((x[rank::2], y[rank::2]))

    def noise(t: Any) -> Any:
        return tf.cast(t, tf.float32) + 0.01 * (rank + tf.random.uniform([t.shape[0]]))

    given = {
        "same": (rows.batch(4),),
        # Of which each worker trains its own rows.
        "some noise": (rows.map(lambda x, y: (noise(x), y)).batch(4),),
        "noise": (rows.map(lambda x, y: (noise(x), noise(y))).batch(4),),
        "arrays": (x[rank::2], y[rank::2]),
        "arrays of which one is the same": (x[rank::2], np.zeros((8, 1), "float32")),
        "shard": (rows.shard(2, rank).batch(4),),
        "slices, then shuffled": (own.shuffle(8).map(lambda x, y: (2 * x, y)).batch(4).repeat(2),),
    }
    with strategy().scope():
        model = linear()
    if told == "error":
        with pytest.raises(InputError, match=r"first batch differs.*input='per_worker'"):
            model.fit(*given[kind], verbose=0, shuffle=False)
    else:
        model.fit(*given[kind], verbose=0, shuffle=False)
    assert dataset_consistency._warned is (told == "warning")


@pytest.mark.parametrize("seed", [pytest.param(3, marks=RARE), None])
def test_without_the_seeds_that_workers_share_their_order_is_refused(
    seed: int | None, monkeypatch: Any
) -> None:
    """An operation's own seed goes with the global one; without both, a clock decides."""
    x, y = data(16)
    rows = tf.data.Dataset.from_tensor_slices((x, y + np.arange(16)[:, None]))

    def fit() -> None:
        with strategy().scope():
            model = linear()
        model.fit(rows.shuffle(16, seed=seed).batch(4), verbose=0)

    tf.random.set_seed(None)
    fit()
    if seed is None:
        monkeypatch.setattr(random_state.SeedStream, "__call__", lambda self: None)
    else:
        tf.random.set_seed(strategy().placement.rank)
    try:
        with pytest.raises(InputError, match="the first batch differs between workers"):
            fit()
    finally:
        tf.random.set_seed(None)


class FailsOnOne(keras.Sequential):
    """Its step cannot be traced by worker 1 while it is checked."""

    def train_step(self, data: Any) -> Any:
        if step.is_checking() and strategy().placement.rank == 1:
            raise OSError("no such file")
        return super().train_step(data)


def test_a_check_that_fails_on_one_worker_ends_on_all(caplog: Any) -> None:
    rank = strategy().placement.rank
    x, y = data(24)
    losses = []
    for kind in (keras.Sequential, FailsOnOne):
        keras.utils.set_random_seed(3)
        with strategy().scope():
            model = kind([keras.Input((3,)), keras.layers.Dense(1)])
            model.compile("sgd", "mse")
        with caplog.at_level("INFO", "absl"):
            losses += model.fit(x, y, batch_size=8, verbose=0, shuffle=False).history["loss"]
    assert losses[0] == losses[1]
    reason = "OSError: no such file" if rank else "fails on another worker"
    assert [m for m in caplog.messages if "was not checked" in m and reason in m]


def test_a_step_over_all_rows_is_checked_where_replicas_have_unequal_rows(caplog: Any) -> None:
    """One that fails in an operation of one worker leaves the other in a collective."""

    class Compares(keras.Sequential):
        def train_step(self, data: Any) -> Any:
            x, y = data
            with tf.GradientTape() as tape:
                out = self(x) - tf.cast(y, tf.float32)
                loss = tf.reduce_mean(tf.square(out - tf.transpose(out)))
            of = self.trainable_variables
            self.optimizer.apply(tape.gradient(loss, of), of)
            return {"loss": loss}

    def made() -> keras.Model:
        model = Compares([keras.Input((3,)), keras.layers.Dense(1)])
        model.compile(keras.optimizers.SGD(0.01))
        return model

    x, y = data(7)  # of which a replica has one, and the others two
    keras.utils.set_random_seed(3)
    with strategy().scope():
        model = made()
    with caplog.at_level("INFO", "absl"):
        losses = model.fit(x, y, batch_size=7, epochs=2, verbose=0).history["loss"]
    assert "every replica runs the steps of" in caplog.text
    keras.utils.set_random_seed(3)
    expected = made().fit(x, y, batch_size=7, epochs=2, verbose=0).history["loss"]
    assert losses == pytest.approx(expected, rel=1e-5)
