"""Side effects of replicas traced into one graph, in each replica's own order.

TensorFlow runs the operations of a function that have side effects, but on no variable (`tf.print`,
`tf.debugging.assert_*`, `tf.py_function`, a branch that holds one) in the order in which they were
traced, and replicas are traced one after the other. An assertion of the second replica would then
wait for the last one of the first. Where that one comes after a collective, it waits for the second
replica's part of the collective, which may depend on the assertion: a deadlock. A step that reduces
twice with an assertion each time is such a program.

So these operations run in order within each replica, after those traced before the replicas and
before those traced after them.
"""

from __future__ import annotations

import weakref
from typing import Any

import tensorflow as tf

from tfaccel.distribute import _private, shared_resources


class InOrderOfReplicas:
    """Mixin for a `tf.distribute.StrategyExtended` whose replicas are traced into one graph."""

    def _call_for_each_replica(self, fn: Any, args: Any, kwargs: Any) -> Any:
        run = super()._call_for_each_replica  # type: ignore[misc]
        if _private.is_function(fn):
            return self._around_replicas(fn)(*args, **kwargs)
        if tf.executing_eagerly() or len(self.worker_devices) == 1:  # type: ignore[attr-defined]
            return run(fn, args, kwargs)
        effects = _Effects()

        def replica(*args: Any, **kwargs: Any) -> Any:
            with effects.of_replica():
                return fn(*args, **kwargs)

        returned = run(replica, args, kwargs)
        effects.end()
        return returned

    def _around_replicas(self, function: Any) -> Any:
        """Turns a `tf.function` that runs in each replica into one that runs the replicas.

        TensorFlow does the same, but would not call this again.
        """
        wrapped = vars(self).setdefault("_tfaccel_functions_around", weakref.WeakKeyDictionary())
        if function not in wrapped:
            plain, ctx = function.python_function, weakref.ref(self)

            def around(*args: Any, **kwargs: Any) -> Any:
                return ctx().call_for_each_replica(plain, args, kwargs)  # type: ignore[union-attr]

            wrapped[function] = _private.function_like(function, around)
        return wrapped[function]


class _Effects:
    """The side effects of replicas traced into the current graph."""

    def __init__(self) -> None:
        self.graph = tf.compat.v1.get_default_graph()
        self._last: list[Any] = []  # of each replica
        self._replicas: list[list[Any]] = []
        earlier = reversed(self.graph.get_operations())
        self._before = next((op for op in earlier if _private.is_ordered_by_trace(op)), None)
        self._ordered = set[int]()

    def of_replica(self) -> _OfReplica:
        """The context of a replica while it is traced."""
        return _OfReplica(self)

    def put_in_order(self, operations: list[Any]) -> None:
        """Makes the side effects of a replica's operations run one after the other."""
        # A replica that synchronizes in the middle has traced operations of both.
        self._replicas.append(operations)
        new = [op for op in operations if id(op) not in self._ordered]
        effects = [op for op in new if _private.is_ordered_by_trace(op)]
        if not effects or not _private.leave_unordered(self.graph, effects):
            return
        self._ordered.update(map(id, effects))
        before = self._before
        for op in effects:
            if before is not None:
                _private.run_after(op, before)
            before = op
        self._last.append(before)

    def end(self) -> None:
        """Makes later operations wait for the side effects of all replicas.

        Raises:
            StrategyError: where replicas would wait for each other's use of a resource.
        """
        shared_resources.refuse_deadlock(self._replicas)
        if self._last:
            with tf.control_dependencies(self._last), tf.device("/CPU:0"):
                tf.raw_ops.Assert(condition=True, data=["tfaccel: all replicas are done"])


class _OfReplica:
    """The side effects of one replica, traced while this context is active."""

    def __init__(self, effects: _Effects) -> None:
        self._effects = effects

    def __enter__(self) -> None:
        self._begin = len(self._effects.graph.get_operations())

    def __exit__(self, failed: Any, *_: Any) -> None:
        if failed is None:
            self._effects.put_in_order(self._effects.graph.get_operations()[self._begin :])
