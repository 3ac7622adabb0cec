"""The first-step check: a model's step on replicas beside that of one device.

Before a model takes its first step, the step is run twice over a few rows, from the same state: in
replicas of unequal numbers of rows, through the same path as any step, and as one device runs it
over all of those rows. Gradients, what the step leaves in variables and what it returns are
compared, and all variables are restored. Random operations give constants in both, and
BatchNormalization uses its moving statistics: they differ by nature.

Where a step follows TensorFlow's convention (`step_reductions.py`), the check finds that out, and
the step is combined accordingly. Where no reduction makes replicas equal to one device, and where
only the global batch can be computed at all, each replica runs the step over all rows
(`replicated_batch.py`), which is said. If that does not do either, it is an error that names what
differs.
"""

from __future__ import annotations

import dataclasses
import weakref
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import keras
import tensorflow as tf
from absl import logging

from tfaccel.distribute import _private
from tfaccel.distribute.batch_sharding import is_absent, uneven
from tfaccel.distribute.batches import Sharded, ShardedWithEmpty, numbers_of_rows, proportion
from tfaccel.distribute.differences import Difference, differences
from tfaccel.distribute.gradients import is_custom_step
from tfaccel.distribute.parity_run import ParityRun
from tfaccel.distribute.step_reductions import SCALED_MEAN, SUM, WEIGHTED_MEAN, StepReductions
from tfaccel.distribute.step_result import ParityRunError
from tfaccel.errors import CheckError, StrategyError

_MAX_TRIES = 12
_WHERE = ("File ", "Detected at node", "Stack trace", "Original stack trace")
_LIBRARIES = ("keras.", "keras_hub.", "tfaccel.")


