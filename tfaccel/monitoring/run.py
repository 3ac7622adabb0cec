"""Facts that do not change while a `fit` runs."""

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
        device: the vendor's name of them; empty if unknown.
        communication: how workers communicate; empty for one worker.
        input: the source of the batches, in words.
        input_candidates: its parts that compute or read, which steps can wait for, in order.
        input_advice: how to make it faster.
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
    """The cause of the time of a part of the steps.

    Attributes:
        part: ``"input"`` or ``"host"``.
        what: in words: ``"map of decode at train.py:40"``.
        seconds: that it took; None if only its location is known.
        steps: in how many steps.
    """

    part: str
    what: str
    seconds: float | None = None
    steps: int = 0
