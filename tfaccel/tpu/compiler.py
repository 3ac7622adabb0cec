"""The TPU's own compiler, on a machine without a TPU.

libtpu compiles for a topology from only its description. JAX gives access to it;
`hlo_to_stablehlo`, `get_compile_options`, `backend_compile_and_load` and `make_ir_context` are not
public there, so the extra pins its version.
"""

from __future__ import annotations

import re
import time
from dataclasses import dataclass
from typing import Any

from tfaccel.errors import LaunchError, StrategyError, TfaccelError
from tfaccel.tpu.lower import Lowered
from tfaccel.tpu.report import Collective, Memory
from tfaccel.tpu.topologies import GIB, Topology

# Else libtpu queries Google Cloud's metadata server for this, for minutes.
ENVIRONMENT = {
    "TPU_SKIP_MDS_QUERY": "1",
    "TPU_ACCELERATOR_TYPE": "v5litepod-4",
    "TPU_WORKER_HOSTNAMES": "localhost",
    "TPU_WORKER_ID": "0",
    "JAX_PLATFORMS": "cpu",
}
_BYTES = {"pred": 1, "s8": 1, "u8": 1, "bf16": 2, "f16": 2, "s16": 2, "f32": 4, "s32": 4, "u32": 4}
_UNITS = {"": 1, "K": 1 << 10, "M": 1 << 20, "G": GIB, "T": GIB << 10}


class TooBigError(Exception):
    """The compiler needs more memory than a device has.

    Attributes:
        needed: bytes.
    """

    def __init__(self, needed: int) -> None:
        super().__init__(f"{needed} bytes")
        self.needed = needed


class RefusedError(Exception):
    """The compiler rejects the step at any size; its text is one line."""


@dataclass(frozen=True)
class Compiled:
    """The compiler's figures for a step, for one device; fields as of a `Report`."""

    memory: Memory
    flops: float
    collectives: tuple[Collective, ...] | None
    seconds: float


def compile_for(lowered: Lowered, topology: Topology) -> Compiled:
    """Compiles a step, with its batch divided among the devices and everything else replicated.

    Call it in a process that has `ENVIRONMENT`.

    Raises:
        TooBigError: it does not fit.
        RefusedError: the compiler refuses it for another reason.
        StrategyError: there is no such topology.
        LaunchError: another process uses libtpu.
    """
    import numpy as np
    from jax._src import compiler
    from jax._src.lib import xla_client
    from jax.errors import JaxRuntimeError
    from jax.experimental import topologies

    config = {"chip_config_name": topology.kind.config} if topology.kind.config else {}
    try:
        described = topologies.get_topology_desc(
            platform="tpu", topology_name=str(topology), **config
        )
    except JaxRuntimeError as error:
        raise _topology_error(topology, str(error)) from error
    number = len(described.devices)
    module = _module(lowered, number)
    options = compiler.get_compile_options(
        num_replicas=1, num_partitions=number, device_assignment=np.arange(number).reshape(1, -1)
    )
    build = options.executable_build_options
    # The HLO has annotations of XLA's older partitioner.
    build.use_spmd_partitioning, build.use_shardy_partitioner = True, False
    devices = xla_client.DeviceList(tuple(described.devices))
    begun = time.monotonic()
    try:
        executable = compiler.backend_compile_and_load(
            described.devices[0].client, module, devices, options, []
        )
    except JaxRuntimeError as error:
        needed = _needed(str(error))
        if needed is None:
            raise RefusedError(str(error).splitlines()[0]) from error
        raise TooBigError(needed) from error
    seconds = time.monotonic() - begun
    stats = executable.get_compiled_memory_stats()
    cost = executable.cost_analysis()
    return Compiled(
        Memory(
            arguments=stats.argument_size_in_bytes,
            results=stats.output_size_in_bytes - stats.alias_size_in_bytes,
            temporaries=stats.temp_size_in_bytes,
            code=stats.generated_code_size_in_bytes,
            peak=getattr(stats, "peak_memory_in_bytes", 0),
        ),
        flops=float((cost[0] if isinstance(cost, list) else cost).get("flops", 0.0)),
        collectives=_collectives(executable),
        seconds=seconds,
    )


