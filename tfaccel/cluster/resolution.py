"""Runs every resolver, and decides which applies; the rules are in `tfaccel.cluster`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

from tfaccel.cluster import gce_tpu, gke_tpu, kubernetes, mpiexec, slurm, tf_config
from tfaccel.cluster.cluster import Cluster
from tfaccel.errors import ClusterError


class Resolver(Protocol):
    """The contents of each resolver's module."""

    @property
    def SOURCE(self) -> str:  # noqa: N802
        """Its name in messages."""

    @property
    def VARIABLES(self) -> tuple[str, ...]:  # noqa: N802
        """What it reads."""

    @property
    def NEEDS(self) -> str:  # noqa: N802
        """What it needs to describe a job, in words."""

    def resolve(self, environ: Mapping[str, str]) -> Cluster | None:
        """The cluster, or None when the environment does not apply to it."""


RESOLVERS: tuple[Resolver, ...] = (tf_config, slurm, kubernetes, mpiexec, gke_tpu, gce_tpu)
"""In the order in which they are tried."""


@dataclass(frozen=True)
class ResolverResult:
    """The result of one resolver for an environment.

    Attributes:
        source: the resolver's name.
        variables: name and value of each variable that it reads, where set.
        cluster: the job that it describes, or None.
        error: why its variables are invalid; ``""`` if they are valid.
        needs: what it needs to describe a job, in words.
    """

    source: str
    variables: tuple[tuple[str, str], ...]
    cluster: Cluster | None
    error: str
    needs: str

    @property
    def summary(self) -> str:
        """Its answer in a few words.

        >>> tf_config = Cluster(("a:1", "b:1"), 1, "TF_CONFIG")
        >>> ResolverResult("TF_CONFIG", (), tf_config, "", "").summary
        'worker 1 of 2'
        """
        if self.cluster is not None:
            return f"worker {self.cluster.rank} of {self.cluster.size}"
        return self.error or f"no cluster, which takes {self.needs}"

    @property
    def read(self) -> str:
        """The variables read, each value truncated to a readable length."""
        return ", ".join(
            f"{name}={value if len(value) <= 160 else value[:157] + '...'}"
            for name, value in self.variables
        )


def resolve_all(environ: Mapping[str, str]) -> tuple[ResolverResult, ...]:
    """The result of every resolver, in their order; it raises nothing."""
    return tuple(_resolve(resolver, environ) for resolver in RESOLVERS)


def _resolve(resolver: Resolver, environ: Mapping[str, str]) -> ResolverResult:
    cluster, error = None, ""
    try:
        cluster = resolver.resolve(environ)
    except ClusterError as reason:
        error = str(reason)
    read = tuple((name, environ[name]) for name in resolver.VARIABLES if name in environ)
    return ResolverResult(resolver.SOURCE, read, cluster, error, resolver.NEEDS)


def decide(answers: Sequence[ResolverResult]) -> Cluster | None:
    """The cluster of the first resolver that finds one, if no other contradicts it.

    Raises:
        ClusterError: the first that matches is invalid, or another contradicts it.
    """
    for place, answer in enumerate(answers):
        if answer.error:
            raise ClusterError(answer.error)
        if answer.cluster is not None:
            if not tf_config.is_launched(dict(answer.variables)):
                for other in answers[place + 1 :]:
                    _compare(answer, other)
            return answer.cluster
    return None


def _compare(first: ResolverResult, second: ResolverResult) -> None:
    if second.cluster is not None and first.summary != second.summary:
        raise ClusterError(
            f"tfaccel: {first.source} describes this process as {first.summary} ({first.read}) and "
            f"{second.source} describes it as {second.summary} ({second.read}); expected one "
            "description of this job; unset the variables of the one that is wrong."
        )
