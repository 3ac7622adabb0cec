"""What is refused, and why: without hls4ml, before anything is written."""

from __future__ import annotations

from pathlib import Path

import keras
import pytest

import tfaccel
from tests.fpga import table
from tfaccel.errors import FpgaError
from tfaccel.fpga.allowlist import CHECKS, check_layers, refusal
from tfaccel.fpga.layer import Layer, layers_of


@pytest.mark.parametrize("name", table.RIGHT)
def test_what_is_translated_rightly_is_allowed(name: str) -> None:
    check_layers(layers_of(table.RIGHT[name]()))


@pytest.mark.parametrize("name", table.REFUSED)
def test_what_is_not_is_refused_by_name_with_the_reason(name: str) -> None:
    make, reason = table.REFUSED[name]
    with pytest.raises(FpgaError) as caught:
        check_layers(layers_of(make()))
    assert "it (" in str(caught.value)
    assert reason in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", table.WRONG)
def test_an_export_of_a_wrong_layer_writes_nothing(name: str, tmp_path: Path) -> None:
    with pytest.raises(FpgaError, match=r"wrongly|silently"):
        tfaccel.export_fpga(table.WRONG[name](), tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_every_allowed_layer_of_keras_has_a_row_that_converts_it() -> None:
    shown = {type(layer).__name__ for make in table.RIGHT.values() for layer in make().layers}
    plain = {name for name in CHECKS if not name.startswith("Q")}
    # Two that are refused, and one that is removed.
    assert plain - shown == {"SimpleRNN", "LayerNormalization", "Softmax"}


def test_an_unknown_layer_is_refused() -> None:
    assert "does not translate it" in (refusal(Layer("new", "HyperDense")) or "")
    assert "a class of mine" in (refusal(Layer("own", "Dense", package="mine")) or "")


@pytest.mark.parametrize("name", ["my-dense", "2nd", "in put", "größe", "p"])
def test_a_name_that_cannot_stand_in_the_code_is_refused(name: str) -> None:
    with pytest.raises(FpgaError, match=r"rename it with letters, digits and _ alone"):
        check_layers([Layer(name, "Dense")])
    check_layers([Layer("dense_2", "Dense")])


def test_all_refused_layers_are_listed_at_once() -> None:
    layers = [Layer("a", "Conv3D"), Layer("b", "Lambda"), Layer("c", "Dense")]
    with pytest.raises(FpgaError, match=r"a \(Conv3D\).*and 1 more: b \(Lambda\)"):
        check_layers(layers)


def test_a_model_that_only_moves_numbers_is_refused() -> None:
    model = keras.Sequential([keras.Input((4, 4)), keras.layers.Flatten(name="flat")])
    with pytest.raises(FpgaError, match=r"flat \(Flatten\)"):
        check_layers(layers_of(model))
    with pytest.raises(FpgaError, match="only moves numbers"):
        check_layers([Layer("in", "InputLayer"), Layer("flat", "Flatten")])
    with pytest.raises(FpgaError, match="softmax is left to the host"):
        check_layers(layers_of(keras.Sequential([keras.Input((4,)), keras.layers.Softmax()])))


def test_an_input_that_is_an_output_too_is_refused() -> None:
    given = keras.Input((4,), name="given")
    model = keras.Model(given, [keras.layers.Dense(3)(given), given])
    with pytest.raises(FpgaError, match=r"given \(InputLayer\): it is an output as well"):
        check_layers(layers_of(model))


def test_channels_first_is_refused() -> None:
    layer = Layer("conv", "Conv2D", config={"data_format": "channels_first"}, output=(None, 4))
    assert "use 'channels_last'" in (refusal(layer) or "")


def test_a_model_within_a_model_is_refused() -> None:
    inner = keras.Sequential([keras.Input((4,)), keras.layers.Dense(3)], name="inner")
    model = keras.Sequential([keras.Input((4,)), inner])
    with pytest.raises(FpgaError, match=r"inner \(Sequential\): a model within the model"):
        check_layers(layers_of(model))


def test_a_layer_that_is_called_twice_is_refused() -> None:
    given = keras.Input((4,))
    layer = keras.layers.Dense(4, name="twice")
    with pytest.raises(FpgaError, match=r"twice \(Dense\): it is called more than once"):
        check_layers(layers_of(keras.Model(given, layer(layer(given)))))


def test_a_subclassed_model_is_refused() -> None:
    class Mine(keras.Model):
        def call(self, x):
            return x

    with pytest.raises(FpgaError, match=r"is a Mine; expected a Sequential or functional model"):
        layers_of(Mine())


@pytest.mark.parametrize("model", ["model.keras", None])
def test_what_is_no_model_is_refused(model: object) -> None:
    with pytest.raises(FpgaError, match=r"expected a keras\.Model"):
        layers_of(model)


def test_a_model_without_shapes_is_refused() -> None:
    with pytest.raises(FpgaError, match=r"put keras\.Input\(shape\) first"):
        layers_of(keras.Sequential([keras.layers.Dense(3)]))


def test_softmax_may_end_a_model() -> None:
    for end in (keras.layers.Softmax(), keras.layers.Activation("softmax")):
        check_layers(layers_of(keras.Sequential([keras.Input((4,)), keras.layers.Dense(3), end])))


def test_plain_layers_among_quantized_ones_are_refused_unless_they_only_move_numbers() -> None:
    quantized = Layer("q", "QDense", package="hgq")
    check_layers([quantized, Layer("flat", "Flatten"), Layer("drop", "Dropout")])
    for kind, reason in {"ReLU": "use Activation", "Dense": "is not quantized"}.items():
        with pytest.raises(FpgaError, match=reason):
            check_layers([quantized, Layer("plain", kind)])
