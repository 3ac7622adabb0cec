"""Which layout a variable gets: from rules, from the layers, and fully sharded."""

from __future__ import annotations

from typing import Any

import keras
import pytest

from tfaccel.distribute.model_parallel.layout_map import LayoutMap
from tfaccel.distribute.model_parallel.layout_planner import LayoutPlanner
from tfaccel.distribute.model_parallel.mesh import MeshShape
from tfaccel.errors import LayoutError


def planner(mesh: str, layouts: Any = "auto") -> LayoutPlanner:
    return LayoutPlanner(MeshShape.parse(mesh), layouts)


def planned(
    plans: LayoutPlanner, layer: keras.layers.Layer, *inputs: Any
) -> dict[str, tuple[str | None, ...]]:
    """How `layer` would be stored, by the last two parts of each path."""
    if not layer.built:
        layer(*inputs)
    found = {}
    owners = {id(v): inner for inner in layer._flatten_layers() for v in inner._trainable_variables}
    for variable in layer.variables:
        owner = owners.get(id(variable), layer)
        plan = plans.variable(variable.path, tuple(variable.shape), variable.trainable, [owner])
        found["/".join(variable.path.split("/")[-2:])] = plan.storage
    return found


def test_attention_is_split_over_heads() -> None:
    x = keras.Input((8, 16))
    layer = keras.layers.MultiHeadAttention(4, 4)
    layer.build(x.shape, x.shape)
    assert planned(planner("batch=2,model=2"), layer) == {
        "query/kernel": (None, "model", None),
        "query/bias": ("model", None),
        "key/kernel": (None, "model", None),
        "key/bias": ("model", None),
        "value/kernel": (None, "model", None),
        "value/bias": ("model", None),
        "attention_output/kernel": ("model", None, None),
        "attention_output/bias": (None,),
    }


def test_heads_of_keys_that_do_not_divide_stay_whole() -> None:
    x = keras.Input((8, 16))
    layer = keras.layers.GroupQueryAttention(4, 4, num_key_value_heads=2)
    layer.build(x.shape, x.shape)
    found = planned(planner("model=4"), layer)
    assert found["query/kernel"] == (None, "model", None)
    assert found["key/kernel"] == found["value/kernel"] == (None, None, None)
    assert found["attention_output/kernel"] == ("model", None, None)


def test_dense_layers_go_in_pairs() -> None:
    plans = planner("model=4")
    sizes = (12, 32, 16, 10)
    layers = [keras.layers.Dense(n) for n in sizes[1:]]
    for layer, n in zip(layers, sizes, strict=False):
        layer.build((None, n))
    kernels = [planned(plans, layer) for layer in layers]
    assert [list(k.values()) for k in kernels] == [
        [(None, "model"), ("model",)],
        [("model", None), (None,)],
        [(None, None), (None,)],  # ten classes do not divide by four
    ]


def test_a_gated_pair_has_two_columns() -> None:
    plans = planner("model=2")
    gate, up, down = (keras.layers.Dense(n, use_bias=False) for n in (32, 32, 8))
    for layer, n in ((gate, 8), (up, 8), (down, 32)):
        layer.build((None, n))
    found = [next(iter(planned(plans, layer).values())) for layer in (gate, up, down)]
    assert found == [(None, "model"), (None, "model"), ("model", None)]


def test_a_pair_does_not_go_over_two_models() -> None:
    plans = planner("model=2")
    first, second = (keras.layers.Dense(n, use_bias=False) for n in (32, 16))
    first.build((None, 8))
    second.build((None, 32))
    assert list(planned(plans, first).values()) == [(None, "model")]
    plans.end_model()
    assert list(planned(plans, second).values()) == [(None, "model")]


def test_a_layer_in_the_place_of_one_that_is_gone_has_a_layout_of_its_own() -> None:
    plans = planner("model=2")
    layer = object.__new__(keras.layers.Dense)  # with nothing in it, it is freed at once
    assert plans.variable("gone/kernel", (8, 32), True, [layer]).storage == (None, "model")
    number = id(layer)
    del layer
    layers = [object.__new__(keras.layers.Dense) for _ in range(64)]
    assert number in map(id, layers)
    for layer in layers:
        assert plans.variable("new/bias", (32,), True, [layer]).storage == (None,)


@pytest.mark.parametrize(
    ("vocabulary", "axes"), [(16, ("model", None)), (17, (None, "model")), (15, (None, "model"))]
)
def test_embeddings_are_split_over_the_vocabulary(vocabulary: int, axes: Any) -> None:
    layer = keras.layers.Embedding(vocabulary, 8)
    layer.build((None, 4))
    assert next(iter(planned(planner("model=2"), layer).values())) == axes


def test_all_else_is_replicated() -> None:
    plans = planner("batch=2,model=2")
    for layer, shape in (
        (keras.layers.Conv2D(8, 3), (None, 8, 8, 4)),
        (keras.layers.BatchNormalization(), (None, 8)),
        (keras.layers.LayerNormalization(), (None, 8)),
        (keras.layers.LSTM(8), (None, 4, 8)),
    ):
        layer.build(shape)
        assert not any(any(axes) for axes in planned(plans, layer).values())