class Checks:
    """The checks of one strategy.

    Args:
        mode: ``"auto"`` for models with a custom part, ``"always"``, or ``"off"``.
    """

    def __init__(self, mode: str = "auto") -> None:
        self.mode = mode
        self._reductions: weakref.WeakKeyDictionary[Any, StepReductions] = (
            weakref.WeakKeyDictionary()
        )
        self._first_steps = FirstSteps()
        self._in_proportion: weakref.WeakSet[Any] = weakref.WeakSet()

    def in_proportion(self, model: keras.Model) -> bool:
        """Whether a step of `model` made one device's numbers of parts cut in proportion."""
        return model in self._in_proportion

    def reductions(self, model: keras.Model) -> StepReductions:
        """How the step of `model` is combined, as far as it is known."""
        return self._reductions.get(model, StepReductions())

    def verdict(self, model: keras.Model) -> dict[str, Any]:
        """What was found of the step of `model`, for a file: a run that goes on keeps it."""
        found = dataclasses.asdict(self.reductions(model))
        return {**found, "in_proportion": self.in_proportion(model)}

    def keep_verdict(self, model: keras.Model, verdict: dict[str, Any]) -> None:
        """Takes what an earlier process found of the step of `model`, in place of a check.

        Replicas may differ by now (`local_steps`), so that another check could find otherwise.
        """
        self._first_steps.is_new(model)
        if verdict["in_proportion"]:
            self._in_proportion.add(model)
        found = {name: value for name, value in verdict.items() if name != "in_proportion"}
        found["gradients"] = tuple(found["gradients"])
        self._reductions[model] = StepReductions(**found)

    def first_step(self, strategy: Any, model: keras.Model, fn: Any) -> None:
        """Called before each trace of a training step; checks the first of each `compile`.

        Raises:
            CheckError: when replicas would make other numbers than one device.
        """
        if not self._first_steps.is_new(model):
            return
        if self.mode == "off":
            return
        batch = _private.batch_of_step()
        if batch is None:
            return
        if self.mode == "auto" and not has_custom_parts(model, fn) and not _in_proportion(batch):
            return
        _in_a_thread(lambda: self._check(strategy, model, fn, batch))

    def _check(self, strategy: Any, model: keras.Model, fn: Any, batch: Any) -> None:
        with strategy.scope():
            try:
                parity = ParityRun(strategy, model, fn, batch)
            except ParityRunError as reason:
                _refuse_or_log_skipped(model, reason, batch, fn)
                return
            try:
                with parity:
                    self._compare(parity, model, fn)
                    self._remember(model, batch)
                    return
            except ParityRunError as reason:
                first = reason
            # A step that is written for one number of rows runs on no others.
            try:
                with ParityRun(strategy, model, fn, batch, few=False) as parity:
                    self._compare(parity, model, fn, if_stopped=True)
                    self._remember(model, batch)
            except ParityRunError:
                _refuse_or_log_skipped(model, first, batch, fn)

    def _remember(self, model: keras.Model, batch: Any) -> None:
        if _in_proportion(batch):
            self._in_proportion.add(model)

    def _compare(
        self, parity: ParityRun, model: keras.Model, fn: Any, if_stopped: bool = False
    ) -> None:
        stopped: ParityRunError | None = None
        try:
            reductions = find_reductions(parity, is_custom_step(fn))
        except CheckError as error:
            if not self._with_all_rows(parity, model):
                raise
            _warn_replicated_batch(model, str(error))
            return
        except ParityRunError as error:
            stopped = error
        if stopped is not None:
            if not (if_stopped and self._with_all_rows(parity, model)):
                raise stopped
            _warn_replicated_batch(
                model, f"tfaccel: replicas cannot run it ({_shortened(stopped)})"
            )
            return
        if reductions != StepReductions():
            self._reductions[model] = reductions
            logging.info(
                "tfaccel: not all of the train step of %r is a mean over the rows that it sees; it "
                "is combined as on one device: %s.",
                model.name,
                reductions,
            )

    def _with_all_rows(self, parity: ParityRun, model: keras.Model) -> bool:
        """Whether replicas make one device's numbers of all rows; then they will."""
        reductions = StepReductions(all_rows=True)
        try:
            wrong = differences(*parity.run(reductions), parity.tolerance)
        except (ParityRunError, StrategyError) as reason:
            text = _shortened(reason)
            logging.info("tfaccel: %r does not run over all rows either: %s", model.name, text)
            return False
        if parity.strategy.min_over_workers(len(wrong)) > 0:
            for one in wrong[:1]:
                logging.info(
                    "tfaccel: over all rows %s of %r would be %s, expected %s.",
                    *(one.what, model.name, one.replicated, one.reference),
                )
            return False
        self._reductions[model] = reductions
        model.test_function = model.predict_function = None  # traced before: not so
        return True


def _in_proportion(batch: Any) -> bool:
    """Whether a part of a batch has several rows for each of another."""
    if not isinstance(batch, (Sharded, ShardedWithEmpty)):
        with tf.init_scope():
            batch = tf.nest.map_structure(
                lambda leaf: None if is_absent(leaf) else tf.convert_to_tensor(leaf), batch
            )
        return max(proportion(numbers_of_rows(batch)), default=1) > 1
    first = [v.values[0] for v in tf.nest.flatten(batch.data) if v is not None and v.values]
    return max(proportion(numbers_of_rows(first)), default=1) > 1


def find_reductions(parity: ParityRun, may_choose: bool) -> StepReductions:
    """The reductions under which replicas make one device's numbers.

    Raises:
        CheckError: when there are none.
        ParityRunError: when the step cannot be run so.
    """
    reductions, first = StepReductions(), None
    hint: str | None = None
    for _ in range(_MAX_TRIES):
        replicated, reference = parity.run(reductions)
        differing = differences(replicated, reference, parity.tolerance)
        # Workers may round to different sides of the tolerance: what one accepts, all accept.
        if parity.strategy.min_over_workers(len(differing)) == 0:
            return reductions
        first = first or differing[0]
        if not may_choose:
            break
        one = next((w for w in differing if w.kind in ("gradients", "metrics", "logs")), None)
        reduction = (
            None if one is None else _next_reduction(reductions.of(one.kind, one.name), one, hint)
        )
        if one is None or reduction is None:
            break
        hint = reduction
        reductions = reductions.replaced(one.kind, one.name, reduction)
    assert first is not None
    message = difference_message(first, parity.where)
    line = f"{message}; {first.advice}, or leave the check out with check='off'."
    raise CheckError(line)


