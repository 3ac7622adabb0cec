"""Windows and their sums as text: a line for each window, and a table at the end."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from tfaccel.monitoring.records import Record
from tfaccel.monitoring.run import Run
from tfaccel.monitoring.summary import PARTS, WorkerSummary, slowest, summarize
from tfaccel.monitoring.units import NONE, milliseconds, number, percent, size
from tfaccel.monitoring.verdict import Verdict
from tfaccel.monitoring.window import COMPILES, Window

if TYPE_CHECKING:
    from rich.table import Table

_SHORT = {"input": "input", "compute": "compute", "communication": "comm", "host": "host"}


def window_line(windows: Sequence[Window]) -> str:
    """One line about a window of all workers.

    Args:
        windows: of one number, one for each worker.
    """
    first = windows[0]
    steps = f"steps {first.step + 1}-{first.step + first.steps}"
    if first.number == COMPILES:
        return f"monitor: {steps}: {first.seconds:.1f} s including compilation"
    summaries = summarize(windows)
    chief = summaries[0]
    parts = ", ".join(f"{_SHORT[p]} {percent(chief.share(p))}" for p in PARTS)
    text = f"monitor: {steps}: {milliseconds(chief.step_s)}/step: {parts}"
    text += f"; {number(chief.examples_per_second)} examples/s"
    if chief.tokens_per_second is not None:
        text += f", {number(chief.tokens_per_second)} tokens/s"
    memory = first.device_memory, first.peak_device_memory
    if memory[0] is None:
        memory = first.memory, first.peak_memory
    text += f"; memory {size(memory[0])} (peak {size(memory[1])})"
    if first.mfu is not None:
        text += f"; MFU {percent(first.mfu)}"
    if any(w.traces for w in windows):
        text += "; recompiled"
    slow = slowest(summaries)
    if slow is not None:
        text += f"; slowest worker {slow.worker}, by {milliseconds(slow.lag_s)}"
    return text


def table(summaries: Sequence[WorkerSummary], runs: Sequence[Run]) -> Table:
    """A table of all workers over all steady windows."""
    from rich.table import Table

    table = Table(title="where the time of a step goes")
    tokens = any(s.tokens_per_second is not None for s in summaries)
    devices = any(s.peak_device_memory is not None for s in summaries)
    table.add_column("worker")
    heads = ["steps", "ms/step", *_SHORT.values(), "busy", "examples/s"]
    heads += ["tokens/s"] * tokens + ["peak memory"] + ["on devices"] * devices + ["MFU"]
    for head in heads:
        table.add_column(head, justify="right")
    names = {run.worker: run.name for run in runs}
    for summary in summaries:
        row = [f"{summary.worker} {names.get(summary.worker, '')}".strip(), str(summary.steps)]
        row += [f"{summary.step_s * 1e3:,.1f}", *(percent(summary.share(p)) for p in PARTS)]
        row += [milliseconds(summary.own_step_s), number(summary.examples_per_second)]
        row += [number(summary.tokens_per_second)] * tokens + [size(summary.peak_memory)]
        row += [size(summary.peak_device_memory)] * devices + [percent(summary.mfu)]
        table.add_row(*row)
    return table


def report(record: Record, diagnosis: Verdict) -> list[Table | str]:
    """The report at the end: the table, notes, and the verdict."""
    summaries = summarize(record.windows)
    return [table(summaries, record.runs), *notes(record.windows, record.runs), "", str(diagnosis)]


def notes(windows: Sequence[Window], runs: Sequence[Run]) -> list[str]:
    """Notes: the slowest worker, what was not measured, and the monitor's own time."""
    lines = []
    summaries = summarize(windows)
    slow = slowest(summaries)
    if slow is not None:
        lines.append(
            f"slowest: worker {slow.worker}, busy for {milliseconds(slow.own_s)} per step, the "
            f"others for {milliseconds(slow.others_s)}"
        )
    chief = [w for w in windows if w.worker == windows[0].worker]
    compiled = [w for w in chief if not w.steady]
    if compiled:
        lines.append(f"compiling: {sum(w.seconds for w in compiled):.1f} s, not in the table")
    if (between := sum(w.between_s for w in chief)) >= 0.05:
        lines.append(f"between epochs (validation, callbacks): {between:.1f} s, not in the table")
    own, all_s = sum(s.monitor_s for s in summaries), sum(s.seconds for s in summaries)
    if all_s:
        lines.append(f"monitor overhead: {percent(own / all_s)} of step time")
    reasons = dict.fromkeys(reason for run in runs for reason in run.not_measured)
    lines += [f"{NONE}: {reason}" for reason in reasons]
    return lines
