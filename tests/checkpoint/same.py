"""Whether two runs of `tests.checkpoint.run` have ended with the same bits."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np


def assert_same(first: Path, second: Path, ranks: int = 1) -> None:
    """Weights, slots and history are the same bits, and so is what each batch was seen to be."""
    for rank in range(ranks):
        ours, theirs = (np.load(folder / f"end-{rank}.npz") for folder in (first, second))
        assert ours.files == theirs.files
        for name in ours.files:
            np.testing.assert_array_equal(ours[name], theirs[name])
        assert history(first, rank) == history(second, rank)
        assert seen(first, rank) == seen(second, rank)


def history(out: Path, rank: int) -> Any:
    return json.loads((out / f"history-{rank}.json").read_text())


def seen(out: Path, rank: int) -> dict[int, Any]:
    lines = (out / f"seen-{rank}.jsonl").read_text().splitlines()
    return dict(json.loads(line) for line in lines)
