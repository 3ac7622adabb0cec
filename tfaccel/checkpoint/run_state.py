"""What a run depends on beside variables: its place, callbacks, random states, a dataset's own.

Each process keeps its own random states and those of its dataset; callbacks are the chief's, since
all processes have the same. Arrays are tensors of the checkpoint, the rest is JSON.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import random
from collections.abc import Collection
from dataclasses import asdict, dataclass, field
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from tfaccel.checkpoint import data_replay
from tfaccel.checkpoint.folder import Piece, Reader, read
from tfaccel.checkpoint.plain_values import NotPlainError, decode, encode
from tfaccel.distribute.files.atomic import inside
from tfaccel.errors import CheckpointError

_FORMAT = 1
_LARGEST_STATE = 64 << 20  # bytes of an array
_RUN, _PROCESS = "run.json", "process-{:05d}.json"


@dataclass(frozen=True)
class Place:
    """Where a `fit` is.

    Attributes:
        epoch: its number, from 0.
        step: the number of batches of it that are done.
        first_epoch: the one that the `fit` began with.
    """

    epoch: int
    step: int
    first_epoch: int


@dataclass
class RunState:
    """What is kept, as `plain_values.encode` gives it.

    Attributes:
        place: where the run is.
        batches: that it has trained on in all.
        logs: of the last of them.
        stopped: whether a callback has stopped the training.
        random_at_start: as `random_state.serialize` gave it before the data were made.
        verdict: of the first-step check, where there was one.
        callbacks: by class and number, the attributes that the run has changed.
        process: the random states and the dataset's attributes of this process, now and when the
            epoch began.
        arrays: the arrays in `callbacks`.
        own_arrays: those in `process`.
    """

    place: Place
    batches: int
    logs: dict[str, float]
    stopped: bool
    random_at_start: str
    verdict: dict[str, Any] | None
    callbacks: dict[str, Any]
    process: dict[str, Any]
    arrays: list[np.ndarray] = field(default_factory=list)
    own_arrays: list[np.ndarray] = field(default_factory=list)

    def texts(self, cluster: Any) -> dict[str, str]:
        """The small files of this process."""
        rank, chief = (cluster.rank, cluster.is_chief) if cluster else (0, True)
        made = {_PROCESS.format(rank): {"state": self.process, "arrays": len(self.own_arrays)}}
        if chief:
            made[_RUN] = {
                "format": _FORMAT,
                "processes": cluster.size if cluster else 1,
                "place": asdict(self.place),
                "batches": self.batches,
                "logs": self.logs,
                "stopped": self.stopped,
                "random_at_start": self.random_at_start,
                "verdict": self.verdict,
                "callbacks": self.callbacks,
                "arrays": len(self.arrays),
            }
        return {name: json.dumps(content) for name, content in made.items()}

    def pieces(self, cluster: Any) -> list[Piece]:
        """The arrays that this process writes."""
        rank, chief = (cluster.rank, cluster.is_chief) if cluster else (0, True)
        own = [(f"process-{rank}/{i}", array) for i, array in enumerate(self.own_arrays)]
        shared = [(f"callbacks/{i}", array) for i, array in enumerate(self.arrays)]
        return [
            Piece(name, tf.convert_to_tensor(array)) for name, array in [*own, *(shared * chief)]
        ]


def random_at_start(path: str) -> bytes:
    """The random state from before the run's data were made."""
    return str(_json(path, _RUN)["random_at_start"]).encode()


def read_state(path: str, reader: Reader, cluster: Any) -> RunState:
    """Reads what was kept.

    Raises:
        CheckpointError: it is of another number of processes.
    """
    run = _json(path, _RUN)
    rank, size = (cluster.rank, cluster.size) if cluster else (0, 1)
    if run["format"] != _FORMAT or run["processes"] != size:
        raise CheckpointError(
            f"tfaccel: the checkpoint {path} is of {run['processes']} processes (format "
            f"{run['format']}), expected {size} (format {_FORMAT}); run it on as many, or give "
            "this run a directory of its own."
        )
    own = _json(path, _PROCESS.format(rank))
    return RunState(
        place=Place(**run["place"]),
        batches=run["batches"],
        logs=run["logs"],
        stopped=run["stopped"],
        random_at_start=run["random_at_start"],
        verdict=run["verdict"],
        callbacks=run["callbacks"],
        process=own["state"],
        arrays=_arrays(reader, "callbacks", run["arrays"]),
        own_arrays=_arrays(reader, f"process-{rank}", own["arrays"]),
    )