def _in_a_thread(function: Callable[[], None]) -> None:
    """Calls `function` where no graph is being built and no tape is stopped."""
    policy = keras.config.dtype_policy()

    def call() -> None:
        keras.config.set_dtype_policy(policy)  # of this thread
        function()

    with ThreadPoolExecutor(1) as pool:
        pool.submit(call).result()


def _next_reduction(reduction: str, wrong: Difference, hint: str | None) -> str | None:
    """The reduction to try after `reduction` did not match."""
    order = (
        [WEIGHTED_MEAN, SUM, SCALED_MEAN]
        if hint != SCALED_MEAN
        else [WEIGHTED_MEAN, SCALED_MEAN, SUM]
    )
    position = order.index(reduction)
    return order[position + 1] if position + 1 < len(order) else None


def difference_message(wrong: Difference, where: str) -> str:
    """The beginning of the line for a difference.

    Args:
        wrong: what was found.
        where: what was compared with one device, such as ``"on 2 replicas"``.
    """
    return (
        f"tfaccel: the first-step check found that {wrong.what} would be {wrong.replicated} "
        f"{where}, expected {wrong.reference} as on one device"
    )


def log_skipped(model: keras.Model, reason: object) -> None:
    """Logs that the step of `model` was not compared, and why."""
    text = _shortened(reason)
    logging.info("tfaccel: the first step of %r was not checked: %s", model.name, text)


def _refuse_or_log_skipped(model: keras.Model, reason: object, batch: Any, fn: Any) -> None:
    if not is_custom_step(fn) and _in_proportion(batch):
        # Nobody has said that rows of the longer part belong to those of the others.
        raise uneven(["parts in proportion, of which the first-step check could not run"])
    log_skipped(model, reason)


def _warn_replicated_batch(model: keras.Model, reason: str) -> None:
    logging.warning(
        "%s; so every replica runs the steps of %r over all rows of the batch: the numbers of one "
        "device, and no less work than there.",
        reason.removesuffix(", or leave the check out with check='off'."),
        model.name,
    )


def _shortened(reason: object) -> str:
    lines = [line.strip() for line in str(reason).splitlines()]
    return " ".join(line for line in lines if line and not line.startswith(_WHERE))[:400]


class FirstSteps:
    """Tells the first step of each model since it was compiled."""

    def __init__(self) -> None:
        self._done: weakref.WeakKeyDictionary[Any, Any] = weakref.WeakKeyDictionary()

    def is_new(self, model: keras.Model) -> bool:
        """Whether this is the first call for `model` since its last `compile`."""
        # Another object after each `compile`.
        mark = model.train_function if model.train_function is not None else model
        done = self._done.get(model)
        if done is not None and done() is mark:
            return False
        self._done[model] = weakref.ref(mark)
        return True


def has_custom_parts(model: keras.Model, fn: Any) -> bool:
    """Whether a model has a step, loss, metric or layer that is not Keras's."""
    if is_custom_step(fn):
        return True
    if any(not _is_standard(layer) for layer in _private.layers_of(model)):
        return True
    if any(not _is_standard(loss) for loss in _private.compiled_losses(model)):
        return True
    metrics = [*model.metrics, *_private.compiled_metrics(model)]
    return any(not _is_standard(metric) for metric in metrics)


def _is_standard(part: Any) -> bool:
    if isinstance(part, keras.layers.Lambda):
        return False
    inner = getattr(part, "fn", None) or getattr(part, "_fn", None)
    if inner is not None and not _from_library(inner):
        return False
    return _from_library(part.__class__)


def _from_library(thing: Any) -> bool:
    return str(getattr(thing, "__module__", "")).startswith(_LIBRARIES)
