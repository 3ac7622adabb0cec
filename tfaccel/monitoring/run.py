"""What does not change while a `fit` runs."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Run:
    """One worker of one `fit`.

    Attributes:
        run: as in `Window`.
        worker: its rank.
        workers: how many there are.
        name: its address, or its host's.
        strategy: the class of the strategy.
        devices: names of this worker's devices.
        device: what they are, as their maker calls them; empty where that is not known.
        communication: how workers communicate; empty for one worker.
        input: what the batches come from, for people.
        input_candidates: the parts of it that compute or read, and so can be what is waited for,
            in order.
        input_advice: what would make it faster.
        not_measured: why a figure is missing, one reason each.
    """

    run: int
    worker: int
    workers: int = 1
    name: str = ""
    strategy: str = ""
    devices: tuple[str, ...] = ()
    device: str = ""
    communication: str = ""
    input: str = ""
    input_candidates: tuple[str, ...] = ()
    input_advice: str = ""
    not_measured: tuple[str, ...] = ()


@dataclass(frozen=True)
class Cause:
    """What was found to take the time within a part of the steps.

    Attributes:
        part: ``"input"`` or ``"host"``.
        what: for people: ``"map of decode at train.py:40"``.
        seconds: that it took; None where only its place is known.
        steps: in how many steps.
    """

    part: str
    what: str
    seconds: float | None = None
    steps: int = 0
