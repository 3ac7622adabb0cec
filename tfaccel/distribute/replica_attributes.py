"""Attributes that each replica of an eager step sets separately.

With `run_eagerly=True` the replicas of one process take turns whenever they meet in a reduction or
an update. What a step stores on `self` meanwhile (``self.features = features``) must be its own.
That applies to data; variables, layers and Keras's records of them are created once for all, as is
what a layer's `build` stores.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import tensorflow as tf

from tfaccel.distribute.replacements import Replacements, replaced

SavedAttributes = list[tuple[dict[str, Any], str, Any]]
_DATA = (
    tf.Tensor,
    tf.RaggedTensor,
    tf.SparseTensor,
    np.ndarray,
    np.generic,
    int,
    float,
    str,
    bytes,
)


class ReplicaAttributes:
    """The attributes of a model and its layers, as each replica sees them.

    Args:
        objects: whose attributes each replica has for itself.
    """

    def __init__(self, objects: Sequence[Any]) -> None:
        self._before = [(vars(o), dict(vars(o))) for o in objects]
        self._first: SavedAttributes | None = None
        self._builds = Replacements()
        for each, (now, before) in zip(objects, self._before, strict=True):
            if "build" in now and not now.get("built", True):
                self._builds.replace(each, "build", _kept(now, before))

    def wrap(self, step: Callable[..., Any]) -> Callable[..., Any]:
        """A replica's `step`, which sees the earlier attributes and those it has set itself."""

        def replica(*args: Any) -> Any:
            context = tf.distribute.get_replica_context()
            merge_call = context.merge_call

            def merge_call_isolated(*args: Any, **kwargs: Any) -> Any:
                changed = self._take()
                try:
                    return merge_call(*args, **kwargs)
                finally:
                    _restore(changed)

            try:
                with replaced(context, "merge_call", merge_call_isolated):
                    return step(*args)
            finally:
                changed = self._take()
                self._first = changed if self._first is None else self._first

        return replica

    def end(self) -> None:
        """Keeps what the first replica has set, as one device would."""
        if self._first is not None:
            _restore(self._first)
        self._builds.close()

    def undo(self) -> None:
        """Undoes what has been set since."""
        self._take()
        self._builds.close()

    def _take(self) -> SavedAttributes:
        """The data that have been set, which are removed again."""
        saved: SavedAttributes = []
        for now, before in self._before:
            for name in [n for n, v in now.items() if before.get(n, self) is not v]:
                if name == "built" or name.startswith("_") or not _is_data(now[name]):
                    continue
                saved.append((now, name, now[name]))
                if name in before:
                    now[name] = before[name]
                else:
                    del now[name]
        return saved


def _kept(now: dict[str, Any], before: dict[str, Any]) -> Callable[..., Any]:
    """A layer's `build`, stored on the instance by Keras; what it sets counts as set before."""
    build = now["build"]

    @functools.wraps(build)
    def builds(*args: Any, **kwargs: Any) -> Any:
        earlier = dict(now)
        built = build(*args, **kwargs)
        before.update({n: v for n, v in now.items() if earlier.get(n, now) is not v})
        return built

    return builds


def _is_data(value: Any) -> bool:
    return all(v is None or isinstance(v, _DATA) for v in tf.nest.flatten(value))


def _restore(kept: SavedAttributes) -> None:
    for now, name, value in kept:
        now[name] = value
