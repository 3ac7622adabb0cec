"""Writes docs/model_parallel_coverage.md from what was measured.

Usage: python -m tests.model_parallel.coverage.table OUT [--write]

OUT is where the columns lie; those that are missing are run first, which takes some minutes.
"""

from __future__ import annotations

import argparse
import re
from pathlib import Path

import keras
import tensorflow as tf

from tests.model_parallel.coverage import columns
from tests.model_parallel.coverage.compare import outcome
from tests.model_parallel.coverage.row import Row
from tests.model_parallel.coverage.zoo import ZOO
from tfaccel.distribute.model_parallel.replicated_ops import REPLICATED_OPS

PAGE = columns.ROOT / "docs" / "model_parallel_coverage.md"

HEAD = """\
# What runs on a mesh

Every row is a small model that was trained on a mesh of four devices (`{mesh}`, layouts
`"auto"`), its second batch one that divides over no axis, and then compared with plain Keras on one
device: the loss and metrics of each step and all weights, and of layers and networks also
predictions before and after training. Measured with TensorFlow {tensorflow} and Keras {keras}, and
written by `python -m tests.model_parallel.coverage.table`.

- **works**: the numbers of one device, within a relative 1e-5 (1e-4 behind BatchNormalization);
- **works, in float64**: as above, with `keras.config.set_floatx("float64")`: in float32, rounding
  grows from layer to layer and from step to step in these networks;
- **works, other draws**: layers that draw random numbers draw others than one device does with
  this seed, the same at each run; at inference they give the numbers of one device;
- **replicated**: works; each device computes the whole of the operations named: no gain in speed;
- **undivided**: works; each process computes the whole step on its host: no gain in speed or
  memory;
- **refused**: an error before anything is trained, which says what to do.

{counts}
"""


def page(out: Path) -> str:
    """The text of the page, from the columns in `out`."""
    told = {name: _tell(row, out) for name, row in ZOO.items()}
    counts = ", ".join(
        f"{sum(t.startswith(kind) for t in told.values())} {kind}"
        for kind in (
            "works",
            "replicated",
            "undivided",
            "refused",
            "fails",
            "wrong",
            "not measured",
        )
        if any(t.startswith(kind) for t in told.values())
    )
    text = HEAD.format(
        mesh=columns.WHOLE,
        tensorflow=tf.__version__,
        keras=keras.__version__,
        counts=f"{len(told)} rows: {counts}.",
    )
    for group in dict.fromkeys(row.group for row in ZOO.values()):
        rows = [row for row in ZOO.values() if row.group == group]
        text += f"\n## {group}\n\n| | |\n| --- | --- |\n"
        text += "".join(f"| {row.name} | {told[row.name]} |\n" for row in rows)
    return text


def _tell(row: Row, out: Path) -> str:
    want, got = (columns.result(out / mesh, row.name) for mesh in (columns.ONE, columns.WHOLE))
    if want is None or got is None:
        return "not measured"
    found = outcome(row, want, got)
    if found.kind != "works":
        return f"{found.kind}: {_one_line(found.text)}"
    replicated = sorted(set(REPLICATED_OPS) & got["operations"])
    kind = f"replicated: {', '.join(replicated)}" if replicated else "works"
    if "repeated" in row.compared:
        return f"{kind}, other draws"
    return f"{kind}, in float64" if row.floatx == "float64" else kind


def _one_line(text: str) -> str:
    text = re.sub(r"\s+", " ", text).replace("|", "\\|")
    return text if len(text) < 300 else text[:300] + " …"


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("out", type=Path)
    parser.add_argument("--write", action="store_true", help="write the page, or print it")
    asked = parser.parse_args()
    for mesh in (columns.ONE, columns.WHOLE):
        columns.run(asked.out / mesh, mesh)
    text = page(asked.out)
    if asked.write:
        PAGE.write_text(text)
    else:
        print(text)


if __name__ == "__main__":
    main()
