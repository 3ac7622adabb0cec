"""The address of the TPU: from the request, and from the environment."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from tfaccel.errors import StrategyError

_GKE = "KUBE_GOOGLE_CLOUD_TPU_ENDPOINTS"


@dataclass(frozen=True)
class TpuAddress:
    """A TPU.

    Attributes:
        name: ``"local"`` on a TPU VM, an address such as ``"grpc://10.0.0.2:8470"``, or the name
            of a TPU in Google Cloud.
        zone: of a TPU with a name; None for the zone of this machine.
        project: the same.
        source: where it was found, for messages.
    """

    name: str
    zone: str | None = None
    project: str | None = None
    source: str = "tpu"

    @property
    def is_local(self) -> bool:
        """Whether the TPU is in this machine."""
        return self.name == "local"

    @property
    def is_named(self) -> bool:
        """Whether its address must be looked up in Google Cloud."""
        return not self.is_local and not self.name.startswith("grpc://")

    def __str__(self) -> str:
        """The form used in messages."""
        where = ", ".join(part for part in (self.zone, self.project) if part)
        return f"TPU {self.name!r}{f' ({where})' if where else ''} from {self.source}"


def find(
    requested: str | None, zone: str | None, project: str | None, environ: Mapping[str, str]
) -> TpuAddress:
    """Finds the TPU as `TPUClusterResolver` does, and records the source.

    Args:
        requested: the option `tpu`; None to read the environment (GKE, then ``TPU_NAME``), falling
            back to a TPU in this machine.
        zone: the option `tpu_zone`.
        project: the option `tpu_project`.
        environ: the environment.

    Raises:
        StrategyError: when a zone or project is given for a TPU that has no name.

    >>> find(None, None, None, {"TPU_NAME": "mine"}).source
    'TPU_NAME'
    """
    location = next(
        (
            (name, source)
            for name, source in (
                (requested, "tpu"),
                (environ.get(_GKE), _GKE),
                (environ.get("TPU_NAME"), "TPU_NAME"),
            )
            if name
        ),
        ("local", "this machine"),
    )
    address = TpuAddress(location[0], zone, project, location[1])
    if (zone or project) and not address.is_named:
        raise StrategyError(
            f"tfaccel: tpu_zone or tpu_project was given for {address}, which needs none; "
            "expected tpu=<name> with them; leave them out, or name the TPU."
        )
    return address
