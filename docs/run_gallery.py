"""Runs the examples and writes down what the pages of the gallery show.

    python docs/run_gallery.py                   every example, under every strategy
    python docs/run_gallery.py gan lora          these alone
    python docs/run_gallery.py --only=one_device

Each run states its result in its last line, which is kept in `docs/gallery/results.json`. The run
on one device also draws its picture into `docs/images/gallery/` (matplotlib), from what it has
learnt. Takes about half an hour on two cores; run it when an example changes.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from gallery_hook import EXAMPLES, NAMES, PICTURES, RESULTS, ROOT, STRATEGIES

SECONDS = 1800  # after which a run has failed


def run(name: str, strategy: str, folder: Path) -> str:
    """What an example prints under a strategy.

    Raises:
        subprocess.CalledProcessError: it failed; its output is printed before.
    """
    command = [sys.executable]
    if strategy == "multi_worker_mirrored":
        command += ["-m", "tfaccel.cli", "launch", "--nproc", "2"]
    script = EXAMPLES / f"{name}.py"
    command += [str(script), *STRATEGIES[strategy].split()]
    if '"out"' in script.read_text("utf-8"):
        command.append(f"--out={folder / name}.keras")
    if strategy == "one_device" and '"picture"' in script.read_text("utf-8"):
        command.append(f"--picture={PICTURES / name}.png")
    paths = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH", "")]))
    environment = {**os.environ, "PYTHONPATH": paths, "TF_CPP_MIN_LOG_LEVEL": "2"}
    done = subprocess.run(
        command, env=environment, capture_output=True, text=True, timeout=SECONDS, check=False
    )
    if done.returncode:
        print(done.stdout[-3000:] + done.stderr[-3000:])
    done.check_returncode()
    return done.stdout


def stated(printed: str) -> str:
    """The last line."""
    return printed.strip().splitlines()[-1]


def losses(printed: str) -> list[float]:
    """What `own_loop` prints by epoch; of several workers the first one's."""
    lines = re.findall(r"^(?:\[0\] )?epoch \d+: loss ([\d.]+)", printed, re.MULTILINE)
    return [float(loss) for loss in lines]


def main() -> None:
    """Runs what is requested, and keeps each result when it is there."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("names", nargs="*", metavar="NAME", help="examples; all when there is none")
    parser.add_argument("--only", action="append", choices=STRATEGIES, help="a strategy; repeats")
    args = parser.parse_args()
    if unknown := set(args.names) - set(NAMES):
        parser.error(f"there is no example {', '.join(sorted(unknown))}; there are {NAMES}")
    RESULTS.parent.mkdir(exist_ok=True)
    PICTURES.mkdir(exist_ok=True)
    lines: dict[str, list[float]] = {}
    for name in args.names or NAMES:
        for strategy in args.only or STRATEGIES:
            start = time.monotonic()
            with tempfile.TemporaryDirectory() as folder:
                printed = run(name, strategy, Path(folder))
            # Read again for each: another run may have written in between.
            results = json.loads(RESULTS.read_text("utf-8")) if RESULTS.exists() else {}
            results.setdefault(name, {})[strategy] = stated(printed)
            RESULTS.write_text(json.dumps(results, indent=2, sort_keys=True) + "\n", "utf-8")
            print(f"{name:20} {strategy:22} {time.monotonic() - start:5.0f} s  {stated(printed)}")
            if name == "own_loop":
                lines[strategy] = losses(printed)
    if len(lines) > 1:
        sys.path.insert(0, str(EXAMPLES))
        import pictures

        pictures.curves(PICTURES / "own_loop.png", lines, "epoch", "loss", first=1)


if __name__ == "__main__":
    main()
