"""The counts of a step, and how they grow with a model's equal blocks."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np

from tfaccel.planner.block_copies import Role
from tfaccel.planner.liveness import Peak, Walk


@dataclass(frozen=True)
class Figures:
    """The counts of one device and step.

    Attributes:
        constants: bytes of tensors that the step uses besides variables.
        flops: operations.
        compute: seconds of compute-bound operations; None if rates are unknown.
        memory: seconds of memory-bound operations; None as above.
        wire: bytes sent, by collective.
        why_not: what is unknown about its memory.
        peak: the worst moment; None if unknown, or to be taken from `walk`.
        walk: all moments; None if unknown, or if this many blocks were not walked.
        roles: the operation of each role, to compare steps of models with more and fewer blocks.
    """

    constants: int
    flops: int
    compute: float | None
    memory: float | None
    wire: dict[str, float] = field(default_factory=dict)
    why_not: str = ""
    peak: Peak | None = None
    walk: Walk | None = None
    roles: Mapping[Role, int] = field(default_factory=dict)


def extended(counted: Sequence[Figures], counts: Sequence[int | None], count: int) -> Figures:
    """The figures of `count` equal blocks from those of two smaller numbers of them.

    All of it is linear in the blocks, except the peak, which is the maximum over moments that are
    each linear. So every moment is extended, and then the maximum is taken.

    Args:
        counted: of the two.
        counts: their blocks.
        count: the requested number, more than both.
    """
    fewer, more = counted
    assert counts[0] is not None
    assert counts[1] is not None
    steps, apart = count - counts[1], counts[1] - counts[0]

    def of(a: float, b: float) -> float:
        return b + steps * (b - a) / apart

    def whole(a: int, b: int) -> int:
        return b + steps * (b - a) // apart

    found = Figures(
        constants=whole(fewer.constants, more.constants),
        flops=whole(fewer.flops, more.flops),
        compute=None if fewer.compute is None else of(fewer.compute, more.compute or 0),
        memory=None if fewer.memory is None else of(fewer.memory, more.memory or 0),
        wire={kind: of(fewer.wire[kind], more.wire[kind]) for kind in more.wire},
        why_not=more.why_not or fewer.why_not,
    )
    if fewer.walk is None or more.walk is None:
        return found
    pairs = [(i, more.roles[role]) for role, i in fewer.roles.items() if role in more.roles]
    before, after = np.array(pairs, np.int64).reshape(-1, 2).T
    small = np.array(fewer.walk.live, np.int64)[before]
    large = np.array(more.walk.live, np.int64)[after]
    moment = pairs[int(np.argmax(large + steps * (large - small) // apart))]
    a, b = fewer.walk.at(moment[0]), more.walk.at(moment[1])
    peak = Peak(
        whole(a.activations, b.activations),
        whole(a.gradients, b.gradients),
        whole(a.workspace, b.workspace),
        b.operation,
    )
    return replace(found, peak=peak)
