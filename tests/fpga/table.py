# ruff: noqa: N803
"""Models of one layer each, on which the allowlist was found out."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

IMAGE, SERIES, VECTOR = (8, 8, 4), (8, 4), (16,)


def one(make: Callable[[Any], Any], shape: tuple[int, ...] = IMAGE, *, after: bool = True) -> Any:
    """A model of one layer, with a Dense after it."""
    import keras

    given = keras.Input(shape)
    output = make(keras.layers)(given)
    if after:
        if len(output.shape) > 2:
            output = keras.layers.Flatten(name="flat")(output)
        output = keras.layers.Dense(5, name="end")(output)
    return keras.Model(given, output, name="one")


def merged(make: Callable[[Any], Any], inputs: int = 2) -> Any:
    import keras

    given = keras.Input(VECTOR)
    parts = [keras.layers.Dense(6, name=f"part{n}")(given) for n in range(inputs)]
    output = keras.layers.Dense(5, name="end")(make(keras.layers)(parts))
    return keras.Model(given, output, name="merged")


def indices() -> Any:
    import keras

    given = keras.Input((4,))
    output = keras.layers.Embedding(10, 3, name="it")(given)
    output = keras.layers.Dense(5, name="end")(keras.layers.Flatten(name="flat")(output))
    return keras.Model(given, output, name="embedding")


def dense(activation: str) -> Callable[[], Any]:
    return lambda: one(lambda L: L.Dense(6, activation=activation, name="it"), VECTOR)


def normalised(make: Callable[[Any], Any], shape: tuple[int, ...], *, drop: bool = False) -> Any:
    """A layer, and BatchNormalization after it."""
    import keras

    given = keras.Input(shape)
    output = make(keras.layers)(given)
    if drop:
        output = keras.layers.Dropout(0.1, name="drop")(output)
    output = keras.layers.BatchNormalization(
        gamma_initializer=keras.initializers.RandomUniform(0.5, 2),
        beta_initializer="random_normal",
        name="it",
    )(output)
    output = keras.layers.Dense(5, name="end")(keras.layers.Flatten(name="flat")(output))
    return keras.Model(given, output, name="normalised")


def softmax_that_feeds() -> Any:
    import keras

    given = keras.Input(VECTOR)
    scores = keras.layers.Dense(6, activation="softmax", name="it")(given)
    return keras.Model(given, [scores, keras.layers.Dense(5, name="end")(scores)], name="feeds")


def network() -> Any:
    """An image and a series, through branches, to one output."""
    import keras
    from keras import layers

    image = given = keras.Input(IMAGE, name="image")
    image = layers.ZeroPadding2D(1)(image)
    image = layers.Conv2D(4, 3, activation="relu")(image)
    image = layers.BatchNormalization(gamma_initializer="random_normal")(image)
    branch = layers.PReLU(alpha_initializer="uniform")(
        layers.DepthwiseConv2D(3, padding="same")(image)
    )
    image = layers.MaxPooling2D(3, 2, padding="same")(layers.Add()([image, branch]))
    image = layers.UpSampling2D(2)(layers.LeakyReLU()(layers.Conv2D(4, 1)(image)))
    image = layers.AveragePooling2D(2)(layers.Concatenate()([image, branch]))
    pooled = layers.GlobalAveragePooling2D()(image)
    flat = layers.Dropout(0.5)(layers.Dense(6, activation="sigmoid")(layers.Flatten()(image)))

    series = other = keras.Input(SERIES, name="series")
    series = layers.Conv1D(4, 3, padding="causal")(series)
    series = layers.Bidirectional(layers.LSTM(3, return_sequences=True))(series)
    series = layers.MaxPooling1D(2)(
        layers.EinsumDense("abc,cd->abd", (8, 6), bias_axes="d")(series)
    )
    series = layers.Permute((2, 1))(layers.GRU(4, return_sequences=True)(series))
    series = layers.ReLU()(layers.Conv1D(5, 2)(series))
    ends = [layers.GlobalMaxPooling1D()(series), layers.LSTM(5)(series)]
    gate = layers.Activation("sigmoid")(ends[0])
    series = layers.Multiply()([ends[1], gate])

    output = layers.Concatenate()([layers.Concatenate()([pooled, flat]), series])
    return keras.Model([given, other], layers.Dense(5, name="end")(output), name="network")


RIGHT: dict[str, Callable[[], Any]] = {
    **{f"Dense {name}": dense(name) for name in ("relu", "sigmoid", "tanh", "selu")},
    "Dense over time": lambda: one(lambda L: L.Dense(6, name="it"), SERIES),
    "LeakyReLU": lambda: one(lambda L: L.LeakyReLU(name="it")),
    "PReLU": lambda: one(lambda L: L.PReLU(alpha_initializer="uniform", name="it")),
    "ELU": lambda: one(lambda L: L.ELU(name="it")),
    "ReLU": lambda: one(lambda L: L.ReLU(name="it")),
    "Activation": lambda: one(lambda L: L.Activation("tanh", name="it")),
    "Dropout": lambda: one(lambda L: L.Dropout(0.5, name="it")),
    "BatchNormalization": lambda: one(
        lambda L: L.BatchNormalization(
            moving_mean_initializer="random_normal", gamma_initializer="random_normal", name="it"
        )
    ),
    "Conv1D": lambda: one(lambda L: L.Conv1D(6, 3, activation="relu", name="it"), SERIES),
    "Conv1D same": lambda: one(lambda L: L.Conv1D(6, 3, padding="same", name="it"), SERIES),
    "Conv1D causal": lambda: one(lambda L: L.Conv1D(6, 3, padding="causal", name="it"), SERIES),
    "Conv2D": lambda: one(lambda L: L.Conv2D(6, 3, activation="relu", name="it")),
    "Conv2D strided": lambda: one(lambda L: L.Conv2D(6, 3, 2, padding="same", name="it")),
    "DepthwiseConv2D": lambda: one(lambda L: L.DepthwiseConv2D(3, name="it")),
    "MaxPooling2D": lambda: one(lambda L: L.MaxPooling2D(name="it")),
    "MaxPooling2D same": lambda: one(lambda L: L.MaxPooling2D(3, padding="same", name="it")),
    "AveragePooling2D": lambda: one(lambda L: L.AveragePooling2D(2, name="it")),
    "AveragePooling2D same": lambda: one(
        lambda L: L.AveragePooling2D(3, padding="same", name="it")
    ),
    "MaxPooling1D": lambda: one(lambda L: L.MaxPooling1D(name="it"), SERIES),
    "GlobalAveragePooling2D": lambda: one(lambda L: L.GlobalAveragePooling2D(name="it")),
    "GlobalMaxPooling1D": lambda: one(lambda L: L.GlobalMaxPooling1D(name="it"), SERIES),
    "ZeroPadding2D": lambda: one(lambda L: L.ZeroPadding2D(((1, 2), (0, 1)), name="it")),
    "Cropping2D": lambda: one(lambda L: L.Cropping2D(((1, 2), (0, 1)), name="it")),
    "UpSampling2D": lambda: one(lambda L: L.UpSampling2D(2, name="it")),
    "Permute": lambda: one(lambda L: L.Permute((2, 1), name="it"), SERIES),
    "Reshape": lambda: one(lambda L: L.Reshape((16, 16), name="it")),
    "Add": lambda: merged(lambda L: L.Add(name="it")),
    "Subtract": lambda: merged(lambda L: L.Subtract(name="it")),
    "Multiply": lambda: merged(lambda L: L.Multiply(name="it")),
    "Maximum": lambda: merged(lambda L: L.Maximum(name="it")),
    "Concatenate": lambda: merged(lambda L: L.Concatenate(name="it")),
    "LSTM": lambda: one(lambda L: L.LSTM(5, name="it"), SERIES),
    "LSTM sequences": lambda: one(lambda L: L.LSTM(5, return_sequences=True, name="it"), SERIES),
    "GRU": lambda: one(lambda L: L.GRU(5, name="it"), SERIES),
    "Bidirectional": lambda: one(lambda L: L.Bidirectional(L.LSTM(5), name="it"), SERIES),
    "EinsumDense": lambda: one(
        lambda L: L.EinsumDense("abc,cd->abd", (8, 6), bias_axes="d", name="it"), SERIES
    ),
    "Embedding": indices,
    **{
        f"{name} normalised": (lambda make=make, shape=shape: normalised(make, shape))
        for name, make, shape in (
            ("Dense", lambda L: L.Dense(6, name="first"), VECTOR),
            ("Dense relu over time", lambda L: L.Dense(6, "relu", name="first"), SERIES),
            ("Conv1D", lambda L: L.Conv1D(6, 3, name="first"), SERIES),
            ("Conv2D", lambda L: L.Conv2D(6, 3, name="first"), IMAGE),
            ("Conv2D 1x1", lambda L: L.Conv2D(6, 1, name="first"), IMAGE),
            ("DepthwiseConv2D relu", lambda L: L.DepthwiseConv2D(3, activation="relu"), IMAGE),
            ("EinsumDense", lambda L: L.EinsumDense("abc,cd->abd", (8, 6), name="first"), SERIES),
        )
    },
}

#: hls4ml converts and compiles these, and what they compute is something else.
WRONG: dict[str, Callable[[], Any]] = {
    "Conv2D groups": lambda: one(lambda L: L.Conv2D(8, 3, groups=2, name="it")),
    "SimpleRNN": lambda: one(lambda L: L.SimpleRNN(5, name="it"), SERIES),
    "UpSampling2D bilinear": lambda: one(
        lambda L: L.UpSampling2D(2, interpolation="bilinear", name="it")
    ),
    "LayerNormalization": lambda: one(lambda L: L.LayerNormalization(axis=2, name="it"), (8, 16)),
    "Permute of images": lambda: one(lambda L: L.Permute((2, 1, 3), name="it")),
    "PReLU shared": lambda: one(
        lambda L: L.PReLU(alpha_initializer="uniform", shared_axes=[1, 2], name="it")
    ),
    "DepthwiseConv2D normalised": lambda: normalised(
        lambda L: L.DepthwiseConv2D(3, name="first"), IMAGE, drop=True
    ),
    "Dense over time normalised": lambda: normalised(lambda L: L.Dense(6, name="first"), SERIES),
    "Dense over an image normalised": lambda: normalised(lambda L: L.Dense(6, name="first"), IMAGE),
    "softplus": lambda: one(
        lambda L: L.Dense(6, kernel_initializer="ones", activation="softplus", name="it"), VECTOR
    ),
}

REFUSED: dict[str, tuple[Callable[[], Any], str]] = {
    "Conv2D groups": (WRONG["Conv2D groups"], "groups=2 is translated wrongly"),
    "SimpleRNN": (WRONG["SimpleRNN"], "silently translates it wrongly; use LSTM or GRU"),
    "UpSampling2D bilinear": (
        WRONG["UpSampling2D bilinear"],
        "interpolation='bilinear' is translated wrongly",
    ),
    "Permute of images": (WRONG["Permute of images"], "of images is translated wrongly"),
    "PReLU shared": (WRONG["PReLU shared"], "shared_axes=(1, 2) is translated wrongly"),
    "DepthwiseConv2D normalised": (
        WRONG["DepthwiseConv2D normalised"],
        "after first (DepthwiseConv2D) it is translated wrongly",
    ),
    **{
        f"Dense over {what} normalised": (
            WRONG[f"Dense over {what} normalised"],
            "after first (Dense over time or an image) it is translated wrongly",
        )
        for what in ("time", "an image")
    },
    "Bidirectional with another layer backwards": (
        lambda: one(
            lambda L: L.Bidirectional(
                L.LSTM(5), backward_layer=L.LSTM(3, go_backwards=True), name="it"
            ),
            SERIES,
        ),
        "its backward_layer is unlike",
    ),
    "softplus": (WRONG["softplus"], "softplus of more than 8 is translated wrongly"),
    "gelu": (dense("gelu"), "activation gelu becomes code that does not compile"),
    "silu": (dense("silu"), "activation silu becomes code that does not compile"),
    "mish": (dense("mish"), "activation 'mish' is not translated; use one of"),
    "a layer as activation": (
        lambda: one(lambda L: L.Dense(6, activation=L.LeakyReLU(), name="it"), VECTOR),
        "its activation is a LeakyReLU; expected one by name",
    ),
    "ReLU to six": (lambda: one(lambda L: L.ReLU(max_value=6, name="it")), "max_value=6 is not"),
    "ReLU leaky": (
        lambda: one(lambda L: L.ReLU(negative_slope=0.1, name="it")),
        "negative_slope=0.1",
    ),
    "LayerNormalization": (WRONG["LayerNormalization"], "it divides by a coarse table"),
    "LayerNormalization axis": (
        lambda: one(lambda L: L.LayerNormalization(axis=-1, name="it"), SERIES),
        "axis=-1 is not translated",
    ),
    "BatchNormalization axis": (
        lambda: one(lambda L: L.BatchNormalization(axis=1, name="it")),
        "normalise the last axis, 3",
    ),
    "Conv2D dilated": (
        lambda: one(lambda L: L.Conv2D(4, 3, dilation_rate=2, name="it")),
        "dilation_rate=(2, 2)",
    ),
    "LSTM backwards": (
        lambda: one(lambda L: L.LSTM(5, go_backwards=True, name="it"), SERIES),
        "go_backwards=True",
    ),
    "Bidirectional GRU": (
        lambda: one(lambda L: L.Bidirectional(L.GRU(5), name="it"), SERIES),
        "only Bidirectional(LSTM)",
    ),
    "Add of three": (lambda: merged(lambda L: L.Add(name="it"), 3), "merges 3 inputs"),
    "Dot": (lambda: merged(lambda L: L.Dot(1, name="it")), "does not translate it"),
    "softmax within": (dense("softmax"), "softmax inside the model"),
    "softmax within and at the end": (softmax_that_feeds, "softmax inside the model"),
    "Flatten at the end": (
        lambda: one(lambda L: L.Flatten(name="it"), after=False),
        "it ends the model",
    ),
    "open shape": (
        lambda: one(lambda L: L.GlobalMaxPooling1D(name="it"), (None, 4)),
        "leaves a size open",
    ),
    "Conv2DTranspose": (
        lambda: one(lambda L: L.Conv2DTranspose(4, 3, name="it")),
        "use UpSampling2D with Conv2D",
    ),
    "Rescaling": (lambda: one(lambda L: L.Rescaling(0.1, name="it")), "on the host"),
    "GroupNormalization": (
        lambda: one(lambda L: L.GroupNormalization(2, name="it")),
        "use BatchNormalization",
    ),
    "UnitNormalization": (
        lambda: one(lambda L: L.UnitNormalization(name="it")),
        "use BatchNormalization",
    ),
    "RMSNormalization": (
        lambda: one(lambda L: L.RMSNormalization(name="it")),
        "use BatchNormalization",
    ),
    "SeparableConv2D": (
        lambda: one(lambda L: L.SeparableConv2D(4, 3, name="it")),
        "use DepthwiseConv2D",
    ),
    "Conv3D": (
        lambda: one(lambda L: L.Conv3D(2, 2, name="it"), (4, 4, 4, 2)),
        "use Conv2D",
    ),
    "MaxPooling3D": (
        lambda: one(lambda L: L.MaxPooling3D(name="it"), (4, 4, 4, 2)),
        "use MaxPooling2D",
    ),
    "RepeatVector": (
        lambda: one(lambda L: L.RepeatVector(3, name="it"), VECTOR),
        "does not translate it",
    ),
    "GaussianNoise": (lambda: one(lambda L: L.GaussianNoise(0.1, name="it")), "leave it out"),
    "TimeDistributed": (
        lambda: one(lambda L: L.TimeDistributed(L.Dense(3), name="it"), SERIES),
        "work over time by themselves",
    ),
    "Lambda": (
        lambda: one(lambda L: L.Lambda(lambda x: x + 1, name="it")),
        "cannot follow Python code",
    ),
    "Normalization": (
        lambda: one(lambda L: L.Normalization(mean=0.0, variance=1.0, name="it")),
        "normalise the input on the host",
    ),
}
