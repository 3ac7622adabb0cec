"""Breaks what a replica computes, one line at a time, and shows that the tests see it.

Usage: python -m tests.mutations [--only NAME[,NAME]]

Each mutation is made in a copy of the sources, where the tests that stand for it must fail. One
that they pass has survived: a fault of that kind would go unseen. `test_mutations.py` checks that
the lines are still there.
"""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[1]
COPIED = ("tfaccel", "strategies", "tests", "pyproject.toml", "setup.py", "README.md")


@dataclass(frozen=True)
class Mutation:
    """One change.

    Attributes:
        file: in `tfaccel/distribute`.
        old: a text that is there once.
        new: what takes its place.
        tests: in `tests/distribute`; one of them must fail.
    """

    file: str
    old: str
    new: str
    tests: str

    @property
    def path(self) -> Path:
        """The file, from the root of the sources."""
        return Path("tfaccel/distribute") / self.file


_REDUCED = "return gradients.all_reduce_gradients(grads, owner=self)"
_HALVED = (
    "return [g if g is None or isinstance(g, tf.IndexedSlices) else 0.5 * g "
    "for g in gradients.all_reduce_gradients(grads, owner=self)]"
)
MUTATIONS = {
    "a replica's weight is left out": Mutation(
        "step.py", "else value * fraction", "else value", "test_loss.py"
    ),
    "a replica without rows counts": Mutation(
        "step.py",
        "if self.has_empty_replicas\n            else value * fraction",
        "if False\n            else value * fraction",
        "test_loss.py",
    ),
    "gradients are halved": Mutation("optimizer.py", _REDUCED, _HALVED, "test_optimizer.py"),
    "gradients are not summed": Mutation(
        "optimizer.py", _REDUCED, "return grads", "test_optimizer.py"
    ),
    "a loss is scaled by its own rows": Mutation(
        "loss.py", "whole = step.all_reduce_sum(counted)", "whole = counted", "test_loss.py"
    ),
    "a sum over rows counts as a mean": Mutation(
        "loss.py", 'if self.reduction == "sum":', "if False:", "test_loss.py"
    ),
    "statistics change twice": Mutation(
        "non_trainable.py",
        "variable.assign(old + change)",
        "variable.assign(old + 2 * change)",
        "test_non_trainable.py",
    ),
    "all replicas draw the same": Mutation(
        "non_trainable.py", "_STRIDE = 0x9E3779B9", "_STRIDE = 0", "test_non_trainable.py"
    ),
    "a replica's own metrics are told": Mutation(
        "logs.py",
        "summed = all_reduce_packed([*changes, *local_states])",
        "summed = [*changes, *local_states]",
        "test_non_trainable.py test_loss.py",
    ),
    "positions are looked up by every replica": Mutation(
        "sparse.py",
        "alike = [_same_on_all(indices) for indices in lookups]",
        "alike = [False for _ in lookups]",
        "test_gradients.py",
    ),
    "rows are gathered in the wrong places": Mutation(
        "row_gather.py",
        "before = tf.range(placement.replicas) < block_number()",
        "before = tf.range(placement.replicas) < 0 * block_number()",
        "test_global_batch.py",
    ),
    "copies of rows count": Mutation(
        "padding.py",
        "return filled, (tf.range(rows) < found) & (fraction > 0)",
        "return filled, tf.range(rows) >= 0",
        "test_padding.py",
    ),
    "a number for the batch counts once a replica": Mutation(
        "scalar_metrics.py",
        "if ctx is not None and sample_weight is None and _is_scalar(values):",
        "if False:",
        "test_gradients.py",
    ),
}


def is_caught(mutation: Mutation) -> bool:
    """Whether a test fails in a copy of the sources with this change."""
    with tempfile.TemporaryDirectory(prefix="mutation") as folder:
        copy = Path(folder)
        for name in COPIED:
            if (ROOT / name).is_dir():
                shutil.copytree(ROOT / name, copy / name, symlinks=True)
            else:
                shutil.copy(ROOT / name, copy / name)
        path = copy / mutation.path
        path.write_text(path.read_text("utf-8").replace(mutation.old, mutation.new, 1), "utf-8")
        tests = [f"tests/distribute/{name}" for name in mutation.tests.split()]
        done = subprocess.run(
            [sys.executable, "-m", "pytest", "-x", "-q", "-p", "no:cacheprovider", *tests],
            cwd=copy,
            env={**os.environ, "PYTHONPATH": folder},
            capture_output=True,
            text=True,
            timeout=1800,
        )
    if done.returncode not in (0, 1):
        raise RuntimeError(f"pytest ended with {done.returncode}: {done.stdout[-2000:]}")
    return done.returncode == 1


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the mutations; returns how many have survived."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--only", default="", help="names, with commas between them")
    names = [name for name in parser.parse_args(argv).only.split(",") if name]
    survivors = 0
    for name in names or MUTATIONS:
        caught = is_caught(MUTATIONS[name])
        survivors += not caught
        print(f"{'caught' if caught else 'SURVIVED'}: {name}", flush=True)
    return survivors


if __name__ == "__main__":
    sys.exit(main())
