"""The cost of one candidate: device memory, bytes on the wire, operations, step time."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import numpy as np

from tfaccel.distribute.model_parallel.layout_planner import LayoutPlanner, VariablePlan
from tfaccel.planner import costs, liveness, sharding_propagation, tpu_fusion
from tfaccel.planner import kernel_workspace as kernels
from tfaccel.planner.candidates import Candidate
from tfaccel.planner.device_catalogue import Machines
from tfaccel.planner.models import Models
from tfaccel.planner.state import Item, State, parts
from tfaccel.planner.step_counts import Figures, extended
from tfaccel.planner.step_work import Array, Work
from tfaccel.planner.steps import Step
from tfaccel.planner.variants import Sized, Variant


@dataclass(frozen=True)
class Time:
    """Seconds of a step at the rates of the catalogue, which a program never quite reaches.

    Attributes:
        compute: of compute-bound operations.
        memory: of memory-bound operations.
        network: of communication, without overlap.
    """

    compute: float
    memory: float
    network: float

    @property
    def total(self) -> float:
        """The sum."""
        return self.compute + self.memory + self.network

    @property
    def bound(self) -> str:
        """The largest part."""
        named = {"compute": self.compute, "memory": self.memory, "network": self.network}
        return max(named, key=lambda name: named[name])


@dataclass(frozen=True)
class Estimate:
    """A candidate with its cost. All bytes are of one device, the fullest.

    Attributes:
        candidate: the one estimated.
        rows: of a step on one device.
        parameters: bytes of weights, trained or not.
        slots: bytes of the optimizer's variables.
        other: bytes of metrics, random states and constants.
        gradients: bytes of the gradients that are alive at the peak.
        activations: bytes of the batch and of forward results at that time; None where they are not
            counted, and then there is no peak.
        workspace: all other bytes.
        peak: the most at any moment.
        all_gradients: bytes of the gradients of all variables.
        wire: bytes that the device sends in a step, by collective.
        flops: operations of a step; None where they are not counted.
        time: None where the device's rates are not known.
        fits: True where a device has room for `MARGIN` more than the peak, or `MESH_MARGIN`, False
            where it has none for the peak, None between the two, and where there is no peak.
        why_not: what is unknown, and why.
    """

    candidate: Candidate
    rows: int
    parameters: int
    slots: int
    other: int
    gradients: int
    activations: int | None
    workspace: int
    peak: int | None
    all_gradients: int
    wire: dict[str, int] = field(default_factory=dict)
    flops: int | None = None
    time: Time | None = None
    fits: bool | None = None
    why_not: str = ""

    @property
    def bytes_between_steps(self) -> int:
        """Bytes of all variables."""
        return self.parameters + self.slots + self.other

    @property
    def needed(self) -> float:
        """Bytes that a device must have for the candidate to fit; infinite if unknown."""
        if self.peak is None:
            return float("inf")
        return self.peak * (1 + _margin(self.candidate))


# Measured runs took up to 8 % more than counted in float32, on a mesh up to 34 % (docs/planner.md).
MARGIN, MESH_MARGIN = 0.2, 0.6
# Up to this many equal blocks are counted one by one.
EXACT = 6


def estimate(candidate: Candidate, batch: int, machines: Machines, models: Models) -> Estimate:
    """Counts the cost of a candidate.

    Args:
        candidate: the way to train.
        batch: rows of the global batch of an update.
        machines: that it runs on.
        models: makes the model's variants.
    """
    variant = _variant(candidate, models)
    rows = candidate.rows(batch)
    items = variant.items_of(variant.count)
    state = variant.state(variant.count, candidate.mesh, candidate.layouts)
    counts = _counts(variant.count, items, state)
    figures = [
        _figures(
            candidate,
            rows,
            machines,
            variant.sized(count, ends),
            variant.state(count, candidate.mesh, candidate.layouts),
        )
        for count, ends in counts
    ]
    count = variant.count if len(figures) > 1 else None
    made = figures[0] if count is None else extended(figures, [c for c, _ in counts], count)
    found = Estimate(
        candidate=candidate,
        rows=rows,
        parameters=state.parameters,
        slots=state.slots,
        other=state.other + made.constants,
        gradients=0,
        activations=None,
        workspace=0,
        peak=None,
        all_gradients=state.gradients,
        wire={kind: round(size) * candidate.accumulate for kind, size in made.wire.items() if size},
    )
    if made.why_not:
        return replace(found, why_not=made.why_not)
    most = made.peak or (made.walk.peak() if made.walk is not None else None)
    assert most is not None
    peak = state.total + made.constants + most.total
    busy = None
    if made.compute is not None and made.memory is not None:
        busy = made.compute, made.memory
    return replace(
        found,
        flops=made.flops * candidate.accumulate,
        time=_time(busy, found.wire, candidate, machines),
        gradients=most.gradients,
        activations=most.activations,
        workspace=most.workspace,
        peak=peak,
        fits=_fits(peak, machines.device.usable, _margin(candidate)),
    )


def may_fit(candidate: Candidate, machines: Machines, models: Models) -> bool:
    """Whether the variables alone leave room on a device; traces nothing that is rematerialized.

    A model that is rematerialized, or accumulates gradients, has these variables at least.
    """
    variant = _variant(replace(candidate, accumulate=1, rematerialized=False), models)
    least = variant.state(variant.count, candidate.mesh, candidate.layouts).total
    return _fits(least, machines.device.usable, _margin(candidate)) is True


def _variant(candidate: Candidate, models: Models) -> Variant:
    fused = candidate.strategy in ("one_device", "mirrored", "multi_worker_mirrored")
    return models.variant(
        candidate.precision, fused, candidate.accumulate, candidate.rematerialized
    )


def _planner(candidate: Candidate) -> LayoutPlanner | None:
    """A new planner: its answers depend on earlier calls."""
    if candidate.mesh is None:
        return None
    return LayoutPlanner(candidate.mesh, candidate.layouts or "auto")


def _counts(count: int | None, items: Sequence[Item], state: State) -> list[tuple[int | None, int]]:
    """The numbers of blocks to count, each with the `ends` of `Extension.to`."""
    if count is None or count <= EXACT:
        return [(count, 1)]
    if not state.plans:
        return [(3, 1), (4, 1)]
    for apart, first in ((1, 3), (2, 4 + count % 2)):
        if _alternate(items, state, apart, count):
            return [(first, apart), (first + apart, apart)]
    return [(count, 1)]


def _alternate(items: Sequence[Item], state: State, apart: int, count: int) -> bool:
    """Whether the layouts of a block, and of the one `apart` further, are the same."""
    by_block: dict[int, list[VariablePlan]] = {}
    for item, plan in zip(items, state.plans, strict=True):
        if item.block is not None:
            by_block.setdefault(item.block, []).append(plan)
    return all(
        [(p.storage, p.compute) for p in by_block[k]]
        == [(p.storage, p.compute) for p in by_block[k + apart]]
        for k in range(1, count - 1 - apart)
    )


def _figures(
    candidate: Candidate, rows: int, machines: Machines, sized: Sized, state: State
) -> Figures:
    """The counts of a whole step."""
    planner = _planner(candidate)
    replicas = candidate.mesh is None and candidate.strategy != "tpu"
    work = sized.work(rows, candidate.devices if replicas else 1)
    step, shapes, sizes = work.step, work.shapes, list(work.sizes)
    split = sharding_propagation.Spread([None] * len(step.values))
    gathered: dict[int, int] = {}
    if planner is not None:
        split = work.spread(candidate.model_axis, _model_dims(state, planner))
        sizes = [
            size // candidate.model_axis if dim is not None else size
            for size, dim in zip(sizes, split.dims, strict=True)
        ]
        gathered = _gathered(sized, state, planner)
        sizes = _stored(step, sizes, sized, state, planner)
    scratch = kernels.of_processor(step, shapes) if machines.device.kind == "cpu" else {}
    for i, size in split.gathered.items():
        scratch[i] = scratch.get(i, 0) + size
    shapes_of_variables = [one.made.shape for one in sized.items]
    flops, busy = _busy(work, sizes, split, candidate, machines, shapes_of_variables)
    wire = _wire(candidate, sized, state, planner, split, sizes)
    compute, memory = busy if busy is not None else (None, None)
    found = Figures(sized.step.constants, flops, compute, memory, wire)
    if step.uncounted:
        return replace(found, why_not=f"what {step.uncounted} keeps and computes")
    if work.unknown is not None:
        return replace(found, why_not=f"the shape of what {work.unknown.kind} gives")
    if candidate.strategy == "tpu":
        step, sizes = tpu_fusion.fused(step, sizes)
    walked = liveness.walk(step, work.sequence, sizes, gathered, scratch)
    return replace(found, walk=walked, roles=sized.by_role(len(step.operations)))


def _margin(candidate: Candidate) -> float:
    return MARGIN if candidate.mesh is None else MESH_MARGIN


def _fits(peak: int, usable: int, margin: float) -> bool | None:
    if peak > usable:
        return False
    return True if peak * (1 + margin) <= usable else None


def _model_dims(state: State, planner: LayoutPlanner) -> dict[int, int | None]:
    """The dimension of each variable that the model axis divides while layers compute."""
    axis = planner.mesh.model_axis
    return {
        i: next((d for d, a in enumerate(plan.compute) if a is not None and a == axis), None)
        for i, plan in enumerate(state.plans)
    }


def _gathered(sized: Sized, state: State, planner: LayoutPlanner) -> dict[int, int]:
    """Bytes of each layer's read of a variable that is stored in more parts."""
    found = {}
    seen_backward = False
    for i, op in enumerate(sized.step.operations):
        seen_backward = seen_backward or op.backward
        if op.variable is None or op.kind not in ("ReadVariableOp", "ResourceGather"):
            continue
        plan = state.plans[op.variable]
        updates = seen_backward and not op.backward
        if plan.storage != plan.compute and not updates and op.kind == "ReadVariableOp":
            found[i] = sized.items[op.variable].made.size // parts(plan.compute, planner)
    return found


