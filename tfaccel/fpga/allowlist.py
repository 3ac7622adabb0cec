"""Which layers become firmware that agrees with Keras, and why the others do not.

hls4ml silently translates some layers wrongly, and fails on others deep inside or in the
compiler. So a layer is refused unless it is in `CHECKS` and passes its check. Everything here was
found by running hls4ml 1.3.0 on Vitis (`tests/fpga/test_layers.py`).
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable

from tfaccel.errors import FpgaError
from tfaccel.fpga.layer import ACTIVATIONS, Layer

#: What is wrong and what to do instead, or None.
Check = Callable[[Layer], str | None]


def check_layers(layers: Iterable[Layer]) -> None:
    """Refuses a model that would not become correct firmware.

    Args:
        layers: of the model, from `tfaccel.fpga.layer.layers_of`.

    Raises:
        FpgaError: one or more layers cannot be exported; each is named with its reason.
    """
    listed = list(layers)
    quantized = any(one.package == "hgq" for one in listed)
    refused = [
        f"{one.name} ({one.kind}): {why}"
        for one in listed
        if (why := refusal(one) or (_unquantized(one) if quantized else None))
    ]
    idle = ("InputLayer", "Softmax", *_SHAPES, *_TRAINING_ONLY)  # softmax is removed
    if not refused and all(one.kind in idle for one in listed):
        refused = [
            "the model only moves numbers; expected a layer that computes (softmax is left to the "
            "host): hls4ml writes code that does not compile"
        ]
    if refused:
        more = f" (and {len(refused) - 1} more: {'; '.join(refused[1:])})" if refused[1:] else ""
        raise FpgaError(f"{refused[0]}{more}.")


def refusal(layer: Layer) -> str | None:
    """Why this layer cannot be exported, and what to do; None when it can.

    >>> refusal(Layer("pool", "MaxPooling3D"))
    'hls4ml does not translate it; leave it out or use MaxPooling2D'
    """
    if layer.package not in ("keras", "hgq"):
        return f"a class of {layer.package}, which hls4ml does not know; use a layer of Keras"
    check = CHECKS.get(layer.kind)
    if check is None:
        instead = _INSTEAD.get(layer.kind, "leave it out, or run it on the host before or after")
        if layer.kind in ("Sequential", "Functional"):
            return f"a model within the model, which hls4ml does not open; {instead}"
        return f"hls4ml does not translate it; {instead}"
    if layer.calls > 1:
        return "it is called more than once, which is untested; make one layer for each call"
    if not re.fullmatch(r"[A-Za-z_]\w*", layer.name, re.ASCII) or layer.name in _ALLOWED_NAMES:
        return (
            "its name becomes one in C++; rename it with letters, digits and _ alone, and none of "
            f"{', '.join(_ALLOWED_NAMES)}"
        )
    for shape in (*layer.inputs, layer.output):
        if None in shape[1:]:
            return f"shape {shape} leaves a size open; expected fixed sizes; give them in Input"
    return check(layer)


#: hls4ml keeps these letters to itself (its list of reserved names is `set("input")`).
_ALLOWED_NAMES = tuple("input")


def stays_exact(layer: Layer) -> bool:
    """Whether this Keras layer stays exact among quantized ones.

    >>> stays_exact(Layer("flat", "Flatten")), stays_exact(Layer("act", "ReLU"))
    (True, False)
    """
    activation = layer.config.get("activation")
    return (
        layer.kind in AMONG_QUANTIZED
        or (layer.kind == "Activation" and activation in ("relu", "linear"))
        or (
            (layer.last and "softmax" in (activation, layer.kind.lower()))
            and layer.kind in ("Softmax", "Activation")
        )
    )


def _unquantized(layer: Layer) -> str | None:
    if layer.package == "hgq" or stays_exact(layer):
        return None
    if layer.kind == "ReLU":
        return "hls4ml translates it wrongly among quantized layers; use Activation('relu')"
    return "it is not quantized and others are; quantize the whole model with tfaccel.fpga.quantize"


def _any(_: Layer) -> None:
    return None


def _only(**allowed: tuple[object, ...]) -> Check:
    """Refuses other values of these settings, if the layer has them."""

    def check(layer: Layer) -> str | None:
        for name, values in allowed.items():
            value = layer.config.get(name, values[0])
            value = tuple(value) if isinstance(value, list) else value
            if value not in values:
                expected = " or ".join(repr(one) for one in values)
                return (
                    f"{name}={value!r} {_REASONS.get((layer.kind, name), _FAILS)}; use {expected}"
                )
        return None

    return check


_FAILS = "is not translated by hls4ml"
_WRONG = "is translated wrongly by hls4ml, silently"
_REASONS = {
    ("Conv2D", "groups"): _WRONG,
    ("UpSampling2D", "interpolation"): _WRONG,
    ("PReLU", "shared_axes"): _WRONG,
}


def _all(*checks: Check) -> Check:
    def check(layer: Layer) -> str | None:
        return next((why for one in checks if (why := one(layer)) is not None), None)

    return check


def _activation(layer: Layer) -> str | None:
    name = layer.config.get("activation")
    if isinstance(name, dict):  # a layer, or a user's function
        kind = name.get("class_name")
        return f"its activation is a {kind}; expected one by name; put {kind} after it as a layer"
    if name == "softplus":
        return f"activation softplus of more than 8 {_WRONG}: its table ends there; use relu"
    if name is None or name in ACTIVATIONS:
        return _softmax(layer) if name == "softmax" else None
    if name in ("gelu", "silu", "swish"):
        return f"activation {name} becomes code that does not compile; use relu or tanh"
    return f"activation {name!r} is not translated; use one of {', '.join(ACTIVATIONS)}"


def _softmax(layer: Layer) -> str | None:
    """Inside a model, the lookup would use the ten highest bits of a very wide logit."""
    if not layer.last or layer.feeds:
        return "a softmax inside the model loses nearly all bits of its input; only the last may be"
    axis = layer.config.get("axis", -1)
    if axis not in (-1, len(layer.output) - 1):
        return f"softmax over axis {axis}; expected the last; permute before it"
    return None


def _relu(layer: Layer) -> str | None:
    if layer.config.get("max_value") is not None:
        return f"max_value={layer.config['max_value']:g} is not translated; use ReLU() alone"
    return _only(negative_slope=(0, None), threshold=(0, None))(layer)


def _last_axis(layer: Layer) -> str | None:
    axis, rank = layer.config.get("axis", -1), len(layer.output)
    if axis not in (-1, rank - 1):
        return f"axis={axis} is not translated; normalise the last axis, {rank - 1}"
    return None


def _batch_norm(layer: Layer) -> str | None:
    before = layer.before
    if (
        before is not None
        and (
            before.kind == "DepthwiseConv2D" or (before.kind == "Dense" and len(before.output) > 2)
        )
        and before.config.get("activation") in (None, "linear")
    ):
        over = " over time or an image" if before.kind == "Dense" else ""
        return (
            f"after {before.name} ({before.kind}{over}) it {_WRONG}; put it before that layer, or "
            "an activation between them"
        )
    return _last_axis(layer)


def _layer_norm(layer: Layer) -> str:
    if layer.config.get("axis") in (-1, [-1]):
        return "axis=-1 is not translated, and other axes wrongly; use BatchNormalization"
    return "it divides by a coarse table, and is silently inaccurate; use BatchNormalization"


def _two(layer: Layer) -> str | None:
    if len(layer.inputs) != 2:
        return f"it merges {len(layer.inputs)} inputs, and hls4ml two; merge them in pairs"
    if layer.inputs[0] != layer.inputs[1]:
        return f"it merges shapes {layer.inputs[0]} and {layer.inputs[1]}; expected the same"
    return None


def _two_any(layer: Layer) -> str | None:
    if len(layer.inputs) != 2:
        return f"it merges {len(layer.inputs)} inputs, and hls4ml two; merge them in pairs"
    return None


def _permute(layer: Layer) -> str | None:
    if len(layer.output) > 3:
        # (2, 1, 3) before Flatten and Dense was 5.5 off, (3, 1, 2) right: the order is not trusted.
        return f"dims={tuple(layer.config.get('dims', ()))} of images {_WRONG}; reorder on the host"
    return None


def _input(layer: Layer) -> str | None:
    if layer.last:
        return "it is an output as well, which hls4ml cannot write; leave that output out"
    return None


def _not_last(layer: Layer) -> str | None:
    if layer.last:
        return "it ends the model, where hls4ml has nothing to write; reshape on the host"
    return None


def _bidirectional(layer: Layer) -> str | None:
    inner = layer.config.get("layer", {})
    kind = inner.get("class_name")
    if kind != "LSTM":
        return f"only Bidirectional(LSTM) is known to be right, found {kind}"
    backward = layer.config.get("backward_layer", inner)
    shared_config = ("units", "activation", "recurrent_activation", "use_bias")
    if backward.get("class_name") != kind or any(
        inner.get("config", {}).get(one) != backward.get("config", {}).get(one)
        for one in shared_config
    ):
        return "its backward_layer is unlike its layer, which is untested; leave backward_layer out"
    if layer.config.get("merge_mode") != "concat":
        return f"merge_mode={layer.config.get('merge_mode')!r} is untested; use 'concat'"
    return _RECURRENT(Layer(layer.name, kind, config=inner.get("config", {}), output=layer.output))


def _simple_rnn(_: Layer) -> str:
    return "hls4ml silently translates it wrongly; use LSTM or GRU"


_LAST = _only(data_format=("channels_last", None))
_POOL = _all(_LAST, _only(keepdims=(False,)))
_CONV = _all(
    _LAST,
    _only(groups=(1,), dilation_rate=(1, (1,), (1, 1)), depth_multiplier=(1,)),
    _activation,
)
_RECURRENT = _only(
    activation=("tanh",),
    recurrent_activation=("sigmoid",),
    go_backwards=(False,),
    return_state=(False,),
    stateful=(False,),
    reset_after=(True,),
    use_bias=(True,),
)
_QUANTIZED = _all(
    _LAST,
    _only(
        activation=("linear", "relu", "softmax", None),
        groups=(1,),
        dilation_rate=(1, (1,), (1, 1)),
    ),
    _activation,
)

_SHAPES = ("Flatten", "Reshape")
_TRAINING_ONLY = ("Dropout",)

#: They move or compare numbers, and need no types of their own.
AMONG_QUANTIZED = (
    "InputLayer",
    "MaxPooling1D",
    "MaxPooling2D",
    "Flatten",
    "Reshape",
    "Dropout",
)

CHECKS: dict[str, Check] = {
    "InputLayer": _input,
    "Dense": _activation,
    "EinsumDense": _activation,
    "Embedding": _only(mask_zero=(False,)),
    "Conv1D": _CONV,
    "Conv2D": _CONV,
    "DepthwiseConv2D": _CONV,
    "MaxPooling1D": _POOL,
    "MaxPooling2D": _POOL,
    "AveragePooling2D": _POOL,
    "GlobalAveragePooling2D": _POOL,
    "GlobalMaxPooling1D": _POOL,
    "ZeroPadding2D": _LAST,
    "Cropping2D": _LAST,
    "UpSampling2D": _all(_LAST, _only(interpolation=("nearest",))),
    "BatchNormalization": _batch_norm,
    "LayerNormalization": _layer_norm,
    "Dropout": _any,
    "Activation": _activation,
    "ReLU": _relu,
    "LeakyReLU": _any,
    "PReLU": _only(shared_axes=(None, ())),
    "ELU": _any,
    "Softmax": _softmax,
    "Flatten": _not_last,
    "Reshape": _not_last,
    "Permute": _permute,
    "Add": _two,
    "Subtract": _two,
    "Multiply": _two,
    "Maximum": _two,
    "Concatenate": _two_any,
    "LSTM": _RECURRENT,
    "GRU": _RECURRENT,
    "Bidirectional": _bidirectional,
    "SimpleRNN": _simple_rnn,
    # HGQ2's, bit by bit the same.
    "QDense": _QUANTIZED,
    "QConv1D": _QUANTIZED,
    "QConv2D": _QUANTIZED,
    "QBatchNormalization": _last_axis,
    "QAveragePooling2D": _POOL,
    "QAdd": _two,
}

_INSTEAD = {
    "Sequential": "add its layers one by one",
    "Functional": "call its layers one by one",
    "Conv3D": "use Conv2D",
    "Conv2DTranspose": "use UpSampling2D with Conv2D",
    "SeparableConv1D": "use Conv1D",
    "SeparableConv2D": "use DepthwiseConv2D with a 1x1 Conv2D",
    "MaxPooling3D": "leave it out or use MaxPooling2D",
    "GroupNormalization": "use BatchNormalization",
    "QGlobalAveragePooling2D": "use AveragePooling2D over the whole image and Flatten",
    "UnitNormalization": "use BatchNormalization",
    "RMSNormalization": "use BatchNormalization",
    "GaussianNoise": "leave it out: at inference it does nothing",
    "Rescaling": "scale the input on the host",
    "Normalization": "normalise the input on the host, or use BatchNormalization",
    "Lambda": "use layers of Keras: hls4ml cannot follow Python code",
    "TimeDistributed": "Dense and EinsumDense work over time by themselves",
}
