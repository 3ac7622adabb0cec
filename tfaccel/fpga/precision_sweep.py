"""Accuracy against resources, over several precisions."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tfaccel.errors import FpgaCheckError, FpgaError
from tfaccel.fpga.allowlist import check_layers
from tfaccel.fpga.export import export_fpga
from tfaccel.fpga.export_settings import check_precision
from tfaccel.fpga.layer import layers_of
from tfaccel.fpga.report import Report


@dataclass(frozen=True)
class Sweep:
    """The exports of one model.

    Attributes:
        reports: one for each precision, in the order they were requested.
        plot: the picture, if it could be drawn.
        note: why not.
    """

    reports: tuple[Report, ...]
    plot: Path | None = None
    note: str = ""

    def to_json(self) -> str:
        """All of it, as JSON."""
        reports = [json.loads(one.to_json()) for one in self.reports]
        plot = None if self.plot is None else str(self.plot)
        return json.dumps({"reports": reports, "plot": plot, "note": self.note}, indent=1)

    def show(self, console: Any = None) -> None:
        """Prints a table."""
        from rich.console import Console
        from rich.table import Table

        console = console or Console(soft_wrap=True)
        table = Table(title="emulated answers, and estimated cost: multiplications x bits²")
        table.add_column("precision")
        headings = ("agreement", "maximum error", "accuracy", "cost")
        for heading in headings:
            table.add_column(heading, justify="right")
        table.add_column("")
        for report in self.reports:
            accuracy = "" if report.check.accuracy is None else f"{report.check.accuracy:.4f}"
            table.add_row(
                report.precision,
                f"{report.check.agreement:.2%}",
                f"{report.check.maximum:.3g}",
                accuracy,
                f"{bit_operations(report):,.0f}",
                report.check.status,
            )
        console.print(table)
        line = f"plot: {self.plot}" if self.plot is not None else self.note
        console.print(line, markup=False, highlight=False)


def bit_operations(report: Report) -> float:
    """Multiplications times the square of their bits: the cost of a fixed-width design."""
    figure = report.figure("multiplications")
    bits, _ = check_precision(report.precision)
    return 0.0 if figure is None else figure.value * bits**2


def sweep(model: Any, directory: str | Path, precisions: Sequence[str], **options: Any) -> Sweep:
    """Exports a plain model in several precisions; one that fails its check is a row too.

    Args:
        model: as for `export_fpga`; a quantized model has its own types and is refused.
        directory: for a subdirectory per precision, and ``sweep.png``.
        precisions: such as ``["fixed<8,4>", "fixed<16,6>"]``.
        **options: further arguments of `export_fpga`.

    Returns:
        The reports, and the plot if matplotlib is installed.

    Raises:
        FpgaError: as `export_fpga`.
    """
    from tfaccel.fpga.convert import is_quantized

    if not precisions:
        raise FpgaError("no precision; expected one or more such as fixed<16,6>.")
    check_layers(layers_of(model))
    if is_quantized(model):
        raise FpgaError("a quantized model has its own types, so there is nothing to sweep over.")
    if len({check_precision(one) for one in precisions}) < len(precisions):
        raise FpgaError(f"precisions {', '.join(precisions)}; expected each once.")
    if not options.get("estimate", True) or options.get("strategy") == "distributed_arithmetic":
        raise FpgaError(
            "a sweep sets accuracy against estimated multiplications; expected estimate=True and "
            "the strategy 'latency' or 'resource'."
        )
    home = Path(directory).expanduser().resolve()
    reports = []
    for one in precisions:
        bits, integer = check_precision(one)
        try:
            report = export_fpga(model, home / f"fixed_{bits}_{integer}", precision=one, **options)
        except FpgaCheckError as error:
            report = error.report
        reports.append(report)
    plot, note = _plot(reports, home / "sweep.png")
    return Sweep(tuple(reports), plot, note)


def _plot(reports: Sequence[Report], path: Path) -> tuple[Path | None, str]:
    try:
        drawn = draw(reports)
    except ImportError:
        return None, "no plot: matplotlib is not installed; `pip install matplotlib` brings it"
    drawn.savefig(path, dpi=120)
    return path, ""


def draw(reports: Sequence[Report]) -> Any:
    """The plot: a point for each precision, cost on the x axis and accuracy on the y axis.

    Args:
        reports: each with an accuracy; else their agreement with Keras is drawn.

    Returns:
        A `matplotlib.figure.Figure`.
    """
    from matplotlib.figure import Figure  # type: ignore[import-not-found, unused-ignore]

    figure = Figure(figsize=(6, 4), layout="constrained")
    axes = figure.subplots()
    accuracies = [one.check.accuracy for one in reports if one.check.accuracy is not None]
    labelled = len(accuracies) == len(reports)
    scores = accuracies if labelled else [one.check.agreement for one in reports]
    costs = [bit_operations(one) for one in reports]
    axes.plot(costs, scores, "o")
    for cost, score, one in zip(costs, scores, reports, strict=True):
        axes.annotate(one.precision, (cost, score), (4, 4), textcoords="offset points")
    axes.set_xscale("log")
    axes.set_xlabel("multiplications x bits², estimated")
    axes.set_ylabel("accuracy, emulated" if labelled else "agreement with Keras, emulated")
    axes.margins(0.25)
    return figure
