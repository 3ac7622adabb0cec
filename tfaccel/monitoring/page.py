"""The report as one self-contained HTML page: no network, no script, no other file."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from datetime import datetime, timezone
from html import escape

from tfaccel.monitoring import charts, text
from tfaccel.monitoring.charts import Series
from tfaccel.monitoring.records import Record
from tfaccel.monitoring.summary import PARTS, WorkerSummary, summarize
from tfaccel.monitoring.verdict import Verdict, verdict
from tfaccel.monitoring.window import Window, rate

_STYLE = """
:root { color-scheme: light dark; --ink: #1d2430; --paper: #ffffff; --rule: #d7dbe2;
  --input: #d9772b; --compute: #3b76c4; --communication: #8a55b5; --host: #4c9a5f;
  --w0: #3b76c4; --w1: #d9772b; --w2: #4c9a5f; --w3: #8a55b5; --w4: #b8a12c; --w5: #3aa3a8;
  --w6: #c2556e; --w7: #7a7f89; }
@media (prefers-color-scheme: dark) { :root { --ink: #e4e7ec; --paper: #171b22;
  --rule: #39404c; } }
body { background: var(--paper); color: var(--ink); font: 15px/1.5 system-ui, sans-serif;
  max-width: 60rem; margin: 2rem auto; padding: 0 1rem; }
h1 { font-size: 1.3rem; } h2 { font-size: 1.05rem; margin: 2rem 0 .4rem; }
.verdict { border-left: 4px solid var(--input); padding: .4rem 1rem; font-size: 1.1rem; }
table { border-collapse: collapse; } th, td { padding: .25rem .6rem; text-align: right;
  border-bottom: 1px solid var(--rule); } th:first-child, td:first-child { text-align: left; }
td { white-space: nowrap; }
.wide { overflow-x: auto; } .chart { width: 100%; height: auto; }
.chart text { fill: var(--ink); font-size: 11px; } .grid { stroke: var(--rule); }
.key { margin-right: 1rem; white-space: nowrap; } .line { fill: none !important;
  stroke-width: 2; }
"""
_COLOURS = 8


def page(record: Record) -> str:
    """The report.

    Args:
        record: of a run that has ended, or still runs.
    """
    summaries = summarize(record.windows)
    diagnosis = verdict(summaries, record.runs, record.causes)
    numbers = sorted({w.number for w in record.windows if w.number > 0}) or [0]
    first = next((w for w in record.windows if w.number == numbers[0]), None)
    places = [_place(record.windows, n) for n in numbers]
    ranks = sorted({w.worker for w in record.windows})
    parts = [_head(record, diagnosis), _table(summaries, record)]
    if first is not None:
        parts += ["<h2>Milliseconds per step</h2>", _breakdown(record.windows, numbers, ranks)]
        for title, unit, value in _CHARTS:
            series = _by_worker(record.windows, numbers, ranks, value)
            if any(v is not None for one in series for v in one.values):
                parts.append(f"<h2>{title}</h2>{charts.lines(places, series, unit)}")
                if len(series) > 1:
                    parts.append(charts.legend(series))
    notes = text.notes(record.windows, record.runs) if record.windows else []
    listed = "".join(f"<li>{escape(note)}</li>" for note in notes)
    body = "\n".join([*parts, f"<h2>Notes</h2><ul>{listed}</ul>"])
    styles = _STYLE + _layers()
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width"><title>tfaccel monitor</title>'
        f"<style>{styles}</style></head>\n<body>\n{body}\n</body></html>\n"
    )


def _layers() -> str:
    names = [*PARTS, *(f"w{i}" for i in range(_COLOURS))]
    return "".join(f".{n} {{ fill: var(--{n}); stroke: var(--{n}); }}\n" for n in names)


_CHARTS: tuple[tuple[str, str, Callable[[Window], float | None]], ...] = (
    ("Examples per second", "examples/s", lambda w: rate(w.examples, w.seconds)),
    ("Tokens per second", "tokens/s", lambda w: rate(w.tokens, w.seconds)),
    ("Busy time per step", "ms", lambda w: None if w.own_s is None else w.own_s / w.steps * 1e3),
    ("Memory", "MiB", lambda w: None if w.memory is None else w.memory / 2**20),
    (
        "Memory on devices",
        "MiB",
        lambda w: None if w.device_memory is None else w.device_memory / 2**20,
    ),
    ("Part of the devices' peak (MFU)", "%", lambda w: None if w.mfu is None else w.mfu * 100),
)


def _place(windows: Sequence[Window], number: int) -> str:
    one = next(w for w in windows if w.number == number)
    return f"steps {one.step + 1}-{one.step + one.steps}"


def _head(record: Record, diagnosis: Verdict) -> str:
    html_parts = [f"<h1>{_title(record)}</h1>"]
    html_parts.append(
        f'<p class="verdict">{escape(diagnosis.sentence)}<br>{escape(diagnosis.advice)}</p>'
    )
    if record.runs:
        run = record.runs[0]
        devices = f"{run.device or 'device'}: {', '.join(run.devices)}"
        over = f", communicating over {run.communication}" if run.communication else ""
        html_parts.append(
            f"<p>{escape(run.strategy)}, {run.workers} worker{'s' if run.workers > 1 else ''}"
            f" ({escape(devices)} each){escape(over)}; input: {escape(run.input or 'unknown')}</p>"
        )
    return "\n".join(html_parts)


def _title(record: Record) -> str:
    number = record.runs[0].run if record.runs else record.windows[0].run
    began = datetime.fromtimestamp(number / 1e3, timezone.utc)
    state = "ended" if record.ended else "running, or stopped"
    return f"Training of {began:%Y-%m-%d %H:%M:%S} UTC ({state})"


def _table(summaries: Sequence[WorkerSummary], record: Record) -> str:
    table = text.table(summaries, record.runs)
    heads = "".join(f"<th>{escape(str(column.header))}</th>" for column in table.columns)
    cells = [list(column.cells) for column in table.columns]
    rows = "".join(
        f"<tr>{''.join(f'<td>{escape(str(cell))}</td>' for cell in row)}</tr>"
        for row in zip(*cells, strict=True)
    )
    return f'<div class="wide"><table><tr>{heads}</tr>{rows}</table></div>'


def _breakdown(windows: Sequence[Window], numbers: Sequence[int], ranks: Sequence[int]) -> str:
    """For each worker its bars, all with one legend."""
    by_key = {(w.worker, w.number): w for w in windows}
    charts_html, layers = [], []
    for rank in ranks:
        chosen = [by_key.get((rank, n)) for n in numbers]
        layers = [
            Series(part, tuple(_of_step(w, part) for w in chosen), part)
            for part in ("compute", "input", "communication", "host")
        ]
        name = f"<p>worker {rank}</p>" if len(ranks) > 1 else ""
        places = [_place(windows, n) for n in numbers]
        charts_html.append(name + charts.bars(places, layers, "ms"))
    return charts.legend(layers) + "".join(charts_html)


def _of_step(window: Window | None, part: str) -> float | None:
    seconds = getattr(window, f"{part}_s", None)
    return None if seconds is None or window is None else seconds / window.steps * 1e3


def _by_worker(
    windows: Sequence[Window],
    numbers: Sequence[int],
    ranks: Sequence[int],
    value: Callable[[Window], float | None],
) -> list[Series]:
    by_key = {(w.worker, w.number): w for w in windows}
    return [
        Series(
            f"worker {rank}",
            tuple(value(by_key[rank, n]) if (rank, n) in by_key else None for n in numbers),
            f"w{rank % _COLOURS}",
        )
        for rank in ranks
    ]
