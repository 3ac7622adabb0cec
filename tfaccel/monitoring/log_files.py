"""The files of a monitor's directory, as they are written: lines of JSON, scalars, the report."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator, Sequence
from pathlib import Path

from absl import logging

from tfaccel.errors import MonitorError
from tfaccel.monitoring import records
from tfaccel.monitoring.page import page
from tfaccel.monitoring.records import Record
from tfaccel.monitoring.run import Cause, Run
from tfaccel.monitoring.scalars import ScalarWriter
from tfaccel.monitoring.window import Window

REPORT = "report.html"


def prepare(directory: str | None, worker: int) -> None:
    """Creates a monitor's directory, and a worker's file in it.

    Args:
        directory: of the monitor, or None.
        worker: its rank.

    Raises:
        MonitorError: it cannot be written to.
    """
    if directory is None:
        return
    try:
        Path(directory).mkdir(parents=True, exist_ok=True)
        _open_lines(Path(directory) / records.file_name(worker))
    except OSError as error:
        raise MonitorError(
            f"tfaccel: tfaccel.monitor cannot write to {directory} ({_reason(error)}); expected a "
            "directory that is there or can be created, and may be written to; give another one, "
            "or None for no files."
        ) from None


def _open_lines(path: Path) -> None:
    """Creates the file; ends a line of a run killed while it wrote, or ours would continue it."""
    with path.open("a", encoding="utf-8") as file:
        if path.read_bytes()[-1:] not in (b"", b"\n"):
            file.write("\n")


def _reason(error: OSError) -> str:
    return error.strerror or str(error)


class LogFiles:
    """The files of one worker; nothing is written without a directory.

    Where a file cannot be written (the disk is full), a warning says so, and no more are: training
    goes on.

    Args:
        directory: of the monitor, or None; as left by `prepare`.
        run: of this worker.
        runs: of all workers, which the chief writes.
    """

    def __init__(self, directory: str | None, run: Run, runs: Sequence[Run]) -> None:
        self._directory = None if directory is None else Path(directory)
        self._run = run
        self._is_chief = run.worker == 0
        self._scalars: ScalarWriter | None = None
        with self._writing():
            if self._directory is not None and self._is_chief:
                self._scalars = ScalarWriter(os.fspath(self._directory))
            self._write([records.line(one) for one in (runs if self._is_chief else (run,))])

    def window(self, windows: Sequence[Window]) -> None:
        """Adds a window: of this worker, on the chief those of all workers."""
        chosen = [w for w in windows if self._is_chief or w.worker == self._run.worker]
        with self._writing():
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
        with self._writing():
            self._write([*lines, records.end_line(number, rank)])
            if self._scalars is not None:
                self._scalars.close()
            if self._directory is not None and self._is_chief:
                report = self._directory / REPORT
                report.write_text(page(record), "utf-8")
                return os.fspath(report)
        return ""

    @contextlib.contextmanager
    def _writing(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            logging.warning(
                "tfaccel: monitor: a file in %s cannot be written (%s); no more are, and training "
                "goes on.",
                self._directory,
                _reason(error),
            )
            self._directory = self._scalars = None

    def _write(self, lines: Sequence[str]) -> None:
        if self._directory is None or not lines:
            return
        path = self._directory / records.file_name(self._run.worker)
        with path.open("a", encoding="utf-8") as file:
            file.write("".join(f"{line}\n" for line in lines))
