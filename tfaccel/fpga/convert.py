"""hls4ml's part: from a Keras model to a C++ project, and its contents.

Run as a module it converts in a separate process, since distributed arithmetic can take hours
and gigabytes: python -m tfaccel.fpga.convert JOB.json
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import shutil
import sys
import traceback
from collections.abc import Iterable
from pathlib import Path
from types import TracebackType
from typing import Any

from tfaccel.errors import FpgaError
from tfaccel.fpga import process
from tfaccel.fpga.export_settings import Settings, check_precision
from tfaccel.fpga.multiplications import multiplications
from tfaccel.fpga.optional_imports import require
from tfaccel.fpga.softmax import LOGITS, logits_of, on_device

PROJECT = "firmware"
_STRATEGIES = {
    "latency": "Latency",
    "resource": "Resource",
    "distributed_arithmetic": "distributed_arithmetic",
}


@dataclasses.dataclass(frozen=True)
class Node:
    """A layer of the project.

    Attributes:
        name: in the project; a Keras layer with an activation becomes two.
        index: its number in the C++ code.
        shape: of its output, without the batch.
        multiplications: by nonzero weights, for one row.
        reuse_factor: how many of them one multiplier performs, as rounded by hls4ml.
        traced: the code records its output.
    """

    name: str
    index: int
    shape: tuple[int, ...]
    multiplications: int = 0
    reuse_factor: int = 1
    traced: bool = False


@dataclasses.dataclass(frozen=True)
class Project:
    """A project that hls4ml wrote.

    Attributes:
        directory: where it is.
        stamp: a part of the compiled library's name.
        inputs: the shape of each input, without the batch.
        outputs: the shape of each output, without the batch.
        nodes: its layers.
    """

    directory: Path
    stamp: str
    inputs: tuple[tuple[int, ...], ...]
    outputs: tuple[tuple[int, ...], ...]
    nodes: tuple[Node, ...]

    @property
    def library(self) -> Path:
        """Where g++ puts the emulation."""
        return self.directory / "firmware" / f"{PROJECT}-{self.stamp}.so"


def convert(
    saved: Path, directory: Path, settings: Settings, log: Path, *, trace: bool = False
) -> Project:
    """Writes the project of a model.

    Args:
        saved: the model, a .keras file whose layers are all allowed.
        directory: where to write it.
        settings: how.
        log: gets the output of hls4ml.
        trace: write code that records every layer's output.

    Raises:
        FpgaError: hls4ml failed; the layer is named if it can be determined.
        FpgaTimeoutError: distributed arithmetic took too long.
    """
    if settings.strategy != "distributed_arithmetic":
        return _convert(saved, directory, settings, log, trace)
    job = directory.parent / f"{directory.name}.job.json"
    result_file = directory.parent / f"{directory.name}.project.json"
    options = dataclasses.asdict(settings)
    arguments = [str(saved), str(directory), options, str(log), trace, str(result_file)]
    job.write_text(json.dumps(arguments))
    try:
        process.run(
            [sys.executable, "-m", "tfaccel.fpga.convert", str(job)],
            what="hls4ml's distributed arithmetic",
            log=log,
            limit_s=settings.timeout_s,
            cwd=Path.cwd(),
        )
        result = json.loads(result_file.read_text())
    finally:
        job.unlink()
        if result_file.exists():
            result_file.unlink()
    if "error" in result:
        raise FpgaError(result["error"], log)
    nodes = tuple(Node(**{**node, "shape": tuple(node["shape"])}) for node in result["nodes"])
    shapes = {key: tuple(map(tuple, result[key])) for key in ("inputs", "outputs")}
    return Project(directory, result["stamp"], nodes=nodes, **shapes)


def require_compiler() -> None:
    """Refuses to export without the emulation's compiler.

    Raises:
        FpgaError: it is not on the PATH.
    """
    if shutil.which("g++") is None:
        raise FpgaError(
            "g++ is not on the PATH, and the firmware is emulated with it; install g++ 10 or newer."
        )


def compile_project(project: Project, settings: Settings, log: Path) -> None:
    """Compiles the emulation of a project with g++.

    Raises:
        FpgaError: g++ failed; the layer is named, and the log holds the output of g++.
        FpgaTimeoutError: it exceeded its timeout.
    """
    before = log.stat().st_size if log.exists() else 0
    command = ["bash", "./build_lib.sh"]
    limits = {"limit_s": settings.timeout_s, "cwd": project.directory, "log": log}
    try:
        process.run(command, what="g++", **limits)  # type: ignore[arg-type]
    except FpgaError as error:
        if type(error) is not FpgaError:
            raise
        output = log.read_text(errors="replace")[before:]
        names = failing_layer(output, project.nodes)
        where = f"layer {names}" if names else "the project"
        first = next((line for line in output.splitlines() if "error" in line), "no error line")
        raise FpgaError(
            f"{where} does not compile ({first.strip()[:160]}); leave that layer out, or see "
            "whether g++ is 10 or newer.",
            log,
        ) from error


def failing_layer(output: str, nodes: Iterable[Node]) -> str:
    """The first layer in g++'s errors, by its number or its name in the code.

    >>> failing_layer("x.cpp:9: error: no softsign_config4", [Node("act", 4, (1,))])
    'act'
    """
    all_nodes = list(nodes)
    for line in output[max(output.find("error"), 0) :].splitlines():
        for node in all_nodes:
            if f"config{node.index}" in line or line.rstrip().endswith(f"// {node.name}"):
                return node.name
    return ""


def _convert(saved: Path, directory: Path, settings: Settings, log: Path, trace: bool) -> Project:
    hls4ml = require("hls4ml")
    model = load(saved)
    quantized = is_quantized(model)
    with log.open("a") as out, contextlib.redirect_stdout(out), contextlib.redirect_stderr(out):
        try:
            graph = hls4ml.converters.convert_from_keras_model(
                model,
                output_dir=str(directory),
                project_name=PROJECT,
                backend=settings.backend,
                hls_config=_config(hls4ml, model, settings, quantized),
                io_type=settings.io_type,
                part=settings.part,
                clock_period=settings.clock_ns,
                # Layers of the allowlist have their own translation.
                allow_da_fallback=False,
            )
            graph.config.trace_output = trace
            for layer in graph.get_layers():
                layer.set_attr("trace", trace and _traceable(layer))
            graph.write()
        except Exception as error:  # hls4ml raises all kinds, AssertionError without a word too
            traceback.print_exc(file=out)
            raise _conversion_error(error, {layer.name for layer in model.layers}, log) from error
    if settings.softmax == "device":
        _check_logits(graph)
    return Project(
        directory=directory,
        stamp=str(graph.config.get_config_value("Stamp")),
        inputs=tuple(_shape(one) for one in graph.get_input_variables()),
        outputs=tuple(_shape(one) for one in graph.get_output_variables()),
        nodes=tuple(_node(one) for one in graph.get_layers()),
    )


def load(saved: Path) -> Any:
    """A saved model loaded on one device, including HGQ2's layers."""
    import zipfile

    import keras

    with zipfile.ZipFile(saved) as archive:
        if b'"hgq' in archive.read("config.json"):
            require("hgq.layers")  # registers its classes
    return keras.models.load_model(saved, compile=False)


