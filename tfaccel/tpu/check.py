"""Compiles a training step for a TPU on a machine without one."""

from __future__ import annotations

import contextlib
import ctypes
import fcntl
import importlib.util
import json
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from absl import logging

from tfaccel.errors import LaunchError, StrategyError
from tfaccel.tpu.report import Report
from tfaccel.tpu.topologies import parse

INSTALL = "pip install 'tfaccel[tpu-check]'"


def check(
    target: str,
    batch: int,
    topology: str = "v5e:1x1",
    *,
    shape: Sequence[int] | None = None,
    dtype: str = "float32",
    mixed_bfloat16: bool = False,
    search: bool = True,
    timeout_s: float = 600.0,
) -> Report:
    """Compiles the whole training step of a model with the real TPU compiler; no TPU is needed.

    Args:
        target: ``path.py:function``, a function that takes no arguments and returns a Keras model,
            or a ``.keras`` file. An uncompiled model is checked with Adam.
        batch: rows of the global batch, a multiple of the topology's devices.
        topology: such as ``"v5e:2x2"``, ``"v4"`` or ``"v6e"``.
        shape: of one row, for a model whose input shape is unknown.
        dtype: of that input.
        mixed_bfloat16: build the model under that policy.
        search: when the step does not fit, search for a batch that does.
        timeout_s: seconds for all of it, once no other check runs.

    Returns:
        The report of the compiler; nothing has been executed.

    Raises:
        StrategyError: when the target, topology or batch is invalid, or the extra is missing.
        InputError: when the model's input has unknown sizes.
        LaunchError: on timeout, when another process uses libtpu, or when the compiler crashed.
    """
    parsed = parse(topology)
    if batch < 1 or batch % parsed.devices:
        raise StrategyError(
            f"tfaccel: a batch of {batch} cannot be divided among the {parsed.devices} devices of "
            f"{parsed}; expected a multiple of {parsed.devices}."
        )
    missing = [name for name in ("jax", "libtpu") if importlib.util.find_spec(name) is None]
    if missing:
        raise StrategyError(
            f"tfaccel: a check needs the TPU's compiler and {' and '.join(missing)} is not "
            f"installed; {INSTALL} (Python 3.11 or newer)."
        )
    task = {
        "target": target,
        "batch": batch,
        "topology": str(parsed),
        "shape": list(shape) if shape is not None else None,
        "dtype": dtype,
        "mixed_bfloat16": mixed_bfloat16,
        "search": search,
    }
    with _exclusive(), tempfile.TemporaryFile("w+") as result:
        ended = _run(json.dumps(task), result.fileno(), timeout_s)
        result.seek(0)
        text = result.read()
    if not text:
        raise LaunchError(f"tfaccel: cannot check {target}: the process {ended}.")
    outcome = json.loads(text)
    if "mistake" in outcome:
        raise StrategyError(outcome["mistake"])
    return Report.of(outcome)


_ENVIRONMENT = {
    "TF_CPP_MIN_LOG_LEVEL": "3",
    # Always: oneDNN's allocator is limited to the machine's memory, and writes to part of its
    # allocations, a gigabyte for weights of which a check only needs the shapes.
    "TF_ENABLE_ONEDNN_OPTS": "0",
    # libtpu refuses to load while another process has it. A process that compiles holds no TPU.
    "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",
}


def _run(task: str, result: int, timeout_s: float) -> str:
    """Runs the worker; returns how it ended, in words."""
    process = subprocess.Popen(
        [sys.executable, "-m", "tfaccel.tpu.check_process", task, str(result)],
        env={**os.environ, **_ENVIRONMENT, "CUDA_VISIBLE_DEVICES": "-1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
        pass_fds=[result],
        preexec_fn=_end_with_parent(),
    )
    try:
        output = process.communicate(timeout=timeout_s)[0]
    except subprocess.TimeoutExpired:
        raise CheckTimeoutError(
            f"tfaccel: the check exceeded its timeout of {timeout_s:g} s; increase --timeout, or "
            "check a smaller model or batch."
        ) from None
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
    code = process.returncode
    how = f"was ended by {signal.Signals(-code).name}" if code < 0 else f"ended with code {code}"
    last = [line for line in output.splitlines() if line.strip()][-1:]
    return f"{how}; expected a report; its last output: {' '.join(last)[:500] or 'nothing'}"


_PR_SET_PDEATHSIG = 1  # linux/prctl.h


def _end_with_parent() -> Callable[[], None]:
    """Runs first in the worker, so that it does not outlive a killed check."""
    prctl = ctypes.CDLL(None).prctl  # loaded here: a child takes no locks between fork and exec
    parent = os.getpid()

    def ask() -> None:
        prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
        if os.getppid() != parent:
            os._exit(128 + signal.SIGKILL)

    return ask


def _own_file(path: str, flags: int) -> int:
    """Opens our file in a world-writable directory: no link, and not another user's file."""
    file = os.open(path, flags & ~os.O_TRUNC | os.O_NOFOLLOW, 0o600)
    if os.fstat(file).st_uid != os.getuid():
        os.close(file)
        raise LaunchError(f"tfaccel: {path} is another user's file; expected ours; remove it.")
    return file


class CheckTimeoutError(LaunchError):
    """A check that exceeded its timeout."""


@contextlib.contextmanager
def _exclusive() -> Iterator[None]:
    """Waits until no other check runs on this machine: libtpu allows one process at a time."""
    # With a fixed name, since all checks must find it; another user's file is not opened instead.
    path = Path(tempfile.gettempdir()) / f"tfaccel-tpu-check-{os.getuid()}.lock"
    with contextlib.ExitStack() as cleanup:
        while True:
            file = cleanup.enter_context(open(path, "w", opener=_own_file))
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                logging.warning("tfaccel: another check runs on this machine; waiting for it.")
                fcntl.flock(file, fcntl.LOCK_EX)
            # The previous check has removed the file that we waited for.
            if path.exists() and os.path.samestat(os.fstat(file.fileno()), path.stat()):
                break
        cleanup.callback(path.unlink)
        yield
