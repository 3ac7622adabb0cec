"""Signals to this process, as calls from a thread.

Python runs a handler in the main thread, at its next opportunity: a thread that waits for a lock or
another process may have got the signal just before the wait, and then misses it; one inside a
compiler handles it when that is done.
"""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import threading
import weakref
from collections.abc import Callable, Iterable, Iterator


@contextlib.contextmanager
def received(numbers: Iterable[int], receive: Callable[[signal.Signals], object]) -> Iterator[None]:
    """Calls `receive` with each of these signals, instead of their usual action.

    Args:
        numbers: of the signals.
        receive: called from a thread, in order of arrival. Only the main thread may handle signals:
            any other thread that enters this receives none.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    handled_signals = frozenset(numbers)
    reader = SignalReader(handled_signals, receive)
    before = {number: signal.signal(number, lambda *_: None) for number in handled_signals}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
        reader.close()


class SignalReader:
    """Calls `receive` from a thread with each of these signals that Python handles, on arrival.

    A handler must have been set for them, which runs too. Create and close it in the main thread. A
    forked child has none.

    Args:
        numbers: of the signals.
        receive: called with one after the other.

    Raises:
        ValueError: this is not the main thread.
    """

    def __init__(self, numbers: Iterable[int], receive: Callable[[signal.Signals], object]) -> None:
        self._numbers, self._receive = frozenset(numbers), receive
        self._read_socket, self._write_socket = socket.socketpair()
        self._write_socket.setblocking(False)
        try:
            self._before = signal.set_wakeup_fd(
                self._write_socket.fileno(), warn_on_full_buffer=False
            )
        except ValueError:
            self._read_socket.close()
            self._write_socket.close()
            raise
        self._thread = threading.Thread(target=self._read, name="tfaccel signals", daemon=True)
        self._thread.start()
        _open.add(self)

    def close(self) -> None:
        """Ends the thread, unless called from it."""
        _open.discard(self)
        signal.set_wakeup_fd(self._before)
        self._write_socket.shutdown(socket.SHUT_RDWR)  # forked children hold it open
        self._write_socket.close()
        if threading.current_thread() is not self._thread:
            self._thread.join()
        self._read_socket.close()

    def _read(self) -> None:
        while written := self._read_socket.recv(64):  # one byte per signal
            if self._before >= 0:
                with contextlib.suppress(OSError):
                    os.write(self._before, written)
            for number in filter(self._numbers.__contains__, written):
                self._receive(signal.Signals(number))


_open: weakref.WeakSet[SignalReader] = weakref.WeakSet()


def _forget_in_child() -> None:
    """A signal to a forked child must not reach its parent, which reads from the same pair."""
    if _open:
        _open.clear()
        with contextlib.suppress(ValueError):
            signal.set_wakeup_fd(-1)


os.register_at_fork(after_in_child=_forget_in_child)
