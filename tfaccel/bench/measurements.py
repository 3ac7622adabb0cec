"""Measurements of a transport, and what they imply for a step of a model."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Message:
    """An all-reduce of one size.

    Attributes:
        size: bytes of the tensor, on each worker.
        seconds: median time of one all-reduce.
    """

    size: int
    seconds: float


@dataclass(frozen=True)
class Transport:
    """A transport between workers.

    Attributes:
        name: ``"mpi"``, ``"ring"`` or ``"nccl"``.
        workers: how many participated.
        messages: in the order of their sizes; none when it could not be measured.
        error: why not.
    """

    name: str
    workers: int
    messages: tuple[Message, ...] = ()
    error: str = ""

    def bus_bandwidth(self, message: Message) -> float:
        """Bytes per second that each worker sends (and receives), in the best algorithm.

        An all-reduce of `n` workers sends at least `2 (n - 1) / n` times its size from each, so
        this can be compared with what the link carries, whatever the number of workers
        (https://github.com/NVIDIA/nccl-tests/blob/master/doc/PERFORMANCE.md).
        """
        return 2 * (self.workers - 1) / self.workers * message.size / message.seconds

    def seconds(self, size: float) -> float:
        """The time of an all-reduce of `size` bytes, between or beyond those measured.

        >>> Transport("ring", 2, (Message(100, 1.0), Message(300, 2.0))).seconds(200)
        1.5
        """
        (low, high), *more = zip(self.messages, self.messages[1:], strict=False)
        for pair in more:
            if size >= pair[0].size:
                low, high = pair
        slope = (high.seconds - low.seconds) / (high.size - low.size)
        return max(low.seconds + slope * (size - low.size), min(low.seconds, high.seconds))

    def wait_fraction(self, size: float, step_s: float) -> float:
        """The part of a step that is spent waiting for gradients, if nothing else is done then.

        Args:
            size: bytes of all gradients.
            step_s: seconds of a step on one device.
        """
        spent = self.seconds(size)
        return spent / (spent + step_s)
