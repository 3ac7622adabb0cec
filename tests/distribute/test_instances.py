"""Instances that were given a method more: what they are, save and write stays as it was."""

from __future__ import annotations

import contextlib
import copy
import functools
import os
import pickle
import random
import re
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import keras
import numpy as np
import pytest
import tensorflow as tf

from tests.support import environment
from tfaccel.distribute import _private, dataset_cache, random_state
from tfaccel.distribute.files import atomic, file_callbacks, model_files
from tfaccel.distribute.files.one_writer import on_chief
from tfaccel.distribute.loss import GlobalBatchLoss
from tfaccel.distribute.mixins import mix_in
from tfaccel.distribute.optimizer import ReduceFirst, optimizers_of, reduce_first
from tfaccel.errors import TfaccelError


def test_an_adapted_optimizer_is_saved_as_keras_own() -> None:
    optimizer = keras.optimizers.Adam(0.01, clipnorm=0.5)
    plain = keras.optimizers.serialize(optimizer)
    mix_in(optimizer, ReduceFirst)
    mix_in(optimizer, ReduceFirst)
    assert type(optimizer).__mro__[1:3] == (ReduceFirst, keras.optimizers.Adam)
    assert keras.optimizers.serialize(optimizer) == plain
    again = keras.optimizers.deserialize(keras.optimizers.serialize(optimizer))
    assert type(again) is keras.optimizers.Adam
    assert again.clipnorm == 0.5


def test_an_adapted_loss_is_the_same_outside_a_step() -> None:
    loss = keras.losses.MeanSquaredError(reduction="sum")
    y, p = tf.ones((4, 2)), tf.zeros((4, 2))
    before, config = float(loss(y, p)), keras.losses.serialize(loss)
    mix_in(loss, GlobalBatchLoss)
    assert float(loss(y, p)) == before
    assert keras.losses.serialize(loss) == config
    assert isinstance(copy.deepcopy(loss), keras.losses.MeanSquaredError)


@pytest.mark.parametrize("make", [keras.losses.MeanSquaredError, lambda: Counter([1, 1])])
def test_an_adapted_instance_is_pickled_as_a_plain_one(make: Any) -> None:
    instance = make()
    plain = type(instance)
    mix_in(instance, GlobalBatchLoss)
    again = pickle.loads(pickle.dumps(instance))
    assert type(again) is plain
    assert vars(again) == vars(instance)


def test_the_optimizer_inside_a_loss_scale_optimizer_is_reached() -> None:
    outer = keras.optimizers.LossScaleOptimizer(keras.optimizers.SGD())
    reduce_first(outer, tf.distribute.get_strategy())
    assert isinstance(outer, ReduceFirst)
    assert isinstance(outer.inner_optimizer, ReduceFirst)


def test_every_optimizer_of_a_model_is_found() -> None:
    model = keras.Sequential([keras.Input((2,)), keras.layers.Dense(1)])
    model.compile("sgd", "mse")
    model.second = keras.optimizers.Adam()
    model.more = [keras.optimizers.Lion()]
    names = sorted(type(optimizer).__name__ for optimizer in optimizers_of(model))
    assert names == ["Adam", "Lion", "SGD"]


def strategy(rank: int, sent: list[Any] | None = None) -> Any:
    """A worker of replicas; the chief's messages go to `sent`, and come from it to the others."""
    messages: list[Any] = [] if sent is None else sent

    def summed(tensors: list[tf.Tensor]) -> list[tf.Tensor]:
        if rank == 0:
            messages.append(tensors)
        return messages.pop(0) if rank and messages else tensors

    return SimpleNamespace(
        cluster=SimpleNamespace(is_chief=rank == 0, rank=rank, size=2),
        holds_whole_variables=True,
        sum_over_workers=summed,
        gathered_for_file=lambda model: contextlib.nullcontext(),
    )


@pytest.mark.parametrize("rank", [0, 1])
def test_only_the_chief_writes_a_log(rank: int, tmp_path: Path) -> None:
    log = keras.callbacks.CSVLogger(str(tmp_path / "log.csv"))
    file_callbacks.write_on_chief([log], strategy(rank))
    log.set_model(keras.Sequential([keras.Input((1,))]))
    log.on_train_begin()
    log.on_epoch_end(0, {"loss": 1.0})
    assert (tmp_path / "log.csv").exists() == (rank == 0)
    log.on_train_end()


