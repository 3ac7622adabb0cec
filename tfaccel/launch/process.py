"""One worker process and all it starts, in its own process group, and ended with it."""

from __future__ import annotations

import contextlib
import ctypes
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence

from tfaccel.errors import LaunchError

_PR_SET_PDEATHSIG = 1  # linux/prctl.h


class Worker:
    """A process that leads its own session, so that one signal reaches all that it started.

    Args:
        command: program and arguments.
        rank: its rank among the workers.
        env: its whole environment.

    Raises:
        LaunchError: the program cannot be started.
    """

    def __init__(self, command: Sequence[str], rank: int, env: Mapping[str, str]) -> None:
        self.rank = rank
        try:
            self._process = subprocess.Popen(
                list(command),
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                env=dict(env),
                start_new_session=True,
                preexec_fn=_die_with_parent(),
            )
        except (OSError, subprocess.SubprocessError) as error:
            raise LaunchError(
                f"cannot start {command[0]!r} ({getattr(error, 'strerror', None) or error}); "
                "expected a Python script or a program that this machine can run"
            ) from error
        self.stdout = self._process.stdout
        self.stderr = self._process.stderr
        self.pid = self._process.pid
        self._group_is_ours = True

    def await_end(self) -> None:
        """Blocks until the process has ended; `reap` must follow.

        Where the system allows, the dead process stays unreaped meanwhile, so that its number,
        which is also its group's, cannot be reused.
        """
        if hasattr(os, "waitid"):
            with contextlib.suppress(ChildProcessError):
                os.waitid(os.P_PID, self.pid, os.WEXITED | os.WNOWAIT)
        else:  # pragma: no cover
            self._process.wait()

    def reap(self) -> int:
        """The status of the ended process: its exit code, or minus the signal that killed it.

        What it left behind in its group is sent SIGTERM.
        """
        self.send(signal.SIGTERM)
        status = self._process.wait()
        self.send(0)
        return status

    def send(self, number: int) -> bool:
        """Signals the process and all that it started; False when none of them is left."""
        if self._group_is_ours:
            try:
                os.killpg(self.pid, number)
            except ProcessLookupError:
                # From here on the number may be reused: never signal it again.
                self._group_is_ours = False
            except PermissionError:  # macOS, for a process group of zombies.
                pass
        return self._group_is_ours

    def close(self) -> None:
        """Kills whatever is left, at once."""
        self.send(signal.SIGKILL)
        self._process.wait()


def _die_with_parent() -> Callable[[], None] | None:
    """What a child does first, so that it does not survive a launcher that was killed."""
    if not sys.platform.startswith("linux"):
        return None
    # Loaded here: between fork and exec a child must not take locks that a thread may hold.
    prctl = ctypes.CDLL(None).prctl
    parent = os.getpid()

    def ask() -> None:
        prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
        if os.getppid() != parent:  # It was killed before this call.
            os._exit(128 + signal.SIGKILL)

    return ask
