"""The ways to train a model on given machines that are worth a plan, as options of a strategy."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from tfaccel.distribute.model_parallel.mesh import MeshShape
from tfaccel.planner.device_catalogue import Device, Machines


@dataclass(frozen=True)
class Candidate:
    """One way to train.

    Attributes:
        strategy: its name, as `tfaccel.strategy` takes it.
        devices: how many it uses.
        hosts: the number of machines.
        precision: a Keras dtype policy.
        mesh: of a model that is split.
        layouts: ``"auto"`` or ``"fully_sharded"`` on a mesh.
        accumulate: steps of the optimizer's gradient accumulation, each with its part of the batch.
        rematerialized: whether layers are computed again in the backward pass.
    """

    strategy: str
    devices: int
    hosts: int
    precision: str
    mesh: MeshShape | None = None
    layouts: str | None = None
    accumulate: int = 1
    rematerialized: bool = False

    @property
    def name(self) -> str:
        """Its name in a table.

        >>> Candidate("mirrored", 8, 1, "float32").name
        'mirrored x8'
        """
        if self.mesh is None:
            called = f"{self.strategy} x{self.devices}" if self.devices > 1 else self.strategy
        else:
            called = f"{'fully sharded' if self.layouts == 'fully_sharded' else 'mesh'} {self.mesh}"
        called += ", rematerialized" if self.rematerialized else ""
        return called if self.accumulate == 1 else f"{called}, accumulate {self.accumulate}"

    @property
    def is_plain(self) -> bool:
        """Whether it needs no change of the model or its optimizer."""
        return self.accumulate == 1 and not self.rematerialized

    @property
    def replicas(self) -> int:
        """The number of parts into which the rows of a batch are divided."""
        if self.mesh is None:
            return self.devices
        axis = self.mesh.batch_axis
        return self.mesh.sizes[axis] if axis is not None else 1

    @property
    def model_axis(self) -> int:
        """How many devices share the model."""
        axis = self.mesh.model_axis if self.mesh is not None else None
        return self.mesh.sizes[axis] if self.mesh is not None and axis is not None else 1

    def rows(self, batch: int) -> int:
        """Rows of a step that the fullest device gets of a global batch of `batch`.

        Replicas share a batch that does not divide as evenly as possible; a mesh replicates it.
        """
        step = -(-batch // self.accumulate)
        if self.mesh is not None and step % self.replicas:
            return step
        return -(-step // self.replicas)


def candidates(machines: Machines, precisions: list[str]) -> Iterator[Candidate]:
    """All ways to use some machines, simple ones first."""
    for precision in precisions:
        yield from _of_precision(machines, precision)


def precisions(device: Device) -> list[str]:
    """The precisions that a device computes faster than float32, after it.

    A CPU gets only float32: the cost of others depends on the processor.
    """
    faster = [p for p in ("mixed_bfloat16", "mixed_float16") if p in device.peak]
    return ["float32", *faster[:1]]


def _of_precision(machines: Machines, precision: str) -> Iterator[Candidate]:
    total, hosts = machines.count, machines.hosts
    if machines.device.kind == "tpu":
        yield Candidate("tpu", total, hosts, precision)
        return
    yield Candidate("one_device", 1, 1, precision)
    if total == 1:
        return
    name = "mirrored" if hosts == 1 else "multi_worker_mirrored"
    yield Candidate(name, total, hosts, precision)
    sizes = [n for n in range(1, total + 1) if total % n == 0]
    for layouts in ("auto", "fully_sharded"):
        for model in sizes:
            batch = total // model
            if (batch == 1 and layouts == "fully_sharded") or (model == 1 and layouts == "auto"):
                continue
            axes = (("batch", batch), ("model", model))
            mesh = MeshShape(tuple(axis for axis in axes if axis[1] > 1))
            yield Candidate("model_parallel", total, hosts, precision, mesh, layouts)