def test_writers_are_found_however_they_are_given(tmp_path: Path) -> None:
    def fresh() -> keras.callbacks.Callback:
        return keras.callbacks.ModelCheckpoint(str(tmp_path / "x.keras"))

    alone, listed, nested, contained = fresh(), fresh(), fresh(), fresh()
    backup = keras.callbacks.BackupAndRestore(str(tmp_path))
    other = keras.callbacks.EarlyStopping()
    file_callbacks.write_on_chief(None, strategy(0))
    file_callbacks.write_on_chief(alone, strategy(0))
    file_callbacks.write_on_chief([listed, other, (nested, backup)], strategy(0))
    file_callbacks.write_on_chief(keras.callbacks.CallbackList([contained]), strategy(0))
    assert all(isinstance(c, file_callbacks.ChiefSaves) for c in (alone, listed, nested, contained))
    assert isinstance(backup, file_callbacks.ChiefBacksUp)
    assert type(other) is keras.callbacks.EarlyStopping


def small() -> keras.Model:
    return keras.Sequential([keras.Input((2,)), keras.layers.Dense(1)])


def test_what_the_chief_fails_of_is_every_worker_s_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("no folder")
    sent: list[Any] = []

    def save(rank: int) -> None:
        checkpoint = keras.callbacks.ModelCheckpoint(str(tmp_path / "file" / "x.keras"))
        file_callbacks.write_on_chief(checkpoint, strategy(rank, sent))
        checkpoint.set_model(small())
        checkpoint.on_epoch_end(0, {"loss": 1.0})

    with pytest.raises(NotADirectoryError):
        save(0)
    assert len(sent) == 1
    with pytest.raises(TfaccelError, match=r"worker 0 could not run ModelCheckpoint, .*NotADirect"):
        save(1)


def test_a_save_within_the_chief_s_turn_does_not_wait(tmp_path: Path) -> None:
    sent: list[Any] = []
    model, chief = small(), strategy(0, sent)
    model_files.write_by_policy(model, chief)
    on_chief(chief, "save", lambda: model.save_weights(tmp_path / "m.weights.h5"))
    assert (tmp_path / "m.weights.h5").exists()
    assert len(sent) == 1, "all that is said is that it is done"


def test_a_file_is_replaced_in_one_step(tmp_path: Path) -> None:
    path, seen = tmp_path / "m.weights.h5", []
    path.write_text("the old file")

    class Watched(keras.Sequential):  # type: ignore[misc]
        def save_weights(self, filepath: Any, overwrite: bool = True, **kwargs: Any) -> None:
            super().save_weights(filepath, overwrite=overwrite, **kwargs)
            seen.append((Path(filepath).relative_to(tmp_path).as_posix(), path.read_text()))

    model = Watched([keras.Input((2,)), keras.layers.Dense(1)])
    model_files.write_by_policy(model, strategy(1))
    model_files.write_by_policy(model, strategy(1))
    model.save_weights(path)
    assert seen == [(".rank1.m.weights.h5/m.weights.h5", "the old file")]
    assert [p.name for p in tmp_path.iterdir()] == ["m.weights.h5"]
    model.load_weights(path)
    model.save(tmp_path / "m.keras")
    model = keras.models.load_model(tmp_path / "m.keras", custom_objects={"Watched": Watched})
    assert model.count_params() == 3


def test_folders_and_files_in_parts_are_replaced_too(tmp_path: Path) -> None:
    """By workers in turn, which share a disk; the second finds what the first has written."""
    for rank, value in ((0, 1.0), (1, 2.0)):
        model = small()
        model_files.write_by_policy(model, strategy(rank))
        model.set_weights([np.full(w.shape, value) for w in model.get_weights()])
        model.export(str(tmp_path / "new" / "exported") + "/", verbose=False)
        model.save(tmp_path / "folder", zipped=False)
        model.save_weights(tmp_path / "parts.weights.json", max_shard_size=1)
    names = ["folder", "new", "parts.weights.json", "parts_00000.weights.h5"]
    assert sorted(p.name for p in tmp_path.iterdir()) == names
    assert [p.name for p in (tmp_path / "new").iterdir()] == ["exported"]
    exported = tf.saved_model.load(str(tmp_path / "new" / "exported"))
    assert exported.serve(tf.ones((1, 2))).numpy().tolist() == [[6.0]]
    again = small()
    again.load_weights(tmp_path / "parts.weights.json")
    for held in (again, keras.models.load_model(tmp_path / "folder")):
        assert [float(w.min()) for w in held.get_weights()] == [2.0, 2.0]


