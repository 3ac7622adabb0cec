"""The options of a strategy with replicas."""

from __future__ import annotations

from dataclasses import dataclass, field

from tfaccel.distribute.compression import Compression
from tfaccel.distribute.sync_frequency import Frequency
from tfaccel.errors import StrategyError


@dataclass(frozen=True)
class ReplicaOptions:
    """How replicas train together; see `tfaccel.strategies.Options` for the values.

    Attributes:
        frequency: how often the replicas communicate.
        gradient_compression: how gradients are sent; None for uncompressed.
        partial_batch: how to handle a batch with fewer rows than the first; None for the strategy's
            default.
        check: which models' first step is compared with one device's.
        batch_norm: ``"synchronized"`` where every `BatchNormalization` normalises the global batch.
        input: ``"per_worker"`` where each worker passes its own part of every global batch.

    Raises:
        StrategyError: when two of them are incompatible.
    """

    frequency: Frequency = field(default_factory=Frequency)
    gradient_compression: Compression | None = None
    partial_batch: str | None = None
    check: str = "auto"
    batch_norm: str = "replica"
    input: str = "global"

    def __post_init__(self) -> None:
        if self.batch_norm == "synchronized" and self.frequency.local_steps > 1:
            raise StrategyError(
                f"tfaccel: batch_norm='synchronized' and local_steps={self.frequency.local_steps} "
                "were requested together; expected one of them: under local steps replicas do not "
                "communicate in a step."
            )
        if self.gradient_compression is not None and self.frequency.local_steps > 1:
            raise StrategyError(
                f"tfaccel: gradient_compression and local_steps={self.frequency.local_steps} were "
                "requested together; expected one of them: under local steps no gradient is "
                "reduced."
            )
