"""Equal layers that a model keeps in a list and calls one after the other in its own `call`.

Such a model has no variables yet when its builder returns, so the list can be shortened before they
are created. One call on symbolic tensors, in which all but the first return the first one's result,
shows whether all are called once, in order and at equal distances.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import keras
import tensorflow as tf

from tfaccel.distribute.replacements import replaced
from tfaccel.planner.repeated_blocks import FEWEST, KEPT, Shortened, signature


@dataclass(frozen=True)
class Listed:
    """Lists of a model, all of one length.

    The first of each may take the batch itself, for which no gradient is computed, so it is not
    part of the repetition.

    Attributes:
        names: the attributes that hold them.
        count: layers of each after the first.
    """

    names: tuple[str, ...]
    count: int

    def shorten(self, model: keras.Model) -> Shortened:
        """Keeps the first and `KEPT` more of each list of an unbuilt model."""
        short = Shortened()
        for name in self.names:
            layers = list(getattr(model, name))
            for block, layer in zip(short.blocks, layers[1:], strict=False):
                block.append(layer)
            short.cut += layers[1 + KEPT :]
            setattr(model, name, layers[: 1 + KEPT])
        return short


def find(model: keras.Model, shape: Sequence[int] | None, dtype: str) -> Listed | None:
    """The longest lists of equal layers in an unbuilt model, or None.

    Args:
        model: it is not usable afterwards.
        shape: of one row of its input.
        dtype: of that.
    """
    if model.built or shape is None:
        return None
    lists = dict(_lists(model))
    count = max(map(len, lists.values()), default=0)
    names = tuple(name for name, layers in lists.items() if len(layers) == count)
    if count <= FEWEST or not _in_turn(model, [lists[name] for name in names], shape, dtype):
        return None
    return Listed(names, count - 1)


def _lists(model: keras.Model) -> Iterator[tuple[str, list[Any]]]:
    for name, value in vars(model).items():
        if name.startswith("_") or not isinstance(value, list | tuple) or len(value) < FEWEST:
            continue
        layers = list(value)
        if all(isinstance(one, keras.layers.Layer) and not one.built for one in layers):
            distinct = len({id(one) for one in layers}) == len(layers)
            if distinct and len({signature(one) for one in layers}) == 1:
                yield name, layers


def _in_turn(
    model: keras.Model, lists: Sequence[Sequence[Any]], shape: Sequence[int], dtype: str
) -> bool:
    """Whether the layers are called once each and in order, with the same between any two."""
    place = {id(layer): (k, i) for k, layers in enumerate(lists) for i, layer in enumerate(layers)}
    results: dict[int, Any] = {}
    seen: list[tuple[int, int, int, str]] = []  # list, layer, operations before it, arguments
    original = keras.layers.Layer.__call__

    def call(self: Any, *args: Any, **kwargs: Any) -> Any:
        at = place.get(id(self))
        if at is None:
            return original(self, *args, **kwargs)
        graph = tf.compat.v1.get_default_graph()
        before = len(graph.get_operations())
        if at[0] not in results:
            results[at[0]] = original(self, *args, **kwargs)
        made = len(graph.get_operations()) - before
        seen.append((*at, before - sum(skipped), _described(args, kwargs)))
        skipped.append(made)
        return results[at[0]]

    skipped: list[int] = []
    try:
        with replaced(keras.layers.Layer, "__call__", call):
            model.compute_output_spec(keras.KerasTensor((None, *shape), dtype))
    except Exception:  # anything that the model's own call raises
        return False
    size, count = len(lists), len(lists[0])
    if [one[1] for one in seen] != [i for i in range(count) for _ in range(size)]:
        return False
    rounds = [seen[i * size : (i + 1) * size] for i in range(count)]
    gaps = [
        [(a[0], a[3], b[2] - a[2]) for a, b in zip(one, (*one[1:], following[0]), strict=True)]
        for one, following in itertools.pairwise(rounds)
    ]
    return all(one == gaps[0] for one in gaps)


def _described(args: Any, kwargs: Any) -> str:
    return repr(
        keras.tree.map_structure(
            lambda t: ("tensor", str(t.shape), str(t.dtype)) if hasattr(t, "shape") else t,
            (args, kwargs),
        )
    )
