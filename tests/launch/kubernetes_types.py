"""Checks an object of Kubernetes against the published types of its API, and leaves nothing out.

The types come from the OpenAPI definitions of Kubernetes and JobSet; the package that holds them is
Kubeflow's, of the extra `dev`. Its own reader ignores a field that it does not know.
"""

from __future__ import annotations

import typing
from typing import Any

import pytest

models = pytest.importorskip(
    "kubeflow_trainer_api.models", reason="needs the types: pip install kubeflow-trainer-api"
)

KINDS = {
    "JobSet": models.JobsetV1alpha2JobSet,
    "Job": models.IoK8sApiBatchV1Job,
    "Service": models.IoK8sApiCoreV1Service,
    "PersistentVolumeClaim": models.IoK8sApiCoreV1PersistentVolumeClaim,
}


def check(manifest: dict[str, Any]) -> None:
    """Raises ValueError for a field that its kind does not have, or a value of another type."""
    kind = KINDS[manifest["kind"]]
    _walk(kind, manifest, manifest["kind"])
    kind.from_dict(manifest)


def _walk(wanted: Any, value: Any, path: str) -> None:
    origin, arguments = typing.get_origin(wanted), typing.get_args(wanted)
    if type(None) in arguments:
        (inner,) = (one for one in arguments if one is not type(None))
        _walk(inner, value, path)
    elif origin is typing.Annotated:
        _walk(arguments[0], value, path)
    elif isinstance(value, dict):
        fields = getattr(wanted, "model_fields", None)
        if origin is not dict and fields is None:
            raise ValueError(f"{path} is an object; expected {wanted}")
        types = {field.alias or name: field.annotation for name, field in (fields or {}).items()}
        for key, inner in value.items():
            if origin is not dict and key not in types:
                raise ValueError(f"there is no field {path}.{key}")
            _walk(arguments[1] if origin is dict else types[key], inner, f"{path}.{key}")
    elif isinstance(value, list):
        if origin is not list:
            raise ValueError(f"{path} is a list; expected {wanted}")
        for place, inner in enumerate(value):
            _walk(arguments[0], inner, f"{path}[{place}]")
    elif origin in (dict, list):
        raise ValueError(f"{path} is {value!r}; expected {wanted}")
