"""The pictures and the output of docs/guides/monitor.md: python -m tests.monitoring.pictures OUT

Runs one slow job of each kind on this machine, shows the chief's output, and draws its report with
Chromium as OUT/monitor_KIND.png. It needs two cores that nothing else uses.
"""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path

from tests.monitoring.browser import screenshot
from tests.support import run_child

RING = "multi_worker_mirrored,communication=ring"
KINDS = {
    "input": ("one_device", 1),
    "host": ("one_device", 1),
    "shared_core": (f"{RING},pin=0:1:1", 3),
    "communication": (RING, 2),
}
"""The jobs, with strategy and number of workers."""


def main(out: str) -> None:
    for kind, (strategy, workers) in KINDS.items():
        with tempfile.TemporaryDirectory() as folder:
            command = ["-m", "tests.monitoring.jobs", folder, strategy, kind]
            printed = run_child(command, workers=workers)
            lines = [line for line in printed.splitlines() if "JOB " not in line]
            print(f"=== {kind}", *lines, sep="\n", flush=True)
            report = Path(folder) / kind / "report.html"
            screenshot(report, Path(out) / f"monitor_{kind}.png", height=900)


if __name__ == "__main__":
    main(*sys.argv[1:])
