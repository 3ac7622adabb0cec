"""Does Keras still need our fixes? Each test shows a defect of docs/keras3.md on a plain strategy.

When one of these fails, a release of TensorFlow or Keras has fixed a defect: take our fix out.
D3 and D12 hide behind D1 (`fit` fails with the plain MultiWorkerMirroredStrategy), so those are
shown on ours, with their fixes taken out.
"""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.support import environment

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[2]


def observed(command: list[str], folder: str = "") -> dict[int, dict[str, Any]]:
    """What each rank of a run of `tests.distribute.reference` saw."""
    done = subprocess.run(
        [sys.executable, "-m", *command],
        cwd=ROOT,
        env=environment({"TFACCEL_TEST_FOLDER": folder}),
        capture_output=True,
        text=True,
        timeout=300,
    )
    found = re.findall(r"observed (\d+) (\{.*\})", done.stdout)
    assert found, done.stdout[-3000:] + done.stderr[-3000:]
    return {int(rank): json.loads(seen) for rank, seen in found}


@pytest.fixture(scope="module")
def mirrored() -> dict[str, Any]:
    return observed(["tests.distribute.reference", "mirrored"])[0]


@pytest.fixture(scope="module")
def workers() -> dict[int, dict[str, Any]]:
    launch = ["tfaccel.cli", "launch", "--nproc=2", "--show=all", "-m", "--"]
    return observed([*launch, "tests.distribute.reference", "multi_worker"])


@pytest.fixture(scope="module")
def half_mended(tmp_path_factory: pytest.TempPathFactory) -> dict[int, dict[str, Any]]:
    launch = ["tfaccel.cli", "launch", "--nproc=2", "--show=all", "-m", "--"]
    folder = tmp_path_factory.mktemp("half_mended")
    return observed([*launch, "tests.distribute.reference", "half_mended"], str(folder))


FIXED = {
    "d1_generator_loses_rows": "D1 (distribute/batches.py)",
    "d2_statistics_differ": "D2 (distribute/non_trainable.py)",
    "d4_overflow_on_one_replica": "D4 (distribute/optimizer.py)",
    "d5_clipping": "D5 (distribute/optimizer.py)",
    "d6_scalar_loss": "D6 (distribute/loss.py)",
    "d10_same_dropout_masks": "D10 (distribute/non_trainable.py)",
    "d11_predict_on_batch": "D11 (distribute/fit.py)",
    "d14_ragged_batch": "D14 (distribute/step.py)",
    "d15_logged_loss": "D15 (distribute/logs.py)",
}


@pytest.mark.parametrize("defect", FIXED)
def test_is_silently_wrong(mirrored: dict[str, Any], defect: str) -> None:
    assert mirrored[defect] is True, (
        f"the plain MirroredStrategy no longer shows {defect} ({mirrored[defect]}): "
        f"the fix of {FIXED[defect]} may go"
    )


FAILS = {
    "d1_uneven_first_batch": ("AddN must have the same size", "D1 (distribute/fit.py)"),
    "d7_steps_per_execution": ("Placeholder", "D7 (distribute/batches.py)"),
    "d8_gradient_accumulation": ("merge_call", "D8 (distribute/fit.py)"),
}


@pytest.mark.parametrize("defect", FAILS)
def test_fails(mirrored: dict[str, Any], defect: str) -> None:
    words, mend = FAILS[defect]
    assert words in str(mirrored[defect]), (
        f"the plain MirroredStrategy says {mirrored[defect]!r} of {defect}, not {words!r}: "
        f"the fix of {mend} may go"
    )


def test_fit_fails_with_several_workers(workers: dict[int, dict[str, Any]]) -> None:
    said = workers[0]["d1_fit"]
    assert "Attempt to convert a value (PerReplica" in str(said), f"D1 may go: fit says {said!r}"


def test_an_unseeded_shuffle_repeats_and_loses_rows(workers: dict[int, dict[str, Any]]) -> None:
    seen = [i for rank in (0, 1) for i in workers[rank]["d9_rows_of_an_unseeded_shuffle"]]
    assert len(seen) == 64
    assert len(set(seen)) < 64, "D9 (distribute/random_state.py) may go"


def test_without_sharding_all_workers_see_the_same(workers: dict[int, dict[str, Any]]) -> None:
    first, second = (workers[rank]["d13_rows_without_sharding"] for rank in (0, 1))
    assert first == second, "the refusal of D13 (distribute/fit.py) may go"


@pytest.mark.exhaustive
def test_every_worker_writes_the_same_log(half_mended: dict[int, dict[str, Any]]) -> None:
    lines = max(seen["d3_lines_of_a_log_that_all_write"] for seen in half_mended.values())
    assert lines == 4, f"two epochs gave {lines} lines: D3 (distribute/files/) may go"


@pytest.mark.exhaustive
def test_workers_report_other_losses_when_compiled_outside(
    half_mended: dict[int, dict[str, Any]],
) -> None:
    first, second = (half_mended[rank]["d12_loss_when_compiled_outside"] for rank in (0, 1))
    assert first != second, f"{first} on both: the refusal of D12 (distribute/scope.py) may go"
