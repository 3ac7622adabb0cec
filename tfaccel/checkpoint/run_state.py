"""What a run depends on beside variables: its place, callbacks, random states, a dataset's own.

Each process keeps its own random states and those of its dataset; callbacks are the chief's, since
all processes have the same. Arrays are tensors of the checkpoint, the rest is JSON.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np
import tensorflow as tf

from tfaccel.checkpoint.folder import Piece, Reader, read
from tfaccel.distribute.files.atomic import inside
from tfaccel.errors import CheckpointError

_FORMAT = 1
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


def _arrays(reader: Reader, prefix: str, number: int) -> list[np.ndarray]:
    kinds = reader.index.get_variable_to_dtype_map()
    names = [f"{prefix}/{i}" for i in range(number)]
    return [read(reader, n, kinds[n], (), None).numpy() for n in names]


def _json(path: str, name: str) -> Any:
    with tf.io.gfile.GFile(inside(path, name)) as file:
        return json.load(file)
