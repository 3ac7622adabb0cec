"""The errors of tfaccel, one class per kind.

Every message states what was found, what was expected and what to do, on one line.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any


class TfaccelError(Exception):
    """Base of every error that tfaccel raises on purpose."""


class StrategyError(TfaccelError, ValueError):
    """The requested strategy is not available with this hardware, cluster or set of options."""


class ClusterError(TfaccelError, ValueError):
    """The environment describes an invalid cluster."""


class LaunchError(TfaccelError, RuntimeError):
    """A job could not be started, or gave up waiting for one of its workers."""


class ScopeError(TfaccelError, RuntimeError):
    """A model, optimizer or metric was created outside the scope of the strategy it runs under."""


class InputError(TfaccelError, ValueError):
    """A dataset cannot be divided among the replicas without repeating or losing rows."""


class CheckpointError(TfaccelError, ValueError):
    """A checkpoint that is missing, incomplete, or of another model."""


class CheckError(TfaccelError, ValueError):
    """A step whose results under the strategy would differ from one device's."""


class LayoutError(TfaccelError, ValueError):
    """An invalid mesh, or an invalid layout of a variable on it."""


class MonitorError(TfaccelError, ValueError):
    """A run that cannot be measured, or a record of one that cannot be read."""


class FpgaError(TfaccelError, RuntimeError):
    """A model that cannot be exported as firmware, or a tool that failed.

    Attributes:
        log: the file with the output of the tools, if one ran.
    """

    def __init__(self, message: str, log: Path | None = None) -> None:
        super().__init__(message if log is None else f"{message} The log is {log}.")
        self.log = log


class FpgaTimeoutError(FpgaError):
    """A tool exceeded its timeout."""


class FpgaCheckError(FpgaError):
    """Firmware whose outputs differ from Keras's.

    Attributes:
        report: the `tfaccel.fpga.report.Report` of the export, with the error of each layer.
    """

    def __init__(self, message: str, report: Any, log: Path | None = None) -> None:
        super().__init__(message, log)
        self.report = report
