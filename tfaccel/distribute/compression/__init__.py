"""Gradients with fewer bits on the wire."""

from __future__ import annotations

from typing import Any, Protocol

from tfaccel.distribute.compression.cast import Cast
from tfaccel.distribute.compression.powersgd import PowerSGD

__all__ = ["Cast", "Compression", "PowerSGD", "parse"]


class Compression(Protocol):
    """How gradients are sent."""

    def prepare(self, owner: Any, variables: list[Any], strategy: Any) -> None:
        """Called before the optimizer of a compiled model gets its first gradients."""

    def sum(self, owner: Any, grads: list[Any]) -> list[Any]:
        """Sums gradients over replicas; call it in a replica's context.

        Args:
            owner: the optimizer they are for.
            grads: tensors, IndexedSlices or None, in the order of its variables.
        """


def parse(spec: str) -> Compression:
    """How gradients are sent, for an option such as ``"bfloat16"`` or ``"powersgd:8"``.

    >>> parse("powersgd:8").rank
    8
    """
    if spec in ("bfloat16", "float16"):
        return Cast(spec)
    return PowerSGD(int(spec.partition(":")[2] or 4))
