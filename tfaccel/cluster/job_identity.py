"""The identity of a job: what must be the same on all its workers before they train together."""

from __future__ import annotations

import importlib.metadata
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import tfaccel


@dataclass(frozen=True)
class JobIdentity:
    """What must be the same on all workers of a job."""

    job_id: str
    size: int
    versions: dict[str, str]

    def differences(self, hello: Mapping[str, Any]) -> list[str]:
        """The differences between a worker's hello and this identity."""
        pairs = [
            ("job id", hello.get("job_id"), self.job_id),
            ("number of workers", hello.get("size"), self.size),
        ]
        peer_versions = hello.get("versions")
        peer_versions = peer_versions if isinstance(peer_versions, dict) else {}
        pairs += [
            (name, peer_versions.get(name, "unknown"), self.versions.get(name, "unknown"))
            for name in sorted({*peer_versions, *self.versions})
        ]
        return [f"{what} {peer!r} against {own!r}" for what, peer, own in pairs if peer != own]


def installed_versions() -> dict[str, str]:
    """The versions of tfaccel, TensorFlow and Keras here, without importing the latter two."""
    return {
        "tfaccel": tfaccel.__version__,
        "tensorflow": _version("tensorflow", "tensorflow", "tensorflow-cpu", "tf-nightly"),
        "keras": _version("keras", "keras", "keras-nightly"),
    }


def _version(module: str, *distributions: str) -> str:
    loaded = getattr(sys.modules.get(module), "__version__", None)
    if loaded is not None:
        return str(loaded)
    for name in distributions:
        try:
            return importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return "not installed"
