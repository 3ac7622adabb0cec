"""The peak memory of a step: a walk over its operations that tracks live buffers.

A tensor lives from the operation that creates it to the last one that uses it. Operations run as in
TensorFlow's executor on one thread: in the order in which their inputs become ready. Some make no
buffer of their own: a reshape, or an addition whose operand has no other use.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType

from tfaccel.planner.steps import Step

# Results that are their first operand's memory.
ALIASES = frozenset(
    {
        *("Identity", "Reshape", "Squeeze", "ExpandDims", "StopGradient", "Snapshot"),
        *("PreventGradient", "CheckNumerics", "EnsureShape", "Bitcast", "ReadVariableOp"),
    }
)
# Results that take over an operand's buffer, where that has the same size and no other use.
IN_PLACE = frozenset(
    {
        *("Add", "AddV2", "AddN", "Sub", "Mul", "RealDiv", "Div", "DivNoNan", "Maximum", "Minimum"),
        *("Pow", "SquaredDifference", "FloorDiv", "FloorMod", "MulNoNan", "Xdivy", "Xlogy"),
        *("Neg", "Abs", "Exp", "Expm1", "Log", "Log1p", "Sqrt", "Rsqrt", "Square", "Reciprocal"),
        *("Tanh", "Sigmoid", "Erf", "Sin", "Cos", "Sign", "Floor", "Ceil", "Round", "Softplus"),
        *("Relu", "Relu6", "Elu", "Selu", "LeakyRelu", "Softsign", "Softmax", "LogSoftmax"),
        *("TanhGrad", "SigmoidGrad", "RsqrtGrad", "SqrtGrad", "ReciprocalGrad", "ReluGrad"),
        *("Relu6Grad", "EluGrad", "SeluGrad", "LeakyReluGrad", "SoftplusGrad", "SoftsignGrad"),
        *("BiasAdd", "LogicalAnd", "LogicalOr", "LogicalNot", "SelectV2", "Select", "ClipByValue"),
        *("AssignVariableOp", "MatrixBandPart"),
    }
)


@dataclass(frozen=True)
class Peak:
    """Live memory at the worst moment of a step, in bytes of one device.

    Attributes:
        activations: the batch, and forward results.
        gradients: of variables, those that are alive then.
        workspace: everything else.
        operation: the one that runs at that moment.
    """

    activations: int
    gradients: int
    workspace: int
    operation: str

    @property
    def total(self) -> int:
        """The sum."""
        return self.activations + self.gradients + self.workspace


def order(step: Step) -> list[int]:
    """The operations in the order in which they run."""
    maker = {value: i for i, op in enumerate(step.operations) for value in op.outputs}
    waits = [0] * len(step.operations)
    followers: list[list[int]] = [[] for _ in step.operations]
    for i, op in enumerate(step.operations):
        for before in [*(maker[v] for v in op.inputs if v in maker), *op.after]:
            followers[before].append(i)
            waits[i] += 1
    ready = deque(i for i, count in enumerate(waits) if not count)
    found = []
    while ready:
        i = ready.popleft()
        found.append(i)
        for follower in followers[i]:
            waits[follower] -= 1
            if not waits[follower]:
                ready.append(follower)
    return found


@dataclass(frozen=True)
class Walk:
    """A step, and the lifetime of each of its buffers.

    Attributes:
        names: of the operations.
        live: live bytes while each operation runs, by its index, with `scratch`.
        scratch: of those, the operation's needs besides operands and results.
        turn: when each operation runs, by its index.
        buffers: bytes of each, the turns at which it begins and ends, and which kind it is.
    """

    names: tuple[str, ...]
    live: tuple[int, ...]
    scratch: Mapping[int, int]
    turn: Sequence[int]
    buffers: tuple[tuple[int, int, int, str], ...]

    def peak(self) -> Peak:
        """The worst moment."""
        if not self.live:
            return Peak(sum(size for size, *_ in self.buffers), 0, 0, "")
        return self.at(max(range(len(self.live)), key=lambda i: (self.live[i], -self.turn[i])))

    def at(self, operation: int) -> Peak:
        """The moment at which an operation runs."""
        turn = self.turn[operation]
        parts = {"activations": 0, "gradients": 0, "workspace": self.scratch.get(operation, 0)}
        for size, begin, end, kind in self.buffers:
            if begin <= turn <= end:
                parts[kind] += size
        return Peak(**parts, operation=self.names[operation])


def peak(
    step: Step,
    sequence: Sequence[int],
    sizes: Sequence[int],
    gathered: Mapping[int, int] = MappingProxyType({}),
    scratch: Mapping[int, int] = MappingProxyType({}),
) -> Peak:
    """The worst moment of `walk`, which has the same arguments."""
    return walk(step, sequence, sizes, gathered, scratch).peak()


def walk(
    step: Step,
    sequence: Sequence[int],
    sizes: Sequence[int],
    gathered: Mapping[int, int] = MappingProxyType({}),
    scratch: Mapping[int, int] = MappingProxyType({}),
) -> Walk:
    """Walks over a step.

    Args:
        step: what runs.
        sequence: as from `order`.
        sizes: bytes of each value on one device.
        gathered: for operations that read a variable, the bytes of the result, where a device
            stores a part of it.
        scratch: bytes that an operation needs while it runs, besides its operands and results.
    """
    sizes = list(sizes)
    root = list(range(len(step.values)))
    uses = [0] * len(step.values)  # of a root: operations to come that take it
    backward = [False] * len(step.values)
    gradient = {*step.gradients.values(), *step.copies}
    arguments = {*step.arguments}
    forever = {*arguments, *step.results}
    for op in step.operations:
        for value in op.inputs:
            uses[value] += 1
    held = [0] * len(step.values)
    live = sum(sizes[value] for value in step.arguments)
    begins: dict[int, int] = dict.fromkeys(step.arguments, 0)
    ends: dict[int, int] = {}
    for value in step.arguments:
        held[value] = sizes[value]
    levels, turns = [0] * len(step.operations), [0] * len(step.operations)
    for turn, i in enumerate(sequence):
        op = step.operations[i]
        if i in gathered:
            for output in op.outputs:
                sizes[output] = held[output] = gathered[i]
                live += gathered[i]
                begins[output] = turn
        elif op.kind in ALIASES and op.inputs and op.variable is None:
            for k, output in enumerate(op.outputs):
                source = root[op.inputs[min(k, len(op.inputs) - 1)]]
                root[output] = source
                uses[source] += uses[output] + (output in forever)
                if output in gradient:
                    gradient.add(source)
        elif op.variable is None or op.kind not in ALIASES:
            for output in op.outputs:
                backward[output] = op.backward
                if sizes[output] and op.kind in IN_PLACE:
                    reused = _reusable(op.inputs, sizes[output], root, uses, held, forever)
                    if reused is not None:
                        root[output] = reused
                        uses[reused] += uses[output] + (output in forever)
                        backward[reused] = op.backward
                        if output in gradient:
                            gradient.add(reused)
                        continue
                if output not in arguments:
                    held[output] = sizes[output]
                    live += held[output]
                    begins[output] = turn
                uses[output] += output in forever
        levels[i], turns[i] = live + scratch.get(i, 0), turn
        for value in op.inputs:
            uses[root[value]] -= 1
        for value in (*op.inputs, *op.outputs):
            source = root[value]
            if uses[source] <= 0 and held[source] and source not in arguments:
                live -= held[source]
                held[source] = 0
                ends[source] = turn
    last = len(sequence)
    buffers = tuple(
        (sizes[v], begin, ends.get(v, last), _kind(v, gradient, backward))
        for v, begin in begins.items()
        if sizes[v]
    )
    names = tuple(op.name for op in step.operations)
    return Walk(names, tuple(levels), scratch, turns, buffers)


def _kind(value: int, gradient: set[int], backward: Sequence[bool]) -> str:
    return "gradients" if value in gradient else "workspace" if backward[value] else "activations"


def _reusable(
    inputs: Sequence[int],
    size: int,
    root: Sequence[int],
    uses: Sequence[int],
    held: Sequence[int],
    forever: set[int],
) -> int | None:
    """The buffer of an operand without further uses, or None."""
    for value in inputs:
        source = root[value]
        last = uses[source] == inputs.count(value)
        if held[source] == size and last and source not in forever:
            return source
    return None
