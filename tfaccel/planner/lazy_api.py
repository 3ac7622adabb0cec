"""TensorFlow's public modules, such as `tf.lite` and `tf.compat.v1.estimator`, imported when used.

They only gather names. Importing all of them imports all of TensorFlow, though a plan uses a part.
"""

from __future__ import annotations

import importlib
import re
import sys
from collections.abc import Sequence
from importlib.abc import Loader
from importlib.machinery import ModuleSpec, PathFinder
from types import ModuleType
from typing import Any

_PREFIX = "tensorflow._api.v2."


def install() -> None:
    """Makes an import of TensorFlow, which has not begun, and all later ones leave them out."""
    if "tensorflow" not in sys.modules:
        sys.meta_path.insert(0, _Finder())


class _Finder:
    """A finder of modules, before all others, for the public ones of TensorFlow."""

    def find_spec(
        self, name: str, path: Sequence[str] | None = None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        """A module that is executed when an attribute of it is requested."""
        spec = PathFinder.find_spec(name, path, target) if name.startswith(_PREFIX) else None
        if spec is not None and spec.loader is not None:
            spec.loader = _Lazy(spec.loader)
        return spec


class _Lazy(Loader):
    """Creates modules that the loader of their files executes later."""

    def __init__(self, loader: Any) -> None:
        self._loader = loader

    def create_module(self, spec: ModuleSpec) -> ModuleType:
        """One that is not executed."""
        return _Module(spec.name)

    def exec_module(self, module: ModuleType) -> None:
        """Leaves it for later."""
        vars(module)["__loader_of_all__"] = self._loader


class _Module(ModuleType):
    """A module that imports what is requested of it, and nothing before.

    What its file does not import line by line makes all of it be executed. A module that then
    replaces it in `sys.modules` gets its attributes from it.
    """

    def __getattr__(self, name: str) -> Any:
        held = vars(self)
        loader = held.get("__loader_of_all__")
        if loader is None:
            raise AttributeError(f"module {self.__name__!r} has no attribute {name!r}")
        if "__imports__" not in held:
            held["__imports__"] = _imports(loader.get_source(self.__name__) or "")
        module, attribute = held["__imports__"].get(name, ("", ""))
        if module == self.__name__:
            held[name] = importlib.import_module(f"{module}.{attribute}")
        elif module:
            held[name] = getattr(importlib.import_module(module), attribute)
        else:
            del held["__loader_of_all__"]
            loader.exec_module(self)
        return getattr(self, name)

    def __dir__(self) -> list[str]:
        """All of it, executed."""
        getattr(self, "__all__", None)
        return list(super().__dir__())


def _imports(source: str) -> dict[str, tuple[str, str]]:
    r"""Where the names of a file of imports come from.

    >>> _imports("from a.b import c # line: 3\nfrom a.b import d as e\n")
    {'c': ('a.b', 'c'), 'e': ('a.b', 'd')}
    """
    lines = re.findall(r"^from (\S+) import (\w+)(?: as (\w+))?", source, re.MULTILINE)
    return {alias or name: (module, name) for module, name, alias in lines}
