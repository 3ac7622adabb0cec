"""All variables that the steps of a model use, and what each process and replica holds of them.

Also those of optimizers, metrics, seed generators, and of the strategy itself; wherever the step's
code reaches them (`tfaccel/distribute/object_graph.py`).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from functools import partial
from typing import Any

import keras
import tensorflow as tf

from tfaccel.checkpoint.folder import Piece, Reader, read, shapes
from tfaccel.checkpoint.pieces import assign, pieces_of
from tfaccel.distribute.object_graph import reachable_objects

_PREFIX = "variables/"


def pieces(model: keras.Model, strategy: Any) -> list[Piece]:
    """What this process writes."""
    cluster = getattr(strategy, "cluster", None)
    chief = cluster is None or cluster.is_chief
    found = []
    for name, variable in _named(model, strategy).items():
        if _on_mesh(variable):
            found += [
                Piece(name, tensor, cut, tuple(variable.shape))
                for tensor, cut in pieces_of(variable, chief)
            ]
            continue
        for own, part in _parts(name, variable, strategy):
            if own != name or chief:
                found.append(Piece(own, tf.convert_to_tensor(part)))
    return found


def restore(model: keras.Model, strategy: Any, reader: Reader) -> tuple[list[str], list[str]]:
    """Puts back what was written of the variables that there are now.

    Returns:
        The names that are in the files alone, and those of which the files have nothing, or another
        shape.
    """
    held = {n: s for n, s in shapes(reader).items() if n.startswith(_PREFIX)}
    used, unknown = set(), []
    for name, variable in _named(model, strategy).items():
        parts = [(name, variable)] if _on_mesh(variable) else _parts(name, variable, strategy)
        for own, part in parts:
            used.add(own)
            if held.get(own) != tuple(part.shape):
                unknown.append(own)
                continue
            stored = partial(read, reader, own, part.dtype, tuple(part.shape))
            for one in [part] if _on_mesh(part) else strategy.experimental_local_results(part):
                assign(one, stored)
    others = {n for n in held if n.rpartition("@")[0]}  # of other processes and replicas
    return sorted(set(held) - used - others), unknown


def _named(model: keras.Model, strategy: Any) -> dict[str, Any]:
    """TensorFlow's variables by names that are the same in each run of a script."""
    reached = reachable_objects(model)
    found = [(v.path, v.value) for v in reached.variables]
    found += [(v.name, v) for v in reached.raw]
    found += [(one.state.name, one.state) for one in reached.generators]
    found += [(v.name, v) for v in getattr(strategy, "state_variables", lambda _: [])(model)]
    named, numbers = {}, Counter[str]()
    for path, value in found:
        named[f"{_PREFIX}{path}#{numbers[path]}"] = value
        numbers[path] += 1
    return named


def _parts(name: str, variable: Any, strategy: Any) -> Iterator[tuple[str, Any]]:
    """The variable once where it is the same everywhere, else each replica's."""
    cluster = getattr(strategy, "cluster", None)
    distributed = hasattr(variable, "values")
    alike = distributed or cluster is None
    if getattr(variable, "synchronization", None) == tf.VariableSynchronization.ON_READ:
        alike = not distributed
    frequency = getattr(strategy, "frequency", None)
    if alike and not (distributed and frequency is not None and frequency.replicas_diverge):
        yield name, variable
        return
    rank = 0 if cluster is None else cluster.rank
    for i, one in enumerate(strategy.experimental_local_results(variable)):
        yield f"{name}@{rank}.{i}", one


def _on_mesh(variable: Any) -> bool:
    return hasattr(variable, "pieces")
