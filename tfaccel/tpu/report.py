"""What `tfaccel tpu check` found, as data, as text and as JSON."""

from __future__ import annotations

import dataclasses
import json
from dataclasses import dataclass
from typing import Any

from tfaccel.tpu.topologies import GIB, parse

UNKNOWN = (
    "nothing was executed: speed and numbers are not known",
    "TensorFlow's XLA kernels for CPUs lowered it: a TPU may take an operation more, or less",
    "BatchNormalization sees the global batch here, and under TPUStrategy each replica's rows",
    "input, checkpoints and the host's memory are not part of it",
)


@dataclass(frozen=True)
class Memory:
    """Bytes of one device's HBM.

    Attributes:
        arguments: weights, optimizer slots and the batch.
        results: the step's results besides in-place updates.
        temporaries: activations, gradients, the compiler's own.
        code: the program.
        peak: the maximum at any moment, as reported by the compiler.
    """

    arguments: int
    results: int
    temporaries: int
    code: int
    peak: int

    @property
    def total(self) -> int:
        """What the step needs."""
        return max(self.arguments + self.results + self.temporaries + self.code, self.peak)


@dataclass(frozen=True)
class Collective:
    """The collectives of one kind in a step.

    Attributes:
        kind: such as ``"all-reduce"``.
        count: how many.
        bytes: that they combined, on each device.
    """

    kind: str
    count: int
    bytes: int


@dataclass(frozen=True)
class Report:
    """One check.

    Attributes:
        target: what was checked.
        topology: checked for.
        batch: rows of the global batch.
        parameters: numbers in the weights.
        verdict: ``"fits"``, ``"too big"`` or ``"refused"``.
        needed: bytes of one device that the step needs, if known.
        memory: their parts; None where the step was not compiled.
        flops: operations of one device in one step.
        collectives: what devices send each other in one step; None where it cannot be read.
        seconds: that the compilation took.
        fitting: the largest global batch that fits, where this one does not; 0 for none.
        why: of a refusal, one line.
        warnings: what to check.
        notes: what was assumed.
        host: peak memory of the check itself, in bytes.
    """

    target: str
    topology: str
    batch: int
    parameters: int = 0
    verdict: str = "fits"
    needed: int = 0
    memory: Memory | None = None
    flops: float = 0.0
    collectives: tuple[Collective, ...] | None = ()
    seconds: float = 0.0
    fitting: int | None = None
    why: str = ""
    warnings: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()
    host: int = 0

    @property
    def limit(self) -> int:
        """Bytes that one device has."""
        return parse(self.topology).hbm

    def to_json(self) -> str:
        """All of it, including unknowns."""
        return json.dumps({**dataclasses.asdict(self), "limit": self.limit, "unknown": UNKNOWN})

    @classmethod
    def of(cls, fields: dict[str, Any]) -> Report:
        """Builds it from its dictionary."""
        memory = fields.get("memory")
        collectives = fields.get("collectives", ())
        if collectives is not None:
            collectives = tuple(Collective(**one) for one in collectives)
        return cls(
            **{
                **fields,
                "memory": Memory(**memory) if memory else None,
                "collectives": collectives,
                "warnings": tuple(fields.get("warnings", ())),
                "notes": tuple(fields.get("notes", ())),
            }
        )

    def lines(self) -> list[str]:
        """The report as text."""
        devices = parse(self.topology).devices
        lines = [
            f"{self.target} on {self.topology} ({devices} devices), global batch {self.batch} "
            f"({self.batch // devices} per device), {self.parameters:,} parameters",
            self._verdict(),
        ]
        if self.memory is not None:
            m = self.memory
            lines += [
                f"  memory      {size(m.total)} of {size(self.limit)} per device: weights, slots "
                f"and batch {size(m.arguments)}, temporaries {size(m.temporaries)}, results "
                f"{size(m.results)}, code {size(m.code)}; at the peak {size(m.peak)}",
                f"  operations  {_operations(self.flops)} per device and step",
                f"  collectives {self._collectives()}",
                f"  compiled in {self.seconds:.1f} s",
            ]
        lines += [f"  warning     {line}" for line in self.warnings]
        lines += [f"  note        {line}" for line in self.notes]
        return [*lines, *(f"  not known   {line}" for line in UNKNOWN)]

    def _verdict(self) -> str:
        if self.verdict == "fits":
            return "FITS"
        if self.verdict == "refused":
            return f"REFUSED: {self.why}"
        missing = "the compiler does not report how much is missing"
        if self.needed > self.limit:
            missing = f"{size(self.needed - self.limit)} missing on each device"
        if self.fitting is None:
            fitting = ""
        elif self.fitting:
            fitting = f"; a global batch of {self.fitting} fits"
        else:
            fitting = "; no batch fits: split the model, or use chips with more memory"
        return f"TOO BIG: {missing}{fitting}"

    def _collectives(self) -> str:
        if self.collectives is None:
            return "not known: jaxlib cannot read the program that libtpu wrote"
        each = [f"{c.count} {c.kind} of {_sent(c.bytes)}" for c in self.collectives]
        return ", ".join(each) or "none"


def size(number: int) -> str:
    """Formats bytes.

    >>> size(3 << 29), size(5 << 20), size(300)
    ('1.50 GiB', '5.0 MiB', '0.3 KiB')
    """
    if number >= GIB:
        return f"{number / GIB:.2f} GiB"
    return f"{number / (1 << 20):.1f} MiB" if number >= 1 << 20 else f"{number / 1024:.1f} KiB"


def _operations(number: float) -> str:
    """Formats operations.

    >>> _operations(2.5e9), _operations(12345)
    ('2.50 GFLOP', '0.01 MFLOP')
    """
    return f"{number / 1e9:,.2f} GFLOP" if number >= 1e8 else f"{number / 1e6:,.2f} MFLOP"


def _sent(number: int) -> str:
    """Formats bytes between devices.

    >>> _sent(2_240_000), _sent(300)
    ('2.24 MB', '0.3 kB')
    """
    return f"{number / 1e6:,.2f} MB" if number >= 1e5 else f"{number / 1e3:.1f} kB"