class Recorder:
    """Takes the state of a `fit`, and puts it back.

    Args:
        model: that is fitted.
        callbacks: of the `fit`, as they are before it.
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
        """Notes what the pass over the data begins with."""
        self._epoch_began = self._process_state()

    def put_dataset(self, state: RunState) -> None:
        """Sets back the dataset's own state, between two epochs."""
        if self._source is not None:
            self.put_data(state)

    def begin_again(self, state: RunState) -> None:
        """Notes what the epoch that goes on began with."""
        self._epoch_began = decode(state.process["epoch_began"], state.own_arrays)

    def state(
        self,
        place: Place,
        batches: int,
        logs: dict[str, float],
        random_at_start: bytes,
        verdict: dict[str, Any] | None,
    ) -> RunState:
        """The state now."""
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

    def put_callbacks(self, state: RunState) -> None:
        """Sets the callbacks, as far as they are those of the run, back."""
        for name, attributes in state.callbacks.items():
            if name in self._callbacks:
                for key, value in attributes.items():
                    _put(self._callbacks[name], key, decode(value, state.arrays))

    def put_data(self, state: RunState) -> None:
        """Sets back what the epoch's pass over the data begins with."""
        began = decode(state.process["epoch_began"], state.own_arrays)
        if self._source is not None:
            for name, value in {**self._source_before, **began["source"]}.items():
                setattr(self._source, name, value)
        _put_random(began)

    def put_random(self, state: RunState) -> None:
        """Sets the random generators of this process back."""
        _put_random(decode(state.process["now"], state.own_arrays))

    def _process_state(self) -> dict[str, Any]:
        return {
            "python": random.getstate(),
            "numpy": np.random.get_state(),
            "tensorflow": np.asarray(tf.random.get_global_generator().state),
            "source": self._source_changes(),
        }

    def _source_changes(self) -> dict[str, Any]:
        """The attributes of the dataset that are not what they were before the `fit`."""
        if self._source is None:
            return {}
        now = _attributes(self._source)
        changed = {name for name in now if now[name] != self._source_texts.get(name)}
        return _copies(self._source, changed)


def _copies(source: Any, names: Collection[str]) -> dict[str, Any]:
    arrays: list[np.ndarray] = []
    return {name: decode(encode(vars(source)[name], arrays), arrays) for name in names}


def _put(callback: Any, name: str, value: Any) -> None:
    """Sets an attribute; a dictionary of another class than `dict` stays what it is."""
    held = vars(callback).get(name)
    if isinstance(held, dict) and type(held) is not dict and isinstance(value, dict):
        held.clear()
        held.update(value)
    else:
        vars(callback)[name] = value


def _put_random(state: dict[str, Any]) -> None:
    random.setstate(state["python"])
    np.random.set_state(state["numpy"])
    tf.random.get_global_generator().state.assign(state["tensorflow"])


def _attributes(instance: Any) -> dict[str, Any]:
    """The attributes of an object that can be kept, so that two states can be compared.

    Large arrays are data, and no state.
    """
    found = {}
    for name, value in vars(instance).items():
        if name == "params" or getattr(value, "nbytes", 0) > _LARGEST_STATE:
            continue
        arrays: list[np.ndarray] = []
        with contextlib.suppress(NotPlainError):
            text = json.dumps(encode(value, arrays))
            found[name] = text, [(a.shape, hashlib.sha256(a.tobytes()).digest()) for a in arrays]
    return found


def _arrays(reader: Reader, prefix: str, number: int) -> list[np.ndarray]:
    kinds = reader.index.get_variable_to_dtype_map()
    names = [f"{prefix}/{i}" for i in range(number)]
    return [read(reader, n, kinds[n], (), None).numpy() for n in names]


def _json(path: str, name: str) -> Any:
    with tf.io.gfile.GFile(inside(path, name)) as file:
        return json.load(file)
