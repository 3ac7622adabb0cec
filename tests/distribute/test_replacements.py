"""Attributes that are replaced for a while, and that all such replacements go one way."""

from __future__ import annotations

import ast
import threading
import types
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import keras
import pytest
import tensorflow as tf

from tfaccel.distribute.mixins import mix_in
from tfaccel.distribute.replacements import Replacements, replaced

ROOT = Path(__file__).parents[2]


class Plain:
    shared = "of the class"

    def __init__(self) -> None:
        self.own = "of the instance"

    def method(self) -> str:
        return "plain"

    @staticmethod
    def static() -> str:
        return "static"


class Slotted:
    __slots__ = ("empty", "full")

    def __init__(self) -> None:
        self.full = 1


class WithProperties:
    def __init__(self) -> None:
        self.held = [1]

    @property
    def settable(self) -> int:
        return self.held[-1]

    @settable.setter
    def settable(self, value: int) -> None:
        self.held.append(value)

    @property
    def fixed(self) -> int:
        return 1


def test_an_attribute_of_an_instance_is_set_back() -> None:
    owner = Plain()
    before = owner.own
    with replaced(owner, "own", "other"):
        assert owner.own == "other"
    assert owner.own is before


def test_what_was_none_is_none_again() -> None:
    owner = Plain()
    owner.own = None  # type: ignore[assignment]
    with replaced(owner, "own", "other"):
        pass
    assert vars(owner) == {"own": None}


@pytest.mark.parametrize("name", ["shared", "method", "static", "absent"])
def test_what_an_instance_did_not_hold_is_deleted_again(name: str) -> None:
    owner = Plain()
    with replaced(owner, name, "other"):
        assert getattr(owner, name) == "other"
    assert vars(owner) == {"own": "of the instance"}
    assert hasattr(owner, name) is (name != "absent")
    assert owner.method() == "plain"


def test_it_can_be_undone_without_a_with_statement() -> None:
    owner = Plain()
    replacements = Replacements()
    replacements.replace(owner, "own", 1)
    assert owner.own == 1
    replacements.close()
    assert owner.own == "of the instance"


def test_what_is_deleted_inside_is_there_again_where_it_was_before() -> None:
    owner = Plain()
    with replaced(owner, "own", "other"), replaced(owner, "absent", "other"):
        del owner.own, owner.absent  # type: ignore[attr-defined]
    assert vars(owner) == {"own": "of the instance"}


def test_an_error_puts_everything_back() -> None:
    owner = Plain()

    def fails() -> None:
        with Replacements() as replacements:
            replacements.replace(owner, "own", "other")
            replacements.replace(owner, "method", None)
            assert vars(owner) == {"own": "other", "method": None}
            raise KeyError

    with pytest.raises(KeyError):
        fails()
    assert vars(owner) == {"own": "of the instance"}


def test_it_is_undone_in_reverse_order() -> None:
    owner, undone = WithProperties(), []

    class Recording:
        def __setattr__(self, name: str, value: Any) -> None:
            raise AssertionError("set past its own __setattr__")

    recording = Recording()
    with Replacements() as replacements:
        replacements.callback(lambda: undone.append((owner.settable, vars(recording).copy())))
        replacements.replace(owner, "settable", 2)
        replacements.callback(lambda: undone.append((owner.settable, vars(recording).copy())))
        replacements.replace(recording, "one", 1)
        replacements.replace(owner, "settable", 3)
    assert undone == [(2, {}), (1, {})]
    assert owner.held == [1, 2, 3, 2, 1]


def test_the_same_attribute_twice() -> None:
    owner = Plain()
    with Replacements() as replacements:
        replacements.replace(owner, "method", lambda: "first")
        first = owner.method
        replacements.replace(owner, "method", lambda: first() + ", second")
        assert owner.method() == "first, second"
    assert owner.method() == "plain"
    assert "method" not in vars(owner)


def test_nesting() -> None:
    owner = Plain()
    with replaced(owner, "own", 1):
        with replaced(owner, "own", 2):
            assert owner.own == 2
        assert owner.own == 1
        with replaced(owner, "shared", 3):
            pass
        assert "shared" not in vars(owner)
    assert owner.own == "of the instance"


def test_one_that_cannot_be_undone_does_not_keep_the_others() -> None:
    owner, failing = Plain(), WithProperties()
    replacements = Replacements()
    replacements.replace(owner, "own", 1)
    replacements.replace(failing, "settable", 2)
    failing.held = None  # type: ignore[assignment]  # so that setting it back fails
    replacements.replace(owner, "shared", 3)
    with pytest.raises(AttributeError):
        replacements.close()
    assert vars(owner) == {"own": "of the instance"}


def test_slots() -> None:
    owner = Slotted()
    with replaced(owner, "full", 2), replaced(owner, "empty", 3):
        assert (owner.full, owner.empty) == (2, 3)
    assert owner.full == 1
    assert not hasattr(owner, "empty")


