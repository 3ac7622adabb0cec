"""Signals reach a main thread that waits, whichever moment and thread they come in."""

from __future__ import annotations

import os
import queue
import signal
import threading

from tfaccel import signals


def test_a_signal_that_another_thread_gets_is_received() -> None:
    """The main thread is not woken: as if it had been told just before it began to wait."""
    events: queue.SimpleQueue[signal.Signals] = queue.SimpleQueue()
    sender = threading.Thread(
        target=lambda: [
            signal.pthread_kill(threading.get_ident(), number)
            for number in (signal.SIGUSR1, signal.SIGUSR2, signal.SIGUSR1)
        ]
    )
    before = signal.getsignal(signal.SIGUSR1)
    with signals.received([signal.SIGUSR1, signal.SIGUSR2], events.put):
        sender.start()
        came = [events.get(timeout=20) for _ in range(3)]
    assert came == [signal.SIGUSR1, signal.SIGUSR2, signal.SIGUSR1]
    assert signal.getsignal(signal.SIGUSR1) is before
    assert not any(thread.name == "tfaccel signals" for thread in threading.enumerate())


def test_signals_of_others_are_left_to_them() -> None:
    events: queue.SimpleQueue[signal.Signals] = queue.SimpleQueue()
    theirs: list[int] = []
    before = signal.signal(signal.SIGUSR2, lambda number, _: theirs.append(number))
    try:
        with signals.received([signal.SIGUSR1], events.put):
            signal.raise_signal(signal.SIGUSR2)
            signal.raise_signal(signal.SIGUSR1)
            assert events.get(timeout=20) == signal.SIGUSR1
    finally:
        signal.signal(signal.SIGUSR2, before)
    assert theirs == [signal.SIGUSR2]
    assert events.empty()


def test_another_thread_than_the_main_one_receives_none() -> None:
    def enter() -> None:
        with signals.received([signal.SIGUSR1], print):
            entered.append(signal.getsignal(signal.SIGUSR1))

    entered: list[object] = []
    thread = threading.Thread(target=enter)
    thread.start()
    thread.join()
    assert entered == [signal.getsignal(signal.SIGUSR1)]


def test_a_signal_to_a_forked_child_is_none_of_its_parents() -> None:
    events: queue.SimpleQueue[signal.Signals] = queue.SimpleQueue()
    with signals.received([signal.SIGUSR1], events.put):
        readable, writable = os.pipe()
        child = os.fork()
        if not child:
            signal.raise_signal(signal.SIGUSR1)
            os.write(writable, b"1")
            while True:
                signal.pause()  # and holds what it has inherited
        assert os.read(readable, 1) == b"1"
        os.kill(os.getpid(), signal.SIGUSR1)
        assert events.get(timeout=20) == signal.SIGUSR1
        os.kill(child, signal.SIGUSR1)
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    os.close(readable)
    os.close(writable)
    assert events.empty()


def test_who_was_woken_before_still_is() -> None:
    events: queue.SimpleQueue[signal.Signals] = queue.SimpleQueue()
    theirs, pythons = os.pipe()
    os.set_blocking(pythons, False)
    before = signal.set_wakeup_fd(pythons)
    try:
        with signals.received([signal.SIGUSR1], events.put):
            signal.raise_signal(signal.SIGUSR1)
            assert events.get(timeout=20) == signal.SIGUSR1
        assert os.read(theirs, 8) == bytes([signal.SIGUSR1])
        assert signal.set_wakeup_fd(pythons) == pythons
    finally:
        signal.set_wakeup_fd(before)
        os.close(theirs)
        os.close(pythons)
