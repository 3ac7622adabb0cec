"""Operations of single kinds, by hand, and of unknown shapes."""

from __future__ import annotations

from typing import Any

import keras
import pytest

import tfaccel
from tfaccel.planner.operation_costs import flops
from tfaccel.planner.steps import Operation


def of(kind: str, shapes: list[Any], **attributes: Any) -> int:
    """An operation's, of which the last shape is the result's."""
    last = len(shapes) - 1
    return flops(
        Operation("", kind, tuple(range(last)), (last,), (), None, False, attributes), shapes
    )


def test_products() -> None:
    assert of("MatMul", [(2, 3), (3, 5), (2, 5)]) == 2 * 2 * 3 * 5
    assert of("MatMul", [(3, 2), (3, 5), (2, 5)], transpose_a=True) == 2 * 2 * 3 * 5
    assert of("Einsum", [(2, 3), (3, 5), (2, 5)], equation="ab,bc->ac") == 2 * 2 * 3 * 5
    assert of("Conv2D", [(1, 4, 4, 3), (3, 3, 3, 8), (1, 2, 2, 8)]) == 2 * 2 * 2 * 8 * 27


@pytest.mark.parametrize(
    ("kind", "attributes"),
    [
        ("MatMul", {}), ("BatchMatMulV2", {}), ("Einsum", {"equation": "ab,bc->ac"}),
        ("Conv2D", {}), ("Conv2DBackpropFilter", {}), ("DepthwiseConv2dNativeBackpropInput", {}),
    ],
)  # fmt: skip
def test_of_unknown_shape_they_count_nothing(kind: str, attributes: dict[str, Any]) -> None:
    for shapes in ([None, None, None], [None, (3, 5), (2, 5)], [(2, 3), None, None]):
        assert of(kind, shapes, **attributes) == 0


def test_a_product_of_unknown_rows_is_named() -> None:
    """How many rows are selected depends on their values."""

    class Selected(keras.layers.Layer):  # type: ignore[misc]
        def call(self, x: Any) -> Any:
            import tensorflow as tf

            kept = tf.boolean_mask(x, x[:, 0] > 0)
            return x + tf.reduce_sum(kept @ tf.ones((8, 8)))

    def build() -> keras.Model:
        return keras.Sequential([keras.Input((8,)), Selected(), keras.layers.Dense(2)])

    found = tfaccel.plan(build, devices="2xT4", batch_size=8, precision="float32")
    assert found.recommended is None
    assert all(one.peak is None and "the shape of what" in one.why_not for one in found.estimates)
