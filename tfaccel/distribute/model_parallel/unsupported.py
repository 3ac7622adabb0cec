"""One-line errors with the layer's name, for what cannot run on a mesh.

Some layers are known beforehand. For the others DTensor's error names an operation: the last traced
step shows which layer created it.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import keras
import tensorflow as tf

from tfaccel.distribute import _private
from tfaccel.distribute.model_parallel import preprocessing
from tfaccel.errors import InputError, LayoutError

MAX_NAMED = 6


class CannotDivideError(LayoutError):
    """A step that cannot be one program over a mesh; one device can compute it.

    Attributes:
        reason: why, as the end of a sentence.
        operation: the operation that DTensor cannot lay out with its operands, if any.
    """

    def __init__(self, message: str, reason: str, operation: str | None = None) -> None:
        super().__init__(message)
        self.reason = reason
        self.operation = operation


# Some of these fail, and some hang.
_RANDOM_PER_ROW = (
    keras.layers.AugMix,
    keras.layers.RandAugment,
    keras.layers.RandomCrop,
    keras.layers.RandomElasticTransform,
)


def check(model: keras.Model, training: bool, device_type: str) -> None:
    """Raises for a layer whose operations fail at run time on a mesh, or hang.

    Args:
        model: whose step is being traced.
        training: whether it is a training step.
        device_type: of the mesh, such as ``"CPU"``.

    Raises:
        CannotDivideError: names the layer.
    """
    part = preprocessing.host_part(model)
    on_host = part.layers if part is not None else set()
    for layer in _private.layers_of(model):
        if id(layer) in on_host:
            continue
        what = f"layer {layer.name!r} ({type(layer).__name__})"
        if training and isinstance(layer, _RANDOM_PER_ROW):
            raise _cannot(f"{what} applies a random displacement field")
        if preprocessing.runs_on_host(layer):
            raise _cannot(f"{what} looks up or counts values, for which DTensor has no tables")
        if isinstance(layer, keras.layers.Conv3D) and layer.groups > 1 and device_type == "CPU":
            raise _cannot(
                f"{what} has groups={layer.groups}, and TensorFlow's convolution on CPUs supports "
                "one group only"
            )


def _cannot(reason: str) -> CannotDivideError:
    return CannotDivideError(
        f"tfaccel: {reason} on a mesh; expected it before the model: call it in dataset.map.",
        reason,
    )


def remember(model: keras.Model, graph: Any) -> None:
    """Records the origin of a traced step's operations, for the errors that name them."""
    if not hasattr(graph, "get_operations"):
        return
    by_type: dict[str, set[str]] = {}
    for operation in graph.get_operations():
        by_type.setdefault(operation.type, set()).add(operation.name)
    object.__setattr__(model, "_tfaccel_operations", by_type)


def with_explained_errors(function: Callable[..., Any], model: keras.Model) -> Callable[..., Any]:
    """`function`, with DTensor's errors as a LayoutError that names the layer."""
    if hasattr(function, "_tfaccel_explains"):
        return function

    @functools.wraps(function)
    def explained(*args: Any, **kwargs: Any) -> Any:
        try:
            return function(*args, **kwargs)
        except tf.errors.OpError as error:
            layers = [layer.name for layer in _private.layers_of(model)]
            operations = getattr(model, "_tfaccel_operations", {})
            if (wrong := _explained(str(error), operations, layers, model.name)) is None:
                raise
            raise wrong from error

    explained._tfaccel_explains = True  # type: ignore[attr-defined]
    return explained


@contextmanager
def eager_step(function: Any) -> Iterator[None]:
    """Raises with advice where an eager step mixes mesh and host tensors.

    Raises:
        InputError: a layer, or the step, creates a tensor, which is on the host.
    """
    try:
        yield
    except tf.errors.UnimplementedError as error:
        if not tf.executing_eagerly() or "got a regular tensor" not in str(error):
            raise
        name = getattr(function, "__name__", str(function))
        raise InputError(
            f"tfaccel: step {name!r} runs eagerly on a mesh, and makes tensors of its own, which "
            "lie on the host; expected tensors of the mesh alone; put the call of strategy.run "
            "into a tf.function, whose graph has all of them on the mesh."
        ) from error