def test_a_path_that_keras_refuses_is_named_as_it_was_given(tmp_path: Path) -> None:
    model = small()
    model_files.write_by_policy(model, strategy(0))
    with pytest.raises(ValueError, match="filepath=" + re.escape(str(tmp_path / "m.what"))):
        model.save(tmp_path / "m.what")


def test_a_file_that_is_there_is_kept_by_all_workers(tmp_path: Path) -> None:
    path, sent = tmp_path / "m.keras", []  # type: ignore[var-annotated]
    path.write_text("the old file")
    for rank in (0, 1):
        model = small()
        model_files.write_by_policy(model, strategy(rank, sent))
        with pytest.raises(FileExistsError, match="is there already and overwrite=False"):
            model.save(path if rank == 0 else tmp_path / "not there on its disk.keras", False)
    assert [(p.name, p.read_text()) for p in tmp_path.iterdir()] == [(path.name, "the old file")]


@pytest.mark.parametrize("rank", [0, 1])
def test_only_the_chief_writes_to_a_remote_path(rank: int) -> None:
    written: list[str] = []

    class Watched(keras.Sequential):  # type: ignore[misc]
        def save(self, filepath: Any, overwrite: bool = True, **_: Any) -> None:
            written.append(filepath)

        def export(self, filepath: Any, **_: Any) -> None:
            written.append(filepath)

    model = Watched([keras.Input((2,)), keras.layers.Dense(1)])
    model_files.write_by_policy(model, strategy(rank))
    model.save("gs://bucket/m.keras")
    model.export("gs://bucket/exported")
    expected = ["gs://bucket/m.keras", "gs://bucket/exported"]
    assert written == (expected if rank == 0 else [])


def test_each_worker_has_a_cache_of_its_own(tmp_path: Path) -> None:
    plain = tf.data.Dataset.cache
    try:
        for rank in (1, 2):
            dataset_cache.use_worker_files(rank)
            data = tf.data.Dataset.range(3).cache(str(tmp_path / "rows"))
            assert [int(i) for i in data] == [0, 1, 2]
        dataset_cache.use_worker_files(0)
        assert [int(i) for i in tf.data.Dataset.range(2).cache()] == [0, 1]
    finally:
        tf.data.Dataset.cache = plain
    names = [path.name for path in tmp_path.iterdir()]
    for rank in (1, 2):
        assert any(name.startswith(f"rows.rank{rank}") for name in names), names
    assert not any(name.startswith("rows.rank0") for name in names), names


def test_a_write_that_fails_leaves_the_old_file_and_nothing_else(tmp_path: Path) -> None:
    path = tmp_path / "m.weights.h5"
    path.write_text("the old file")

    class Full(keras.Sequential):  # type: ignore[misc]
        def save_weights(self, filepath: Any, overwrite: bool = True, **_: Any) -> None:
            Path(filepath).write_text("half")
            raise OSError("disk full")

    model = Full([keras.Input((2,)), keras.layers.Dense(1)])
    model_files.write_by_policy(model, strategy(0))
    with pytest.raises(OSError, match="disk full"):
        model.save_weights(path)
    assert [(p.name, p.read_text()) for p in tmp_path.iterdir()] == [(path.name, "the old file")]


@pytest.fixture
def own_seeds() -> Iterator[None]:
    """TensorFlow's own way with what has no seed, after a test has adopted another's."""
    yield
    tf.random.set_seed(None)
    _private.seed_unseeded(None)


def draws() -> list[float]:
    return [random.random(), float(np.random.rand()), float(tf.random.uniform([]))]


@pytest.mark.usefixtures("own_seeds")
def test_workers_that_adopt_a_state_draw_alike() -> None:
    random.seed(1)
    np.random.seed(2)
    tf.random.set_seed(3)
    offered = random_state.serialize()
    first = draws()
    random.seed(8)
    np.random.seed(9)
    tf.random.set_seed(10)
    random_state.restore(offered)
    assert draws() == first


@pytest.mark.usefixtures("own_seeds")
def test_what_has_no_seed_draws_alike_and_what_has_one_as_on_one_device() -> None:
    tf.random.set_seed(None)
    rows = tf.data.Dataset.range(50)
    want = list(map(int, rows.shuffle(50, seed=3)))
    offered = random_state.serialize()
    found = []
    for _ in range(2):
        tf.random.set_seed(8)  # as another worker may have
        random_state.restore(offered)
        assert list(map(int, rows.shuffle(50, seed=3))) == want
        found.append([*draws(), *map(int, rows.shuffle(50)), *map(int, rows.shuffle(50))])
    assert found[0] == found[1]
    assert found[0][3:53] != found[0][53:], "two datasets have two orders"


