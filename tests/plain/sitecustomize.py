"""Makes a Python process start sooner: Python runs this file at its start.

TensorFlow imports JAX and SciPy, and Keras Matplotlib, scikit-learn and IPython, wherever they find
them, which takes two fifths of the time of `import tensorflow`. A child process of the tests
(`tests/support.py`) is as if they were not installed, as on a machine with `tfaccel[cpu]` alone,
unless it asks for them.
"""

from __future__ import annotations

import functools
import os
import sys
import typing
from importlib.machinery import ModuleSpec, PathFinder
from typing import Any

VARIABLE = "TESTS_WITHOUT"  # names of packages, with commas between


def leave_out(names: frozenset[str]) -> None:
    """From now on `import` and `find_spec` find none of these packages."""

    class Rest(PathFinder):
        """Python's own finder of installed packages, for all others."""

        @classmethod
        def find_spec(cls, fullname: str, *arguments: Any) -> ModuleSpec | None:
            return None if fullname in names else super().find_spec(fullname, *arguments)

    sys.meta_path[sys.meta_path.index(PathFinder)] = Rest


def compile_once() -> None:
    """Names of types that are written as strings are compiled once each by `typing`.

    TensorFlow's operations have 18,000 of them, of which a few dozen differ.
    """
    vars(typing)["compile"] = functools.lru_cache(maxsize=None)(compile)


if __name__ == "sitecustomize" and os.environ.get(VARIABLE):
    leave_out(frozenset(os.environ[VARIABLE].split(",")))
    compile_once()
