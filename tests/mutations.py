"""Breaks what a replica computes, one line at a time, and shows that the tests see it.

Usage: python -m tests.mutations [--only NAME[,NAME]]

Each mutation is made in a copy of the sources, where the tests that stand for it must fail; without
one they must pass. A mutation that they pass has survived: a fault of that kind would go unseen.
`test_mutations.py` checks that the lines are still there.
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


_SUMMED = "of_variables = all_reduce_gradients(of_variables)"
MUTATIONS = {
    "a replica's weight is left out": Mutation(
        "gradients.py", "start * tf.cast(weight, start.dtype)", "start * 1", "test_loss.py"
    ),
    "what no tape has weighted has no weight": Mutation(
        "step.py", "else value * fraction", "else value", "test_loss.py"
    ),
    "a replica without rows counts": Mutation(
        "step.py",
        "if self.has_empty_replicas\n            else value * fraction",
        "if False\n            else value * fraction",
        "test_loss.py",
    ),
    "gradients are halved": Mutation(
        "gradients.py",
        _SUMMED,
        "of_variables = [0.5 * g for g in all_reduce_gradients(of_variables)]",
        "test_gradients.py",
    ),
    "gradients are not summed": Mutation("gradients.py", _SUMMED, "pass", "test_gradients.py"),
    "gradients that no tape has summed are not summed": Mutation(
        "optimizer.py",
        "return gradients.all_reduce_gradients(grads, owner=self)",
        "return grads",
        "test_optimizer.py test_sync_frequency.py",
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
    "a replica's own metrics are reported": Mutation(
        "logs.py",
        "summed = _sum(model, [*changes, *local_states])",
        "summed = [*changes, *local_states]",
        "test_non_trainable.py test_loss.py",
    ),
    "positions are looked up by every replica": Mutation(
        "sparse.py",
        "same_lookups = [_same_on_all(indices) for indices in lookups]",
        "same_lookups = [False for _ in lookups]",
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
        "return filled, (tf.range(rows) < row_count) & (fraction > 0)",
        "return filled, tf.range(rows) >= 0",
        "test_padding.py",
    ),
    "a number for the batch counts once a replica": Mutation(
        "metric_weights.py",
        "if ctx is not None and sample_weight is None and _is_scalar(values):",
        "if False:",
        "test_gradients.py",
    ),
}


def passes(tests: Sequence[str], mutation: Mutation | None = None) -> bool:
    """Whether tests of `tests/distribute` pass in a copy of the sources, maybe with a mutation."""
    with tempfile.TemporaryDirectory(prefix="mutation") as folder:
        copy = Path(folder)
        for name in COPIED:
            if (ROOT / name).is_dir():
                shutil.copytree(ROOT / name, copy / name, symlinks=True)
            else:
                shutil.copy(ROOT / name, copy / name)
        if mutation is not None:
            path = copy / mutation.path
            text = path.read_text("utf-8").replace(mutation.old, mutation.new, 1)
            path.write_text(text, "utf-8")
        paths = [f"tests/distribute/{name}" for name in tests]
        done = subprocess.run(
            [sys.executable, "-m", "pytest", "-x", "-q", "-p", "no:cacheprovider", *paths],
            cwd=copy,
            env={**os.environ, "PYTHONPATH": folder},
            capture_output=True,
            text=True,
            timeout=3600,
        )
    if done.returncode not in (0, 1):
        raise RuntimeError(f"pytest ended with {done.returncode}: {done.stdout[-2000:]}")
    if mutation is None and done.returncode:
        print(done.stdout[-2000:])
    return done.returncode == 0


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the mutations; returns how many have survived."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--only", default="", help="names, with commas between them")
    names = [name for name in parser.parse_args(argv).only.split(",") if name] or list(MUTATIONS)
    if not passes(sorted({test for name in names for test in MUTATIONS[name].tests.split()})):
        raise SystemExit("the tests fail without a mutation")
    survivors = 0
    for name in names:
        mutation = MUTATIONS[name]
        survived = passes(mutation.tests.split(), mutation)
        survivors += survived
        print(f"{'SURVIVED' if survived else 'caught'}: {name}", flush=True)
    return survivors


if __name__ == "__main__":
    sys.exit(main())
