"""`tfaccel plan` and `tfaccel.plan`: what they print, and that the printed line runs."""

from __future__ import annotations

import json
import shlex
import xml.etree.ElementTree as ET
from pathlib import Path
from typing import Any

import keras
import pytest
import tensorflow as tf

import tfaccel
from tests.planner import builders
from tests.support import run_child
from tfaccel.errors import InputError, StrategyError
from tfaccel.planner import run_command, trace
from tfaccel.planner.plan import Plan
from tfaccel.planner.plan_command import main

TARGET = f"{builders.__file__}:mlp"
SMALL = """
[small]
kind = "gpu"
memory = 1_000_000
bandwidth = 1e9
link = 1e9
peak = { float32 = 1e12 }
source = "made up"
date = "2026-01-01"
"""


@pytest.fixture
def small(tmp_path: Path) -> str:
    """A catalogue with a device of 1 MB."""
    file = tmp_path / "small.toml"
    file.write_text(SMALL)
    return str(file)


@pytest.fixture(scope="module")
def planned() -> Plan:
    return tfaccel.plan(builders.mlp, devices="2xT4", batch_size=64, precision="float32")


def test_the_table_and_a_picture(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    picture = tmp_path / "memory.svg"
    words = [TARGET, "--devices", "4xcpu", "--batch", "64", "--picture", str(picture)]
    assert main(words) == 0
    said = capsys.readouterr().out
    for name in ("one_device", "mirrored x4", "mesh batch=2,model=2", "fully sharded batch=4"):
        assert name in said
    assert "Mirrored x4 is the simplest that fits in float32 and uses all devices" in said
    drawn = ET.parse(picture).getroot()
    texts = [e.text for e in drawn.iter("{http://www.w3.org/2000/svg}text")]
    assert "mirrored x4, float32" in texts


def test_json(capsys: pytest.CaptureFixture[str]) -> None:
    assert (
        main([TARGET, "--devices", "2xT4", "--batch", "64", "--precision", "float32", "--json"])
        == 0
    )
    found = json.loads(capsys.readouterr().out)
    one = found["candidates"][0]
    parts = ("parameters", "slots", "other", "gradients", "activations", "workspace")
    assert one["peak"] == sum(one[part] for part in parts)
    assert one["candidate"]["strategy"] == "one_device"
    assert found["recommended"]["candidate"]["name"] in found["reason"]


def test_the_fastest_that_fits_is_recommended(planned: Plan) -> None:
    times = [one.time.total for one in planned.estimates if one.time is not None]
    assert len(times) == len(planned.estimates)
    assert planned.recommended is not None
    assert planned.recommended.time is not None
    assert planned.recommended.time.total == min(times)


@pytest.mark.exhaustive
def test_a_builder_a_model_and_a_file_give_the_same(planned: Plan, tmp_path: Path) -> None:
    model = builders.mlp()
    file = tmp_path / "mlp.keras"
    model.save(file)
    for given in (model, str(file)):
        found = tfaccel.plan(given, devices="2xT4", batch_size=64)
        assert [one.peak for one in found.estimates] == [one.peak for one in planned.estimates]
        assert any("precision of their own" in note for note in found.notes)


def test_what_does_not_fit_is_advised_what_does(small: str) -> None:
    """Each advice is a plan that fits, and one row more a device does not.

    Taken is what accumulates, since nothing fits as it is.
    """
    found = tfaccel.plan(builders.mlp, devices="2xsmall", batch_size=4096, device_file=small)
    plain = [o for o in found.estimates if o.candidate.accumulate == 1]
    assert len(plain) == 4
    assert not any(one.fits for one in plain)
    assert found.recommended is not None
    assert found.recommended.fits
    assert found.recommended.candidate.accumulate > 1
    assert "accumulate" in found.reason
    assert found.advice
    assert all(one.estimate.fits for one in found.advice)
    smaller = next(one for one in found.advice if one.change.startswith("a global batch of"))
    rows = int(smaller.change.split()[4])
    more = tfaccel.plan(builders.mlp, devices="2xsmall", batch_size=rows + 2, device_file=small)
    name = smaller.estimate.candidate.name
    assert not next(one for one in more.estimates if one.candidate.name == name).fits


def test_layers_that_are_computed_again_take_less(small: str) -> None:
    """A chain of activations, of which only the inputs of layers are kept; and how it is run."""

    def chain() -> keras.Model:
        layers = [keras.layers.Dense(64, activation="gelu") for _ in range(4)]
        model = keras.Sequential([keras.Input((64,)), *layers, keras.layers.Dense(4)])
        model.compile("adam", "mse")
        return model

    found = tfaccel.plan(chain, devices="small", batch_size=256, device_file=small)
    one = {each.candidate.name: each for each in found.estimates}
    plain, again = one["one_device"], one["one_device, rematerialized"]
    assert not plain.fits
    assert again.fits
    assert plain.peak is not None
    assert again.peak is not None
    assert again.peak < plain.peak
    assert again.flops is not None
    assert plain.flops is not None
    assert again.flops > plain.flops
    line = run_command.command(__file__, again.candidate, found.machines, 256)
    assert "--rematerialization=full" in line


def test_nothing_is_traced_for_a_device_that_cannot_hold_the_variables(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Neither with layers that are computed again nor with accumulated gradients."""
    traced: list[int] = []
    once = trace.trace

    def watched(target, strategy, rows, *args):  # type: ignore[no-untyped-def]
        traced.append(rows)
        return once(target, strategy, rows, *args)

    monkeypatch.setattr(trace, "trace", watched)
    file = tmp_path / "tiny.toml"
    file.write_text(SMALL.replace("[small]", "[tiny]").replace("1_000_000", "150_000"))
    found = tfaccel.plan(builders.mlp, devices="2xtiny", batch_size=64, device_file=str(file))
    least = min(one.bytes_between_steps for one in found.estimates)
    assert 150_000 / 1.6 < least < 150_000
    assert not any(one.fits for one in found.estimates)
    assert len(traced) == 1


def test_fewer_rows_take_less_on_one_device_too(small: str) -> None:
    """The step is traced for two numbers of rows, also where all candidates have the same."""
    found = tfaccel.plan(builders.mlp, devices="small", batch_size=4096, device_file=small)
    plain, accumulating = found.estimates
    assert not plain.fits
    assert found.recommended is accumulating
    assert accumulating.rows == 4096 // accumulating.candidate.accumulate
    assert accumulating.peak is not None
    assert plain.peak is not None
    assert accumulating.peak < plain.peak


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["--devices", "8xH99", "--batch", "64"], "expected a number and one of"),
        (["--devices", "8xH100", "--batch", "0"], "a batch of 0 was to be planned"),
    ],
)
def test_mistakes(words: list[str], says: str) -> None:
    with pytest.raises(StrategyError, match=says):
        main([TARGET, *words])


def test_a_plan_says_what_it_counted_from() -> None:
    """The first of its eight equal layers takes the batch, and so repeats nothing."""
    found = tfaccel.plan(builders.deep, devices="T4", batch_size=64, precision="float32")
    assert "7 equal blocks were counted from 3 of them" in found.notes


def test_loops_are_not_counted_and_said() -> None:
    def recurrent() -> keras.Model:
        layers = [keras.layers.Embedding(10, 8), keras.layers.LSTM(8), keras.layers.Dense(2)]
        return keras.Sequential([keras.Input((12,)), *layers])

    found = tfaccel.plan(recurrent, devices="cpu", batch_size=8)
    assert found.recommended is None
    assert "not known is what TensorList" in found.reason
    assert all(one.peak is one.flops is one.time is None for one in found.estimates)
    assert all(one.parameters > 0 for one in found.estimates)


def run(line: str) -> dict[str, Any]:
    """Runs a printed line in a process of its own, and returns what it says."""
    words = shlex.split(line)
    assert words[0] == "python"
    said = run_child(words[1:])
    found: dict[str, Any] = json.loads(next(s for s in said.splitlines() if s.startswith("{")))
    return found


@pytest.mark.exhaustive
def test_the_printed_line_runs() -> None:
    found = tfaccel.plan(TARGET, devices="2xcpu", batch_size=64)
    assert run(found.command)["loss"] > 0


@pytest.mark.exhaustive
def test_a_script_with_flags_is_run_itself() -> None:
    found = tfaccel.plan("examples/language_model.py:build_model", devices="2xcpu", batch_size=32)
    assert found.command == (
        "python examples/language_model.py --strategy=mirrored --device_type=cpu --devices=2 "
        "--batch_size=32"
    )


def test_a_shape_is_that_of_all_inputs_of_unknown_sizes() -> None:
    """As of the backbones of keras-hub: tokens and which of them are padding."""

    def padded() -> keras.Model:
        ids, mask = (keras.Input((None,), dtype="int32", name=name) for name in ("ids", "mask"))
        x = keras.layers.Embedding(10, 8)(ids) * keras.ops.cast(mask, "float32")[..., None]
        return keras.Model({"ids": ids, "mask": mask}, keras.layers.Dense(2)(x))

    found = tfaccel.plan(padded, devices="T4", batch_size=8, precision="float32", input_shape=(6,))
    assert found.estimates[0].fits
    with pytest.raises(InputError, match="several of unknown sizes"):
        tfaccel.plan(padded, devices="T4", batch_size=8, precision="float32", input_shape=(6, 2))


@pytest.mark.parametrize("shape", [None, (6,)])
def test_inputs_that_no_one_shape_fills_are_refused(shape: tuple[int, ...] | None) -> None:
    """As of a model of texts and images of any size."""

    def build() -> keras.Model:
        ids, image = keras.Input((None,), dtype="int32"), keras.Input((None, None, 3))
        seen = keras.layers.GlobalAveragePooling2D()(image)
        read = keras.layers.GlobalAveragePooling1D()(keras.layers.Embedding(10, 3)(ids))
        return keras.Model([ids, image], keras.layers.Dense(2)(seen + read))

    with pytest.raises(InputError, match=r"write them into the model, as no one --input-shape"):
        tfaccel.plan(build, devices="T4", batch_size=8, input_shape=shape)


class PositionEmbedding(keras.layers.Layer):  # type: ignore[misc]
    """As of keras_hub: its table has a row for each position."""

    def __init__(self, sequence_length: int) -> None:
        super().__init__()
        self.sequence_length = sequence_length
        self.table = self.add_weight((sequence_length, 8))

    def call(self, x: Any) -> Any:
        return x + self.table[: x.shape[1]]


def positioned(length: int | None) -> keras.Model:
    """A nested encoder of token ids of any length, with or without positions."""
    ids = keras.Input((None,), dtype="int32")
    x = keras.layers.Embedding(10, 8)(ids)
    encoder = keras.Model(ids, PositionEmbedding(length)(x) if length is not None else x)
    outer = keras.Input((None,), dtype="int32")
    return keras.Model(outer, keras.layers.Dense(2)(encoder(outer)))


def test_a_sequence_is_as_long_as_its_positions() -> None:
    """Where a model has embeddings of positions and no known length; else one line of refusal."""

    def planned(length: int | None, shape: tuple[int, ...] | None = None) -> Plan:
        def build() -> keras.Model:
            return positioned(length)

        return tfaccel.plan(build, "T4", 8, precision="float32", input_shape=shape, dtype="int32")

    found = planned(12)
    assert found.notes[0] == "sequences of 12, the longest that the model has positions for"
    given = planned(12, (12,))
    assert found.estimates == given.estimates
    assert not any("positions" in note for note in given.notes)
    assert (planned(12, (6,)).estimates[0].activations or 0) < (found.estimates[0].activations or 0)
    with pytest.raises(InputError, match=r"shape \(None, None\); .* such as --input-shape 512\."):
        planned(None)


def test_a_model_that_its_builder_does_not_compile_may_accumulate(small: str) -> None:
    """It is compiled for the plan, and its optimizer accumulates."""

    def build() -> keras.Model:
        hidden = [keras.layers.Dense(64, activation="relu") for _ in range(4)]
        return keras.Sequential([keras.Input((64,)), *hidden, keras.layers.Dense(8)])

    found = tfaccel.plan(build, devices="2xsmall", batch_size=4096, device_file=small)
    assert found.recommended is not None
    assert found.recommended.candidate.accumulate > 1


class Resized(keras.layers.Layer):  # type: ignore[misc]
    """Computes a weight from the values of another one while it is built."""

    def build(self, shape: Any) -> None:
        table = self.add_weight((16, 64, 1))
        self.kept = self.add_weight((64, 64))
        self.kept.assign(keras.ops.image.resize(table, (64, 64))[..., 0])

    def call(self, x: Any) -> Any:
        return x @ self.kept


def test_a_model_may_compute_with_its_weights_while_it_is_built() -> None:
    """As of a table of positions that is resized to the image."""

    def build() -> keras.Model:
        return keras.Sequential([keras.Input((64,)), Resized()])

    found = tfaccel.plan(build, devices="T4", batch_size=8, precision="float32").estimates[0]
    assert found.parameters == 4 * (16 * 64 + 64 * 64)
    assert (found.peak or 0) > found.bytes_between_steps


class Gathered(Resized):
    """Reads rows of a weight's memory while it is built."""

    def build(self, shape: Any) -> None:
        self.kept = tf.gather(self.add_weight((128, 64)).value, range(64))


def test_a_model_that_is_built_from_values_is_refused_in_one_line() -> None:
    def build() -> keras.Model:
        return keras.Sequential([keras.Input((64,)), Gathered()])

    with pytest.raises(StrategyError, match="the variables of a plan have no values") as error:
        tfaccel.plan(build, devices="T4", batch_size=8)
    assert "\n" not in str(error.value)


class OfTwoRows(keras.layers.Layer):  # type: ignore[misc]
    """A mask of rows, which two rows and two positions happen to share."""

    def call(self, x: Any) -> Any:
        mask = keras.ops.ones(keras.ops.shape(x)[:1])
        return x * mask


@pytest.mark.parametrize("blocks", [1, 8])
def test_a_model_whose_step_fails_is_refused_in_one_line(blocks: int) -> None:
    def build() -> keras.Model:
        hidden = [keras.layers.Dense(2) for _ in range(blocks)]
        return keras.Sequential([keras.Input((2,)), *hidden, OfTwoRows()])

    with pytest.raises(StrategyError, match=r"its training step for 11 or 4 rows fails: ") as error:
        tfaccel.plan(build, devices="2xT4", batch_size=8, precision="float32")
    assert "\n" not in str(error.value)
