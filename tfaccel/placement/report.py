"""Which device holds which part of each variable of a model, as data."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from typing import Any

from tfaccel.errors import LayoutError

Axes = tuple[str | None, ...]
KINDS = ("parameters", "optimizer", "other")


@dataclass(frozen=True)
class Row:
    """One variable.

    Attributes:
        path: its Keras path.
        kind: ``"parameters"``, ``"optimizer"`` or ``"other"`` (metrics, seeds).
        shape: of the whole.
        dtype: as Keras calls it.
        storage: for each dimension, the axis of the mesh it is stored over, or None.
        compute: the same while a layer uses it.
        reason: of this layout.
        bytes_whole: of the whole variable.
        bytes_per_device: stored by one device.
    """

    path: str
    kind: str
    shape: tuple[int, ...]
    dtype: str
    storage: Axes
    compute: Axes
    reason: str
    bytes_whole: int
    bytes_per_device: int


@dataclass(frozen=True)
class Total:
    """Bytes of one kind of variables, or of all of them.

    Attributes:
        kind: as in `Row`, or ``"all"``.
        bytes_whole: what one device would hold.
        bytes_per_device: what each device holds.
    """

    kind: str
    bytes_whole: int
    bytes_per_device: int

    @property
    def fraction(self) -> float:
        """The share of the whole that each device holds; 1 if empty."""
        return self.bytes_per_device / self.bytes_whole if self.bytes_whole else 1.0


@dataclass(frozen=True)
class Report:
    """The placement of a model's variables.

    Attributes:
        model: its name.
        mesh: name and size of each axis, the last one's neighbours being neighbouring devices;
            empty without a mesh, where every device holds everything.
        devices: their names, in the order of the mesh.
        rows: one per variable.
    """

    model: str
    mesh: tuple[tuple[str, int], ...]
    devices: tuple[str, ...]
    rows: tuple[Row, ...]

    @property
    def totals(self) -> tuple[Total, ...]:
        """Bytes of each kind, then of all."""
        each = [self._total(kind, (kind,)) for kind in KINDS]
        return (*each, self._total("all", KINDS))

    def to_dict(self) -> dict[str, Any]:
        """JSON-serializable data."""
        totals = [{**asdict(total), "fraction": total.fraction} for total in self.totals]
        return {**asdict(self), "totals": totals}

    def _total(self, name: str, kinds: tuple[str, ...]) -> Total:
        rows = [row for row in self.rows if row.kind in kinds]
        whole = sum(row.bytes_whole for row in rows)
        return Total(name, whole, sum(row.bytes_per_device for row in rows))


def report(model: Any) -> Report:
    """Reports the placement of each variable of a model, its optimizer and its metrics.

    Args:
        model: a built Keras model, made under any strategy or none.

    Raises:
        LayoutError: when the model is not built, so that it has no variables yet.
    """
    if not model.built:
        raise LayoutError(
            f"tfaccel: model {model.name!r} is not built and has no variables yet; expected a "
            "built one; call model.build(input_shape) or model.fit first."
        )
    variables = list(_variables(model))
    mesh: tuple[tuple[str, int], ...] = ()
    devices: tuple[str, ...] = ()
    for _, variable in variables:
        axes, names = _place(variable.value)
        mesh = mesh or axes
        devices = names if len(names) > len(devices) else devices
    rows = tuple(_row(kind, variable) for kind, variable in variables)
    return Report(model.name, mesh, devices, rows)


def holders(
    axes: Axes, mesh: tuple[tuple[str, int], ...], devices: int
) -> Mapping[tuple[int, ...], tuple[int, ...]]:
    """The devices that hold each part of a variable.

    Args:
        axes: the axis each dimension is stored over, or None.
        mesh: name and size of each axis.
        devices: their number; used without a mesh.

    Returns:
        For each part's position along every dimension, the indices of devices.

    >>> holders((None, "model"), (("batch", 2), ("model", 2)), 4)
    {(0, 0): (0, 2), (0, 1): (1, 3)}
    """
    by_part: dict[tuple[int, ...], tuple[int, ...]] = {}
    names = [name for name, _ in mesh]
    places = itertools.product(*(range(size) for _, size in mesh)) if mesh else [()] * devices
    for device, place in enumerate(places):
        coordinates = dict(zip(names, place, strict=True))
        part = tuple(0 if axis is None else coordinates[axis] for axis in axes)
        by_part[part] = (*by_part.get(part, ()), device)
    return by_part


def _variables(model: Any) -> Iterator[tuple[str, Any]]:
    """Each variable once, with its kind."""
    optimizer = getattr(model, "optimizer", None)
    groups = {
        "parameters": model.weights,
        "optimizer": optimizer.variables if optimizer is not None and optimizer.built else (),
        "other": (*model.variables, *model.metrics_variables),
    }
    seen: set[int] = set()
    for kind, variables in groups.items():
        for variable in variables:
            if id(variable) not in seen:
                seen.add(id(variable))
                yield kind, variable


def _row(kind: str, variable: Any) -> Row:
    # Outside a layer's call Keras does not cast: this is the strategy's variable.
    value = variable.value
    shape = tuple(int(size) for size in variable.shape)
    plan = getattr(value, "plan", None)
    whole: Axes = (None,) * len(shape)
    storage, compute = (whole, whole) if plan is None else (plan.storage, plan.compute)
    parts = 1
    if plan is not None:
        sizes = dict(_place(value)[0])
        parts = math.prod(sizes[axis] for axis in storage if axis is not None)
    size = getattr(value.dtype, "size", None) or value.dtype.itemsize
    total_bytes = math.prod(shape) * int(size)
    reason = plan.reason if plan is not None else _without_plan(value)
    return Row(
        variable.path, kind, shape, str(variable.dtype), storage, compute, reason, total_bytes,
        total_bytes // parts,
    )  # fmt: skip


def _without_plan(value: Any) -> str:
    replicas = len(_place(value)[1])
    return f"replicated on {replicas}" if replicas > 1 else "one device"


def _place(value: Any) -> tuple[tuple[tuple[str, int], ...], tuple[str, ...]]:
    """The mesh, if there is one, and the devices of a variable."""
    strategy = getattr(value, "distribute_strategy", None)
    if hasattr(value, "plan") and strategy is not None:
        mesh = strategy.planner.mesh
        return mesh.axes, _names(strategy.extended.worker_devices, mesh.size)
    local = [part.device for part in getattr(value, "values", ()) or ()]
    replicas = int(strategy.num_replicas_in_sync) if strategy is not None and local else 1
    return (), _names(local or [str(value.device)], replicas)


def _names(local: Any, size: int) -> tuple[str, ...]:
    """Short names; with several workers they are counted worker by worker."""
    short = [":".join(str(name).rsplit(":", 2)[-2:]) for name in local]
    if len(short) == size:
        return tuple(short)
    each = [(worker, name) for worker in range(size // len(short)) for name in short]
    return tuple(f"worker {worker} {name}" for worker, name in each)
