"""The measurements of one worker over one window of steps."""

from __future__ import annotations

from dataclasses import dataclass

COMPILES = 0
"""The number of the window that compiles; those after it are steady."""


@dataclass(frozen=True)
class Window:
    """One worker's consecutive steps within a `fit`. None stands for missing measurements.

    The four parts add up to `seconds`. Where communication is None, it is within `compute_s`.

    Attributes:
        run: when the chief's `fit` began, in milliseconds since 1970; the same on every worker.
        worker: its rank.
        number: of the window, the same on every worker; 0 is the one that compiles.
        step: the number of steps of the `fit` before it.
        steps: how many it has.
        seconds: that they took, without the time between epochs.
        input_s: waiting for batches.
        compute_s: in the steps, without waiting for other workers.
        communication_s: waiting for sums over replicas after the last input was ready, and in
            collectives outside of steps.
        host_s: Python between two steps: callbacks, and Keras's loop.
        between_s: between epochs: validation, callbacks of epochs, opening the data.
        traces: how often the step was traced, and so compiled.
        examples: rows of the global batches.
        tokens: elements of their first integer sequence.
        memory: bytes of the process (resident) at the end of the window.
        peak_memory: the most until then.
        device_memory: bytes on its accelerators, in total.
        peak_device_memory: the most until then.
        flops: floating-point operations of this worker's part of a step.
        peak_flops: of its devices, per second.
        monitor_s: the monitor's own time.
    """

    run: int
    worker: int
    number: int
    step: int
    steps: int
    seconds: float
    input_s: float | None = None
    compute_s: float | None = None
    communication_s: float | None = None
    host_s: float | None = None
    between_s: float = 0.0
    traces: int = 0
    examples: float | None = None
    tokens: float | None = None
    memory: float | None = None
    peak_memory: float | None = None
    device_memory: float | None = None
    peak_device_memory: float | None = None
    flops: float | None = None
    peak_flops: float | None = None
    monitor_s: float = 0.0

    @property
    def own_s(self) -> float | None:
        """The worker's own time, without waiting for others; None if unknown."""
        return None if self.communication_s is None else self.seconds - self.communication_s

    @property
    def mfu(self) -> float | None:
        """The part of its devices' peak that it uses (model FLOPs utilization)."""
        if self.flops is None or not self.peak_flops or not self.seconds:
            return None
        return self.flops * self.steps / self.seconds / self.peak_flops

    @property
    def steady(self) -> bool:
        """Whether it contains no compilation."""
        return self.number > COMPILES and not self.traces


def share(part: float | None, whole: float) -> float | None:
    """A part of a whole; None if either is unknown.

    >>> share(1.0, 4.0), share(None, 4.0), share(1.0, 0.0)
    (0.25, None, None)
    """
    return None if part is None or whole <= 0 else part / whole


def rate(amount: float | None, seconds: float) -> float | None:
    """A rate per second; None if either is unknown."""
    return share(amount, seconds)
