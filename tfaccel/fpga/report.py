"""The results of an export, and their origin: emulated, estimated or synthesised."""

from __future__ import annotations

import dataclasses
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class Figure:
    """One number about the firmware.

    Attributes:
        name: what it is, such as ``"LUT"``.
        value: the number.
        kind: ``"estimated"`` by a formula or by da4ml, ``"synthesised"`` by the vendor's tool.
        unit: of the number.
        source: of the figures.
    """

    name: str
    value: float
    kind: str
    unit: str = ""
    source: str = ""


@dataclass(frozen=True)
class LayerError:
    """How far one layer of the firmware is from Keras, on the first rows.

    Attributes:
        name: of the layer in the Keras model.
        maximum: the largest difference.
        scale: Keras's largest value there.
    """

    name: str
    maximum: float
    scale: float


@dataclass(frozen=True)
class Check:
    """The emulated firmware compared with Keras.

    Attributes:
        status: ``"passed"``, ``"failed"``, or ``"unverified"`` when the rows are generated: then
            the result does not apply to real data.
        rows: how many were compared.
        exact: how many of them are bit-identical.
        agreement: the fraction of the rows with the same answer.
        measure: what counts as the same answer: ``"argmax"``, or ``"within 1% of the range"``.
        maximum: the largest difference of an output.
        required: the requested agreement; for quantized models, exact rows.
        accuracy: of the firmware, when labels were given.
        keras_accuracy: of Keras on the same rows.
        layers: the error of each layer, when the check failed.
    """

    status: str
    rows: int
    exact: int
    agreement: float
    measure: str
    maximum: float
    required: float
    accuracy: float | None = None
    keras_accuracy: float | None = None
    layers: tuple[LayerError, ...] = ()


@dataclass(frozen=True)
class Report:
    """An export.

    Attributes:
        directory: the project, ready for the vendor's tool.
        model: the model's name.
        quantized: the types are HGQ2's; `precision` is then not used.
        backend: hls4ml's.
        precision: of every number, unless quantized.
        softmax: where it runs; ``"none"`` when the model has none at its end.
        check: how well it agrees with Keras.
        figures: resources and latency.
        notes: what the reader should know.
    """

    directory: Path
    model: str
    quantized: bool
    backend: str
    precision: str
    softmax: str
    check: Check
    figures: tuple[Figure, ...] = ()
    notes: tuple[str, ...] = ()

    @property
    def passed(self) -> bool:
        """Whether it was compared with Keras on real rows, and agrees."""
        return self.check.status == "passed"

    @property
    def verdict(self) -> str:
        """One line.

        >>> check = Check("passed", 9, 9, 1.0, "argmax", 0.0, 1.0)
        >>> Report(Path("o"), "m", True, "Vitis", "", "none", check).verdict
        'bit-exact on 9 of 9 rows'
        """
        check = self.check
        if self.quantized or check.exact == check.rows:
            verdict = f"bit-exact on {check.exact} of {check.rows} rows"
        else:
            verdict = (
                f"{check.agreement:.2%} of {check.rows} rows agree ({check.measure}), "
                f"maximum error {check.maximum:.3g}"
            )
        if check.status == "unverified":
            return f"unverified: {verdict} of generated input, which says nothing of real data"
        return verdict if check.status == "passed" else f"failed: {verdict}"

    def figure(self, name: str) -> Figure | None:
        """The figure of that name, if any."""
        return next((one for one in self.figures if one.name == name), None)

    def to_json(self) -> str:
        """All of it, as JSON."""
        fields = {**dataclasses.asdict(self), "verdict": self.verdict, "passed": self.passed}
        return json.dumps(fields, indent=1, default=str)

    def show(self, console: Any = None) -> None:
        """Prints the report.

        Args:
            console: a `rich.console.Console`; one on standard output when None.
        """
        from rich.console import Console
        from rich.table import Table

        console = console or Console(soft_wrap=True)
        types = "its own types" if self.quantized else self.precision
        line = f"{self.model} -> {self.directory} ({self.backend}, {types}, softmax {self.softmax})"
        console.print(line, markup=False, highlight=False)
        check = self.check
        if check.accuracy is not None and check.keras_accuracy is not None:
            console.print(
                f"accuracy {check.accuracy:.4f} emulated, {check.keras_accuracy:.4f} in Keras",
                highlight=False,
            )
        if check.layers:
            table = Table(title="error of each layer")
            for heading in ("layer", "maximum error", "largest value in Keras"):
                table.add_column(heading, justify="left" if heading == "layer" else "right")
            for one in check.layers:
                table.add_row(one.name, f"{one.maximum:.3g}", f"{one.scale:.3g}")
            console.print(table)
        if self.figures:
            table = Table()
            for heading in ("figure", "value", "", "known from"):
                table.add_column(heading, justify="right" if heading == "value" else "left")
            for f in self.figures:
                table.add_row(f.name, f"{f.value:,.0f} {f.unit}".strip(), f.kind, f.source)
            console.print(table)
        for note in self.notes:
            console.print(f"note: {note}", markup=False, highlight=False)
        console.print(self.verdict, markup=False, highlight=False)
