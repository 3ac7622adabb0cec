"""Replicas: the gradients of a step are summed over all of them before any variable changes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from tfaccel.planner.steps import Operation, Step, Value


def with_reduced_gradients(step: Step, replicas: int) -> Step:
    """A step in which its gradients are summed over replicas.

    TensorFlow's collectives put gradients of one type into one buffer, sum that, and take it apart
    again. The values of a sparse gradient, an embedding's rows, are gathered from all replicas.

    Args:
        step: of one replica.
        replicas: more than one.
    """
    values, operations = list(step.values), list(step.operations)
    dense: dict[int, list[int]] = {}
    renamed: dict[int, int] = {}
    read = _variables_read(step)
    for variable, value in dict(step.gradients).items():
        if values[value].more is None:
            continue
        width = values[value].width
        is_dense = read.get(variable) in (None, values[value].more)
        dense.setdefault(width if is_dense else -value - 1, []).append(value)
    makers = {v: i for i, op in enumerate(operations) for v in op.outputs}
    added: list[Operation] = []
    for key, group in dense.items():
        group = list(dict.fromkeys(v for v in group if v in makers))
        if not group:
            continue
        many = replicas if key < 0 else 1
        buffer = len(values)
        values.append(_joined([values[v] for v in group], many))
        name = f"exchange_{buffer}"
        added.append(Operation(name, "ConcatV2", tuple(group), (buffer,), (), None, True))
        outputs = []
        for value in group:
            renamed[value] = len(values)
            outputs.append(len(values))
            values.append(replace(values[value]) if many == 1 else _joined([values[value]], many))
        added.append(Operation(f"exchanged_{buffer}", "SplitV", (buffer,), tuple(outputs), (),
                               None, True))  # fmt: skip
    changed = [
        op if op.backward else replace(op, inputs=_mapped(op.inputs, renamed)) for op in operations
    ]
    gradients = {variable: renamed.get(v, v) for variable, v in step.gradients.items()}
    copies = [v for op in added for v in (*op.inputs, *op.outputs)]
    return replace(
        step, values=tuple(values), operations=(*changed, *added), gradients=gradients,
        copies=tuple(dict.fromkeys(copies)),
    )  # fmt: skip


def _variables_read(step: Step) -> dict[int, tuple[int, ...] | None]:
    """The shape of each variable that the step reads whole."""
    return {
        op.variable: step.values[op.outputs[0]].more
        for op in step.operations
        if op.kind == "ReadVariableOp" and op.variable is not None
    }


def _joined(parts: Sequence[Value], many: int) -> Value:
    def elements(shapes: Sequence[tuple[int, ...] | None]) -> tuple[int, ...]:
        total = 0
        for shape in shapes:
            count = 1
            for size in shape or ():
                count *= size
            total += count
        return (total * many,)

    return Value(elements([p.fewer for p in parts]), elements([p.more for p in parts]),
                 parts[0].width)  # fmt: skip


def _mapped(inputs: Sequence[int], renamed: dict[int, int]) -> tuple[int, ...]:
    return tuple(renamed.get(value, value) for value in inputs)
