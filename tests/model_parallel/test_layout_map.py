"""Rules from paths to axes: what Keras's own LayoutMap says, ours says."""

from __future__ import annotations

from typing import Any

import keras
import numpy as np
import pytest

from tfaccel.distribute.model_parallel.layout_map import LayoutMap
from tfaccel.errors import LayoutError

RULES = {
    ".*dense.*/kernel": (None, "model"),
    ".*dense.*/bias": ("model",),
    "mlp/dense_7/kernel": ("model", None),
    "conv": (None, None, None, "model"),
}


def keras_map() -> Any:
    mesh = keras.distribution.DeviceMesh((1,), ["model"], np.array(["cpu:0"]))
    made = keras.distribution.LayoutMap(mesh)
    for rule, axes in RULES.items():
        made[rule] = axes
    return made


@pytest.mark.parametrize("given", [RULES, LayoutMap(RULES), "keras"])
def test_every_kind_of_map_is_taken(given: Any) -> None:
    given = keras_map() if given == "keras" else given
    assert dict(LayoutMap.of(given)._rules) == RULES


@pytest.mark.parametrize(
    "path",
    [
        "mlp/dense/kernel",
        "mlp/dense_7/kernel",
        "mlp/dense/bias",
        "mlp/dense/bias_more",
        "a/conv/kernel",
        "conv",
        "norm/gamma",
    ],
)
def test_answers_as_keras_does(path: str) -> None:
    theirs = keras_map()[path]
    want = None if theirs is None else tuple(theirs.axes)
    assert LayoutMap(RULES)[path] == LayoutMap(RULES).get(path) == want


def test_two_rules_for_one_variable_are_both_named() -> None:
    rules = LayoutMap({".*kernel": (None, "model"), "dense/.*": ("model", None)})
    with pytest.raises(LayoutError, match=r"'dense/kernel' matches 2 .* '\.\*kernel' and 'dense/"):
        rules["dense/kernel"]
    theirs = keras_map()
    theirs["mlp/dense.*"] = (None,)
    with pytest.raises(ValueError, match="matches multiple"):
        theirs["mlp/dense/kernel"]


@pytest.mark.parametrize(
    ("pattern", "axes", "says"),
    [
        ("dense", "model", "is 'model'; expected a tuple"),
        ("dense", [None, "model"], r"is \[None, 'model'\]; expected a tuple"),
        ("dense", (1, None), r"is \(1, None\); expected a tuple"),
        ("dense", (("x", "y"), None), r"\(\('x', 'y'\), None\).* one dimension over one axis"),
        ("de(nse", (None,), "'de\\(nse' is not a regular expression"),
    ],
)
def test_a_bad_rule_gets_one_line(pattern: str, axes: Any, says: str) -> None:
    with pytest.raises(LayoutError, match=says) as error:
        LayoutMap({pattern: axes})
    assert "\n" not in str(error.value)


def test_a_rule_stands_once() -> None:
    rules = LayoutMap(RULES)
    with pytest.raises(LayoutError, match="'conv' is there already"):
        rules["conv"] = (None,)
    del rules["conv"]
    rules["conv"] = ("model",)
    assert rules["conv"] == ("model",)
    assert len(rules) == 4


def test_is_a_dict_of_its_rules() -> None:
    rules = LayoutMap(RULES)
    assert list(rules) == list(keras_map()) == list(RULES)
    assert "mlp/dense/bias" in rules
    assert "norm/gamma" not in rules
    assert rules.get("norm/gamma", ()) == ()
    assert rules.pop("norm/gamma", None) is None
    assert rules.pop("mlp/dense/bias", None) is None  # of a rule that matches it
    assert rules.pop("conv") == RULES["conv"]
    for missing in (rules.pop, rules.__delitem__):
        with pytest.raises(KeyError):
            missing("conv")
