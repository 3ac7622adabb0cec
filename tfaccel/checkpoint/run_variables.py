"""All variables that the steps of a model use, and the part that each process and replica holds.

Includes those of optimizers, metrics, seed generators, and of the strategy itself, wherever the
step's code reaches them (`tfaccel/distribute/object_graph.py`); and those that callbacks hold, such
as a copy of the model with averaged weights.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from tfaccel.checkpoint.sharded_reader import Reader
from tfaccel.checkpoint.tensor_file import Shard
from tfaccel.checkpoint.topology import Topology, merged, topology_of
from tfaccel.checkpoint.variable_shards import Slices, assign, local_shards
from tfaccel.cluster.cluster import cluster_of
from tfaccel.distribute.object_graph import ReachableObjects, reachable_objects, reached_by
from tfaccel.errors import CheckpointError

_PREFIX = "variables/"
_STRATEGY = f"{_PREFIX}strategy/"
_CALLBACKS = f"{_PREFIX}callbacks/"
_PART = re.compile(r"@(\d+)\.(\d+)$")  # of a worker's replica, if each has its own


def shards(model: keras.Model, strategy: Any, callbacks: Sequence[Any] = ()) -> list[Shard]:
    """What this process writes."""
    chief = cluster_of(strategy).is_chief
    written = []
    for name, variable in _named(model, strategy, callbacks).items():
        if _on_mesh(variable):
            written += [
                Shard(name, tensor, slices, tuple(variable.shape))
                for tensor, slices in local_shards(variable, chief)
            ]
            continue
        for part_name, part in _parts(name, variable, strategy):
            if part_name != name or chief:
                written.append(Shard(part_name, tf.convert_to_tensor(part)))
    return written


@dataclass
class Restored:
    """How the current variables and those in the files did not match.

    Attributes:
        missing: the names that only the files have.
        unknown: those that the files lack, or have in another shape or type.
        left_out: internal state of strategies, of no use to another one.
        averaged: those with different values in replicas that had trained independently.
    """

    missing: list[str] = field(default_factory=list)
    unknown: list[str] = field(default_factory=list)
    left_out: list[str] = field(default_factory=list)
    averaged: list[str] = field(default_factory=list)


def restore(
    model: keras.Model,
    strategy: Any,
    reader: Reader,
    saved: Topology,
    callbacks: Sequence[Any] = (),
) -> Restored:
    """Restores the current variables from the files.

    Args:
        model: whose variables they are.
        strategy: the current one.
        reader: of the files.
        saved: the topology that saved them.
        callbacks: whose variables are restored too, as far as the files have them.

    Raises:
        CheckpointError: replicas have saved different values that cannot be combined.
    """
    stored_parts: dict[str, dict[str, tuple[int, ...]]] = {}
    for part_name, shape in reader.shapes().items():
        if part_name.startswith(_PREFIX):
            stored_parts.setdefault(_PART.sub("", part_name), {})[part_name] = shape
    same_topology = saved == topology_of(strategy)
    if hasattr(strategy, "expect_state"):
        of_strategy = (name for name in stored_parts if name.startswith(_STRATEGY))
        strategy.expect_state([name.removeprefix(_STRATEGY) for name in of_strategy])
    restored, named = Restored(), _named(model, strategy, callbacks)
    for name, variable in named.items():
        stored = stored_parts.get(name, {})
        parts = [(name, variable)] if _on_mesh(variable) else [*_parts(name, variable, strategy)]
        alike = (tuple(variable.shape), tf.as_dtype(variable.dtype))
        if not stored or any((shape, reader.dtype(n)) != alike for n, shape in stored.items()):
            restored.unknown.append(name)
        elif same_topology and all(part_name in stored for part_name, _ in parts):
            for part_name, part in parts:
                _put(part, strategy, partial(reader.read, part_name))
        elif name in stored:
            _put(variable, strategy, partial(reader.read, name))
        else:
            value, differed = _one_of(name, variable, sorted(stored, key=_place), reader, saved)
            _put(variable, strategy, partial(_cut, value))
            restored.averaged += [name] * differed
    restored.missing = sorted(stored_parts.keys() - named.keys())
    for names in (restored.missing, restored.unknown):  # a run may be given other callbacks
        names[:] = [n for n in names if not n.startswith(_CALLBACKS)]
    if not same_topology:
        for names in (restored.missing, restored.unknown):
            restored.left_out += [n for n in names if n.startswith(_STRATEGY)]
            names[:] = [n for n in names if not n.startswith(_STRATEGY)]
    return restored


def _one_of(
    name: str, variable: Any, stored: list[str], reader: Reader, saved: Topology
) -> tuple[np.ndarray, bool]:
    """One value from those that replicas saved; whether it is the mean of different ones."""
    aggregation = variable.aggregation
    sums = aggregation == tf.VariableAggregation.SUM
    values = [reader.read(n).numpy() for n in stored]
    diverges = saved.diverges or aggregation == tf.VariableAggregation.MEAN
    value = merged(values, sums, diverges)
    if value is None and name.startswith(_CALLBACKS):
        return values[0], False  # as of their other attributes
    if value is None:
        raise CheckpointError(
            f"tfaccel: {name.removeprefix(_PREFIX)!r} of the checkpoint has different values in "
            f"the {len(stored)} places in which it was saved; expected to resume on {saved}, or "
            "one value: create it in the scope of the strategy."
        )
    return value, not sums and any(not np.array_equal(value, one) for one in values)


def _put(variable: Any, strategy: Any, shard: Callable[[Slices | None], Any]) -> None:
    """Gives a variable, or a replica's part of one, its value."""
    if _on_mesh(variable):
        assign(variable, shard)
    elif hasattr(variable, "values") and variable.aggregation == tf.VariableAggregation.SUM:
        variable.assign(shard(None))  # the first replica holds all of it
    else:
        for one in strategy.experimental_local_results(variable):
            assign(one, shard)


