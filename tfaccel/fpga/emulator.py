"""Runs firmware bit by bit, without an FPGA: a library that g++ builds from the project's C++.

In a separate process, which starts neither TensorFlow nor hls4ml: a crash there is an error here,
and a long run can be killed. Usage: python -m tfaccel.fpga.emulator WORK_DIRECTORY
"""

from __future__ import annotations

import ctypes
import json
import os
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from tfaccel.errors import FpgaError
from tfaccel.fpga import output_directory, process
from tfaccel.fpga.convert import PROJECT, Node, Project

MANIFEST = "tfaccel_fpga.json"


def emulate(
    directory: str | Path, x: np.ndarray | Sequence[np.ndarray], *, limit_s: float = 600.0
) -> np.ndarray | list[np.ndarray]:
    """Runs exported firmware, with the host's post-processing.

    Args:
        directory: of an export.
        x: rows of input; a list of arrays for a model of several inputs.
        limit_s: seconds it may take.

    Returns:
        The outputs, with softmax if left to the host; a list when there are several.

    Raises:
        FpgaError: there is no export, or it crashed.

    Example:
        ```python
        probabilities = tfaccel.fpga.emulate("firmware", x)
        ```
    """
    from tfaccel.fpga.softmax import softmax

    home = Path(directory).resolve()
    manifest = home / MANIFEST
    if not manifest.is_file():
        raise FpgaError(f"{home} holds no export ({MANIFEST} is not there); export a model first.")
    entry = json.loads(manifest.read_text())["project"]
    project = Project(
        home,
        entry["stamp"],
        tuple(map(tuple, entry["inputs"])),
        tuple(map(tuple, entry["outputs"])),
        (),
    )
    rows = list(x) if isinstance(x, (list, tuple)) else [np.asarray(x)]
    outputs, _ = run(project, rows, log=home / output_directory.LOG, limit_s=limit_s)
    shaped = [
        softmax(one) if host else one for one, host in zip(outputs, entry["host"], strict=True)
    ]
    return shaped if len(shaped) > 1 else shaped[0]


def run(
    project: Project,
    x: Sequence[np.ndarray],
    *,
    log: Path,
    limit_s: float,
    trace: Sequence[Node] = (),
) -> tuple[list[np.ndarray], dict[str, np.ndarray]]:
    """Emulates a compiled project.

    Args:
        project: compiled.
        x: rows of each input.
        log: gets the output of the process.
        limit_s: seconds it may take.
        trace: the layers whose results to return, of a project that was written with `trace`.

    Returns:
        Each output, float64, and the results of traced layers by name.

    Raises:
        FpgaError: the inputs do not fit, or the emulation crashed.
        FpgaTimeoutError: it exceeded its timeout.
    """
    if len(x) != len(project.inputs):
        raise FpgaError(f"{len(x)} inputs; expected {len(project.inputs)}; give one array each.")
    for given, shape in zip(x, project.inputs, strict=True):
        if given.ndim == 0 or given[:1].size != np.prod(shape):
            raise FpgaError(
                f"rows of shape {given.shape[1:]}; expected {shape}: give rows as in training."
            )
    with tempfile.TemporaryDirectory() as scratch:
        work = Path(scratch)
        np.savez(work / "in.npz", *[np.asarray(one, np.float64) for one in x])
        job = {
            "library": str(project.library),
            "function": f"{PROJECT}_double",
            "outputs": project.outputs,
            "trace": [[node.name, node.shape] for node in trace],
        }
        (work / "job.json").write_text(json.dumps(job))
        process.run(
            [sys.executable, "-m", "tfaccel.fpga.emulator", scratch],
            what="the emulation",
            log=log,
            limit_s=limit_s,
            cwd=Path.cwd(),
        )
        with np.load(work / "out.npz") as archive:
            outputs = [archive[f"output_{n}"] for n in range(len(project.outputs))]
            traced = {node.name: archive[f"trace_{n}"] for n, node in enumerate(trace)}
    return outputs, traced


class _Traced(ctypes.Structure):
    """`struct trace_data` of hls4ml's bridge."""

    _fields_ = (("name", ctypes.c_char_p), ("data", ctypes.c_void_p))


def main(work: Path) -> None:
    """Calls the library row by row."""
    work = work.resolve()
    job = json.loads((work / "job.json").read_text())
    with np.load(work / "in.npz") as archive:
        inputs = [archive[f"arr_{n}"] for n in range(len(archive.files))]
    os.chdir(Path(job["library"]).parent)  # where hls4ml's code looks for weight files
    library = ctypes.cdll.LoadLibrary(job["library"])
    function = getattr(library, job["function"])
    function.restype = None
    number = len(inputs[0])
    results = [np.zeros((number, int(np.prod(shape)))) for shape in job["outputs"]]
    shapes = dict(job["trace"])
    traced: dict[str, list[np.ndarray]] = {name: [] for name in shapes}
    if shapes:
        library.allocate_trace_storage.argtypes = [ctypes.c_size_t]
        library.allocate_trace_storage(ctypes.sizeof(ctypes.c_double))
    for row in range(number):
        arrays = [np.ascontiguousarray(one[row]) for one in inputs] + [one[row] for one in results]
        function(*[one.ctypes.data_as(ctypes.c_void_p) for one in arrays])
        if shapes:
            for name, values in _collect(library, shapes).items():
                traced[name].append(values)
    saved: dict[str, Any] = {
        f"output_{n}": one.reshape(number, *shape)
        for n, (one, shape) in enumerate(zip(results, job["outputs"], strict=True))
    }
    saved |= {f"trace_{n}": np.asarray(traced[name]) for n, name in enumerate(shapes)}
    np.savez(work / "out.npz", **saved)


def _collect(library: ctypes.CDLL, shapes: dict[str, Any]) -> dict[str, np.ndarray]:
    traces = (_Traced * len(shapes))()
    library.collect_trace_output(traces)
    outputs = {}
    for one in traces:
        name = one.name.decode()
        pointer = ctypes.cast(one.data, ctypes.POINTER(ctypes.c_double))
        outputs[name] = np.ctypeslib.as_array(pointer, shape=tuple(shapes[name])).copy()
    return outputs


if __name__ == "__main__":
    main(Path(sys.argv[1]))
