"""The mistakes tfaccel can tell you about, one class per kind.

Every message says what was found, what was expected and what to do, on one line.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any


class TfaccelError(Exception):
    """Base of every error that tfaccel raises on purpose."""


class StrategyError(TfaccelError, ValueError):
    """A strategy was requested that this hardware, cluster or option set cannot give."""


class ClusterError(TfaccelError, ValueError):
    """The environment describes a cluster that cannot be right."""


class LaunchError(TfaccelError, RuntimeError):
    """A job could not be started, or gave up waiting for one of its workers."""


class ScopeError(TfaccelError, RuntimeError):
    """A model, optimizer or metric was created outside the scope of the strategy it runs under."""


class InputError(TfaccelError, ValueError):
    """A dataset cannot be divided among the replicas without repeating or losing rows."""


class CheckpointError(TfaccelError, ValueError):
    """A checkpoint that is not there, not whole, or another model's."""


class CheckError(TfaccelError, ValueError):
    """A step of which the strategy would make other numbers than one device."""


class LayoutError(TfaccelError, ValueError):
    """A mesh, or the layout of a variable on it, that cannot be."""


class FpgaError(TfaccelError, RuntimeError):
    """A model that cannot become firmware, or a tool that failed on the way.

    Attributes:
        log: the file with all that the tools said, if one ran.
    """

    def __init__(self, message: str, log: Path | None = None) -> None:
        super().__init__(message if log is None else f"{message} The log is {log}.")
        self.log = log


class FpgaTimeoutError(FpgaError):
    """A tool was not done within the time it was given."""


class FpgaCheckError(FpgaError):
    """Firmware that does not say what Keras says.

    Attributes:
        report: the `tfaccel.fpga.report.Report` of the export, with the error of each layer.
    """

    def __init__(self, message: str, report: Any, log: Path | None = None) -> None:
        super().__init__(message, log)
        self.report = report
