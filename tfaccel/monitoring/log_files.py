"""The files of a monitor's directory, as they are written: lines of JSON, scalars, the report."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

from tfaccel.monitoring import records
from tfaccel.monitoring.page import page
from tfaccel.monitoring.records import Record
from tfaccel.monitoring.run import Cause, Run
from tfaccel.monitoring.scalars import ScalarWriter
from tfaccel.monitoring.window import Window

REPORT = "report.html"


class LogFiles:
    """The files of one worker; nothing is written without a directory.

    Args:
        directory: of the monitor, or None.
        run: of this worker.
        runs: of all workers, which the chief writes.
    """

    def __init__(self, directory: str | None, run: Run, runs: Sequence[Run]) -> None:
        self._directory = None if directory is None else Path(directory)
        self._run = run
        self._is_chief = run.worker == 0
        self._scalars: ScalarWriter | None = None
        if self._directory is not None:
            self._directory.mkdir(parents=True, exist_ok=True)
            if self._is_chief:
                self._scalars = ScalarWriter(os.fspath(self._directory))
            self._complete_last_line(self._directory / records.file_name(run.worker))
        self._write([records.line(one) for one in (runs if self._is_chief else (run,))])

    def window(self, windows: Sequence[Window]) -> None:
        """Adds a window: of this worker, on the chief those of all workers."""
        chosen = [w for w in windows if self._is_chief or w.worker == self._run.worker]
        self._write([records.line(w) for w in chosen])
        if self._scalars is not None:
            self._scalars.write(windows)

    def end(self, causes: Sequence[Cause], record: Record) -> str:
        """Closes the files; the chief writes the report.

        Returns:
            The report's path; empty where there is none.
        """
        number, rank = self._run.run, self._run.worker
        lines = [records.cause_line(cause, number, rank) for cause in causes]
        self._write([*lines, records.end_line(number, rank)])
        if self._scalars is not None:
            self._scalars.close()
        if self._directory is None or not self._is_chief:
            return ""
        report = self._directory / REPORT
        report.write_text(page(record), "utf-8")
        return os.fspath(report)

    @staticmethod
    def _complete_last_line(path: Path) -> None:
        """Ends a line of a run that was killed while it wrote, or ours would continue it."""
        if path.exists() and path.read_bytes()[-1:] not in (b"", b"\n"):
            with path.open("a", encoding="utf-8") as file:
                file.write("\n")

    def _write(self, lines: Sequence[str]) -> None:
        if self._directory is None or not lines:
            return
        path = self._directory / records.file_name(self._run.worker)
        with path.open("a", encoding="utf-8") as file:
            file.write("".join(f"{line}\n" for line in lines))
