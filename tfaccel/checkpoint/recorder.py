"""Captures and restores what a running `fit` depends on besides variables."""

from __future__ import annotations

import contextlib
import random
from collections.abc import Collection
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from tfaccel.checkpoint import data_replay
from tfaccel.checkpoint.plain_values import NotPlainError, decode, encode, fingerprint
from tfaccel.checkpoint.run_state import Place, RunState
from tfaccel.checkpoint.topology import topology_of

_LARGEST_STATE = 64 << 20  # bytes of an array


class Recorder:
    """Captures the state of a `fit`, and restores it.

    Args:
        model: being fitted.
        callbacks: of the `fit`, in their state before it.
        adapter: of its data.
    """

    def __init__(self, model: keras.Model, callbacks: list[Any], adapter: Any) -> None:
        self._model, self._source = model, data_replay.source_of(adapter)
        self._callbacks: dict[str, Any] = {}
        for callback in callbacks:
            kind = type(callback).__name__
            number = sum(1 for name in self._callbacks if name.partition("#")[0] == kind)
            self._callbacks[f"{kind}#{number}"] = callback
        self._before = {name: _attributes(one) for name, one in self._callbacks.items()}
        self._source_texts = {} if self._source is None else _attributes(self._source)
        self._source_before = _copies(self._source, self._source_texts)
        self._epoch_began = self._process_state()

    def begin_epoch(self) -> None:
        """Records the state at the start of the pass over the data."""
        self._epoch_began = self._process_state()

    def restore_dataset(self, state: RunState) -> None:
        """Restores the dataset's own state, between two epochs."""
        if self._source is not None:
            self.restore_data(state)

    def restore_epoch_start(self, state: RunState) -> None:
        """Records the state at the start of the resumed epoch."""
        self._epoch_began = decode(state.process["epoch_began"], state.own_arrays)

    def state(
        self,
        place: Place,
        batches: int,
        logs: dict[str, float],
        random_at_start: bytes,
        verdict: dict[str, Any] | None,
    ) -> RunState:
        """The current state."""
        arrays: list[np.ndarray] = []
        own_arrays: list[np.ndarray] = []
        callbacks = {}
        for name, callback in self._callbacks.items():
            now, before = _attributes(callback), self._before[name]
            changed = [key for key in now if now[key] != before.get(key)]
            kept = {key: vars(callback)[key] for key in changed}
            callbacks[name] = {key: encode(value, arrays) for key, value in kept.items()}
        process = {"now": self._process_state(), "epoch_began": self._epoch_began}
        return RunState(
            topology=topology_of(self._model.distribute_strategy),
            place=place,
            batches=batches,
            logs=logs,
            stopped=bool(self._model.stop_training),
            random_at_start=random_at_start.decode(),
            verdict=verdict,
            callbacks=callbacks,
            process={key: encode(value, own_arrays) for key, value in process.items()},
            arrays=arrays,
            own_arrays=own_arrays,
        )

    def restore_callbacks(self, state: RunState) -> None:
        """Restores the callbacks that belong to the run."""
        for name, attributes in state.callbacks.items():
            if name in self._callbacks:
                for key, value in attributes.items():
                    _restore_attribute(self._callbacks[name], key, decode(value, state.arrays))

    def restore_data(self, state: RunState) -> None:
        """Restores the state at the start of the epoch's pass over the data."""
        began = decode(state.process["epoch_began"], state.own_arrays)
        if self._source is not None:
            for name, value in {**self._source_before, **began["source"]}.items():
                setattr(self._source, name, value)
        _restore_random(began)

    def restore_random(self, state: RunState) -> None:
        """Restores the random generators of this process."""
        _restore_random(decode(state.process["now"], state.own_arrays))

    def _process_state(self) -> dict[str, Any]:
        return {
            "python": random.getstate(),
            "numpy": np.random.get_state(),
            "tensorflow": np.asarray(tf.random.get_global_generator().state),
            "source": self._source_changes(),
        }

    def _source_changes(self) -> dict[str, Any]:
        """The attributes of the dataset that have changed since before the `fit`."""
        if self._source is None:
            return {}
        now = _attributes(self._source)
        changed = {name for name in now if now[name] != self._source_texts.get(name)}
        return _copies(self._source, changed)


def _copies(source: Any, names: Collection[str]) -> dict[str, Any]:
    arrays: list[np.ndarray] = []
    return {name: decode(encode(vars(source)[name], arrays), arrays) for name in names}


def _restore_attribute(callback: Any, name: str, value: Any) -> None:
    """Sets an attribute; a dictionary of another class than `dict` keeps its class."""
    current = vars(callback).get(name)
    if isinstance(current, dict) and type(current) is not dict and isinstance(value, dict):
        current.clear()
        current.update(value)
    else:
        vars(callback)[name] = value


def _restore_random(state: dict[str, Any]) -> None:
    random.setstate(state["python"])
    np.random.set_state(state["numpy"])
    tf.random.get_global_generator().state.assign(state["tensorflow"])


def _attributes(instance: Any) -> dict[str, Any]:
    """The attributes of an object that can be stored, so that two states can be compared.

    Large arrays are data, not state.
    """
    fingerprints = {}
    for name, value in vars(instance).items():
        if name == "params" or getattr(value, "nbytes", 0) > _LARGEST_STATE:
            continue
        with contextlib.suppress(NotPlainError):
            fingerprints[name] = fingerprint(value)
    return fingerprints
