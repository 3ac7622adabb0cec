"""The measurement of one `fit`, window by window."""

from __future__ import annotations

import time
from dataclasses import replace
from typing import Any

import keras

from tfaccel.distribute import _private
from tfaccel.distribute.worker_activity import worker_activity
from tfaccel.monitoring import facts, flops, memory, pipeline, split, text, window_gather
from tfaccel.monitoring.callback_times import CallbackTimes
from tfaccel.monitoring.log_files import LogFiles
from tfaccel.monitoring.records import Record
from tfaccel.monitoring.rich_output import show
from tfaccel.monitoring.settings import Settings
from tfaccel.monitoring.step_clocks import StepClocks
from tfaccel.monitoring.summary import summarize
from tfaccel.monitoring.throughput import Throughput
from tfaccel.monitoring.verdict import Verdict, verdict
from tfaccel.monitoring.window import COMPILES, Window

_WINDOW_S = 10.0
_FIRST_STEPS = 5  # of the first window after the one that compiles
_MOST_CAUSES = 8


class Session:
    """Measures one `fit` from its beginning.

    Args:
        strategy: of the model.
        model: that is fitted.
        fit: that runs.
        settings: of the user.

    Attributes:
        record: the measurements so far: of all workers, on every worker.
        verdict: what bounds the run, once it has ended.
    """

    def __init__(
        self, strategy: Any, model: keras.Model, fit: _private.RunningFit, settings: Settings
    ) -> None:
        self._strategy, self._model, self._settings = strategy, model, settings
        cluster = getattr(strategy, "cluster", None)
        self._rank: int = 0 if cluster is None else cluster.rank
        workers: int = 1 if cluster is None else cluster.size
        self._callback_list = fit.callbacks
        self._callbacks: CallbackTimes | None = None
        self._source = pipeline.source_of(fit.adapter, workers)
        self._devices = facts.devices_of(strategy)
        self._device = facts.device_description(self._devices)
        self._blocks = all(name.startswith("CPU") for name in self._devices)
        self._throughput = Throughput(model)
        self._clocks = StepClocks(strategy, model, self._blocks, self._throughput.see)
        self._step = self._clocks.step
        self._began = int(time.time() * 1e3)
        self._epoch_begins = True
        self._between_s = self._own_s = 0.0
        # Of the open window: its number, the steps before it, and its planned number of steps.
        self._number, self._before, self._length = COMPILES, 0, 1
        self._function: Any = None
        self._traces = 0
        self._flops: float | None = None
        self._peak_flops: float | None = None
        self._files: LogFiles | None = None
        self.record = Record()
        self.verdict: Verdict | None = None

    # --- what happens ------------------------------------------------------------------------

    def epoch_begins(self, monitor: keras.callbacks.Callback) -> None:
        """Every callback's `on_train_begin` has run by now, so the list of them is final.

        Args:
            monitor: the callback of this session.
        """
        self._epoch_begins = True
        if self._callbacks is None:
            self._callbacks = CallbackTimes()
            marked = self._callbacks.marked(list(self._callback_list.callbacks), monitor)
            self._callback_list.callbacks = marked

    def call_begins(self, batch: int) -> None:
        """A call of one or more steps begins; a window may end before it.

        Args:
            batch: the number of the first one in its epoch.
        """
        if self._epoch_begins:
            self._epoch_begins = False
            self._between_s += self._step.begin()
        if self._step.steps_seen - self._before >= self._length:
            began, collective_s = time.perf_counter(), worker_activity.collective_s
            self._end_window(together=True)
            elapsed_s = time.perf_counter() - began
            self._step.leave_out(elapsed_s, worker_activity.collective_s - collective_s)
        self._step.label = batch + self._step.steps_in_call - 1
        self._step.is_announced = True

    def results_are_there(self, batch: int) -> None:
        """The results of a call have been read, possibly by another thread.

        Args:
            batch: the number of its last one.
        """
        if not self._blocks:
            self._step.done(batch)

    def end(self, stopped: bool) -> None:
        """The `fit` has ended: reports what bounds the run.

        Args:
            stopped: whether a callback has stopped it; the other workers may not have reached this
                point.
        """
        self._clocks.close()
        self._between_s += self._step.begin()
        if self._step.steps_seen > self._before:
            self._end_window(together=not stopped)
        if self._files is not None:
            self._report(self._files)

    # --- a window ----------------------------------------------------------------------------

    def _end_window(self, together: bool) -> None:
        """Records the measurements since the last one.

        Args:
            together: whether every worker ends its window now.
        """
        began, collective_s = time.perf_counter(), worker_activity.collective_s
        reasons = self._look_at_step() if self._number == COMPILES else []
        local_window = self._measured()
        windows = [local_window]
        if together:
            plan = self._settings.every or _planned(local_window)
            windows, self._length = window_gather.gather(self._strategy, local_window, plan)
        if self._files is None:
            self._began = windows[0].run
            run = facts.run_of(
                self._strategy, self._began, self._devices, self._device, self._source, reasons
            )
            runs = facts.of_all_workers(run, self._strategy)
            self._files = LogFiles(self._settings.directory, run, runs)
            self.record = Record(runs=runs)
        self._files.window(windows)
        self.record = replace(self.record, windows=(*self.record.windows, *windows))
        self._say(text.window_line(windows))
        self._before += local_window.steps
        self._number += 1
        own_s = time.perf_counter() - began - (worker_activity.collective_s - collective_s)
        # One-time work after the step that compiles does not count towards the steps.
        self._own_s = own_s if local_window.number > COMPILES else 0.0

    def _measured(self) -> Window:
        """The window of this worker."""
        parts, reduced = split.split(self._step.take()), self._clocks.reduced()
        if reduced is None:
            communication, compute = None, parts.step_s + parts.collective_s
        else:
            reduced = min(reduced, parts.step_s)
            communication, compute = reduced + parts.collective_s, parts.step_s - reduced
        rows, tokens = self._throughput.take()
        process, devices = memory.of_process(), memory.of_devices(self._devices)
        seen = self._step.input_is_seen
        between_s, self._between_s = self._between_s, 0.0
        return Window(
            run=self._began,
            worker=self._rank,
            number=self._number,
            step=self._before,
            steps=self._step.steps_seen - self._before,
            seconds=parts.seconds,
            input_s=parts.input_s if seen else None,
            compute_s=compute,
            communication_s=communication,
            host_s=parts.host_s,
            between_s=between_s,
            traces=self._new_traces(),
            examples=rows if seen else None,
            tokens=tokens if seen else None,
            memory=process.now,
            peak_memory=process.peak,
            device_memory=devices.now,
            peak_device_memory=devices.peak,
            flops=self._flops,
            peak_flops=self._peak_flops,
            monitor_s=self._own_s,
        )

    def _new_traces(self) -> int:
        """How often the step was traced since the last window."""
        if self._function is None:
            return 0
        count = int(self._function.experimental_get_tracing_count())
        new, self._traces = count - self._traces, count
        return new

    def _look_at_step(self) -> list[str]:
        """Reads from the first step what applies to all of them.

        Returns:
            Why figures are missing.
        """
        if self._callbacks is not None:
            self._callbacks.causes(0)  # those of the step that was compiled
        self._function = _private.step_function(self._step.function)
        self._peak_flops = facts.peak_of(
            self._devices, self._device, self._model, self._settings.peak_tflops
        )
        self._flops, no_flops = flops.of_step_or_why(self._function, self._throughput.last_batch)
        self._throughput.last_batch = None
        why = self._clocks.why_not
        if self._clocks.communicates and not why and not self._clocks.sees_reductions:
            why = "no gradient of the step was seen to be summed"
        reasons = [f"communication is not separated from computing: {why}"] * bool(why)
        if not self._step.input_is_seen:
            reasons.append(
                "waiting for input is within computing, and examples are not counted: batches are "
                "taken inside of a call of several steps"
            )
        if no_flops:
            reasons.append(f"floating-point operations are not counted: {no_flops}")
        elif self._peak_flops is None:
            reasons.append(f"MFU: the peak of {self._device} is not known; peak_tflops= states it")
        return reasons

    # --- the end -----------------------------------------------------------------------------

    def _report(self, files: LogFiles) -> None:
        """Reports what bounds the run."""
        steps = sum(w.steps for w in self.record.windows if w.worker == self._rank and w.number)
        timed = self._callbacks.causes(steps) if self._callbacks is not None and steps else []
        causes = tuple(sorted(timed, key=lambda c: -(c.seconds or 0.0))[:_MOST_CAUSES])
        self.record = replace(self.record, causes=causes, ended=True)
        self.verdict = verdict(summarize(self.record.windows), self.record.runs, causes)
        report = files.end(causes, self.record)
        self._say("", *text.report(self.record, self.verdict))
        if report:
            self._say(f"report: {report}")

    def _say(self, *parts: Any) -> None:
        """Prints on the chief."""
        if self._rank == 0 and self._settings.verbose:
            show(*parts)


def _planned(window: Window) -> int:
    """How many steps take about as long as a window should."""
    if window.number == COMPILES:
        return _FIRST_STEPS
    return max(1, round(_WINDOW_S * window.steps / max(window.seconds, 1e-6)))
