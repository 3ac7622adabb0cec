"""What a strategy with replicas is told when it is made."""

from __future__ import annotations

from dataclasses import dataclass, field

from tfaccel.distribute.compression import Compression
from tfaccel.distribute.frequency import Frequency
from tfaccel.errors import StrategyError


@dataclass(frozen=True)
class ReplicaOptions:
    """How replicas train together; see `tfaccel.strategies.Options` for the values.

    Attributes:
        frequency: how often the replicas communicate.
        gradient_compression: how gradients are sent; None as they are.
        partial_batch: what becomes of a batch with fewer rows than the first; None for the
            strategy's own way.
        check: which models' first step is compared with one device's.

    Raises:
        StrategyError: when two of them do not go together.
    """

    frequency: Frequency = field(default_factory=Frequency)
    gradient_compression: Compression | None = None
    partial_batch: str | None = None
    check: str = "auto"

    def __post_init__(self) -> None:
        if self.gradient_compression is not None and self.frequency.local_steps > 1:
            raise StrategyError(
                f"tfaccel: gradient_compression and local_steps={self.frequency.local_steps} were "
                "requested together, expected one of them: under local steps no gradient is "
                "reduced."
            )
