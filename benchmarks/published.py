"""Published runs beside their plans: memory of a device and time of a step.

The runs are those of published_runs.toml, with their sources; their models are built by
planner_models.py. Nothing is allocated or run.
"""

from __future__ import annotations

import functools
import json
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import planner_models
import tomllib

from tfaccel.distribute.model_parallel.mesh import MeshShape
from tfaccel.planner import device_catalogue
from tfaccel.planner.candidates import Candidate
from tfaccel.planner.estimate import Estimate, estimate
from tfaccel.planner.models import Models

RUNS = Path(__file__).with_name("published_runs.toml")
HEADINGS = ("run", "on", "as", "planned, MiB", "published, MiB", "error", "planned, ms",
            "published, ms", "published / planned")  # fmt: skip
MIB = 1 << 20


def read() -> tuple[list[dict[str, Any]], dict[str, dict[str, str]]]:
    """The runs, and their sources by name."""
    given = tomllib.loads(RUNS.read_text("utf-8"))
    return given["run"], given["sources"]


def candidate(run: Mapping[str, Any]) -> Candidate:
    """How a run was trained, as the planner calls it."""
    machines = _machines(run)
    way, count, hosts = run["way"], machines.count, machines.hosts
    accumulate = run.get("accumulate", 1)
    if "=" not in way:
        return Candidate(way, count, hosts, run["precision"], accumulate=accumulate)
    mesh = MeshShape.parse(way)
    layouts = run.get("layouts", "auto")
    return Candidate("model_parallel", count, hosts, run["precision"], mesh, layouts, accumulate)


def planned(run: Mapping[str, Any]) -> Estimate:
    """The estimate of a run."""
    models = _models(run["model"], json.dumps(run.get("sizes", {}), sort_keys=True))
    return estimate(candidate(run), run["batch"], _machines(run), models)


@functools.cache
def _models(name: str, sizes: str) -> Models:
    """A model, traced once for all runs of it."""
    rows = [
        candidate(run).rows(run["batch"])
        for run in read()[0]
        if run["model"] == name and run.get("sizes", {}) == json.loads(sizes)
    ]
    build = functools.partial(getattr(planner_models, name), **json.loads(sizes))
    most = max(*rows, 4)
    return Models(build, (max(2, min(*rows, most // 2)), most))


def report(only: str) -> None:
    """Prints a Markdown table of the runs whose name holds `only`, each when it is planned."""
    runs, sources = read()
    numbers = {name: k + 1 for k, name in enumerate(sources)}
    print(f"| {' | '.join(HEADINGS)} |\n|{' --- |' * len(HEADINGS)}")
    for run in runs:
        if only in run["name"]:
            cells = _cells(run, planned(run))
            print(f"| {run['name']} [{numbers[run['source']]}] | {' | '.join(cells)} |", flush=True)
    for name, source in sources.items():
        print(f"\n{numbers[name]}. {source['title']}, {source['address']}")


def _cells(run: Mapping[str, Any], found: Estimate) -> Iterator[str]:
    yield run["devices"]
    recomputed = ", recomputed" if run.get("sizes", {}).get("remat") else ""
    yield f"{found.candidate.name}{recomputed}, {found.candidate.precision}"
    peak = found.peak / MIB if found.peak is not None else None
    memory = run.get("memory_mib")
    yield _number(peak)
    yield _number(memory)
    yield f"{100 * (peak / memory - 1):+.1f} %" if peak and memory else "-"
    bound = found.time.total if found.time is not None else None
    step = run.get("step_s")
    yield _number(bound, 1e3)
    yield _number(step, 1e3)
    yield f"{step / bound:.2f}" if step and bound else "-"
    print(json.dumps({"name": run["name"], "source": run["source"], **_parts(found)}),
          file=sys.stderr, flush=True)  # fmt: skip


def _number(value: float | None, times: float = 1) -> str:
    return "-" if value is None else f"{value * times:,.0f}"


def _parts(found: Estimate) -> dict[str, Any]:
    """Of a peak in MiB, and of a step in ms."""
    sizes = ("parameters", "slots", "gradients", "activations", "workspace", "other")
    parts = {name: round((getattr(found, name) or 0) / MIB) for name in sizes}
    time = found.time
    if time is not None:
        parts |= {
            name: round(1e3 * getattr(time, name)) for name in ("compute", "memory", "network")
        }
    return {**parts, "tflop": (found.flops or 0) / 1e12, "why": found.why_not}


def _machines(run: Mapping[str, Any]) -> device_catalogue.Machines:
    return device_catalogue.parse(run["devices"], device_catalogue.catalogue())
