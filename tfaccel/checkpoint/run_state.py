"""What a run depends on besides variables: position, callbacks, random and dataset states.

Each process keeps its own random states and those of its dataset; callbacks are the chief's, since
all processes have the same. On a different number of processes, all resume with the chief's. Arrays
are tensors of the checkpoint, the rest is JSON.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np
import tensorflow as tf

from tfaccel.checkpoint.plain_values import decode, fingerprint
from tfaccel.checkpoint.sharded_reader import Reader
from tfaccel.checkpoint.tensor_file import Shard
from tfaccel.checkpoint.topology import Topology
from tfaccel.cluster.cluster import Cluster
from tfaccel.distribute.files.atomic import inside
from tfaccel.errors import CheckpointError

_FORMAT = 2
_RUN, _PROCESS = "run.json", "process-{:05d}.json"


@dataclass(frozen=True)
class Place:
    """Where a `fit` is.

    Attributes:
        epoch: its number, from 0.
        step: the number of its batches that are done.
        first_epoch: the one that the `fit` began with.
    """

    epoch: int
    step: int
    first_epoch: int


@dataclass
class RunState:
    """What is saved, in the form of `plain_values.encode`.

    Attributes:
        topology: that the run trains on.
        place: the position of the run.
        batches: how many it has trained on in all.
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

    topology: Topology
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

    def texts(self, cluster: Cluster) -> dict[str, str]:
        """The small files of this process."""
        process = _PROCESS.format(cluster.rank)
        contents = {process: {"state": self.process, "arrays": len(self.own_arrays)}}
        if cluster.is_chief:
            contents[_RUN] = {
                "format": _FORMAT,
                "layout": asdict(self.topology),
                "place": asdict(self.place),
                "batches": self.batches,
                "logs": self.logs,
                "stopped": self.stopped,
                "random_at_start": self.random_at_start,
                "verdict": self.verdict,
                "callbacks": self.callbacks,
                "arrays": len(self.arrays),
            }
        return {name: json.dumps(content) for name, content in contents.items()}

    def shards(self, cluster: Cluster) -> list[Shard]:
        """The arrays that this process writes."""
        own = [(f"process-{cluster.rank}/{i}", array) for i, array in enumerate(self.own_arrays)]
        shared = [(f"callbacks/{i}", array) for i, array in enumerate(self.arrays)]
        return [
            Shard(name, tf.convert_to_tensor(array))
            for name, array in [*own, *(shared if cluster.is_chief else ())]
        ]


def random_at_start(path: str) -> bytes:
    """The random state from before the run's data were made."""
    return str(_json(path, _RUN)["random_at_start"]).encode()


def read_state(path: str, reader: Reader, cluster: Any, topology: Topology) -> RunState:
    """Reads a saved state.

    Args:
        path: of the checkpoint.
        reader: of its variables.
        cluster: of the current processes, or None for one.
        topology: that the run resumes on.

    Raises:
        CheckpointError: it is of another version of tfaccel.
    """
    run = _json(path, _RUN)
    if run["format"] != _FORMAT:
        raise CheckpointError(
            f"tfaccel: the checkpoint {path} is of format {run['format']}; expected {_FORMAT}; "
            "resume with the version of tfaccel that saved it, or use another directory."
        )
    saved = Topology(**run["layout"])
    rank = cluster.rank if cluster and saved.workers == topology.workers else 0
    process = _json(path, _PROCESS.format(rank))
    return RunState(
        topology=saved,
        place=Place(**run["place"]),
        batches=run["batches"],
        logs=run["logs"],
        stopped=run["stopped"],
        random_at_start=run["random_at_start"],
        verdict=run["verdict"],
        callbacks=run["callbacks"],
        process=process["state"],
        arrays=_arrays(reader, "callbacks", run["arrays"]),
        own_arrays=_arrays(reader, f"process-{rank}", process["arrays"]),
    )


def processes_differ(path: str, reader: Reader, state: RunState) -> bool:
    """Whether the saving processes had their own random or dataset states."""
    fingerprints = []
    for rank in range(state.topology.workers):
        process = _json(path, _PROCESS.format(rank))
        arrays = _arrays(reader, f"process-{rank}", process["arrays"])
        now = decode(process["state"]["now"], arrays)
        del now["tensorflow"]  # which TensorFlow seeds from each one's clock
        fingerprints.append(fingerprint(now))
    return any(one != fingerprints[0] for one in fingerprints)


def _arrays(reader: Reader, prefix: str, number: int) -> list[np.ndarray]:
    return [reader.read(f"{prefix}/{i}").numpy() for i in range(number)]


def _json(path: str, name: str) -> Any:
    with tf.io.gfile.GFile(inside(path, name)) as file:
        return json.load(file)
