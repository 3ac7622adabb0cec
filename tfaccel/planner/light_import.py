"""Imports TensorFlow and Keras without the optional packages that they import where installed.

TensorFlow imports JAX to convert JAX models to TFLite, Keras imports scikit-learn for its wrappers,
Matplotlib for its galleries, and IPython for its editor of files. A plan needs none of them, and
they are two fifths of the import's processor time and memory. A builder may import them later.
Nor does it need most of TensorFlow's public modules (`lazy_api.py`): a fifth of the rest.
"""

from __future__ import annotations

import contextlib
import gc
import json
import os
import sys
from collections.abc import Iterator
from importlib.machinery import ModuleSpec
from pathlib import Path

from tfaccel.planner import lazy_api

OPTIONAL = frozenset({"jax", "jaxlib", "matplotlib", "sklearn", "IPython"})
"""Packages that TensorFlow 2.21 and Keras 3.15 import in a `try` that expects them to be absent."""


class _Absent:
    """A finder of modules, before all others, to which some packages do not exist."""

    def __init__(self, packages: frozenset[str]) -> None:
        self._packages = packages

    def find_spec(self, name: str, path: object = None, target: object = None) -> ModuleSpec | None:
        """Raises for a module of such a package; None leaves any other to the other finders."""
        if name.partition(".")[0] in self._packages:
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)
        return None


def import_tensorflow() -> None:
    """Imports TensorFlow and Keras, if that has not been done, without the packages of `OPTIONAL`.

    Keras on another backend than TensorFlow is imported as it is.
    """
    lazy_api.install()
    with _hidden() if _backend() == "tensorflow" else contextlib.nullcontext(), _uncollected():
        import tensorflow  # noqa: F401, I001
        import keras  # noqa: F401


def _backend() -> str:
    """The backend that Keras will use: of its environment variable, or of its file of settings."""
    home = Path(os.environ.get("KERAS_HOME") or Path.home() / ".keras")
    settings: dict[str, str] = {}
    with contextlib.suppress(OSError, ValueError, AttributeError):
        settings = json.loads((home / "keras.json").read_text("utf-8"))
    return os.environ.get("KERAS_BACKEND") or settings.get("backend", "tensorflow")


@contextlib.contextmanager
def _hidden() -> Iterator[None]:
    finder = _Absent(OPTIONAL - sys.modules.keys())
    sys.meta_path.insert(0, finder)
    try:
        yield
    finally:
        sys.meta_path.remove(finder)


@contextlib.contextmanager
def _uncollected() -> Iterator[None]:
    """Inside, objects are not searched for cycles: those of an import stay."""
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()