def why_not_divided(error: Exception, function: str) -> str | None:
    """Why a user's function cannot run on a mesh; None for an error that is none of DTensor's.

    Args:
        error: of its first call there.
        function: its name.
    """
    wrong = _explained(str(error), {}, (), function)
    if not isinstance(wrong, CannotDivideError):
        return None
    return wrong.reason.replace(f"model {function!r}", "it")


def explanation(
    text: str, operations: Mapping[str, Iterable[str]], layers: Iterable[str], model: str
) -> str | None:
    """The line for an error of DTensor's, or None when it is another one.

    Args:
        text: the error.
        operations: the names of the operations of each type in the step.
        layers: the names of the model's layers.
        model: its name.

    >>> print(explanation("x: error: 'tf.Roll' op does not implement layout propagation. "
    ...     "tensorflow/dtensor/", {"Roll": ["net/shift_1/Roll"]}, ["net", "shift_1"], "net"))
    tfaccel: layer 'shift_1' of model 'net' uses the operation Roll, which DTensor cannot lay out \
on a mesh ('tf.Roll' op does not implement layout propagation); expected operations of \
docs/model_parallel_coverage.md: do this in dataset.map, rewrite it, change its layout, or \
choose a strategy other than 'model_parallel'.
    """
    wrong = _explained(text, operations, layers, model)
    return None if wrong is None else str(wrong)


def _explained(
    text: str, operations: Mapping[str, Iterable[str]], layers: Iterable[str], model: str
) -> LayoutError | None:
    if "tensorflow/dtensor/" not in text:
        return None
    if wrong_shape := re.match(r"(.*(?:must be equal|must have|must be rank|but is rank).*)", text):
        what = re.sub(r"'?\{\{node (\S+?)\}\}[^(]*\(.*?\)'?", r"\1", wrong_shape[1]).strip()
        return LayoutError(
            f"tfaccel: model {model!r} was given an incompatible batch ({what}); "
            "expected the shapes that it was built for: compare model.input_shape with the data."
        )
    match = re.search(r"error: (.*?)(?:\. |\.?$|\.?\n| tensorflow/dtensor)", text, re.DOTALL)
    detail = re.sub(r"\s+", " ", match[1] if match else text)[:200]
    named = re.search(r"""['"]?\btf\.(\w+)""", text)
    kind = named[1] if named else None
    known = set(layers) - {model}
    users = {_layer_of(name, known) for name in operations.get(kind or "", ())} - {None}
    # For an operation that many layers use, the error does not show which one it was.
    where = f"model {model!r}"
    if len(users) == 1:
        where = f"layer {users.pop()!r} of {where}"
    elif users and len(users) <= MAX_NAMED:
        where = f"one of the layers {', '.join(sorted(map(repr, users)))} of {where}"
    uses = f"uses the operation {kind}, which" if kind else "has an operation that"
    reason = f"{where} {uses} DTensor cannot lay out"
    return CannotDivideError(
        f"tfaccel: {reason} on a mesh ({detail}); expected operations "
        "of docs/model_parallel_coverage.md: do this in dataset.map, rewrite it, change its "
        "layout, or choose a strategy other than 'model_parallel'.",
        f"{reason} ({detail})",
        None if re.search("static|dynamic", detail) else kind,
    )


def _layer_of(operation: str, layers: set[str]) -> str | None:
    """The innermost layer in the name of an operation, such as ``"net/dense_1/MatMul"``."""
    for part in reversed(operation.split("/")):
        for name in (part, re.sub(r"_\d+$", "", part)):
            if name in layers:
                return name
    return None
