"""Splits the time of steps into waiting for input, the steps themselves, and Python between them.

A pure function of the recorded times. Where steps block (CPUs) these follow each other:

    requested_at --input--> received_at --step--> ended --Python--> requested_at --input--> ...

Where devices run asynchronously (GPUs), `ended` is when the step was started, and `done` when its
results were read. Waiting for input while the device is still busy with the previous step costs
nothing, so only the time in which it is idle counts.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import NamedTuple


class Moments(NamedTuple):
    """The times of one step; seconds of one clock.

    Attributes:
        before: when the previous step ended, or the epoch began.
        requested_at: when its batch was requested.
        received_at: when it arrived.
        ended: when the call of the step returned, or the next batch of the same call was requested.
        done: when its results arrived; None for `ended`.
        collective_host: seconds of `before` to `requested_at` in collectives.
        collective_input: seconds of `requested_at` to `received_at` in collectives.
    """

    before: float
    requested_at: float
    received_at: float
    ended: float
    done: float | None = None
    collective_host: float = 0.0
    collective_input: float = 0.0


@dataclass(frozen=True)
class Parts:
    """Seconds; they add up to the time of the steps.

    Attributes:
        input_s: waiting for batches.
        step_s: in steps.
        host_s: in Python between steps.
        collective_s: in collectives that Python called in both.
    """

    input_s: float = 0.0
    step_s: float = 0.0
    host_s: float = 0.0
    collective_s: float = 0.0

    @property
    def seconds(self) -> float:
        """The sum of all."""
        return self.input_s + self.step_s + self.host_s + self.collective_s


def split(steps: Iterable[Moments]) -> Parts:
    """Splits the time of steps.

    Args:
        steps: in order.

    >>> split([Moments(0.0, 1.0, 4.0, 9.0), Moments(9.0, 9.0, 10.0, 12.0)])
    Parts(input_s=4.0, step_s=7.0, host_s=1.0, collective_s=0.0)

    The second batch arrived while the device was still computing:

    >>> split([Moments(0.0, 0.0, 1.0, 1.5, 9.0), Moments(1.5, 2.0, 8.0, 8.5, 14.0)])
    Parts(input_s=1.0, step_s=13.0, host_s=0.0, collective_s=0.0)
    """
    waited = computed = host = collective = 0.0
    busy_until = float("-inf")
    for step in steps:
        done = step.ended if step.done is None else max(step.ended, step.done)
        idle_from = max(step.before, busy_until)
        requested_at = max(step.requested_at, idle_from)
        received_at = max(step.received_at, idle_from)
        between, waits = requested_at - idle_from, received_at - requested_at
        in_host, in_input = (
            min(between, step.collective_host),
            min(waits, step.collective_input),
        )
        host += between - in_host
        waited += waits - in_input
        collective += in_host + in_input
        computed += max(0.0, done - received_at)
        busy_until = max(done, busy_until)
    return Parts(waited, computed, host, collective)
