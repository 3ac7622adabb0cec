"""`tfaccel tpu check` with the real compiler."""

from __future__ import annotations

import functools
import importlib.util
import json
import re
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from tests.support import environment
from tests.tpu.builders import cnn

ROOT = Path(__file__).parents[2]
BUILDERS = "tests/tpu/builders.py"
HBM = 15.75  # GiB of a v5e

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(
        importlib.util.find_spec("libtpu") is None, reason="the extra tpu-check is not installed"
    ),
]


def start(*words: str, **variables: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", "tfaccel.cli", "tpu", "check", *words],
        cwd=ROOT,
        # The compiler is JAX's.
        env=environment({"COLUMNS": "500", **variables}, without=("matplotlib", "sklearn")),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def line_of(text: str) -> int:
    lines = (ROOT / BUILDERS).read_text().splitlines()
    return next(i for i, line in enumerate(lines, 1) if text in line)


@functools.cache
def ran(*words: str, **variables: str) -> tuple[int, str, str]:
    process = start(*words, **variables)
    out, err = process.communicate(timeout=300)
    return process.returncode, out, err


def report(code: int, *words: str, **variables: str) -> dict[str, Any]:
    found, out, err = ran(*words, "--json", **variables)
    assert found == code, out + err
    return json.loads(out)


@pytest.mark.exhaustive
def test_the_example_fits_on_four_chips() -> None:
    example = "examples/language_model.py:build_model"
    code, out, err = ran(example, "--topology", "v5e:2x2", "--batch-size", "256")
    assert code == 0, err
    assert "on v5e:2x2 (4 devices), global batch 256 (64 per device), 528,128 parameters" in out
    assert "\nFITS\n" in out
    assert "of 15.75 GiB per device" in out
    assert "all-reduce of 2." in out, "the gradients are float32"
    assert "checked with Adam and SparseCategoricalCrossentropy" in out
    assert "not known   nothing was executed" in out


def test_a_compiled_cnn_is_counted_in_the_file_it_was_saved_to(tmp_path: Path) -> None:
    cnn().save(tmp_path / "m.keras")
    found = report(0, str(tmp_path / "m.keras"), "--topology", "v5e:2x2", "--batch-size", "64")
    assert found["verdict"] == "fits"
    assert found["parameters"] == 144_522
    assert found["notes"] == [], "it is compiled by its builder"
    # Twice: a multiplication and an addition; three times: forward, and both ways backward.
    convolution = 2 * 16 * 30 * 30 * 16 * 27
    dense = 2 * 16 * 14_400 * 10
    assert found["flops"] == pytest.approx(3 * (convolution + dense), rel=0.4)
    memory = found["memory"]
    weights = 4 * 2 * 144_000
    batch = 4 * 16 * 32 * 32 * 3
    assert memory["arguments"] > weights + batch
    assert memory["arguments"] < 3 * (weights + batch)
    (reduced,) = [c for c in found["collectives"] if c["kind"] == "all-reduce"]
    assert reduced["bytes"] >= 4 * 144_000


@pytest.mark.exhaustive
def test_bfloat16_takes_less_memory() -> None:
    words = (f"{BUILDERS}:wide", "--batch-size", "4")
    full, half = report(0, *words), report(0, *words, "--precision", "mixed_bfloat16")
    assert half["needed"] < 0.75 * full["needed"]


@pytest.mark.exhaustive
def test_an_lstm_compiles() -> None:
    assert report(0, f"{BUILDERS}:lstm", "--batch-size", "8", "--topology", "v4")["flops"] > 0


@pytest.mark.exhaustive
def test_two_billion_parameters_are_refused_within_two_gigabytes_of_host_memory() -> None:
    found = report(1, f"{BUILDERS}:two_billion", "--batch-size", "8")
    assert (found["verdict"], found["fitting"]) == ("too big", 0)
    # Weights and two slots of Adam, in float32.
    assert found["needed"] / 2**30 == pytest.approx(3 * 4 * 2.0135e9 / 2**30, rel=0.05)
    assert found["limit"] == int(HBM * 2**30)
    assert found["host"] < 2 * 2**30


def test_the_batch_that_would_fit_is_found() -> None:
    found = report(1, f"{BUILDERS}:wide", "--batch-size", "1024")
    assert found["verdict"] == "too big"
    fitting = found["fitting"]
    assert 0 < fitting < 1024
    assert report(0, f"{BUILDERS}:wide", "--batch-size", str(fitting))["needed"] < HBM * 2**30


def test_an_operation_that_a_tpu_has_not_is_named_with_its_layer_and_line() -> None:
    found = report(1, f"{BUILDERS}:py_function", "--batch-size", "8")
    line = line_of("tf.py_function")
    assert found["verdict"] == "refused"
    assert found["why"].startswith(
        f"operation EagerPyFunc (layer 'on_the_host', builders.py line {line}) cannot be compiled"
    )


@pytest.fixture(scope="module")
def room(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder for the temporary files of one check."""
    return tmp_path_factory.mktemp("room")


def boolean_mask(room: Path) -> dict[str, Any]:
    return report(0, f"{BUILDERS}:boolean_mask", "--batch-size", "8", TMPDIR=str(room))


def test_a_shape_that_depends_on_data_is_a_warning(room: Path) -> None:
    found = boolean_mask(room)
    (warning,) = found["warnings"]
    line = line_of("tf.boolean_mask")
    assert warning.startswith(f"Where (layer 'positive', builders.py line {line}) has a shape")
    assert "padded to 32 elements" in warning
    cost = re.search(r"which costs ([\d.]+) MiB of each device and ([\d.]+) s of comp", warning)
    assert cost is not None, warning
    assert 0 < float(cost[1]) <= found["needed"] / 2**20


NO_MODEL = [
    (["unknown_length"], "has an input of shape (None, None, 4); expected known sizes"),
    (["broken"], f"builders.py line {line_of('raise KeyError')}: KeyError: 'no such weights';"),
    (["cnn", "--topology", "v5e:3x3"], "topology v5e:3x3 is unknown to the TPU compiler"),
    (["subclassed"], "has no known input shape; give it with --input-shape"),
    (["no_model"], "returned a int; expected a keras.Model"),
    (["nothing"], "has no function 'nothing'; expected one of cnn, lstm"),
    (["with_arguments"], "needs width; expected a function that builds the model without arg"),
    (["several", "--input-shape", "4"], "which has 2 inputs; expected one, or several of unknown"),
]


@pytest.mark.parametrize(
    ("words", "says"),
    [NO_MODEL[0], *(pytest.param(*row, marks=pytest.mark.exhaustive) for row in NO_MODEL[1:])],
)
def test_what_is_no_model_with_a_known_batch(words: list[str], says: str) -> None:
    code, _, err = ran(f"{BUILDERS}:{words[0]}", "--batch-size", "72", *words[1:])
    assert code == 2
    assert says in err
    assert len(err.strip().splitlines()) == 1


@pytest.mark.exhaustive
def test_an_input_shape_may_be_given() -> None:
    assert report(0, f"{BUILDERS}:subclassed", "--batch-size", "8", "--input-shape", "5")[
        "parameters"
    ]


@pytest.mark.exhaustive
def test_two_checks_wait_for_each_other() -> None:
    both = [start(f"{BUILDERS}:boolean_mask", "--batch-size", str(b)) for b in (8, 16)]
    ended = [(*process.communicate(timeout=300), process.returncode) for process in both]
    assert [code for _, _, code in ended] == [0, 0], ended
    for out, _, _ in ended:
        assert "\nFITS\n" in out
        assert f"of {HBM} GiB per device" in out
        assert "not known   nothing was executed" in out


def test_time_that_is_up_has_a_code_of_its_own() -> None:
    code, _, err = ran(f"{BUILDERS}:cnn", "--batch-size", "8", "--timeout", "0.5")
    assert code == 3
    assert "the check exceeded its timeout of 0.5 s" in err


def test_a_process_that_ends_is_one_line() -> None:
    code, _, err = ran(f"{BUILDERS}:aborts", "--batch-size", "8")
    assert code == 2
    assert "builders.py:aborts: the process was ended by SIGABRT" in err
    assert len(err.strip().splitlines()) == 1


def children(pid: int) -> list[int]:
    return [int(one) for one in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


def lives(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


def test_a_killed_check_leaves_no_process() -> None:
    process = start(f"{BUILDERS}:sleeps", "--batch-size", "8")
    deadline = time.monotonic() + 60
    while not (found := children(process.pid)):
        assert time.monotonic() < deadline
        time.sleep(0.05)
    (worker,) = found
    process.kill()
    process.communicate(timeout=30)
    while lives(worker):
        assert time.monotonic() < deadline
        time.sleep(0.05)


def test_nothing_is_left_in_the_folder_for_temporary_files(room: Path) -> None:
    boolean_mask(room)
    assert list(room.iterdir()) == []
