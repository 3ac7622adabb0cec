"""TensorFlow's import for a plan: without optional packages, which a builder may still import."""

from __future__ import annotations

import pytest

from tests.support import run_child

# Stand-ins: whether the real ones are installed differs from machine to machine.
SCRIPT = """
import sys, pathlib, tempfile
folder = pathlib.Path(tempfile.mkdtemp())
for name in ("jax", "sklearn"):
    (folder / name).mkdir()
    (folder / name / "__init__.py").write_text("")
sys.path.insert(0, str(folder))
from tfaccel.planner import light_import
finders = list(sys.meta_path)
light_import.import_tensorflow()
assert "tensorflow" in sys.modules and "keras" in sys.modules
assert not light_import.OPTIONAL & sys.modules.keys()
import jax, sklearn
assert jax.__file__.startswith(str(folder)), jax
import gc
assert gc.isenabled()
assert finders[0] in sys.meta_path
assert not any(type(one).__module__ == light_import.__name__ for one in sys.meta_path)
"""


@pytest.mark.slow
def test_optional_packages_are_hidden_during_the_import_alone() -> None:
    run_child(["-c", SCRIPT], full=True)