def test_properties() -> None:
    owner = WithProperties()
    with replaced(owner, "settable", 2):
        assert owner.settable == 2
    assert owner.held == [1, 2, 1], "a property is set back by its own setter"
    assert vars(owner) == {"held": [1, 2, 1]}


def test_what_cannot_be_set_is_an_error_and_nothing_is_replaced() -> None:
    owner = WithProperties()
    with pytest.raises(AttributeError), replaced(owner, "fixed", 2):
        raise AssertionError("never here")
    assert owner.fixed == 1
    with pytest.raises(AttributeError), replaced(Slotted(), "absent", 2):
        raise AssertionError("never here")


def test_classes_keep_their_descriptors() -> None:
    class Child(Plain):
        pass

    static = vars(Plain)["static"]
    with replaced(Plain, "static", staticmethod(lambda: "other")), replaced(Child, "shared", 1):
        assert (Plain.static(), Child().static()) == ("other", "other")
        assert (Plain.shared, Child.shared) == ("of the class", 1)
    assert vars(Plain)["static"] is static
    assert "shared" not in vars(Child)


def test_modules() -> None:
    module: Any = types.ModuleType("some")
    module.divide = 1
    with replaced(module, "divide", 2), replaced(module, "other", 3):
        assert (module.divide, module.other) == (2, 3)
    assert module.divide == 1
    assert not hasattr(module, "other")


def test_a_thread_replaces_its_own_state() -> None:
    class State(threading.local):
        phase = "host"

    state, seen = State(), []
    with replaced(state, "phase", "step"):
        other = threading.Thread(target=lambda: seen.append(state.phase))
        other.start()
        other.join()
        seen.append(state.phase)
    assert seen == ["host", "step"]
    assert state.phase == "host"
    assert vars(state) == {}


def test_a_replacement_is_no_part_of_a_layer() -> None:
    layer = keras.layers.Dense(1)
    layer.build((None, 1))
    with replaced(layer, "held", keras.Variable(0.0)), replaced(layer, "bias", tf.constant(1.0)):
        assert [v.name for v in layer.weights] == ["kernel", "bias"]
        assert layer.bias == 1.0
    assert layer.bias is layer.weights[1]
    assert not hasattr(layer, "held")


def test_an_instance_that_has_been_adapted() -> None:
    class Louder:
        def method(self) -> str:
            return super().method().upper()  # type: ignore[misc]

    owner = Plain()
    mix_in(owner, Louder)
    with replaced(owner, "method", lambda: "replaced"):
        assert owner.method() == "replaced"
    assert owner.method() == "PLAIN"


# --- Nobody else does it ----------------------------------------------------------------------


def sources() -> Iterator[tuple[str, ast.Module]]:
    for path in sorted((ROOT / "tfaccel").rglob("*.py")):
        yield path.relative_to(ROOT).as_posix(), ast.parse(path.read_text("utf-8"))


def put_back(block: list[ast.stmt]) -> Iterator[str]:
    """The attributes of others that statements set or delete."""
    for node in (node for statement in block for node in ast.walk(statement)):
        if isinstance(node, ast.Attribute) and not isinstance(node.ctx, ast.Load):
            if ast.unparse(node.value) != "self":
                yield ast.unparse(node)
        elif isinstance(node, ast.Call):
            name = ast.unparse(node.func).rpartition(".")[2]
            if name in ("setattr", "delattr", "__setattr__", "__delattr__"):
                yield ast.unparse(node)


def test_attributes_are_put_back_by_one_module() -> None:
    found = {
        (name, text)
        for name, tree in sources()
        for node in ast.walk(tree)
        if isinstance(node, ast.Try)
        for text in put_back(node.finalbody)
    }
    assert found == set()


def test_classes_of_instances_are_set_by_one_module() -> None:
    found = {
        name
        for name, tree in sources()
        for node in ast.walk(tree)
        if (isinstance(node, ast.Attribute) and not isinstance(node.ctx, ast.Load))
        and node.attr == "__class__"
    }
    found |= {
        name
        for name, tree in sources()
        for node in ast.walk(tree)
        if isinstance(node, ast.Call) and ast.unparse(node.func).endswith("__set__")
    }
    assert found == {"tfaccel/distribute/mixins.py"}


def test_the_scan_finds_what_it_scans_for() -> None:
    tree = ast.parse(
        "try: pass\nfinally:\n x.y = 1\n del x.z\n self.q = 1\n object.__setattr__(x, 'w', 1)"
    )
    (block,) = (node.finalbody for node in ast.walk(tree) if isinstance(node, ast.Try))
    assert list(put_back(block)) == ["x.y", "x.z", "object.__setattr__(x, 'w', 1)"]
