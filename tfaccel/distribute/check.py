"""The first-step check: a model's step on replicas beside that of one device.

Before a model takes its first step, the step is run twice over a few rows, from the same state: in
replicas of unequal numbers of rows, through the same path as any step, and as one device runs it
over all of those rows. Gradients, what the step leaves in variables and what it returns are
compared, and all variables are set back. Random operations give constants in both, and
BatchNormalization uses its moving statistics: they differ by nature.

Where a step is written in TensorFlow's way (`ways.py`), the check finds that out, and the step is
put together so. Where no way makes replicas equal to one device, and where only the whole batch can
be computed at all, each replica runs the step over all rows (`all_rows.py`), which is said. If that
does not do either, it is an error that names what differs.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import keras
import tensorflow as tf
from absl import logging

from tfaccel.distribute import _private
from tfaccel.distribute.batches import Sharded, Starved, numbers_of_rows, proportion
from tfaccel.distribute.both import Both
from tfaccel.distribute.compared import Difference, differences
from tfaccel.distribute.gradients import is_own
from tfaccel.distribute.seen import CannotRunError
from tfaccel.distribute.split import is_nothing, uneven
from tfaccel.distribute.ways import ROWS, SCALED, SUM, Ways
from tfaccel.errors import CheckError, StrategyError

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
        self._in_proportion: weakref.WeakSet[Any] = weakref.WeakSet()

    def in_proportion(self, model: keras.Model) -> bool:
        """Whether a step of `model` made one device's numbers of parts cut in proportion."""
        return model in self._in_proportion

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
        if self.mode == "off":
            return
        batch = _private.batch_of_step()
        if batch is None:
            return
        if self.mode == "auto" and not has_own_parts(model, fn) and not _in_proportion(batch):
            return
        _in_a_thread(lambda: self._check(strategy, model, fn, batch))

    def _check(self, strategy: Any, model: keras.Model, fn: Any, batch: Any) -> None:
        with strategy.scope():
            try:
                both = Both(strategy, model, fn, batch)
            except CannotRunError as reason:
                _skipped(model, reason, batch, fn)
                return
            try:
                with both:
                    self._compare(both, model, fn)
                    self._remember(model, batch)
                    return
            except CannotRunError as reason:
                first = reason
            # A step that is written for one number of rows runs on no others.
            try:
                with Both(strategy, model, fn, batch, few=False) as both:
                    self._compare(both, model, fn, if_stopped=True)
                    self._remember(model, batch)
            except CannotRunError:
                _skipped(model, first, batch, fn)

    def _remember(self, model: keras.Model, batch: Any) -> None:
        if _in_proportion(batch):
            self._in_proportion.add(model)

    def _compare(self, both: Both, model: keras.Model, fn: Any, if_stopped: bool = False) -> None:
        stopped: CannotRunError | None = None
        try:
            ways = found(both, is_own(fn))
        except CheckError as error:
            if not self._with_all_rows(both, model):
                raise
            _say_all_rows(model, str(error))
            return
        except CannotRunError as error:
            stopped = error
        if stopped is not None:
            if not (if_stopped and self._with_all_rows(both, model)):
                raise stopped
            _say_all_rows(model, f"tfaccel: replicas cannot run it ({_in_short(stopped)})")
            return
        if ways != Ways():
            self._ways[model] = ways
            logging.info(
                "tfaccel: not all of the train step of %r is a mean over the rows that it sees; it "
                "is put together as on one device: %s.",
                model.name,
                ways,
            )

    def _with_all_rows(self, both: Both, model: keras.Model) -> bool:
        """Whether replicas make one device's numbers of all rows; then they will."""
        ways = Ways(all_rows=True)
        try:
            wrong = differences(*both.run(ways), both.tolerance)
        except (CannotRunError, StrategyError) as reason:
            said = _in_short(reason)
            logging.info("tfaccel: %r does not run over all rows either: %s", model.name, said)
            return False
        if both.strategy.least(len(wrong)) > 0:
            for one in wrong[:1]:
                logging.info(
                    "tfaccel: over all rows %s of %r would be %s, expected %s.",
                    *(one.what, model.name, one.ours, one.theirs),
                )
            return False
        self._ways[model] = ways
        return True


def _in_proportion(batch: Any) -> bool:
    """Whether a part of a batch has several rows for each of another."""
    if not isinstance(batch, (Sharded, Starved)):
        with tf.init_scope():
            batch = tf.nest.map_structure(
                lambda leaf: None if is_nothing(leaf) else tf.convert_to_tensor(leaf), batch
            )
        return max(proportion(numbers_of_rows(batch)), default=1) > 1
    first = [v.values[0] for v in tf.nest.flatten(batch.data) if v is not None and v.values]
    return max(proportion(numbers_of_rows(first)), default=1) > 1


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
    said = _in_short(reason)
    logging.info("tfaccel: the first step of %r was not checked: %s", model.name, said)


def _skipped(model: keras.Model, reason: object, batch: Any, fn: Any) -> None:
    if not is_own(fn) and _in_proportion(batch):
        # Nobody has said that rows of the longer part belong to those of the others.
        raise uneven(["parts in proportion, of which the first-step check could not run"])
    skipped(model, reason)


def _say_all_rows(model: keras.Model, reason: str) -> None:
    logging.warning(
        "%s; so every replica runs the steps of %r over all rows of the batch: the numbers of one "
        "device, and no less work than there.",
        reason.removesuffix(", or leave the check out with check='off'."),
        model.name,
    )


def _in_short(reason: object) -> str:
    lines = [line.strip() for line in str(reason).splitlines()]
    return " ".join(line for line in lines if line and not line.startswith(_WHERE))[:400]


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
