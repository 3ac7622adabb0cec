"""The gallery: each example reaches what it states, and is the same on one device and on two."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from tests.examples.test_examples import PYTHON, STRATEGIES, output

pytestmark = pytest.mark.slow

NUMBER = r"(-?[\d.]+)"
ACCURACY = rf"held-out accuracy: {NUMBER}"


# The line that states the result, and what must hold for its numbers.
STATED = {
    "autoencoder": (rf"nats an image: {NUMBER}", lambda nats: nats <= 26),
    "contrastive": (ACCURACY, lambda accuracy: accuracy >= 0.93),
    "fine_tune": (ACCURACY, lambda accuracy: accuracy >= 0.85),
    "gan": (rf"digits: {NUMBER}, untrained {NUMBER}", lambda far, before: far <= before / 2),
    "lora": (rf"character: {NUMBER}, without LoRA {NUMBER}", lambda a, b: a <= b - 0.3),
    "own_loop": (ACCURACY, lambda accuracy: accuracy >= 0.95),
    "tabular": (rf"error: {NUMBER}, the mean's {NUMBER}", lambda a, b: a <= 0.8 * b),
    "text_classification": (ACCURACY, lambda accuracy: accuracy >= 0.68),
    "time_series": (rf"error: {NUMBER}, as it is {NUMBER}", lambda a, b: a <= b / 4),
    "vision_transformer": (ACCURACY, lambda accuracy: accuracy >= 0.9),
}
# Without dropout and drawn noise, two replicas give the numbers of one device.
SHORT = {
    "contrastive": ["--epochs=2"],
    "lora": ["--epochs=1", "--rows=200"],
    "own_loop": ["--epochs=2"],
    "time_series": ["--epochs=2"],
}
WITH_A_FILE = ("fine_tune", "tabular", "vision_transformer")


def result(name: str, strategy: list[str], flags: list[str], folder: Path) -> list[float]:
    """The numbers that an example states."""
    out = [f"--out={folder / name}.keras"] if name in WITH_A_FILE else []
    said = output([*PYTHON, f"examples/{name}.py", *strategy, *flags, *out])
    (found,) = re.findall(STATED[name][0], said)
    return [float(number) for number in ([found] if isinstance(found, str) else found)]


@pytest.mark.parametrize(
    "name",
    ["contrastive"]
    + [pytest.param(n, marks=pytest.mark.exhaustive) for n in ("lora", "own_loop", "time_series")],
)
def test_two_replicas_are_as_one_device(name: str, tmp_path: Path) -> None:
    if name == "lora":
        pytest.importorskip("keras_hub")
    alone = result(name, ["--strategy=one_device"], SHORT[name], tmp_path)
    assert result(name, STRATEGIES["mirrored"][1], SHORT[name], tmp_path) == pytest.approx(
        alone, rel=5e-3
    )


@pytest.mark.exhaustive
@pytest.mark.parametrize("name", STATED)
@pytest.mark.parametrize("strategy", ["mirrored", "model_parallel"])
def test_it_reaches_what_it_states(name: str, strategy: str, tmp_path: Path) -> None:
    numbers = result(name, STRATEGIES[strategy][1], [], tmp_path)
    assert STATED[name][1](*numbers), numbers


def test_every_example_is_in_the_table() -> None:
    examples = {path.stem for path in (Path(__file__).parents[2] / "examples").glob("*.py")}
    others = {"digits", "digits_fpga", "language_model", "pictures"}
    assert examples - others == set(STATED)
