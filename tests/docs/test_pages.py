"""What pages say of the sources is so: files, tests, changed objects and quoted messages exist."""

from __future__ import annotations

import ast
import functools
import importlib.util
import re
from pathlib import Path
from typing import Any

import pytest

from tests.docs.fences import PAGES, ROOT

DOCS = ROOT / "docs"
SOURCES = [*(ROOT / "tfaccel").rglob("*.py"), *(ROOT / "strategies").glob("*.py")]
_PATH = re.compile(
    r"`((?:tests|tfaccel|strategies|examples|benchmarks|docs)/[\w./-]*)(?:::(\w+))?`"
)


def hooks() -> Any:
    spec = importlib.util.spec_from_file_location("docs_hooks", DOCS / "hooks.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


HOOKS = hooks()


@pytest.mark.parametrize("page", PAGES, ids=lambda path: path.name)
def test_files_and_tests_that_a_page_names_are_there(page: Path) -> None:
    for path, test in _PATH.findall(page.read_text("utf-8")):
        assert (ROOT / path).exists(), f"there is no {path}"
        if test:
            assert f"def {test}(" in (ROOT / path).read_text("utf-8"), f"{path} has no {test}"


def test_modules_that_the_way_of_a_batch_names_are_there() -> None:
    modules = {path.name for path in (ROOT / "tfaccel").rglob("*.py")}
    text = (DOCS / "architecture.md").read_text("utf-8")
    for part in (text, *(p.read_text("utf-8") for p in (DOCS / "images").glob("*.svg"))):
        named = set(re.findall(r"\b(\w+\.py)\b", part.replace("strategies/", "")))
        assert len(named) > 15
        assert named - modules - {p.name for p in (ROOT / "strategies").glob("*.py")} == set()


def test_every_page_is_in_the_navigation() -> None:
    config = (ROOT / "mkdocs.yml").read_text("utf-8")
    listed = set(re.findall(r"[\w/-]+\.md", config.partition("\nnav:")[2]))
    assert listed == {path.relative_to(DOCS).as_posix() for path in DOCS.rglob("*.md")}


def test_tables_of_the_sources_are_filled() -> None:
    for page in DOCS.rglob("*.md"):
        text = HOOKS.filled(page.read_text("utf-8"))
        assert not re.search(r"<!-- (table|file):", text), page


def test_an_unknown_table_is_an_error() -> None:
    with pytest.raises(ValueError, match="does not know"):
        HOOKS.filled("<!-- table: wishes -->")


# --- docs/changed_in_keras.md -----------------------------------------------------------------


@functools.cache
def _nodes() -> list[ast.AST]:
    """Every node of the sources."""
    return [node for path in SOURCES for node in ast.walk(ast.parse(path.read_text("utf-8")))]


def _calls(name: str, argument: int) -> set[str]:
    """The names that are given to a function of the package, as its argument of that number."""
    return {
        ast.unparse(node.args[argument])
        for node in _nodes()
        if isinstance(node, ast.Call) and getattr(node.func, "id", "") == name
    }


_THEIRS = re.compile(r"(tf|dtensor)\.\w|_private\.\w*(Extended|AllReduce|Iterator)$|PerReplica")


def _overridden() -> set[str]:
    """The classes of the package that extend one of TensorFlow's."""
    return {
        node.name
        for node in _nodes()
        if isinstance(node, ast.ClassDef)
        and any(_THEIRS.match(ast.unparse(base)) for base in node.bases)
    }


def test_the_table_of_changes_is_complete() -> None:
    page = (DOCS / "changed_in_keras.md").read_text("utf-8")
    changed = {name for name in _calls("mix_in", 1) if name[0].isupper()} | _overridden()
    assert len(changed) > 25
    assert [name for name in sorted(changed) if f"`{name}`" not in page] == []


def test_overridden_private_methods_are_listed() -> None:
    import tensorflow as tf
    from keras import Model, callbacks, optimizers
    from tensorflow.experimental import dtensor
    from tensorflow.python.framework.func_graph import FuncGraph

    from tfaccel.distribute import _private

    theirs = (
        *(Model, optimizers.Optimizer, optimizers.LossScaleOptimizer, callbacks.BackupAndRestore),
        *(_private.MirroredExtended, _private.CollectiveAllReduceExtended, _private.TPUExtended),
        *(_private.PerReplica, tf.TypeSpec, _private.DatasetIterator),
        *(_private.CollectiveAllReduce, dtensor.DVariable, FuncGraph),
    )
    page = (DOCS / "changed_in_keras.md").read_text("utf-8")
    overridden = {
        method.name
        for node in _nodes()
        if isinstance(node, ast.ClassDef) and f"`{node.name}`" in page
        for method in node.body
        if isinstance(method, ast.FunctionDef)
        and re.match(r"_[a-z]", method.name)
        and any(hasattr(base, method.name) for base in theirs)
    }
    assert len(overridden) > 20
    assert [name for name in sorted(overridden) if f"`{name}`" not in page] == []


def test_every_change_names_a_test() -> None:
    page = (DOCS / "changed_in_keras.md").read_text("utf-8")
    rows = [line for line in page.splitlines() if re.match(r"\| `", line)]
    assert len(rows) > 25
    assert [row for row in rows if "`tests/" not in row] == []


def test_private_names_have_reasons() -> None:
    modules = HOOKS.private_names()
    reasons = [row for rows in modules.values() for row in rows]
    assert len(modules) > 10
    assert len(reasons) > 50
    assert [name for name, reason in reasons if len(reason) < 15] == []


# --- docs/guides/troubleshooting.md -----------------------------------------------------------


def test_messages_are_found_in_the_sources() -> None:
    found = HOOKS.messages()
    assert sum(map(len, found.values())) > 80
    assert "StrategyError" in found


def test_quoted_messages_are_in_the_sources() -> None:
    """A heading of the page quotes a message; what is told at run time is an ellipsis."""
    page = (DOCS / "guides" / "troubleshooting.md").read_text("utf-8")
    page = page.partition("<!-- table: messages -->")[0]
    ours = " ".join(
        str(node.value)
        for node in _nodes()
        if isinstance(node, ast.Constant) and isinstance(node.value, str)
    )
    quoted = re.findall(r"^\| “(.+?)” \|", page, re.MULTILINE)
    assert len(quoted) > 15
    for message in quoted:
        for part in filter(None, (p.strip() for p in message.split("…"))):
            assert part in " ".join(ours.split()), f"no message says {part!r}"
