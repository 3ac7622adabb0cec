"""Decides the layout of each variable on the mesh."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from tfaccel.distribute.model_parallel import auto_layout
from tfaccel.distribute.model_parallel.layout_map import Axes, LayoutMap
from tfaccel.distribute.model_parallel.mesh import MeshShape
from tfaccel.errors import LayoutError


@dataclass(frozen=True)
class VariablePlan:
    """The layout of one variable on the mesh.

    Attributes:
        storage: for each dimension, the axis it is stored over, or None.
        compute: the same while a layer uses it; where they differ, it is gathered for that time.
        reason: the rule that determined it.
    """

    storage: Axes
    compute: Axes
    reason: str


class LayoutPlanner:
    """Plans the variables of the models created under one strategy.

    Args:
        mesh: the axes.
        layouts: ``"auto"``, ``"fully_sharded"``, or rules as in `LayoutMap`.
    """

    def __init__(self, mesh: MeshShape, layouts: str | Mapping[str, Any]) -> None:
        self.mesh = mesh
        self.rules: LayoutMap | None = None
        if isinstance(layouts, str):
            if layouts not in ("auto", "fully_sharded"):
                raise LayoutError(
                    f"tfaccel: layouts is {layouts!r}; expected 'auto', 'fully_sharded' or a "
                    "LayoutMap of rules such as {'.*dense.*/kernel': (None, 'model')}."
                )
            self.fully_sharded = layouts == "fully_sharded"
        else:
            self.rules = LayoutMap.of(layouts)
            self.fully_sharded = self.rules.fully_sharded
            for rule, axes in self.rules.items():
                _check_axes(rule, axes, mesh)
        if self.fully_sharded and mesh.batch_axis is None:
            raise LayoutError(
                f"tfaccel: layouts are fully sharded and the mesh is {mesh}; expected an axis "
                "called 'batch' (or 'data') to shard over; add one."
            )
        self._auto = auto_layout.AutoLayout(mesh)
        self._used: set[str] = set()

    def variable(
        self, path: str, shape: Sequence[int], trainable: bool, layers: Sequence[Any]
    ) -> VariablePlan:
        """The plan of a new variable.

        Args:
            path: its Keras path, such as ``"mlp/dense/kernel"``.
            shape: its shape.
            trainable: whether gradients update it.
            layers: the Keras layers that are being built around it, the innermost last.

        Raises:
            LayoutError: when its rule does not fit it.
        """
        axes, reason = self._requested(path, tuple(shape), layers)
        # While a layer computes, the batch axis divides the rows, so it cannot divide weights too.
        compute: Axes = tuple(None if axis == self.mesh.batch_axis else axis for axis in axes)
        if auto_layout.gathers_weights(layers):
            compute = (None,) * len(shape)
        if compute != axes:
            reason = f"{reason}, gathered to compute"
        if self.fully_sharded and trainable:
            storage = self._over_batch(axes, shape)
            if storage != axes:
                reason = "fully sharded" + (f" and {reason}" if any(axes) else "")
            return VariablePlan(storage, compute, reason)
        return VariablePlan(axes, compute, reason)

    def slot(self, shape: Sequence[int], of_shape: Sequence[int], of: VariablePlan) -> VariablePlan:
        """The plan of an optimizer's slot variable."""
        if tuple(shape) == tuple(of_shape):
            return of
        whole = (None,) * len(shape)  # such as the factors of Adafactor
        storage = self._over_batch(whole, shape) if self.fully_sharded else whole
        return VariablePlan(storage, storage, "factor of a slot")

    def end_model(self) -> None:
        """Variables made from now on are laid out as in a process that has made none before."""
        self._auto.end_model()

    def check_all_used(self) -> None:
        """Raises when a rule has matched no variable so far.

        Raises:
            LayoutError: names the rule.
        """
        for rule in self.rules or ():
            if rule not in self._used:
                raise LayoutError(
                    f"tfaccel: layout rule {rule!r} (mesh {self.mesh}) matches no variable of the "
                    "model; expected "
                    "the whole path of one or more (tfaccel.visualize(model) lists them); "
                    "fix or remove it."
                )

    def _requested(
        self, path: str, shape: tuple[int, ...], layers: Sequence[Any]
    ) -> tuple[Axes, str]:
        if self.rules is None:
            return self._auto.axes(path, shape, layers)
        rule = self.rules.rule_of(path, f" of shape {shape}", f" (mesh {self.mesh})")
        if rule is None:
            return (None,) * len(shape), "no rule"
        self._used.add(rule)
        axes = self.rules.get(path)
        _check_fit(path, shape, rule, axes, self.mesh)
        # A shorter layout leaves the last dimensions whole, as in Keras.
        return axes + (None,) * (len(shape) - len(axes)), f"rule {rule!r}"

    def _over_batch(self, axes: Axes, shape: Sequence[int]) -> Axes:
        """`axes` with the largest dimension that divides over the batch axis."""
        batch = self.mesh.batch_axis
        assert batch is not None
        size = self.mesh.sizes[batch]
        if batch in axes:
            return axes
        fits = [d for d, n in enumerate(shape) if axes[d] is None and n and n % size == 0]
        if not fits:
            return axes
        chosen = max(fits, key=lambda d: shape[d])
        return (*axes[:chosen], batch, *axes[chosen + 1 :])


def _check_axes(rule: str, axes: Axes, mesh: MeshShape) -> None:
    for axis in axes:
        if axis is not None and axis not in mesh.names:
            raise LayoutError(
                f"tfaccel: layout rule {rule!r} = {axes} names axis {axis!r} and the mesh is "
                f"{mesh}; expected one of {', '.join(mesh.names)} or None."
            )
    named = [axis for axis in axes if axis is not None]
    if len(set(named)) != len(named):
        raise LayoutError(
            f"tfaccel: layout rule {rule!r} = {axes} uses one axis for two dimensions; expected "
            f"each axis of the mesh {mesh} at most once."
        )


def _check_fit(path: str, shape: tuple[int, ...], rule: str, axes: Axes, mesh: MeshShape) -> None:
    if len(axes) > len(shape):
        raise LayoutError(
            f"tfaccel: variable {path!r} of shape {shape} has {len(shape)} dimensions and its "
            f"rule {rule!r} = {axes} has {len(axes)} (mesh {mesh}); expected no more than the "
            "variable has; shorten it."
        )
    for size, axis in zip(shape, axes, strict=False):
        if axis is not None and size % mesh.sizes[axis]:
            raise LayoutError(
                f"tfaccel: variable {path!r} of shape {shape} does not divide by rule {rule!r} = "
                f"{axes} on mesh {mesh}: {size} over {axis}={mesh.sizes[axis]}; expected a "
                "multiple; change the layer's size, the mesh or the rule."
            )
