"""The first-step check: a model's step on replicas beside that of one device.

Before a model takes its first step, the step is run twice over a few rows, from the same state: in
replicas of unequal numbers of rows, through the same path as any step, and as one device runs it
over all of those rows. Gradients, what the step leaves in variables and what it returns are
compared, and all variables are set back. Random operations give constants in both, and
BatchNormalization uses its moving statistics: they differ by nature.

Where a step is written in TensorFlow's way (`ways.py`), the check finds that out, and the step is
put together so. What no way makes equal is an error that names it.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import keras
from absl import logging

from tfaccel.distribute import _private
from tfaccel.distribute.both import Both
from tfaccel.distribute.compared import Difference, differences
from tfaccel.distribute.gradients import is_own
from tfaccel.distribute.seen import CannotRunError
from tfaccel.distribute.ways import ROWS, SCALED, SUM, Ways
from tfaccel.errors import CheckError

_MOST_TRIES = 12
_WHERE = ("File ", "Detected at node", "Stack trace", "Original stack trace")
_LIBRARIES = ("keras.", "keras_hub.", "tfaccel.")


class Checks:
    """The checks of one strategy.

    Args:
        mode: ``"auto"`` for models with a part of their own, ``"always"``, or ``"off"``.
    """

    def __init__(self, mode: str = "auto") -> None:
        self.mode = mode
        self._ways: weakref.WeakKeyDictionary[Any, Ways] = weakref.WeakKeyDictionary()
        self._marks = Marks()

    def ways(self, model: keras.Model) -> Ways:
        """How the step of `model` is put together, as far as it is known."""
        return self._ways.get(model, Ways())

    def first_step(self, strategy: Any, model: keras.Model, fn: Any) -> None:
        """Called before each trace of a training step; checks the first of each `compile`.

        Raises:
            CheckError: when replicas would make other numbers than one device.
        """
        if not self._marks.is_new(model):
            return
        if self.mode == "off" or (self.mode == "auto" and not has_own_parts(model, fn)):
            return
        batch = _private.batch_of_step()
        if batch is None:
            return
        _in_a_thread(lambda: self._check(strategy, model, fn, batch))

    def _check(self, strategy: Any, model: keras.Model, fn: Any, batch: Any) -> None:
        with strategy.scope():
            try:
                both = Both(strategy, model, fn, batch)
            except CannotRunError as reason:
                skipped(model, reason)
                return
            with both:
                self._compare(both, model, fn)

    def _compare(self, both: Both, model: keras.Model, fn: Any) -> None:
        try:
            ways = found(both, is_own(fn))
        except CannotRunError as reason:
            skipped(model, reason)
            return
        if ways != Ways():
            self._ways[model] = ways
            logging.info(
                "tfaccel: not all of the train step of %r is a mean over the rows that it sees; it "
                "is put together as on one device: %s.",
                model.name,
                ways,
            )


def found(both: Both, may_choose: bool) -> Ways:
    """The ways under which replicas make one device's numbers.

    Raises:
        CheckError: when there are none.
        CannotRunError: when the step cannot be run so.
    """
    ways, first = Ways(), None
    hint: str | None = None
    for _ in range(_MOST_TRIES):
        ours, theirs = both.run(ways)
        wrong = differences(ours, theirs, both.tolerance)
        # Workers may round to different sides of the tolerance: what one accepts, all accept.
        if both.strategy.least(len(wrong)) == 0:
            return ways
        first = first or wrong[0]
        if not may_choose:
            break
        one = next((w for w in wrong if w.kind in ("gradients", "metrics", "logs")), None)
        following = None if one is None else _next_way(ways.of(one.kind, one.name), one, hint)
        if one is None or following is None:
            break
        hint = following
        ways = ways.having(one.kind, one.name, following)
    assert first is not None
    line = f"{says(first, both.where)}; {first.do}, or leave the check out with check='off'."
    raise CheckError(line)


def _in_a_thread(function: Callable[[], None]) -> None:
    """Calls `function` where no graph is being built and no tape is stopped."""
    policy = keras.config.dtype_policy()

    def call() -> None:
        keras.config.set_dtype_policy(policy)  # of this thread
        function()

    with ThreadPoolExecutor(1) as pool:
        pool.submit(call).result()


def _next_way(way: str, wrong: Difference, hint: str | None) -> str | None:
    """What to try after `way` did not do."""
    order = [ROWS, SUM, SCALED] if hint != SCALED else [ROWS, SCALED, SUM]
    place = order.index(way)
    return order[place + 1] if place + 1 < len(order) else None


def says(wrong: Difference, where: str) -> str:
    """The beginning of the line for a difference.

    Args:
        wrong: what was found.
        where: what was compared with one device, such as ``"on 2 replicas"``.
    """
    return (
        f"tfaccel: the first-step check found that {wrong.what} would be {wrong.ours} {where}, "
        f"expected {wrong.theirs} as on one device"
    )


def skipped(model: keras.Model, reason: object) -> None:
    """Logs that the step of `model` was not compared, and why."""
    lines = [line.strip() for line in str(reason).splitlines()]
    said = " ".join(line for line in lines if line and not line.startswith(_WHERE))
    logging.info("tfaccel: the first step of %r was not checked: %s", model.name, said[:400])


class Marks:
    """Which models have come to their first step since they were compiled."""

    def __init__(self) -> None:
        self._done: weakref.WeakKeyDictionary[Any, Any] = weakref.WeakKeyDictionary()

    def is_new(self, model: keras.Model) -> bool:
        """Whether this is the first time since the last `compile` that it is asked for `model`."""
        # Another object after each `compile`.
        mark = model.train_function if model.train_function is not None else model
        done = self._done.get(model)
        if done is not None and done() is mark:
            return False
        self._done[model] = weakref.ref(mark)
        return True


def has_own_parts(model: keras.Model, fn: Any) -> bool:
    """Whether a model has a step, loss, metric or layer that is not Keras's."""
    if is_own(fn):
        return True
    if any(not _is_known(layer) for layer in _private.layers_of(model)):
        return True
    if any(not _is_known(loss) for loss in _private.compiled_losses(model)):
        return True
    metrics = [*model.metrics, *_private.compiled_metrics(model)]
    return any(not _is_known(metric) for metric in metrics)


def _is_known(part: Any) -> bool:
    if isinstance(part, keras.layers.Lambda):
        return False
    inner = getattr(part, "fn", None) or getattr(part, "_fn", None)
    if inner is not None and not _of_library(inner):
        return False
    return _of_library(part.__class__)


def _of_library(thing: Any) -> bool:
    return str(getattr(thing, "__module__", "")).startswith(_LIBRARIES)
