"""A tool in a separate process, with a time limit and its output in the log."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
from collections.abc import Sequence
from pathlib import Path

from tfaccel.errors import FpgaError, FpgaTimeoutError


def run(command: Sequence[str], *, what: str, log: Path, limit_s: float, cwd: Path) -> None:
    """Runs a command until it ends, or kills it and all it started.

    Args:
        command: its words.
        what: its purpose, for the error.
        log: where to append its output.
        limit_s: seconds it may take.
        cwd: where it runs.

    Raises:
        FpgaError: it failed or cannot be started.
        FpgaTimeoutError: it exceeded its timeout.
    """
    with log.open("ab") as out:
        try:
            process = subprocess.Popen(
                command,
                cwd=cwd,
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        except OSError as error:
            raise FpgaError(f"{what} cannot be started ({error}).", log) from error
        try:
            code = process.wait(limit_s)
        except subprocess.TimeoutExpired as error:
            raise FpgaTimeoutError(
                f"{what} exceeded its timeout of {limit_s:g} s; increase timeout_s, or make "
                "the model or its precision smaller.",
                log,
            ) from error
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()
    if code < 0:
        raise FpgaError(f"{what} was ended by {signal.Signals(-code).name}.", log)
    if code:
        raise FpgaError(f"{what} failed with exit code {code}.", log)
