"""The TPU generations, and the capacity of one chip of each."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass

from tfaccel.errors import StrategyError

GIB = 1 << 30


@dataclass(frozen=True)
class Generation:
    """One kind of TPU.

    Attributes:
        hbm: memory of one device that a program may use, in GiB, as its compiler reports.
        dimensions: of the grid its chips form.
        config: the compiler's name for chips whose cores act as one; ``""`` for its default.
        cores: devices of one chip.
        bfloat16: TFLOP/s of one chip, as Google's documentation gives it
            (https://cloud.google.com/tpu/docs/system-architecture-tpu-vm).
    """

    hbm: float
    dimensions: int
    config: str = ""
    cores: int = 1
    bfloat16: float = 0.0


GENERATIONS = {
    "v2": Generation(7.48, 2, cores=2, bfloat16=46),
    "v3": Generation(15.48, 2, cores=2, bfloat16=123),
    "v4": Generation(30.75, 3, config="megacore", bfloat16=275),
    "v5e": Generation(15.75, 2, bfloat16=197),
    "v5p": Generation(95.73, 3, bfloat16=459),
    "v6e": Generation(31.24, 2, bfloat16=918),
    "tpu7x": Generation(94.74, 3, cores=2, bfloat16=2307),
}


@dataclass(frozen=True)
class Topology:
    """Chips of one kind, in a grid.

    Attributes:
        generation: a key of `GENERATIONS`.
        grid: chips along each dimension.
    """

    generation: str
    grid: tuple[int, ...]

    @property
    def kind(self) -> Generation:
        """The generation of the chips."""
        return GENERATIONS[self.generation]

    @property
    def devices(self) -> int:
        """The devices of all chips, each of which holds a replica."""
        return math.prod(self.grid) * self.kind.cores

    @property
    def hbm(self) -> int:
        """Bytes that a program may use on one device."""
        return int(self.kind.hbm * GIB)

    def __str__(self) -> str:
        """The compiler's name for it.

        >>> str(parse("v4"))
        'v4:2x2x1'
        """
        return f"{self.generation}:{'x'.join(map(str, self.grid))}"


def parse(text: str) -> Topology:
    """Reads a topology such as ``v5e:2x2``; a generation alone is a host of four chips.

    Raises:
        StrategyError: lists the available ones.

    >>> parse("v5e:4x4").devices, parse("v5e").grid
    (16, (2, 2))
    """
    name, _, grid = text.strip().lower().partition(":")
    generation = GENERATIONS.get(name)
    if generation is None:
        raise StrategyError(
            f"tfaccel: topology {text!r} is unknown; expected one of {', '.join(GENERATIONS)}, "
            "alone or with its chips, such as v5e:2x2 or v4:2x2x1."
        )
    usual = "2x2x1" if generation.dimensions == 3 else "2x2"
    sizes = grid or usual
    if (
        not re.fullmatch(r"[1-9]\d*(x[1-9]\d*)*", sizes)
        or sizes.count("x") + 1 != generation.dimensions
    ):
        raise StrategyError(
            f"tfaccel: topology {text!r} has the grid {sizes!r}; expected {generation.dimensions} "
            f"numbers, such as {name}:{usual}."
        )
    return Topology(name, tuple(map(int, sizes.split("x"))))
