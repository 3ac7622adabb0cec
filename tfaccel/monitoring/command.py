"""`tfaccel monitor`: what a finished or running job's monitor has written."""

from __future__ import annotations

import argparse
import dataclasses
import json
import time
from collections.abc import Sequence
from pathlib import Path

from tfaccel.monitoring import text
from tfaccel.monitoring.page import page
from tfaccel.monitoring.records import Record, read_path
from tfaccel.monitoring.rich_output import show
from tfaccel.monitoring.summary import summarize
from tfaccel.monitoring.verdict import verdict
from tfaccel.monitoring.window import Window

_LOOK_EVERY_S = 2.0


def main(argv: Sequence[str]) -> int:
    """Shows the newest run of a directory.

    Args:
        argv: words for the command.

    Returns:
        The exit code.
    """
    parser = argparse.ArgumentParser(prog="tfaccel monitor", description=__doc__)
    parser.add_argument("path", type=Path, metavar="FILE", help="the directory, or a file in it")
    parser.add_argument("--json", action="store_true", help="print it as one JSON object")
    parser.add_argument("--html", type=Path, metavar="OUT", help="also write the report there")
    parser.add_argument(
        "--follow",
        action="store_true",
        help="print windows as they come, until the job ends or Ctrl-C",
    )
    arguments = parser.parse_args(argv)
    record = _followed(arguments.path) if arguments.follow else read_path(arguments.path)
    if arguments.html is not None:
        arguments.html.write_text(page(record), "utf-8")
    if arguments.json:
        print(json.dumps(_as_json(record)))
    else:
        _show(record, lines=not arguments.follow)
    return 0


def _followed(path: Path) -> Record:
    shown = 0
    while True:
        record = read_path(path)
        windows = _by_number(record)
        for each in windows[shown:]:
            print(text.window_line(each), flush=True)
        shown = len(windows)
        if record.ended:
            return record
        try:
            time.sleep(_LOOK_EVERY_S)
        except KeyboardInterrupt:  # a job that was killed has no end
            return record


def _by_number(record: Record) -> list[list[Window]]:
    numbers = sorted({w.number for w in record.windows})
    return [[w for w in record.windows if w.number == n] for n in numbers]


def _show(record: Record, lines: bool) -> None:
    if lines:
        show(*(text.window_line(each) for each in _by_number(record)), "")
    diagnosis = verdict(summarize(record.windows), record.runs, record.causes)
    show(*text.report(record, diagnosis))
    if not record.ended:
        show("The run is not complete.")


def _as_json(record: Record) -> dict[str, object]:
    summaries = summarize(record.windows)
    return {
        "verdict": dataclasses.asdict(verdict(summaries, record.runs, record.causes)),
        "workers": [dataclasses.asdict(one) for one in summaries],
        **dataclasses.asdict(record),
    }
