"""Detects replicas that would deadlock, when they are traced into one graph.

TensorFlow orders uses of a resource (the state of a `tf.random.Generator`, a mutable lookup table)
as they were traced; replicas are traced one after the other. If the last use by the first replica
depends on a collective, and the second replica's part of that collective depends on its own first
use, they deadlock.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from tfaccel.distribute import _private
from tfaccel.errors import StrategyError

_COLLECTIVES = ("CollectiveReduce", "CollectiveGather", "CollectiveAllToAll")


def refuse_deadlock(replicas: Sequence[Sequence[Any]]) -> None:
    """Raises where replicas wait for each other's use of a resource.

    Args:
        replicas: the operations of each, in the order of the trace.

    Raises:
        StrategyError: names the operation.
    """
    uses = [_uses(operations) for operations in replicas]
    for i, earlier in enumerate(uses):
        for j in range(i + 1, len(uses)):
            for resource in earlier.keys() & uses[j].keys():
                first = uses[j][resource][0]
                if _waits(replicas[i], earlier[resource], replicas[j], first):
                    raise StrategyError(
                        f"tfaccel: {first.name!r} ({first.type}) uses a resource that all replicas "
                        "share, before and after they reduce: they would wait for each other "
                        "forever; expected one for each; create a tf.random.Generator inside "
                        "`with strategy.scope():`, and look a table up in dataset.map."
                    )


def _uses(operations: Iterable[Any]) -> dict[Any, list[Any]]:
    """The operations that use each mutated resource."""
    uses: dict[Any, list[Any]] = {}
    changed = set()
    for op in operations:
        if op.type.startswith("Collective"):  # their tokens are a replica's own
            continue
        for resource, changes in _private.resources_of(op):
            uses.setdefault(resource.ref(), []).append(op)
            if changes:
                changed.add(resource.ref())
    return {resource: ops for resource, ops in uses.items() if resource in changed}


def _waits(
    replica_ops: Sequence[Any], uses: Sequence[Any], others: Sequence[Any], first: Any
) -> bool:
    """Whether one of `uses` depends on a collective whose other part depends on `first`."""
    collectives = [op for op in replica_ops if op.type.startswith(_COLLECTIVES)]
    parts = [op for op in others if op.type.startswith(_COLLECTIVES)]
    before = _leading_to(uses)
    return any(
        collective in before and first in _leading_to([part])
        for collective, part in zip(collectives, parts, strict=False)
    )


def _leading_to(operations: Sequence[Any]) -> set[Any]:
    """The operations that some depend on, including themselves."""
    ancestors: set[Any] = set()
    waiting = list(operations)
    while waiting:
        op = waiting.pop()
        if op not in ancestors:
            ancestors.add(op)
            waiting += [tensor.op for tensor in op.inputs]
            waiting += op.control_inputs
    return ancestors
