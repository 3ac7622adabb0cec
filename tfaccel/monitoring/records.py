"""Runs and windows as lines of JSON, one file for each worker, and how such a directory is read.

    {"kind": "run", "run": 1764403200000, "worker": 0, "workers": 2, "name": "10.0.0.4:2222", ...}
    {"kind": "window", "run": 1764403200000, "worker": 0, "number": 1, "steps": 120, ...}
    {"kind": "cause", "run": 1764403200000, "worker": 0, "part": "host", "what": ..., ...}
    {"kind": "end", "run": 1764403200000, "worker": 0}

Each worker writes its own lines. The chief's file also has the windows of the others, so that it is
complete even without a shared disk. Figures that could not be measured are null.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tfaccel.errors import MonitorError
from tfaccel.monitoring.run import Cause, Run
from tfaccel.monitoring.window import Window


@dataclass(frozen=True)
class Record:
    """The record of one run.

    Attributes:
        runs: of the workers that have written, by rank.
        windows: of all workers, by number and rank.
        causes: what was found within the parts, by the chief.
        ended: whether the `fit` has ended.
    """

    runs: tuple[Run, ...] = ()
    windows: tuple[Window, ...] = ()
    causes: tuple[Cause, ...] = ()
    ended: bool = False


def line(item: Run | Window) -> str:
    """One line, without its end."""
    return json.dumps({"kind": type(item).__name__.lower(), **dataclasses.asdict(item)})


def cause_line(cause: Cause, run: int, worker: int) -> str:
    """One line, without its end."""
    return json.dumps({"kind": "cause", "run": run, "worker": worker, **dataclasses.asdict(cause)})


def end_line(run: int, worker: int) -> str:
    """One line, without its end."""
    return json.dumps({"kind": "end", "run": run, "worker": worker})


def file_name(worker: int) -> str:
    """That of a worker's file.

    >>> file_name(3)
    'worker-3.jsonl'
    """
    return f"worker-{worker}.jsonl"


def read(lines: Iterable[str]) -> Record:
    """The newest run in lines of JSON.

    Lines that are incomplete or damaged are ignored: a job may still write them, or was killed
    while it did.
    """
    items = [item for text in lines if (item := _parse(text)) is not None]
    newest = max((item["run"] for item in items), default=0)
    runs: dict[int, Run] = {}
    windows: dict[tuple[int, int], Window] = {}
    causes: list[Cause] = []
    ended = False
    for item in items:
        if item["run"] != newest:
            continue
        kind, worker = item["kind"], item["worker"]
        made = _made(item)
        if isinstance(made, Run):
            runs[worker] = made
        elif isinstance(made, Window):
            windows[made.number, worker] = made
        elif isinstance(made, Cause):
            causes.append(made)
        elif kind == "end" and worker == 0:
            ended = True
    by_number = tuple(windows[key] for key in sorted(windows))
    return Record(tuple(runs[rank] for rank in sorted(runs)), by_number, tuple(causes), ended)


def _parse(text: str) -> dict[str, Any] | None:
    try:
        item = json.loads(text)
    except ValueError:
        return None
    if not isinstance(item, dict) or not isinstance(item.get("kind"), str):
        return None
    numbers = isinstance(item.get("run"), int) and isinstance(item.get("worker"), int)
    return item if numbers else None


def _made(item: dict[str, Any]) -> Any:
    """What a line is about; None if it is something else, or lacks a field."""
    cls = {"run": Run, "window": Window, "cause": Cause}.get(item["kind"])
    if cls is None:
        return None
    names = {field.name for field in dataclasses.fields(cls)}
    fields = {name: value for name, value in item.items() if name in names}
    try:
        return cls(**{k: tuple(v) if isinstance(v, list) else v for k, v in fields.items()})
    except TypeError:
        return None


def _text(file: Path) -> str:
    return file.read_bytes().decode("utf-8", "replace")


def read_path(path: Path) -> Record:
    """The record in a directory of a monitor, or in one worker's file in it.

    Raises:
        MonitorError: there is nothing to read.
    """
    directory = path if path.is_dir() else path.parent
    files = sorted(directory.glob("worker-*.jsonl")) if path.exists() else []
    if path.is_file() and path not in files:
        files = [path]
    lines = [text for file in files for text in _text(file).splitlines()]
    record = read(lines)
    if not (record.runs or record.windows):
        raise MonitorError(
            f"tfaccel: {path} has no run of a monitor; expected a directory that "
            "tfaccel.monitor(strategy, directory) has written to, or a worker-N.jsonl in it."
        )
    return record
