"""Peaks of small steps, worked out by hand."""

from __future__ import annotations

from collections.abc import Sequence

from tfaccel.planner.gradient_reduction import with_reduced_gradients
from tfaccel.planner.kernel_workspace import of_processor
from tfaccel.planner.liveness import Peak, order, peak
from tfaccel.planner.steps import Operation, Step, Value


def step(
    operations: Sequence[tuple[str, Sequence[int], Sequence[int]]],
    sizes: Sequence[int],
    results: Sequence[int] = (),
    gradients: dict[int, int] | None = None,
) -> Step:
    """A step whose values are vectors of bytes, and whose first value is its batch."""
    made = tuple(
        Operation(f"op{i}", kind, tuple(inputs), tuple(outputs), (), None, False)
        for i, (kind, inputs, outputs) in enumerate(operations)
    )
    values = tuple(Value((size,), (size,), 1) for size in sizes)
    return Step((1, 1), values, made, (0,), tuple(results), gradients or {}, 0, "")


def of(one: Step) -> Peak:
    return peak(one, order(one), one.sizes(1))


def test_a_value_lives_until_its_last_use() -> None:
    chain = step([("MatMul", [0], [1]), ("MatMul", [1], [2]), ("MatMul", [2], [3])], [5, 10, 20, 1])
    assert of(chain).total == 5 + 10 + 20


def test_what_is_used_later_stays() -> None:
    kept = [("MatMul", [0], [1]), ("MatMul", [1], [2]), ("MatMul", [1, 2], [3])]
    assert of(step(kept, [5, 10, 20, 40])).total == 5 + 10 + 20 + 40


def test_a_reshape_takes_no_memory_and_keeps_its_operand() -> None:
    aliased = [("MatMul", [0], [1]), ("Reshape", [1], [2]), ("MatMul", [2], [3])]
    assert of(step(aliased, [5, 10, 10, 40])).total == 5 + 10 + 40


def test_an_elementwise_result_takes_over_an_operand_that_is_not_needed_any_more() -> None:
    reused = [("MatMul", [0], [1]), ("Relu", [1], [2])]
    assert of(step(reused, [5, 10, 10])).total == 5 + 10
    needed = [*reused, ("MatMul", [1, 2], [3])]
    assert of(step(needed, [5, 10, 10, 1])).total == 5 + 10 + 10 + 1
    assert of(step([("Relu", [0], [1])], [5, 5])).total == 5 + 5, "the batch is not overwritten"


def test_scratch_counts_while_its_operation_runs() -> None:
    one = step([("MatMul", [0], [1]), ("MatMul", [1], [2])], [5, 10, 20])
    assert peak(one, order(one), one.sizes(1), scratch={0: 100}).total == 5 + 10 + 100


def test_patches_of_a_convolution() -> None:
    """Images of 10x10, patches of 3x3x2: as many as fit into 30 MB, and no more than there are."""
    operation = Operation("op", "Conv2DBackpropFilter", (0, 1, 2), (3,), (), None, True)
    shapes = [(8, 12, 12, 2), (4,), (8, 10, 10, 5), (3, 3, 2, 5)]
    values = tuple(Value(shape, shape, 4) for shape in shapes)
    one = Step((8, 8), values, (operation,), (0,), (3,), {}, 0, "")
    assert of_processor(one, shapes) == {0: 8 * (10 * 10) * (3 * 3 * 2) * 4}
    many = [(10_000, *shape[1:]) if len(shape) == 4 and i != 3 else shape
            for i, shape in enumerate(shapes)]  # fmt: skip
    unit = 4 * (100 * 18 + 100 * 5 + 18 * 5)
    assert of_processor(one, many) == {0: -(-(30 << 20) // unit) * 100 * 18 * 4}


def test_gradients_are_told_apart() -> None:
    one = step([("MatMul", [0], [1]), ("MatMul", [0], [2])], [5, 10, 20], [1, 2], {0: 2})
    assert of(one) == Peak(activations=15, gradients=20, workspace=0, operation="op1")


def test_replicas_hold_all_gradients_and_one_buffer_of_them() -> None:
    """Two gradients of 10 and 20, joined in a buffer of 30; then two sums beside that buffer."""
    one = step([("MatMul", [0], [1]), ("MatMul", [0], [2]), ("ResourceApplyAdam", [1], []),
                ("ResourceApplyAdam", [2], [])], [5, 10, 20], (), {0: 1, 1: 2})  # fmt: skip
    assert of(one).total == 5 + 10 + 20
    assert of(with_reduced_gradients(one, 2)).total == 5 + (10 + 20) + 30
