"""Results that XLA computes again in their users, against steps made by hand."""

from __future__ import annotations

from tfaccel.planner.liveness import order, peak
from tfaccel.planner.steps import Operation, Step, Value
from tfaccel.planner.tpu_fusion import fused

WIDE = 64  # elements of 4 bytes


def step(*operations: tuple[str, tuple[int, ...]], gradients: tuple[int, ...] = ()) -> Step:
    """Operations of a kind on values by number; value 0 is the batch, and each makes one more."""
    shape = (WIDE,)
    made = tuple(
        Operation(f"{kind}_{i}", kind, inputs, (i + 1,), (), None, False)
        for i, (kind, inputs) in enumerate(operations)
    )
    values = tuple(Value(shape, shape, 4) for _ in range(len(made) + 1))
    return Step((WIDE, WIDE), values, made, (0,), (), dict(enumerate(gradients)), 0, "")


def stored(given: Step) -> list[int]:
    """The values that take memory."""
    sizes = fused(given, given.sizes(WIDE))[1]
    return [value for value, size in enumerate(sizes) if size]


def test_an_activation_is_computed_again_from_what_it_was_computed_from() -> None:
    """Products 1 and 3 are stored; the activation between them is not, forward or backward."""
    made = step(("MatMul", (0,)), ("Relu", (1,)), ("MatMul", (2,)), ("ReluGrad", (3, 2)),
                ("MatMul", (4,)))  # fmt: skip
    assert stored(made) == [0, 1, 3, 5]
    rewritten = fused(made, made.sizes(WIDE))[0].operations
    assert rewritten[2].inputs == (1,)
    assert rewritten[4].inputs == (3, 1)


def test_an_expensive_result_with_two_users_is_stored() -> None:
    assert 2 in stored(step(("MatMul", (0,)), ("Exp", (1,)), ("MatMul", (2,)), ("Mul", (3, 2))))
    assert 2 not in stored(step(("MatMul", (0,)), ("Exp", (1,)), ("MatMul", (2,))))


def test_a_sum_of_two_large_operands_with_two_users_is_stored() -> None:
    made = step(("MatMul", (0,)), ("AddV2", (0, 1)), ("MatMul", (2,)), ("AddV2", (2, 3)),
                ("MatMul", (4,)))  # fmt: skip
    assert stored(made) == [0, 1, 2, 3, 5]


def test_what_an_operation_takes_that_fuses_nothing_is_stored() -> None:
    assert 2 in stored(step(("MatMul", (0,)), ("Relu", (1,)), ("MaxPool", (2,))))
    assert 2 in stored(step(("MatMul", (0,)), ("Relu", (1,)), ("Reshape", (2,)), ("Sort", (3,))))


def test_a_gradient_of_a_variable_is_stored() -> None:
    assert 2 in stored(step(("MatMul", (0,)), ("Mul", (1,)), ("AssignVariableOp", (2,)),
                            gradients=(2,)))  # fmt: skip


def test_the_peak_holds_what_fused_operations_take() -> None:
    """Of a chain of four activations only the first product lives to the end."""
    made = step(("MatMul", (0,)), ("Relu", (1,)), ("Neg", (2,)), ("Abs", (3,)), ("MatMul", (4,)))
    rewritten, sizes = fused(made, made.sizes(WIDE))
    assert peak(rewritten, order(rewritten), sizes).total == 3 * 4 * WIDE