def is_quantized(model: Any) -> bool:
    """Whether the model uses HGQ2."""
    return any(type(layer).__module__.startswith("hgq.") for layer in model.layers)


def _config(hls4ml: Any, model: Any, settings: Settings, quantized: bool) -> dict[str, Any]:
    strategy = _STRATEGIES[settings.strategy]
    if quantized:
        # Its types come from the model: a configuration by layer would set others.
        return {
            "Model": {
                "Precision": settings.precision,
                "ReuseFactor": settings.reuse_factor,
                "Strategy": strategy,
            }
        }
    config: dict[str, Any] = hls4ml.utils.config_from_keras_model(
        model,
        granularity="name",
        backend=settings.backend,
        default_precision=settings.precision,
        default_reuse_factor=settings.reuse_factor,
    )
    config["Model"]["Strategy"] = strategy
    if settings.softmax != "host":
        on_device(config, settings.softmax, logits_of(model))
    return config


def _check_logits(graph: Any) -> None:
    """Ensures that no softmax reads wide logits, however hls4ml translated the layers."""
    bits, integer = check_precision(LOGITS)
    for node in graph.get_layers():
        if node.class_name != "Softmax":
            continue
        precision = node.get_input_variable().type.precision
        if (precision.width, precision.integer) != (bits, integer):
            raise FpgaError(
                f"hls4ml reads softmax {node.name} from {precision}; expected {LOGITS}: nearly all "
                "of their bits would be lost; use softmax='host'."
            )


def _conversion_error(error: Exception, names: set[str], log: Path) -> FpgaError:
    reason = " ".join(str(error).split()) or type(error).__name__
    layer = _layer_in(error.__traceback__, names)
    where = f"layer {layer}" if layer else "the model"
    return FpgaError(
        f"hls4ml cannot translate {where} ({reason[:200]}); leave that layer out or use another.",
        log,
    )


def _layer_in(trace: TracebackType | None, names: set[str]) -> str:
    """The layer that the failing function was processing, from its local variables."""
    longest = ""
    while trace is not None:
        for variable in ("layer", "node"):
            name = getattr(trace.tb_frame.f_locals.get(variable), "name", None)
            if isinstance(name, str):
                longest = name if name in names or not longest else longest
        trace = trace.tb_next
    return longest


def _shape(variable: Any) -> tuple[int, ...]:
    return tuple(int(size) for size in variable.shape)


def _traceable(layer: Any) -> bool:
    return bool(layer.get_attr("function_cpp", None)) and len(layer.get_variables()) == 1


def _node(layer: Any) -> Node:
    return Node(
        name=str(layer.name),
        index=int(layer.index),
        shape=_shape(layer.get_output_variable()),
        multiplications=multiplications(layer),
        reuse_factor=int(layer.get_attr("reuse_factor", 1) or 1),
        traced=bool(layer.get_attr("trace", False)),
    )


def main(argv: list[str]) -> None:
    """Converts one job, and writes the result."""
    saved, directory, settings, log, trace, result_file = json.loads(Path(argv[0]).read_text())
    result: dict[str, Any]
    try:
        project = _convert(Path(saved), Path(directory), Settings(**settings), Path(log), trace)
        result = dataclasses.asdict(project)
        del result["directory"]
    except FpgaError as error:
        result = {"error": str(error).removesuffix(f" The log is {error.log}.")}
    Path(result_file).write_text(json.dumps(result))


if __name__ == "__main__":
    main(sys.argv[1:])
