"""The list of private names is complete, and what is missing is told when a strategy is made."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import keras
import pytest

import tfaccel
from tfaccel.distribute import _private, private_api_check
from tfaccel.errors import StrategyError

ROOT = Path(__file__).parents[2] / "tfaccel"
FILES = sorted((*ROOT.rglob("*.py"), *(ROOT.parent / "strategies").rglob("*.py")))
PRIVATE = ROOT / "distribute" / "_private"
# Of Python, or ours under a name that is a text.
OTHERS = {
    "_",
    "_averagings",
    "_current_frames",
    "_exit",
    "_function",
    "_getframe",
    "_mask",
    "_replace",
    "_self_",
}
OTHERS |= {"_checks", "_prepared", "_step", "_tfaccel"}
OTHERS |= {"_ArgumentGroup", "_double", "_mib", "_s"}
# Attributes and operations of TensorFlow's graphs; tests/monitoring and tests/tpu read them.
OTHERS |= {"_Arg", "_input_shapes", "_output_shapes"}
# Hung by Keras on single tensors, where no class has them; tests watch what they do.
ON_TENSORS = {"_keras_logits", "_keras_mask"}


def listed() -> set[str]:
    names = {name for names in private_api_check.NAMES.values() for name in names}
    return names | {owner.rpartition(".")[2] for owner in private_api_check.NAMES}


def defined(trees: list[ast.AST]) -> Iterator[str]:
    """What tfaccel itself defines: functions, classes, variables, attributes of `self`."""
    for node in (node for tree in trees for node in ast.walk(tree)):
        if isinstance(node, (ast.FunctionDef, ast.ClassDef)):
            yield node.name
        elif isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            yield node.id
        elif (
            isinstance(node, ast.Attribute)
            and isinstance(node.ctx, ast.Store)
            and getattr(node.value, "id", "") == "self"
        ):
            yield node.attr


def used(tree: ast.AST) -> Iterator[str]:
    """Private names that are read or written, also as texts for `getattr`; private imports."""
    for node in ast.walk(tree):
        name: Any = None
        if isinstance(node, ast.Attribute):
            name = node.attr
        elif isinstance(node, ast.Constant):
            name = node.value
        if isinstance(name, str) and name.isidentifier() and name[0] == "_" and name[:2] != "__":
            yield name


def imported(tree: ast.AST) -> Iterator[str]:
    """What is imported from private modules, by full name."""
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and is_private(node.module or ""):
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def is_private(module: str) -> bool:
    return module.startswith(("keras.src", "tensorflow.python", "tensorflow.core"))


def test_every_private_name_that_is_used_is_listed() -> None:
    trees = {path: ast.parse(path.read_text()) for path in FILES}
    ours = set(defined(list(trees.values())))
    known = listed() | OTHERS | ON_TENSORS
    unknown = {
        f"{path.relative_to(ROOT.parent)}: {name}"
        for path, tree in trees.items()
        for name in used(tree)
        if name not in known and name not in ours and not name.startswith("_tfaccel_")
    }
    assert unknown == set()


def test_private_modules_are_imported_in_one_place_and_listed() -> None:
    found = {path: set(imported(ast.parse(path.read_text()))) for path in FILES}
    assert {path.parent for path, names in found.items() if names} == {PRIVATE}
    names = set().union(*found.values())
    whole = {f"{o}.{n}" for o, attributes in private_api_check.NAMES.items() for n in attributes}
    whole |= set(private_api_check.NAMES)
    assert [n for n in names if not any(f"{w}.".startswith(f"{n}.") for w in whole)] == []


def test_modules_of_private_names_tell_what_watches_them() -> None:
    for path in PRIVATE.glob("*.py"):
        text = " ".join((ast.get_docstring(ast.parse(path.read_text())) or "").split())
        assert "Seen with" in text, path.name
        watching = re.findall(r"`(tests/\S+\.py)`", text)
        assert watching, path.name
        assert all((ROOT.parent / test).is_file() for test in watching), path.name


def test_the_package_exports_the_names_of_every_module() -> None:
    modules = {path.stem for path in PRIVATE.glob("*.py")} - {"__init__"}
    names = [name for module in modules for name in getattr(_private, module).__all__]
    assert sorted(names) == sorted(_private.__all__)
    assert all(hasattr(_private, name) for name in names)


def test_private_methods_that_are_overridden_are_listed() -> None:
    overridden = set()
    for path in FILES:
        for cls in ast.walk(ast.parse(path.read_text())):
            if isinstance(cls, ast.ClassDef):
                overridden |= {
                    node.name
                    for node in cls.body
                    if isinstance(node, ast.FunctionDef) and calls_super(node)
                }
    theirs = {
        name for owner in private_api_check.NAMES for name in dir(private_api_check._find(owner))
    }
    private = {n for n in overridden & theirs if n[0] == "_" and n[:2] != "__"}
    assert "_clip_gradients" in private
    assert private <= listed()


def calls_super(method: ast.FunctionDef) -> bool:
    """Whether a method calls that of the same name of its base."""
    return any(
        isinstance(node, ast.Attribute)
        and node.attr == method.name
        and isinstance(node.value, ast.Call)
        and getattr(node.value.func, "id", "") == "super"
        for node in ast.walk(method)
    )


def test_all_names_are_there() -> None:
    assert list(private_api_check.missing_names(private_api_check.NAMES)) == []
    private_api_check.check()


@pytest.mark.parametrize("of", ["a class", "instances", "a module"])
def test_a_name_that_is_gone_is_missing(of: str) -> None:
    owner = {
        "a class": "keras.src.models.sequential.Sequential",
        "instances": "keras.src.optimizers.base_optimizer.BaseOptimizer",
        "a module": "tensorflow.python.framework.random_seed",
    }[of]
    gone = f"{owner}._no_such_name"
    assert list(private_api_check.missing_names({owner: ("_no_such_name",)})) == [gone]
    assert list(private_api_check.missing_names({"keras.src.none": ("x",)})) == ["keras.src.none"]


def test_a_strategy_is_not_made_when_a_name_is_gone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(private_api_check.NAMES, "keras.src.trainers.trainer.Trainer", ("_gone",))
    private_api_check._result.cache_clear()
    try:
        with pytest.raises(StrategyError, match=r"do not have keras\.src.*Trainer\._gone, which"):
            tfaccel.strategy("one_device")
    finally:
        private_api_check._result.cache_clear()


def test_an_untested_release_is_a_warning(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(keras, "__version__", "3.99.0")
    private_api_check._result.cache_clear()
    try:
        private_api_check.check()
    finally:
        private_api_check._result.cache_clear()
    assert "Keras 3.99.0 is untested (tested: 3.8 to 3.15)" in caplog.text