def _topology_error(topology: Topology, message: str) -> TfaccelError:
    """Why there is no compiler for `topology`.

    >>> print(_topology_error(Topology("v5e", (3, 3)), "3 is odd"))
    tfaccel: topology v5e:3x3 is unknown to the TPU compiler (3 is odd); expected ...
    """
    first = message.splitlines()[0]
    if "lockfile" in message:
        return LaunchError(
            f"tfaccel: another process uses libtpu ({first}); expected to be the only one; wait "
            "until it has ended."
        )
    return StrategyError(
        f"tfaccel: topology {topology} is unknown to the TPU compiler ({first}); expected "
        "whole hosts, of four chips or of one."
    )


def _module(lowered: Lowered, devices: int) -> Any:
    """The step as StableHLO, with the batch divided."""
    from jax._src.interpreters import mlir
    from jaxlib import _jax
    from jaxlib.mlir import ir

    context = mlir.make_ir_context()
    with context, ir.Location.unknown(context):
        module = ir.Module.parse(_jax.mlir.hlo_to_stablehlo(lowered.hlo))
        for copy in list(_operations(module.operation, "mhlo.copy")):
            # libtpu does not know this one.
            copy.results[0].replace_all_uses_with(copy.operands[0])
            copy.erase()
        (main,) = (
            f
            for f in _operations(module.operation, "func.func")
            if ir.StringAttr(f.attributes["sym_name"]).value == "main"
        )
        types = ir.FunctionType(ir.TypeAttr(main.attributes["function_type"]).value).inputs
        had = ir.ArrayAttr(main.attributes["arg_attrs"]) if "arg_attrs" in main.attributes else ()
        attributes = []
        for index, kind in enumerate(types):
            kept = {a.name: a.attr for a in ir.DictAttr(had[index])} if len(had) else {}
            rest = ",1" * (len(ir.RankedTensorType(kind).shape) - 1)
            by_rows = f"{{devices=[{devices}{rest}]<=[{devices}]}}"
            sharding = by_rows if index < lowered.batched and devices > 1 else "{replicated}"
            kept["mhlo.sharding"] = ir.StringAttr.get(sharding)
            attributes.append(ir.DictAttr.get(kept))
        main.attributes["arg_attrs"] = ir.ArrayAttr.get(attributes)
    return module


def _operations(operation: Any, name: str) -> Any:
    """All operations of one kind, at any depth."""
    for region in operation.regions:
        for block in region.blocks:
            for inner in list(block.operations):
                yield from _operations(inner.operation, name)
                if inner.operation.name == name:
                    yield inner.operation


def _collectives(executable: Any) -> tuple[Collective, ...] | None:
    from jax.errors import JaxRuntimeError

    try:
        return collectives(executable.hlo_modules()[0].to_string())
    except JaxRuntimeError:  # tpu7x: libtpu writes instructions that jaxlib does not read
        return None


def collectives(hlo: str) -> tuple[Collective, ...]:
    """Counts the collectives of a compiled module.

    >>> collectives("  %a = (f32[2,3]{1,0}, bf16[4]{0}) all-reduce(%x, %y), channel_id=1")
    (Collective(kind='all-reduce', count=1, bytes=32),)
    """
    by_kind: dict[str, list[int]] = {}
    kinds = "all-reduce|all-gather|reduce-scatter|collective-permute|all-to-all"
    for line in hlo.splitlines():
        match = re.search(rf"= (.*?) ({kinds})(?:-start)?\(", line)
        if match:
            shapes = re.findall(r"\b([a-z]+\d+|pred)\[([\d,]*)\]", match[1])
            size = 0
            for dtype, sizes in shapes:
                elements = 1
                for one in filter(None, sizes.split(",")):
                    elements *= int(one)
                size += elements * _BYTES.get(dtype, 4)
            by_kind.setdefault(match[2], []).append(size)
    return tuple(Collective(kind, len(each), sum(each)) for kind, each in sorted(by_kind.items()))


def _needed(message: str) -> int | None:
    """The bytes that the compiler requests when it has too few.

    >>> _needed("... CompileTimeHbmOom: ... total memory required for ... (1.50G) exceeds ...")
    1610612736
    """
    if not re.search("HbmOom|on HBM|memory space hbm", message):
        return None  # a core's own memories may overflow too, where no smaller batch helps
    sizes = re.findall(r"([\d.]+)([KMGT]?)B?\)? exceeds|Used ([\d.]+)([KMGT]?) of", message)
    for a, unit, b, other in sizes:
        return int(float(a or b) * _UNITS[unit or other])
    return 0
