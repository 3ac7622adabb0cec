"""Who am I among the workers: one resolver a file, each a pure function of an environment."""

from __future__ import annotations

from tfaccel.cluster.cluster import Cluster

__all__ = ["Cluster"]