def test_fully_sharded_takes_the_largest_dimension_that_divides() -> None:
    plans = planner("batch=4", "fully_sharded")
    plan = plans.variable("a", (8, 12), True, [])
    assert (plan.storage, plan.compute) == ((None, "batch"), (None, None))
    assert plans.variable("b", (4, 6), True, []).storage == ("batch", None)
    assert plans.variable("c", (3, 5), True, []).storage == (None, None)
    assert plans.variable("moving_mean", (8,), False, []).storage == (None,)


def test_fully_sharded_goes_with_the_model_axis() -> None:
    plans = planner("batch=2,model=2", "fully_sharded")
    layer = keras.layers.Dense(32, name="up")
    layer.build((None, 16))
    assert planned(plans, layer) == {"up/kernel": ("batch", "model"), "up/bias": ("model",)}


def test_rules_may_be_fully_sharded_too() -> None:
    plans = planner("batch=2,model=2", LayoutMap({"k": (None, "model")}, fully_sharded=True))
    plan = plans.variable("k", (4, 6), True, [])
    assert (plan.storage, plan.compute) == (("batch", "model"), (None, "model"))
    assert plans.variable("other", (4, 6), True, []).storage == (None, "batch")


def test_slots_follow_their_variable() -> None:
    plans = planner("batch=2,model=2", "fully_sharded")
    of = plans.variable("k", (4, 6), True, [])
    assert plans.slot((4, 6), (4, 6), of).storage == of.storage
    assert plans.slot((4,), (4, 6), of).storage == ("batch",)  # a factor of Adafactor
    assert plans.slot((), (4, 6), of).storage == ()


def test_a_filter_is_gathered_to_convolve() -> None:
    plans = planner("model=2", {".*kernel": (None, None, None, "model")})
    layer = keras.layers.Conv2D(8, 3)
    plan = plans.variable("conv/kernel", (3, 3, 4, 8), True, [layer])
    assert plan.storage == (None, None, None, "model")
    assert plan.compute == (None, None, None, None)


def test_a_rule_over_the_batch_axis_is_gathered_to_compute() -> None:
    plans = planner("batch=2,model=2", {".*kernel": ("batch", "model")})
    plan = plans.variable("dense/kernel", (4, 6), True, [keras.layers.Dense(6)])
    assert (plan.storage, plan.compute) == (("batch", "model"), (None, "model"))
    assert plan.reason == "rule '.*kernel', gathered to compute"
    slot = plans.slot((4, 6), (4, 6), plan)
    assert (slot.storage, slot.compute) == (plan.storage, plan.compute)


@pytest.mark.parametrize(
    ("layouts", "says"),
    [
        ({"k": ("rows", None)}, r"rule 'k' = \('rows', None\) names axis 'rows' and the mesh is "
         "batch=2,model=4; expected one of batch, model or None"),
        ({"k": ("model", "model")}, "uses one axis for two dimensions"),
        ({"k": (None, None, "model")}, r"variable 'k' of shape \(8, 6\) has 2 dimensions and its "
         r"rule 'k' = \(None, None, 'model'\) has 3 \(mesh batch=2,model=4\)"),
        ({"k": (None, "model")}, r"variable 'k' of shape \(8, 6\) does not divide by rule 'k' = "
         r"\(None, 'model'\) on mesh batch=2,model=4: 6 over model=4"),
        ({"k.?": ("model",), "[kq]": ("batch",)}, r"'k' of shape \(8, 6\) matches 2 layout rules, "
         r"'k\.\?' and '\[kq\]' \(mesh batch=2,model=4\); expected at most one"),
        ("fully_shraded", "layouts is 'fully_shraded'; expected 'auto', 'fully_sharded'"),
    ],
)  # fmt: skip
def test_a_bad_layout_gets_one_line(layouts: Any, says: str) -> None:
    def ask() -> None:
        planner("batch=2,model=4", layouts).variable("k", (8, 6), True, [])

    with pytest.raises(LayoutError, match=says) as error:
        ask()
    assert "\n" not in str(error.value)


def test_a_rule_that_matches_nothing_is_named() -> None:
    plans = planner("model=2", {".*kernel": (None, "model"), "dense_9/.*": ("model",)})
    plans.variable("dense/kernel", (4, 4), True, [])
    says = r"rule 'dense_9/\.\*' \(mesh model=2\) matches no variable"
    with pytest.raises(LayoutError, match=says):
        plans.check_all_used()


def test_fully_sharded_needs_a_batch_axis() -> None:
    with pytest.raises(LayoutError, match="the mesh is model=4; expected an axis called 'batch'"):
        planner("model=4", "fully_sharded")


def test_a_short_rule_leaves_the_rest_whole() -> None:
    assert planner("model=2", {"k": ("model",)}).variable("k", (4, 6), True, []).storage == (
        "model",
        None,
    )