def _cut(value: np.ndarray, cut: Slices | None) -> np.ndarray:
    return value if cut is None else value[cut]


def _place(part_name: str) -> tuple[int, ...]:
    """The worker and replica that this part belongs to."""
    match = _PART.search(part_name)
    return tuple(map(int, match.groups())) if match else ()


def _named(model: keras.Model, strategy: Any, callbacks: Sequence[Any]) -> dict[str, Any]:
    """TensorFlow's variables by names that are stable across runs of a script."""
    pairs = _pairs(reachable_objects(model))
    of_strategy: list[Any] = getattr(strategy, "state_variables", lambda _: [])(model)
    pairs += [(f"strategy/{v.name}", v) for v in of_strategy]
    known = {id(value) for _, value in pairs}
    of_callbacks = _pairs(reached_by(_held(callbacks)))
    pairs += [(f"callbacks/{path}", v) for path, v in of_callbacks if id(v) not in known]
    named, numbers = {}, Counter[str]()
    for path, value in pairs:
        named[f"{_PREFIX}{path}#{numbers[path]}"] = value
        numbers[path] += 1
    return named


def _pairs(reached: ReachableObjects) -> list[tuple[str, Any]]:
    pairs = [(v.path, v.value) for v in reached.variables]
    pairs += [(v.name, v) for v in reached.raw]
    return pairs + [(one.state.name, one.state) for one in reached.generators]


def _held(callbacks: Sequence[Any]) -> list[Any]:
    """What callbacks hold besides the model: attributes, and what their own code refers to."""
    held: list[Any] = []
    for one in callbacks:
        held += [type(one), *(v for name, v in vars(one).items() if name != "_model")]
    return held


def _parts(name: str, variable: Any, strategy: Any) -> Iterator[tuple[str, Any]]:
    """The variable once where it is the same everywhere, else each replica's."""
    cluster = getattr(strategy, "cluster", None)
    distributed = hasattr(variable, "values")
    one_value = distributed or cluster is None
    if getattr(variable, "synchronization", None) == tf.VariableSynchronization.ON_READ:
        one_value = not distributed
    frequency = getattr(strategy, "frequency", None)
    if one_value and not (distributed and frequency is not None and frequency.replicas_diverge):
        yield name, variable
        return
    rank = 0 if cluster is None else cluster.rank
    for i, one in enumerate(strategy.experimental_local_results(variable)):
        yield f"{name}@{rank}.{i}", one


def _on_mesh(variable: Any) -> bool:
    return hasattr(variable, "shards")
