"""Compiles a training step for a TPU on a machine that has none."""

from __future__ import annotations

import contextlib
import fcntl
import importlib.util
import json
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path

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
            or a ``.keras`` file. One that is not compiled is checked with Adam.
        batch: rows of the global batch, a multiple of the topology's devices.
        topology: such as ``"v5e:2x2"``, ``"v4"`` or ``"v6e"``.
        shape: of one row, for a model that does not say its input.
        dtype: of that input.
        mixed_bfloat16: build the model under that policy.
        search: when the step does not fit, look for the batch that does.
        timeout_s: seconds for all of it.

    Returns:
        What the compiler says; nothing has been executed.

    Raises:
        StrategyError: when the target, topology or batch is none, or the extra is missing.
        InputError: when the model's input has unknown sizes.
        LaunchError: when the time is up, or the compiler ended the process.
    """
    wanted = parse(topology)
    if batch < 1 or batch % wanted.devices:
        raise StrategyError(
            f"tfaccel: a batch of {batch} was to be checked on the {wanted.devices} devices of "
            f"{wanted}, expected a multiple of {wanted.devices}."
        )
    missing = [name for name in ("jax", "libtpu") if importlib.util.find_spec(name) is None]
    if missing:
        raise StrategyError(
            f"tfaccel: a check needs the TPU's compiler and {' and '.join(missing)} is not "
            f"installed; {INSTALL}."
        )
    task = {
        "target": target,
        "batch": batch,
        "topology": str(wanted),
        "shape": list(shape) if shape is not None else None,
        "dtype": dtype,
        "mixed_bfloat16": mixed_bfloat16,
        "search": search,
    }
    with _alone(), tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "result.json"
        output = _run([json.dumps(task), str(path)], timeout_s)
        if not path.exists():
            raise LaunchError(f"tfaccel: the check ended without a result.\n{output[-3000:]}")
        found = json.loads(path.read_text())
    if "mistake" in found:
        raise StrategyError(found["mistake"])
    return Report.of(found)


_ENVIRONMENT = {
    "TF_CPP_MIN_LOG_LEVEL": "3",
    # oneDNN's allocator stops at the memory of the machine, and writes to a part of what it hands
    # out: a gigabyte for weights that a check only needs the shapes of.
    "TF_ENABLE_ONEDNN_OPTS": "0",
}


def _run(arguments: Sequence[str], timeout_s: float) -> str:
    """Runs the worker; returns what it printed."""
    process = subprocess.Popen(
        [sys.executable, "-m", "tfaccel.tpu.worker", *arguments],
        env={**_ENVIRONMENT, **os.environ, "CUDA_VISIBLE_DEVICES": "-1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )
    try:
        return process.communicate(timeout=timeout_s)[0]
    except subprocess.TimeoutExpired:
        raise LateError(
            f"tfaccel: the check was not done after {timeout_s:g} s; give it more with "
            "--timeout, or check a smaller model or batch."
        ) from None
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()


class LateError(LaunchError):
    """A check that was not done in time."""


@contextlib.contextmanager
def _alone() -> Iterator[None]:
    """Waits until no other check runs on this machine: libtpu is for one process at a time."""
    path = Path(tempfile.gettempdir()) / f"tfaccel-tpu-check-{os.getuid()}.lock"
    with open(path, "w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield
