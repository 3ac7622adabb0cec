"""The workers of this job, and the rank of this one: the result of every resolver."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Cluster:
    """The workers of one job, as seen from one of them.

    Attributes:
        workers: `host:port` of every worker, in rank order; rank 0 is the chief.
        rank: index of this process in `workers`.
        source: where this was found, for messages (for example ``"TF_CONFIG"``).
    """

    workers: tuple[str, ...]
    rank: int
    source: str

    @property
    def size(self) -> int:
        """The number of workers."""
        return len(self.workers)

    @property
    def is_chief(self) -> bool:
        """Whether this is rank 0, the worker that writes files for all."""
        return self.rank == 0

    @property
    def address(self) -> str:
        """Our own `host:port`."""
        return self.workers[self.rank]

    def host_and_port(self, rank: int) -> tuple[str, int]:
        """One worker's host, without the brackets of an IPv6 address, and its port.

        >>> Cluster(("[::1]:2222",), 0, "example").host_and_port(0)
        ('::1', 2222)
        """
        host, _, port = self.workers[rank].rpartition(":")
        return host.strip("[]"), int(port)


_ONE_PROCESS = Cluster(("localhost:0",), 0, "one process")


def cluster_of(strategy: object) -> Cluster:
    """The workers of a strategy; this process alone, the chief, if it has no cluster.

    >>> cluster_of(None).is_chief
    True
    """
    cluster: Cluster | None = getattr(strategy, "cluster", None)
    return _ONE_PROCESS if cluster is None else cluster
