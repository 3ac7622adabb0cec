"""The first-step check: compares a model's step on replicas with that of one device.

Before a model takes its first step, the step is run twice over a few rows, from the same state: in
replicas of unequal numbers of rows, through the same path as any step, and as one device runs it
over all of those rows. Gradients, updated variables and results are compared, and all variables are
restored. Random operations return constants in both, and BatchNormalization uses its moving
statistics: they would differ otherwise.

A later step may compute what the first one does not, such as a loss whose weight is raised from 0:
where both agree, they are run once more with such weights and counters turned on
(`later_steps.py`). If only that differs, each replica runs the step over all rows too.

Where a step follows TensorFlow's convention (`reduction_rules.py`), the check detects that, and the
step is combined accordingly. Where no reduction makes replicas equal to one device, and where only
the global batch can be computed at all, each replica runs the step over all rows
(`replicated_batch.py`), which is logged. If that fails too, it raises an error that names what
differs.

A user's `test_step` or `predict_step` is compared in the same way before it is first taken, and so
are Keras's where `evaluate` or `predict` is the first call on a model.
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
from tfaccel.distribute.batches import numbers_of_rows, proportion
from tfaccel.distribute.checked_steps import KINDS, CheckedSteps
from tfaccel.distribute.custom_parts import has_custom_parts, has_custom_step
from tfaccel.distribute.differences import Difference, differences
from tfaccel.distribute.gradients import is_custom_step
from tfaccel.distribute.parity_run import ParityRun
from tfaccel.distribute.predict_parity import PredictParityRun
from tfaccel.distribute.reduction_rules import SCALED_MEAN, SUM, WEIGHTED_MEAN, StepReductions
from tfaccel.distribute.step_result import ParityRunError
from tfaccel.errors import CheckError, StrategyError

_PARITY_RUNS = {"train": ParityRun, "test": ParityRun, "predict": PredictParityRun}
_MAX_TRIES = 12
_WHERE = ("File ", "Detected at node", "Stack trace", "Original stack trace")


class Checks:
    """The checks of one strategy.

    Args:
        mode: ``"auto"`` for models with a custom part, ``"always"``, or ``"off"``.
    """

    def __init__(self, mode: str = "auto") -> None:
        self.mode = mode
        self._reductions: weakref.WeakKeyDictionary[Any, dict[str, StepReductions]] = (
            weakref.WeakKeyDictionary()
        )
        self._checked_steps = CheckedSteps()
        self._in_proportion: weakref.WeakSet[Any] = weakref.WeakSet()

    def in_proportion(self, model: keras.Model) -> bool:
        """Whether a step of `model` matched one device with parts split in proportion."""
        return model in self._in_proportion

    def reductions(self, model: keras.Model, kind: str = "train") -> StepReductions:
        """How a step of `model` is combined, as far as it is known.

        Args:
            model: of the strategy.
            kind: ``"train"``, ``"test"`` or ``"predict"``; as the previous kind if it was not
                checked separately.
        """
        by_kind = self._reductions.get(model, {})
        before = KINDS[KINDS.index(kind) :: -1]
        return next((by_kind[each] for each in before if each in by_kind), StepReductions())

    def verdict(self, model: keras.Model) -> dict[str, Any]:
        """The verdict on the step of `model`, for a file: a resumed run reuses it."""
        reductions = dataclasses.asdict(self.reductions(model))
        return {**reductions, "in_proportion": self.in_proportion(model)}

    def keep_verdict(self, model: keras.Model, verdict: dict[str, Any]) -> None:
        """Adopts an earlier process's verdict on the step of `model`, in place of a check.

        Replicas may differ by now (`local_steps`), so that another check could give a different
        verdict.
        """
        self._checked_steps.is_new(model, "train")
        if verdict["in_proportion"]:
            self._in_proportion.add(model)
        fields = {name: value for name, value in verdict.items() if name != "in_proportion"}
        fields["gradients"] = tuple(fields["gradients"])
        self._keep(model, "train", StepReductions(**fields))

    def first_step(self, strategy: Any, model: keras.Model, fn: Any) -> None:
        """Called before each trace of a step; checks the first of each kind after a `compile`.

        Args:
            strategy: whose checks these are.
            model: prepared.
            fn: its bound `train_step`, `test_step` or `predict_step`.

        Raises:
            CheckError: when replicas would compute other numbers than one device.
        """
        kind = kind_of(fn)
        if not self._checked_steps.is_new(model, kind):
            return
        if self.mode == "off":
            return
        if kind != "train" and self._checked_steps.is_known(model, kind):
            return
        batch = _private.batch_of_step()
        if batch is None:
            return
        if (
            self.mode == "auto"
            and not has_custom_parts(model, fn)
            and not (kind == "train" and _in_proportion(batch))
        ):
            return
        _in_a_thread(lambda: self._check(strategy, model, fn, batch))

    def _keep(self, model: keras.Model, kind: str, reductions: StepReductions) -> None:
        self._reductions.setdefault(model, {})[kind] = reductions

    def _check(self, strategy: Any, model: keras.Model, fn: Any, batch: Any) -> None:
        parity_run, first = _PARITY_RUNS[kind_of(fn)], None
        # A step written for a fixed number of rows does not run on any other.
        for few in (True, False):
            try:
                with strategy.scope(), parity_run(strategy, model, fn, batch, few) as parity:
                    self._compare(parity, model, fn, if_stopped=not few)
                    self._remember(model, batch)
                    return
            except ParityRunError as reason:
                first = first or reason
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
            if not self._with_all_rows(parity, model, fn):
                raise
            _warn_replicated_batch(model, str(error), fn)
            return
        except ParityRunError as error:
            stopped = error
        if stopped is not None:
            if not (if_stopped and self._with_all_rows(parity, model, fn)):
                raise stopped
            _warn_replicated_batch(
                model, f"tfaccel: replicas cannot run it ({_shortened(stopped)})", fn
            )
            return
        later = _later_difference(parity)
        if later is not None and self._with_all_rows(parity, model, fn):
            _warn_replicated_batch(model, later, fn)
            return
        if reductions != StepReductions() or kind_of(fn) != "train":
            self._keep(model, kind_of(fn), reductions)
        if reductions != StepReductions():
            logging.info(
                "tfaccel: the %s step of %r is not purely a mean over its local batch; using "
                "reductions: %s.",
                kind_of(fn),
                model.name,
                reductions,
            )

    def _with_all_rows(self, parity: ParityRun, model: keras.Model, fn: Any) -> bool:
        """Whether replicas match one device on all rows; if so, they switch to that."""
        reductions = StepReductions(all_rows=True)
        try:
            wrong = differences(*parity.run(reductions), parity.tolerance)
        except (ParityRunError, StrategyError) as reason:
            text = _shortened(reason)
            logging.info(
                "tfaccel: %r also fails when every replica runs the full global batch: %s",
                *(model.name, text),
            )
            return False
        if parity.strategy.min_over_workers(len(wrong)) > 0:
            for one in wrong[:1]:
                logging.info(
                    "tfaccel: with the full global batch on every replica, %s of %r is %s; "
                    "expected %s.",
                    *(one.what, model.name, one.replicated, one.reference),
                )
            return False
        self._keep(model, kind_of(fn), reductions)
        if kind_of(fn) == "train":  # those were traced before: not so
            for kind in ("test", "predict"):
                if not has_custom_step(model, (kind,)):
                    self._reductions[model].pop(kind, None)
            model.test_function = model.predict_function = None
        return True


def kind_of(fn: Any) -> str:
    """``"train"``, ``"test"`` or ``"predict"``, of a bound step of a model."""
    return str(fn.__name__).removesuffix("_step")


def _in_proportion(batch: Any) -> bool:
    """Whether a part of a batch has several rows per row of another."""
    if not isinstance(batch, _private.PerReplicaBatch):
        with tf.init_scope():
            batch = tf.nest.map_structure(
                lambda leaf: None if is_absent(leaf) else tf.convert_to_tensor(leaf), batch
            )
        return max(proportion(numbers_of_rows(batch)), default=1) > 1
    return max(proportion(numbers_of_rows(batch.values[0].data)), default=1) > 1


def find_reductions(parity: ParityRun, may_choose: bool) -> StepReductions:
    """The reductions under which replicas match one device.

    Raises:
        CheckError: when there are none.
        ParityRunError: when the step cannot be run that way.
    """
    reductions, first = StepReductions(), None
    hint: str | None = None
    for _ in range(_MAX_TRIES):
        replicated, reference = parity.run(reductions)
        differing = differences(replicated, reference, parity.tolerance)
        # Workers may round to different sides of the tolerance: all accept what one accepts.
        if parity.strategy.min_over_workers(len(differing)) == 0:
            return reductions
        first = first or differing[0]
        if not may_choose:
            break
        adjustable = (w for w in differing if w.kind in ("gradients", "metrics", "logs"))
        wrong = next(adjustable, None)
        reduction = (
            None
            if wrong is None
            else _next_reduction(reductions.of(wrong.kind, wrong.name), wrong, hint)
        )
        if wrong is None or reduction is None:
            break
        hint = reduction
        reductions = reductions.replaced(wrong.kind, wrong.name, reduction)
    assert first is not None
    message = difference_message(first, parity.where)
    line = f"{message}; {first.advice}, or disable the check with check='off'."
    raise CheckError(line)


def _later_difference(parity: ParityRun) -> str | None:
    """Where replicas differ from one device only in a later step; every worker must call."""
    results = parity.run_later()
    differing = [] if results is None else differences(*results, parity.tolerance)
    if results is None or parity.strategy.min_over_workers(len(differing)) == 0:
        return None
    return f"{difference_message(differing[0], parity.where)}; {differing[0].advice}"


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
        f"{where}; expected {wrong.reference} as on one device"
    )


def log_skipped(model: keras.Model, reason: object) -> None:
    """Warns that the step of `model` was not compared, and why."""
    text = _shortened(reason)
    logging.warning("tfaccel: the first step of %r was not checked: %s", model.name, text)


def _refuse_or_log_skipped(model: keras.Model, reason: object, batch: Any, fn: Any) -> None:
    if not is_custom_step(fn) and _in_proportion(batch):
        # It is unknown whether rows of the longer part belong to those of the others.
        raise uneven(["parts in proportion, of which the first-step check could not run"])
    log_skipped(model, reason)


def _warn_replicated_batch(model: keras.Model, reason: str, fn: Any) -> None:
    kind = kind_of(fn)
    logging.warning(
        "%s; so every replica runs the %s of %r over all rows of the batch: results match "
        "single-device training; no speedup or memory savings.",
        reason.removesuffix(", or disable the check with check='off'."),
        "steps" if kind == "train" else f"{kind} steps",
        model.name,
    )


def _shortened(reason: object) -> str:
    lines = [line.strip() for line in str(reason).splitlines()]
    return " ".join(line for line in lines if line and not line.startswith(_WHERE))[:400]
