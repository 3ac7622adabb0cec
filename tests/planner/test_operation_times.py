"""What the operations of a step take on this machine."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from tests.planner.builders import BUILDERS
from tfaccel.planner import operation_times, operation_trials
from tfaccel.planner.models import Models
from tfaccel.planner.operation_times import OperationTimer, signature
from tfaccel.planner.sharding_propagation import Spread
from tfaccel.planner.step_work import Work

ROWS = 8


def work_of(name: str) -> tuple[Work, list[tuple[int, ...]]]:
    sized = Models(BUILDERS[name], (2, ROWS)).variant("float32", fused=True).sized(None)
    return sized.work(ROWS), [one.made.shape for one in sized.items]


def signatures(work: Work, variables: Sequence[tuple[int, ...]]) -> dict[str, str | None]:
    operations = [work.step.operations[i] for i, _ in work.flops]
    return {
        op.name: signature(op, work.shapes, None if op.variable is None else variables[op.variable])
        for op in operations
    }


@pytest.mark.parametrize(
    "name",
    ["transformer", *(pytest.param(n, marks=pytest.mark.exhaustive) for n in ("cnn", "mlp"))],
)
def test_each_operation_of_a_step_runs_alone(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(operation_trials, "_SECONDS", 0.0)
    found = signatures(*work_of(name))
    assert [name for name, one in found.items() if one is None] == []
    each = list(dict.fromkeys(one for one in found.values() if one is not None))
    seconds = operation_trials.measure([json.loads(one) for one in each])
    assert [one for one, s in zip(each, seconds, strict=True) if s is None] == []


class Process:
    """Takes a second for each operation."""

    def __init__(self) -> None:
        self.asked: list[Any] = []
        self.stdin = SimpleNamespace(write=self.write, flush=lambda: None, close=lambda: None)
        self.stdout = SimpleNamespace(readline=self.readline, close=lambda: None)

    def write(self, line: str) -> None:
        self.asked.append(json.loads(line))

    def readline(self) -> str:
        return json.dumps([1.0] * len(self.asked[-1]))

    def wait(self) -> None:
        pass


def test_equal_operations_are_measured_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    process, file = Process(), tmp_path / "cache" / "operations.json"
    monkeypatch.setattr(operation_times, "_start", lambda: process)
    work, variables = work_of("mlp")
    whole = Spread([None] * len(work.step.values))
    for _ in range(2):
        seconds = OperationTimer(file).seconds(work, variables, whole, 1)
        assert np.array_equal(seconds, np.ones(len(work.flops)))
    (asked,) = process.asked
    assert len(asked) < len(work.flops)
    split = Spread([1 if s is not None and len(s) == 2 else None for s in work.shapes])
    OperationTimer(file).seconds(work, variables, split, 2)
    assert len(process.asked) == 2  # of half the columns
