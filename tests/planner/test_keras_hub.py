"""Each family of keras-hub's backbones has a plan, or one line of refusal."""

from __future__ import annotations

import pytest

import tfaccel
from tests.planner.hub_families import FAMILIES
from tfaccel.errors import TfaccelError

pytest.importorskip("keras_hub", reason="keras-hub has the backbones: pip install keras-hub")

CHEAP = ("Llama", "DINOV2")


def test_all_are_there() -> None:
    """But the two that others inherit from; a later keras-hub may have more."""
    import keras_hub

    names = {n for n in dir(keras_hub.models) if n.endswith("Backbone")}
    assert {f"{name}Backbone" for name in FAMILIES} <= names
    assert len(FAMILIES) == 77


@pytest.mark.parametrize(
    "name",
    [n if n in CHEAP else pytest.param(n, marks=pytest.mark.exhaustive) for n in FAMILIES],
)
def test_it_has_a_plan_or_a_line_of_refusal(name: str) -> None:
    """Its parameters are counted, and memory and operations but for those of a loop."""
    family = FAMILIES[name]
    if family.refused:
        with pytest.raises(TfaccelError, match=family.refused) as error:
            tfaccel.plan(family.build, "2xT4", 8, precision="float32")
        assert "\n" not in str(error.value)
        return
    weights = sum(w.numpy().nbytes for w in family.build().weights)
    found = tfaccel.plan(
        family.build, "2xT4", 8, precision="float32", input_shape=family.shape
    ).estimates
    assert len(found) == 4
    assert found[0].parameters == weights
    for one in found:
        if family.uncounted:
            assert family.uncounted in one.why_not
            continue
        assert one.peak is not None, one.why_not
        assert one.peak > one.bytes_between_steps > 0
        assert one.flops
        assert one.time is not None
