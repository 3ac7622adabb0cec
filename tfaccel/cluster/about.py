"""What must be the same on all workers of a job before they train together."""

from __future__ import annotations

import importlib.metadata
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import tfaccel


@dataclass(frozen=True)
class About:
    """What must be the same on all workers of a job."""

    job_id: str
    size: int
    versions: dict[str, str]

    def differences(self, hello: Mapping[str, Any]) -> list[str]:
        """What a worker's hello says otherwise than we do."""
        pairs = [
            ("job id", hello.get("job_id"), self.job_id),
            ("number of workers", hello.get("size"), self.size),
        ]
        theirs = hello.get("versions")
        theirs = theirs if isinstance(theirs, dict) else {}
        pairs += [
            (name, theirs.get(name, "unknown"), self.versions.get(name, "unknown"))
            for name in sorted({*theirs, *self.versions})
        ]
        return [f"{what} {its!r} against {ours!r}" for what, its, ours in pairs if its != ours]


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
