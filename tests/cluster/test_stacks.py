"""The stacks of this process's threads."""

from __future__ import annotations

import gc
import sys
import threading

import pytest

from tfaccel.cluster.stacks import current_frames, python_stacks


@pytest.mark.parametrize("collects", [True, False])
def test_no_garbage_is_collected_while_frames_are_gathered(
    collects: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Up to Python 3.11 all threads could stand still otherwise."""
    plain, seen = sys._current_frames, list[bool]()

    def watched() -> object:
        seen.append(gc.isenabled())
        return plain()

    monkeypatch.setattr(sys, "_current_frames", watched)
    before = gc.isenabled()
    try:
        (gc.enable if collects else gc.disable)()
        assert threading.get_ident() in current_frames()
        assert seen == [False]
        assert gc.isenabled() is collects
    finally:
        (gc.enable if before else gc.disable)()


def test_stacks_name_their_threads_and_calls() -> None:
    text = python_stacks("stack of worker 1")
    assert "stack of worker 1, thread MainThread, innermost call last:" in text
    assert "test_stacks_name_their_threads_and_calls" in text
