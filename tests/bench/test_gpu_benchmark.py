"""`benchmarks/gpu.py` runs without a GPU, on small models."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support import ROOT, environment


@pytest.mark.slow
@pytest.mark.exhaustive
def test_every_way_that_a_cpu_has(tmp_path: Path) -> None:
    out = tmp_path / "gpu.jsonl"
    words = ["--device=cpu", "--tiny", "--models=gpt2", "--ways=keras,tfaccel,mirrored,pinned"]
    done = subprocess.run(
        [
            *(sys.executable, str(ROOT / "benchmarks" / "gpu.py"), *words),
            *("--steps=2", "--rounds=2", "--warm=1", "--budget=900", f"--out={out}"),
        ],
        env=environment(),
        capture_output=True,
        text=True,
        timeout=900,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    lines = [json.loads(line) for line in out.read_text().splitlines()]
    assert [line["way"] for line in lines] == ["keras", "tfaccel", "mirrored", "pinned"]
    assert [line["status"] for line in lines] == ["ok", "ok", "ok", "skipped"]
    for line in lines[:3]:
        assert len(line["rounds"]) == 2
        assert line["finite"]
        assert line["per_second"] > 0
    assert lines[3]["error"] == "needs a GPU"
    assert "mirrored on 1 GPU" in done.stdout
