"""`save`, `save_weights` and `export` of a model in a job of several workers.

A model that has run writes by methods of its own, since its class may override them. Any other (a
part of a trained model, one of a custom loop) by those of `keras.Model`, which are replaced once
per process and permanently, like the functions behind `keras.saving.save_model`.
"""

from __future__ import annotations

import functools
import os
from collections.abc import Callable
from contextvars import ContextVar
from typing import Any

import keras
import tensorflow as tf

from tfaccel.distribute import _private, scope
from tfaccel.distribute.files import atomic
from tfaccel.distribute.files.one_writer import (
    WritingStrategy,
    broadcast_error,
    current_write_context,
    on_chief,
)

_METHODS = ("save", "save_weights", "export")
_SUFFIXES = (".keras", ".h5", ".hdf5", ".json")

_is_writing: ContextVar[bool] = ContextVar("tfaccel_is_writing", default=False)


def all_models_by_policy(strategy: WritingStrategy) -> None:
    """Makes every model of this process write by the policy, whether it is trained or not.

    Args:
        strategy: of several workers.
    """
    for name in _METHODS:
        method = getattr(keras.Model, name)
        plain = getattr(method, "_tfaccel_plain", method)
        setattr(keras.Model, name, _of_any_model(plain, name, strategy))
    _private.replace_file_writers(functools.partial(_writes_file, strategy))


def _writes_file(strategy: WritingStrategy, plain: Callable[..., Any]) -> Callable[..., Any]:
    """`keras.saving.save_model` and `FeatureSpace.save`, at the function that they call."""

    @functools.wraps(plain)
    def writes(model: Any, filepath: Any, *args: Any, **kwargs: Any) -> None:
        path = os.fspath(filepath) if isinstance(filepath, (str, os.PathLike)) else ""
        if _is_writing.get() or not path.endswith(_SUFFIXES):  # no path of one file
            plain(model, filepath, *args, **kwargs)
            return
        owner = None if scope.strategy_of(model) is None else strategy
        rank = strategy.cluster.rank
        _write(model, owner, rank, path, lambda own: plain(model, own, *args, **kwargs))

    return writes


def _of_any_model(plain: Callable[..., Any], name: str, strategy: WritingStrategy) -> Any:
    @functools.wraps(plain)
    def writes(self: Any, filepath: Any, *args: Any, **kwargs: Any) -> None:
        method: Callable[..., None] = functools.partial(plain, self)
        if not _is_writing.get():
            # One that was never in a scope may be written by some workers only.
            owner = None if scope.strategy_of(self) is None else strategy
            method = _by_policy(method, name, self, owner, strategy.cluster.rank)
        method(filepath, *args, **kwargs)

    writes._tfaccel_plain = plain  # type: ignore[attr-defined]
    return writes


def write_by_policy(model: keras.Model, strategy: WritingStrategy) -> None:
    """Makes the methods of `model` that write files follow the policy. It is idempotent.

    Args:
        model: any.
        strategy: its strategy, of several workers.
    """
    for name in _METHODS:
        method = getattr(model, name)
        if not hasattr(method, "_tfaccel_by_policy"):
            by_policy = _by_policy(method, name, model, strategy, strategy.cluster.rank)
            by_policy = functools.wraps(method)(by_policy)
            by_policy._tfaccel_by_policy = True  # type: ignore[attr-defined]
            object.__setattr__(model, name, by_policy)


def _by_policy(
    method: Callable[..., Any], name: str, model: Any, strategy: WritingStrategy | None, rank: int
) -> Callable[..., Any]:
    """A method that writes `model`; without a strategy, where this process alone holds it."""
    write = functools.partial(_write, model, strategy, rank)
    return _exports(method, write) if name == "export" else _saves(method, write, strategy)


def _saves(
    method: Callable[..., Any], write: Callable[..., None], strategy: WritingStrategy | None
) -> Callable[..., Any]:
    def saves(filepath: Any, overwrite: bool = True, *args: Any, **kwargs: Any) -> None:
        path = os.fspath(filepath)
        if not (path.endswith(_SUFFIXES) or args or kwargs):
            method(filepath, overwrite)  # which Keras rejects with a reason
            return
        _refuse_existing(strategy, path, overwrite)
        write(path, lambda own: method(own, True, *args, **kwargs))

    return saves


def _exports(method: Callable[..., Any], write: Callable[..., None]) -> Callable[..., Any]:
    def exports(filepath: Any, *args: Any, **kwargs: Any) -> None:
        path = os.fspath(filepath)
        write(path, lambda own: method(own, *args, **kwargs), parents=True)

    return exports


def _write(
    model: keras.Model,
    strategy: WritingStrategy | None,
    rank: int,
    path: str,
    write_to: Callable[[str], None],
    parents: bool = False,
) -> None:
    def write() -> None:
        token = _is_writing.set(True)
        try:
            atomic.write(path, rank, write_to, parents)
        finally:
            _is_writing.reset(token)

    if strategy is None:
        write()
    elif (turn := current_write_context()) is not None:
        with turn.gathered(model):
            write()
    elif strategy.holds_whole_variables and not atomic.is_remote(path):
        write()  # one per worker, and none waits
    else:
        with strategy.gathered_for_file(model):
            on_chief(strategy, f"write {path}", write)


def _refuse_existing(strategy: WritingStrategy | None, path: str, overwrite: bool) -> None:
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
