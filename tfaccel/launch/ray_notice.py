"""Delivers Ray's preemption notices to a script in a worker as SIGTERM, as under any engine.

Ray has two such notices. A worker process gets SIGTERM, upon which Ray's own handler ends it at
once (`Worker.main_loop` in python/ray/_private/worker.py), and the script with it. Or Ray Train
detects that a node is drained, and `ray.train.get_preemption_info` returns it.
https://docs.ray.io/en/latest/train/api/doc/ray.train.get_preemption_info.html
"""

from __future__ import annotations

import contextlib
import signal
import threading
from collections.abc import Callable, Iterable, Iterator
from types import FrameType
from typing import Any

POLL_S = 1.0
"""Seconds between a worker's requests to Ray Train for a drained node of the job."""

_Receive = Callable[[signal.Signals], object]
_receivers: list[_Receive] = []


def handle_sigterm() -> None:
    """Gives SIGTERM to `listening` while there is one, in place of its handler so far.

    To be called in the main thread: any other may set no handler.
    """
    before = signal.getsignal(signal.SIGTERM)

    def handle(number: int, frame: FrameType | None) -> None:
        receivers = tuple(_receivers)
        for receive in receivers:
            receive(signal.Signals(number))
        if not receivers and callable(before):
            before(number, frame)

    signal.signal(signal.SIGTERM, handle)


class Notice:
    """The notices that Ray has sent to this worker.

    Args:
        preemption: `ray.train.get_preemption_info`, or None where Ray is too old to have it. All
            workers must call it equally often: it waits for the others.

    Attributes:
        preempted: whether Ray Train has reported that a node is drained.
    """

    def __init__(self, preemption: Callable[[], Any] | None) -> None:
        self._preemption = preemption
        self.preempted = False

    @contextlib.contextmanager
    def listening(self, numbers: Iterable[int], receive: _Receive) -> Iterator[None]:
        """Calls `receive` with SIGTERM when Ray requests that the worker stop.

        Args:
            numbers: of signals; those other than SIGTERM are Ray's.
            receive: called from the main thread or another.
        """
        over = threading.Event()
        if self._preemption is not None:
            # It may still wait for workers that have ended, so nothing waits for it.
            threading.Thread(
                target=self._poll,
                args=(self._preemption, receive, over),
                name="tfaccel notice",
                daemon=True,
            ).start()
        if signal.SIGTERM in numbers:
            _receivers.append(receive)
        try:
            yield
        finally:
            over.set()
            if receive in _receivers:
                _receivers.remove(receive)

    def _poll(
        self, preemption: Callable[[], Any], receive: _Receive, over: threading.Event
    ) -> None:
        while not over.wait(POLL_S):
            try:
                info = preemption()
            except Exception:  # the run is ending, or the API, which is alpha, has changed
                return
            if info is not None and not over.is_set():
                self.preempted = True
                receive(signal.SIGTERM)
                return
