"""Where a TPU is looked for."""

from __future__ import annotations

from typing import Any

import pytest

from tfaccel.cluster.tpu_address import TpuAddress, find
from tfaccel.errors import StrategyError

GKE = {"KUBE_GOOGLE_CLOUD_TPU_ENDPOINTS": "grpc://10.4.0.3:8470"}


@pytest.mark.parametrize(
    ("requested", "environ", "address"),
    [
        (None, {}, TpuAddress("local", source="this machine")),
        ("local", GKE, TpuAddress("local")),
        ("mine", {"TPU_NAME": "other"}, TpuAddress("mine")),
        (None, {"TPU_NAME": "local"}, TpuAddress("local", source="TPU_NAME")),
        (None, {"TPU_NAME": "mine"}, TpuAddress("mine", source="TPU_NAME")),
        (
            None,
            {"TPU_NAME": "mine", **GKE},
            TpuAddress("grpc://10.4.0.3:8470", source="KUBE_GOOGLE_CLOUD_TPU_ENDPOINTS"),
        ),
        ("grpc://1.2.3.4:8470", {}, TpuAddress("grpc://1.2.3.4:8470")),
    ],
)
def test_the_argument_then_gke_then_tpu_name(
    requested: str | None, environ: dict[str, str], address: TpuAddress
) -> None:
    found = find(requested, None, None, environ)
    assert found == address
    assert found.is_local == (address.name == "local")
    assert found.is_named == (address.name == "mine")


def test_a_name_keeps_its_zone_and_project() -> None:
    found = find("mine", "us-east1-d", "ours", {})
    assert found == TpuAddress("mine", "us-east1-d", "ours")
    assert str(found) == "TPU 'mine' (us-east1-d, ours) from tpu"


@pytest.mark.parametrize("requested", [None, "local", "grpc://1.2.3.4:8470"])
@pytest.mark.parametrize("where", [{"zone": "us-east1-d"}, {"project": "ours"}])
def test_only_a_name_has_a_zone(requested: Any, where: dict[str, str]) -> None:
    given = {"zone": None, "project": None, **where}
    with pytest.raises(StrategyError, match="tpu_zone or tpu_project was given for TPU"):
        find(requested, given["zone"], given["project"], {})
