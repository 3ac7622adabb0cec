"""Steps that `tfaccel plan --devices here` timed, beside the same steps run (`planner.py time`).

Each model is planned on two logical CPUs of this machine, and every candidate is run, each in a
process of its own. What the machine is capable of is measured anew for each model, between two
rounds of its runs, whose shorter median step counts: other programs only make steps longer. Run it
on a machine that does nothing else.
"""

from __future__ import annotations

import itertools
import json
import os
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

PLANNER = Path(__file__).with_name("planner.py")
DEVICES = 2
STEPS = 8
MODELS = (("mlp", 4096), ("cnn", 32), ("lm", 8), ("vit", 16), ("rnn", 512), ("resnet", 8),
          ("bert", 8))  # fmt: skip


def report(only: str) -> None:
    """Prints a line for each candidate, one for each model, and the summary."""
    print("| model | candidate | planned | seen | error |\n| --- | --- | --- | --- | --- |")
    errors, orders, slower = [], [], []
    for model, batch in MODELS:
        if only not in model:
            continue
        first = {name: _trial(model, batch, c) for name, c in _candidates(model, batch).items()}
        planned = _planned(model, batch)
        seen = {
            name: min(first[name], _trial(model, batch, c["candidate"]))
            for name, c in planned.items()
        }
        steps = {name: c["time"]["total"] for name, c in planned.items()}
        for name, took in seen.items():
            error = steps[name] / took - 1
            errors.append(abs(error))
            print(f"| {model} | {name} | {1e3 * steps[name]:.1f} ms | {1e3 * took:.1f} ms | "
                  f"{100 * error:+.1f} % |", flush=True)  # fmt: skip
        orders.append(tau(list(steps.values()), list(seen.values())))
        chosen = min(steps, key=lambda name: steps[name])
        slower.append(seen[chosen] / min(seen.values()) - 1)
        print(f"| {model} | recommended: {chosen} | | {100 * slower[-1]:.1f} % over the best | "
              f"tau {orders[-1]:.2f} |", flush=True)  # fmt: skip
    print(
        f"\n{len(errors)} steps: median error {100 * statistics.median(errors):.1f} %, worst "
        f"{100 * max(errors):.1f} %; Kendall's tau {statistics.mean(orders):.2f}, at least "
        f"{min(orders):.2f}; recommended at most {100 * max(slower):.1f} % over the best"
    )


def tau(planned: list[float], seen: list[float]) -> float:
    """Kendall's rank correlation: of all pairs, how many more are in the same order than not."""
    pairs = list(itertools.combinations(zip(planned, seen, strict=True), 2))
    return sum(1 if (a[0] - b[0]) * (a[1] - b[1]) > 0 else -1 for a, b in pairs) / len(pairs)


def _candidates(model: str, batch: int) -> dict[str, Any]:
    found = _plan(model, batch, f"{DEVICES}xcpu")
    return {name: one["candidate"] for name, one in found.items()}


def _planned(model: str, batch: int) -> dict[str, Any]:
    with tempfile.TemporaryDirectory() as cache:
        return _plan(model, batch, f"{DEVICES}xhere", XDG_CACHE_HOME=cache)


def _plan(model: str, batch: int, devices: str, **env: str) -> dict[str, Any]:
    command = [sys.executable, "-m", "tfaccel.cli", "plan", f"{PLANNER}:{model}"]
    command += ["--devices", devices, "--batch", str(batch), "--json", "--precision", "float32"]
    done = subprocess.run(command, env={**os.environ, **env}, capture_output=True, text=True)
    return {one["candidate"]["name"]: one for one in json.loads(done.stdout)["candidates"]}


def _trial(model: str, batch: int, candidate: Any) -> float:
    """The median seconds of a step."""
    words = [f"{PLANNER}:{model}", f"--batch={batch}", f"--steps={STEPS}", "--device_type=cpu"]
    words += [f"--strategy={candidate['strategy']}", f"--devices={candidate['devices']}"]
    if candidate["mesh"]:
        words += [f"--mesh={candidate['mesh']}", f"--layouts={candidate['layouts'] or 'auto'}"]
    command = [sys.executable, "-m", "tfaccel.planner.trial", *words]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    found: float = json.loads(done.stdout.splitlines()[-1])["seconds"]
    return found
