"""The input of a factory: options, hardware and cluster, all resolved."""

from __future__ import annotations

from dataclasses import dataclass

from tfaccel.cluster.cluster import Cluster
from tfaccel.distribute import compression
from tfaccel.distribute.replica_options import ReplicaOptions
from tfaccel.distribute.sync_frequency import Frequency
from tfaccel.errors import StrategyError
from tfaccel.strategies.options import Options


@dataclass(frozen=True)
class Request:
    """Everything a factory needs.

    Attributes:
        options: what the user requested.
        devices: the names of the devices of this process to use.
        cluster: the workers of this job, or None.
    """

    options: Options
    devices: tuple[str, ...]
    cluster: Cluster | None

    @property
    def replica_options(self) -> ReplicaOptions:
        """How replicas train together."""
        spec = self.options.gradient_compression
        return ReplicaOptions(
            frequency=Frequency(self.options.gradient_accumulation, self.options.local_steps),
            gradient_compression=None if spec is None else compression.parse(spec),
            partial_batch=self.options.partial_batch,
            check=self.options.check,
            batch_norm=self.options.batch_norm,
            input=self.options.input,
        )

    def refuse_cluster(self, name: str) -> None:
        """Raises when this process is one of several workers, which `name` would ignore."""
        if self.cluster is not None and self.cluster.size > 1:
            raise StrategyError(
                f"tfaccel: strategy {name!r} uses this process alone, but {self.cluster.source} "
                f"describes {self.cluster.size} workers, which would each train a model of their "
                "own; use 'multi_worker_mirrored' or 'auto', or unset its variables, which "
                "`tfaccel env` lists."
            )
