"""The user's settings of a monitor."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Settings:
    """As the arguments of `tfaccel.monitor`."""

    directory: str | None = None
    every: int | None = None
    peak_tflops: float | None = None
    verbose: bool = True
