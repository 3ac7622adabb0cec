"""A mesh of named axes: how many devices there are along each, and what it divides."""

from __future__ import annotations

import functools
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass

from tfaccel.errors import LayoutError

BATCH_AXES = ("batch", "data")


@dataclass(frozen=True)
class MeshShape:
    """Axes by name, in order; neighbours along the last one are neighbouring devices.

    Attributes:
        axes: name and number of devices of each axis.
    """

    axes: tuple[tuple[str, int], ...]

    @classmethod
    def parse(cls, requested: str | Mapping[str, int], devices: int | None = None) -> MeshShape:
        """Parses ``"batch=2,model=4"`` or a mapping; one axis may be -1, to be inferred.

        Args:
            requested: the axes.
            devices: how many devices there are, for an axis of -1.

        Raises:
            LayoutError: when it cannot be parsed, or does not fit `devices`.

        >>> MeshShape.parse("batch=2,model=4").size
        8
        >>> print(MeshShape.parse({"batch": -1, "model": 2}, devices=8))
        batch=4,model=2
        """
        text = _text(requested)
        axes: dict[str, int] = {}
        for part in text.split(","):
            match = re.fullmatch(r"\s*([A-Za-z_]\w*)\s*=\s*(-1|[1-9]\d*)\s*", part)
            if match is None or match[1] in axes:
                why = f"{part.strip()!r} cannot be read" if match is None else "an axis comes twice"
                raise LayoutError(
                    f"tfaccel: mesh is {text!r} ({why}); expected different axes with their "
                    "numbers of devices, such as 'batch=2,model=4'."
                )
            axes[match[1]] = int(match[2])
        return cls(tuple(_fill(axes, text, devices).items()))

    @classmethod
    def devices_for(cls, requested: object, workers: int) -> int | None:
        """How many devices each of `workers` needs for a mesh; None when unknown.

        >>> MeshShape.devices_for("batch=2,model=2", workers=2)
        2
        """
        if requested is None or "-1" in _text(requested):
            return None
        return max(1, cls.parse(_text(requested)).size // workers)

    @property
    def size(self) -> int:
        """The number of devices."""
        return math.prod(size for _, size in self.axes)

    @functools.cached_property
    def names(self) -> tuple[str, ...]:
        """The names of the axes."""
        return tuple(name for name, _ in self.axes)

    @functools.cached_property
    def sizes(self) -> Mapping[str, int]:
        """The number of devices along each axis."""
        return dict(self.axes)

    @functools.cached_property
    def batch_axis(self) -> str | None:
        """The axis that divides the batch: the one called ``batch`` or ``data``."""
        return next((name for name in self.names if name in BATCH_AXES), None)

    @functools.cached_property
    def model_axis(self) -> str | None:
        """The axis that divides the model: ``model``, else the first that is not the batch's."""
        others = [name for name in self.names if name != self.batch_axis]
        return "model" if "model" in others else next(iter(others), None)

    def __str__(self) -> str:
        return ",".join(f"{name}={size}" for name, size in self.axes)


def _text(requested: object) -> str:
    if isinstance(requested, Mapping):
        return ",".join(f"{name}={size}" for name, size in requested.items())
    return str(requested)


def _fill(axes: dict[str, int], text: str, devices: int | None) -> dict[str, int]:
    free = [name for name, size in axes.items() if size == -1]
    if not free:
        return axes
    known = math.prod(size for size in axes.values() if size != -1)
    if len(free) > 1 or devices is None or devices % known:
        there = "an unknown number of" if devices is None else devices
        raise LayoutError(
            f"tfaccel: mesh is {text!r} and there are {there} devices; expected at most one axis "
            f"of -1 and devices that divide by {known}; give the size of every axis."
        )
    return {**axes, free[0]: devices // known}
