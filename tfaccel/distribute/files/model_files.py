"""`save`, `save_weights` and `export` of a model trained by several workers."""

from __future__ import annotations

import functools
import os
from collections.abc import Callable
from typing import Any

import keras
import tensorflow as tf

from tfaccel.distribute.files import atomic
from tfaccel.distribute.files.one_writer import (
    WritingStrategy,
    broadcast_error,
    current_write_context,
    on_chief,
)

_SUFFIXES = (".keras", ".h5", ".hdf5", ".json")


def write_by_policy(model: keras.Model, strategy: WritingStrategy) -> None:
    """Makes the methods of `model` that write files follow the policy. It is idempotent.

    Args:
        model: any.
        strategy: its strategy, of several workers.
    """
    for name in ("save", "save_weights", "export"):
        method = getattr(model, name)
        if not hasattr(method, "_tfaccel_by_policy"):
            make = _exports if name == "export" else _saves
            by_policy = make(method, model, strategy)
            by_policy._tfaccel_by_policy = True  # type: ignore[attr-defined]
            object.__setattr__(model, name, by_policy)


def _saves(method: Callable[..., Any], model: Any, strategy: WritingStrategy) -> Callable[..., Any]:
    @functools.wraps(method)
    def saves(filepath: Any, overwrite: bool = True, *args: Any, **kwargs: Any) -> None:
        path = os.fspath(filepath)
        if not (path.endswith(_SUFFIXES) or args or kwargs):
            method(filepath, overwrite)  # which Keras rejects with a reason
            return
        _refuse_existing(strategy, path, overwrite)
        _write(model, strategy, path, lambda own: method(own, True, *args, **kwargs))

    return saves


def _exports(
    method: Callable[..., Any], model: Any, strategy: WritingStrategy
) -> Callable[..., Any]:
    @functools.wraps(method)
    def exports(filepath: Any, *args: Any, **kwargs: Any) -> None:
        path = os.fspath(filepath)
        _write(model, strategy, path, lambda own: method(own, *args, **kwargs), parents=True)

    return exports


def _write(
    model: keras.Model,
    strategy: WritingStrategy,
    path: str,
    write_to: Callable[[str], None],
    parents: bool = False,
) -> None:
    rank = strategy.cluster.rank

    def write() -> None:
        atomic.write(path, rank, write_to, parents)

    if (turn := current_write_context()) is not None:
        with turn.gathered(model):
            write()
    elif strategy.holds_whole_variables and not atomic.is_remote(path):
        write()  # one per worker, and none waits
    else:
        with strategy.gathered_for_file(model):
            on_chief(strategy, f"write {path}", write)


def _refuse_existing(strategy: WritingStrategy, path: str, overwrite: bool) -> None:
    """Raises if `path` exists, here or on the chief.

    Keras prompts on the terminal, which workers do not have.
    """
    if overwrite:
        return
    error = FileExistsError(
        f"tfaccel: {path} is there already and overwrite=False; expected a new path."
    )
    existing = error if tf.io.gfile.exists(path) else None
    # All check before any writes: they may share a disk.
    failure = broadcast_error(strategy, existing) if current_write_context() is None else ""
    if existing is not None or failure:
        raise error
