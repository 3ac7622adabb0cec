"""A process from which child processes are forked, and which has imported what most import first.

Usage: python -m tests.fork_server

Each line of the input is a JSON object: the words after `python -m`, the environment of the child,
and the file that it prints to. Each is answered with the number of the child's process and, when
that has ended, with its exit code. An import starts no device, so that a child sets its own
(`tests/docs/run.py` forks in the same way). The process ends with its input.
"""

from __future__ import annotations

import contextlib
import gc
import json
import os
import random
import runpy
import subprocess
import sys
import threading
from collections.abc import Mapping, Sequence
from pathlib import Path
from queue import Empty, SimpleQueue
from typing import Any


class ForkServer:
    """A process like that, for one child at a time.

    Args:
        env: its environment. Children have others, which may not differ in what TensorFlow and
            Keras read as they are imported.
        folder: where it starts, and its children do.
    """

    def __init__(self, env: Mapping[str, str], folder: Path) -> None:
        self._answers: SimpleQueue[str] = SimpleQueue()
        self._process = subprocess.Popen(
            [sys.executable, "-m", "tests.fork_server"],
            env=dict(env),
            cwd=folder,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )
        threading.Thread(target=self._read, daemon=True).start()

    def lives(self) -> bool:
        return self._process.poll() is None

    def start(self, words: Sequence[str], env: Mapping[str, str], log: Path) -> int:
        """Starts a child in a process group of its own; the number of its process."""
        asked = {"words": list(words), "env": dict(env), "log": str(log)}
        self._input.write(json.dumps(asked) + "\n")
        self._input.flush()
        return self._number(None)

    def wait(self, limit_s: float) -> int | None:
        """The exit code of the child, a negative signal's number as of `subprocess`.

        Returns:
            None when it is still there after so long.
        """
        try:
            return self._number(limit_s)
        except Empty:
            return None

    def close(self) -> None:
        """Ends the process."""
        with contextlib.suppress(BrokenPipeError):
            self._input.close()
        self._process.wait()

    @property
    def _input(self) -> Any:
        return self._process.stdin

    def _number(self, limit_s: float | None) -> int:
        answer = self._answers.get(timeout=limit_s)
        assert answer, "the process that forks children has ended"
        return int(answer)

    def _read(self) -> None:
        for line in self._process.stdout or ():
            self._answers.put(line)
        self._answers.put("")


def _next_child() -> list[str]:
    """Forks children as they are asked for; returns in each of them with its words."""
    import keras  # noqa: F401
    import numpy as np
    import pytest  # noqa: F401
    import tensorflow as tf  # noqa: F401

    from tfaccel.distribute import mirrored  # noqa: F401

    gc.freeze()  # no child looks through what was imported for garbage
    for line in sys.stdin:
        asked = json.loads(line)
        child = os.fork()
        if child == 0:
            os.setsid()
            os.environ.clear()
            os.environ.update(asked["env"])
            _redirect(asked["log"])
            random.seed()
            np.random.seed()
            return asked["words"]  # type: ignore[no-any-return]
        print(child, flush=True)
        print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)
    sys.exit()


def _redirect(log: str) -> None:
    for number, name, flags in (
        (0, os.devnull, os.O_RDONLY),
        (1, log, os.O_WRONLY | os.O_APPEND),
        (2, log, os.O_WRONLY | os.O_APPEND),
    ):
        opened = os.open(name, flags)
        os.dup2(opened, number)
        os.close(opened)


if __name__ == "__main__":
    module, *sys.argv[1:] = _next_child()
    runpy.run_module(module, run_name="__main__", alter_sys=True)