@pytest.mark.usefixtures("own_seeds")
def test_a_worker_that_was_seeded_alike_is_left_alone() -> None:
    keras.utils.set_random_seed(5)
    want = draws()
    keras.utils.set_random_seed(5)
    random_state.restore(random_state.serialize())
    assert draws() == want


TURNS = """
import tfaccel
ours = tfaccel.strategy("mirrored", devices=2, device_type="cpu")
import keras, numpy as np, tensorflow as tf
again = tfaccel.strategy("mirrored", devices=2, device_type="cpu")
plain = tf.distribute.MirroredStrategy(["CPU:0", "CPU:1"])
x = np.random.default_rng(0).normal(size=(12, 3)).astype("float32")
for round_ in range(2):
    for width, strategy in enumerate([ours, plain, again, ours], start=1):
        with strategy.scope():
            hidden = keras.layers.Dense(width * 3)
            model = keras.Sequential([keras.Input((3,)), hidden, keras.layers.Dense(1)])
            model.compile("adam", "mse")
        model.fit(x, x[:, :1], batch_size=6, verbose=0)
print("all trained")
"""


def test_strategies_of_one_process_train_in_turn() -> None:
    """As in a notebook whose cells run twice, and beside TensorFlow's own."""
    done = subprocess.run(
        [sys.executable, "-c", TURNS],
        cwd=Path(__file__).parents[2],
        env=environment(),
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert "all trained" in done.stdout, done.stderr[-3000:]


@pytest.fixture
def plain_methods() -> Iterator[None]:
    names = ("save", "save_weights", "export")
    plain = {name: getattr(keras.Model, name) for name in names}
    yield
    for name, method in plain.items():
        setattr(keras.Model, name, method)
    _private.replace_file_writers(lambda writer: writer)


@pytest.mark.parametrize("trained", [False, True])
def test_any_model_is_written_in_one_step(
    trained: bool, plain_methods: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A part of a trained model, an encoder say, has not run itself."""
    seen: list[tuple[str, ...]] = []
    write = atomic.write

    def watched(path: str, rank: int, write_to: Any, parents: bool = False) -> None:
        write(path, rank, lambda own: (seen.append((path, own)), write_to(own)), parents)

    monkeypatch.setattr(atomic, "write", watched)
    model_files.all_models_by_policy(strategy(1))
    model_files.all_models_by_policy(strategy(1))
    model = small()
    if trained:
        model_files.write_by_policy(model, strategy(1))
    calls = {"m.keras": model.save, "m.weights.h5": model.save_weights}
    calls["new/exported"] = functools.partial(model.export, verbose=False)
    for name, call in calls.items():
        call(tmp_path / name)
        if "new" not in name:
            with pytest.raises(FileExistsError, match="is there already"):
                call(tmp_path / name, overwrite=False)
    folders = [os.path.relpath(own, tmp_path) for _, own in seen]
    assert folders == [
        ".rank1.m.keras/m.keras",
        ".rank1.m.weights.h5/m.weights.h5",
        "new/.rank1.exported/exported",
    ]
    assert keras.models.load_model(tmp_path / "m.keras").count_params() == 3


def test_functions_that_save_write_in_one_step(
    plain_methods: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[str] = []
    write = atomic.write

    def watched(path: str, rank: int, write_to: Any, parents: bool = False) -> None:
        write(path, rank, lambda own: (seen.append(own), write_to(own)), parents)

    monkeypatch.setattr(atomic, "write", watched)
    model_files.all_models_by_policy(strategy(1))
    features = keras.utils.FeatureSpace({"x": keras.utils.FeatureSpace.float()})
    features.adapt(tf.data.Dataset.from_tensor_slices({"x": [[1.0], [2.0]]}))
    keras.saving.save_model(small(), tmp_path / "f.keras")
    keras.models.save_model(small(), str(tmp_path / "f.h5"))
    features.save(tmp_path / "features.keras")
    assert [os.path.relpath(own, tmp_path) for own in seen] == [
        ".rank1.f.keras/f.keras",
        ".rank1.f.h5/f.h5",
        ".rank1.features.keras/features.keras",
    ]
    assert keras.saving.load_model(tmp_path / "f.keras").count_params() == 3
    assert keras.saving.load_model(tmp_path / "f.h5").count_params() == 3