def _stored(
    step: Step, sizes: list[int], sized: Sized, state: State, planner: LayoutPlanner
) -> list[int]:
    """Sizes with the optimizer's results divided like their variable.

    The model axis has divided `sizes` already; the batch axis divides what is stored further.
    """
    share: dict[int, int] = {}
    for variable, value in step.gradients.items():
        plan = state.plans[variable]
        more = parts(plan.storage, planner) // parts(plan.compute, planner)
        if more > 1 and _shape(step, value) == sized.items[variable].made.shape:
            share[value] = more
    found = list(sizes)
    seen_backward = False
    for op in step.operations:
        seen_backward = seen_backward or op.backward
        if not seen_backward or op.backward:
            continue
        if op.kind == "ReadVariableOp" and op.variable is not None:
            plan = state.plans[op.variable]
            more = parts(plan.storage, planner) // parts(plan.compute, planner)
        else:
            more = max((share.get(v, 1) for v in op.inputs), default=1)
        if more > 1:
            for value in op.outputs:
                share[value] = more
    for value, more in share.items():
        if value in step.gradients.values():
            continue  # whole while it is reduced
        found[value] //= more
    return found


def _shape(step: Step, value: int) -> tuple[int, ...] | None:
    return step.values[value].more


def _busy(
    work: Work,
    sizes: Sequence[int],
    split: sharding_propagation.Spread,
    candidate: Candidate,
    machines: Machines,
    variables: Sequence[tuple[int, ...]],
) -> tuple[int, tuple[float, float] | None]:
    """Operations of a step, and its compute-bound and memory-bound seconds."""
    device = machines.device
    numbers = np.array([number for _, number in work.flops], np.int64)
    if candidate.model_axis > 1:
        divided = work.divided(split.dims)
        numbers = np.where(divided, numbers // candidate.model_axis, numbers)
    total = sum(numbers.tolist())
    if device.bandwidth is None or "float32" not in device.peak:
        return total, None
    usual = device.peak["float32"]
    fast = device.peak.get(candidate.precision, usual)
    # The roofline of each operation, as in `costs.roofline`.
    computing = numbers / np.where(work.halves, fast, usual)
    moving = work.moved(sizes) / device.bandwidth
    bound, seconds = computing >= moving, np.maximum(computing, moving)
    if machines.timer is not None:
        measured = machines.timer.seconds(work, variables, split, candidate.model_axis)
        # Logical devices share the processor: one that works alone has all of it.
        seconds = np.where(np.isnan(measured), seconds / machines.count, measured)
        seconds = seconds * candidate.devices
    return total, (_added(seconds[bound]), _added(seconds[~bound]))


def _added(seconds: Array) -> float:
    """The sum, added in order."""
    return float(np.add.accumulate(seconds)[-1]) if len(seconds) else 0.0


def _wire(
    candidate: Candidate,
    sized: Sized,
    state: State,
    planner: LayoutPlanner | None,
    split: sharding_propagation.Spread,
    sizes: Sequence[int],
) -> dict[str, float]:
    """Bytes that a device sends in a step, by collective."""
    devices = candidate.replicas
    found = {"all-reduce": 0.0, "all-gather": 0.0}
    for variable, value in sized.step.gradients.items():
        one = sized.items[variable].made
        if sized.step.values[value].more != one.shape:  # rows of an embedding
            found["all-gather"] += costs.all_gather(sizes[value] * devices, devices)
            continue
        held = one.size
        if planner is not None:
            plan = state.plans[variable]
            held //= parts(plan.compute, planner)
            if plan.storage != plan.compute:
                among = parts(plan.storage, planner) // parts(plan.compute, planner)
                found["all-gather"] += costs.all_gather(held, among)
        found["all-reduce"] += costs.all_reduce(held, devices)
    among = candidate.model_axis
    found["all-reduce"] += sum(costs.all_reduce(s, among) for s in split.reduced.values())
    found["all-gather"] += sum(costs.all_gather(s, among) for s in split.gathered.values())
    return found


def _time(
    busy: tuple[float, float] | None, wire: dict[str, int], candidate: Candidate, machines: Machines
) -> Time | None:
    device = machines.device
    rates = [device.link] if candidate.hosts == 1 else [device.link, device.network]
    known = [rate for rate in rates if rate is not None]
    if busy is None or (wire and len(known) < len(rates)):
        return None
    sent = costs.transfer(sum(wire.values()), min(known)) if wire else 0.0
    compute, memory = (part * candidate.accumulate for part in busy)
    return Time(compute, memory, sent)
