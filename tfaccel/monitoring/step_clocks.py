"""Adds clocks around the steps of a `fit`, and removes them again."""

from __future__ import annotations

import weakref
from collections.abc import Callable
from typing import Any

import keras

from tfaccel.distribute import reduction_clock
from tfaccel.distribute.reduction_clock import ReductionClock
from tfaccel.distribute.replacements import Replacements
from tfaccel.monitoring.timed_step import TimedStep

_timed: weakref.WeakKeyDictionary[Any, tuple[Any, ReductionClock]] = weakref.WeakKeyDictionary()
"""Step functions traced with clocks, by model, and those clocks."""


class StepClocks:
    """The clocks of one `fit`; `close` removes them.

    Args:
        strategy: of the model.
        model: whose step function Keras has created.
        blocks: whether a step has ended when its function returns, as on CPUs.
        see_batch: called with each batch.

    Attributes:
        step: Keras's function of a step, timed.
        communicates: whether the step waits for other replicas.
        why_not: why their waiting cannot be timed; empty where it can, or there is none.
    """

    def __init__(
        self,
        strategy: Any,
        model: keras.Model,
        blocks: bool,
        see_batch: Callable[[Any], None],
    ) -> None:
        function = model.train_function
        while isinstance(function, TimedStep):  # of a failed fit
            model.train_function = function = function.function
        self._clock: ReductionClock | None = None
        self._reduced_before = 0.0
        self.communicates = _replicas(strategy) > 1
        self.why_not = _why_not(strategy, model, blocks) if self.communicates else ""
        if self.communicates and not self.why_not:
            function = self._with_clock(model, function)
        self.step = TimedStep(function, int(model.steps_per_execution), see_batch)
        self.step.is_announced = False  # a fit that fails leaves it to those without a monitor
        self._replacements = Replacements()
        self._replacements.replace(model, "train_function", self.step)

    def _with_clock(self, model: keras.Model, function: Any) -> Any:
        """Keras's function, which is traced with a clock."""
        timed_function, clock = _timed.get(model, (None, None))
        if clock is None or timed_function is not function:
            clock = ReductionClock()
            # A function traced earlier has no clock.
            model.make_train_function(force=True)
            function = model.train_function
            _timed[model] = function, clock
        self._reduced_before = clock.seconds or 0.0
        reduction_clock.activate(clock)
        self._clock = clock
        return function

    def reduced(self) -> float | None:
        """Seconds that steps have waited for others since the last call; None if unknown."""
        if not self.communicates:
            return 0.0
        total = self._clock.seconds if self._clock is not None else None
        if total is None:
            return None
        since, self._reduced_before = total - self._reduced_before, total
        return since

    @property
    def sees_reductions(self) -> bool:
        """Whether the traced step has a reduction with a clock."""
        return self._clock is not None and self._clock.placed > 0

    def close(self) -> None:
        """Restores the previous state."""
        self._replacements.close()
        reduction_clock.deactivate()


def _replicas(strategy: Any) -> int:
    """How many parts of a step wait for each other; those of a mesh are its devices."""
    placement = getattr(strategy, "placement", None)
    if placement is not None:
        return int(placement.replicas)
    mesh = getattr(strategy, "mesh", None)
    return int(mesh.size) if mesh is not None else int(strategy.num_replicas_in_sync)


def _why_not(strategy: Any, model: keras.Model, blocks: bool) -> str:
    """Why the reductions of a step cannot be timed; empty where they can."""
    if getattr(strategy, "placement", None) is None:
        return "a mesh computes and communicates in one program"
    if not blocks:
        return "kernels of accelerators run asynchronously to the program that could read a clock"
    if model.run_eagerly:
        return "the model runs eagerly"
    if model.jit_compile:
        return "XLA compiles both into one program"
    if strategy.frequency.local_steps > 1:
        return "under local_steps workers communicate in some steps only"
    return ""
