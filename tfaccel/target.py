"""The model to check or plan, from a builder or a file, and the shapes of its batch."""

from __future__ import annotations

import contextlib
import importlib.util
import inspect
import sys
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import keras
import tensorflow as tf

from tfaccel.errors import InputError, StrategyError

# Variables up to this many elements keep their initial value: seeds, counters, rates.
_SMALL = 1 << 10


@dataclass(frozen=True)
class Target:
    """A compiled model and its batch.

    Attributes:
        model: compiled, with all variables created.
        inputs: nest of specs without the batch dimension's size.
        labels: the same for the targets of the loss.
        notes: what was assumed.
    """

    model: keras.Model
    inputs: Any
    labels: Any
    notes: tuple[str, ...]

    def batch(self, rows: int) -> tuple[Any, Any]:
        """The specs of a batch of `rows` rows."""
        x, y = tf.nest.map_structure(
            lambda s: tf.TensorSpec([rows, *s.shape[1:]], s.dtype), (self.inputs, self.labels)
        )
        return x, y


def load(
    text: str,
    shape: Sequence[int] | None = None,
    dtype: str = "float32",
    *,
    allocate: bool = False,
) -> Target:
    """Loads a target.

    Args:
        text: ``path.py:function``, a function that takes no arguments and returns a Keras model,
            or the path of a ``.keras`` file.
        shape: of one row, for a model whose input shape is unknown.
        dtype: of that input.
        allocate: whether variables have values.

    Raises:
        StrategyError: when there is no such file, function or model.
        InputError: when a dimension of the input is not known.
    """
    with contextlib.nullcontext() if allocate else uninitialized_variables():
        return describe(build(text), shape, dtype)


def describe(
    model: keras.Model,
    shape: Sequence[int] | None = None,
    dtype: str = "float32",
    accumulated: int = 1,
) -> Target:
    """Creates all variables of a model and of its optimizer, and finds its batch specs.

    Args:
        model: compiled here if it is not.
        shape: of one row, for a model whose input shape is unknown.
        dtype: of that input.
        accumulated: steps over which its optimizer is made to accumulate gradients, if not 1.

    Raises:
        InputError: when a dimension of the input is not known.
        StrategyError: when gradients are to be accumulated and the optimizer is already built.
    """
    inputs, assumed = _inputs(model, shape, dtype)
    if not model.built:
        model.build([None, *(shape or ())])
    outputs = keras.tree.map_structure(
        lambda t: tf.TensorSpec(t.shape, tf.as_dtype(t.dtype)),
        model.compute_output_spec(
            tf.nest.map_structure(lambda s: keras.KerasTensor(s.shape, s.dtype.name), inputs)
        ),
    )
    notes = assumed + (() if model.compiled else _compile(model, outputs))
    if accumulated > 1:
        accumulate(model, accumulated)
    if model.optimizer is not None:
        model.optimizer.build(model.trainable_variables)
    return Target(model, inputs, _labels(model.loss, outputs), notes)


def uninitialized_variables() -> AbstractContextManager[None]:
    """Inside, large variables get memory that is never written, and so is never resident.

    A step is compiled from shapes. A model of two billion parameters, with Adam's slots, is 24 GB
    that a check does not need.
    """

    def create(next_creator: Callable[..., Any], **kwargs: Any) -> Any:
        value = kwargs.get("initial_value")
        if callable(value):
            with tf.Graph().as_default():  # where it is not computed
                spec = tf.type_spec_from_value(tf.convert_to_tensor(value()))
            if (spec.shape.num_elements() or 0) > _SMALL:
                sizes = spec.shape.as_list()
                kwargs["initial_value"] = lambda: tf.raw_ops.Empty(shape=sizes, dtype=spec.dtype)
        return next_creator(**kwargs)

    scope: AbstractContextManager[None] = tf.variable_creator_scope(create)
    return scope


def build(text: str) -> keras.Model:
    """Calls the function of ``path.py:function``, or reads a ``.keras`` file.

    Raises:
        StrategyError: when there is no such file, function or model.
    """
    path, colon, function = text.rpartition(":")
    file = Path(path if colon else text)
    if not file.is_file():
        raise StrategyError(
            f"tfaccel: cannot load {text!r}: no such file; expected path.py:function or a "
            ".keras file."
        )
    if file.suffix == ".keras":
        return keras.saving.load_model(file)
    if file.suffix != ".py" or not function:
        raise StrategyError(
            f"tfaccel: cannot load {text!r}; expected path.py:function or a .keras file."
        )
    spec = importlib.util.spec_from_file_location(file.stem, file)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.path.insert(0, str(file.parent.resolve()))
    sys.modules.setdefault(file.stem, module)  # where dataclasses look for their module
    spec.loader.exec_module(module)
    build = getattr(module, function, None)
    if not callable(build):
        names = [n for n, v in vars(module).items() if callable(v) and v.__module__ == file.stem]
        raise StrategyError(
            f"tfaccel: {str(file)!r} has no function {function!r}; expected one of "
            f"{', '.join(names) or 'none that it defines'}."
        )
    needed = [
        one.name
        for one in inspect.signature(build).parameters.values()
        if one.default is one.empty and one.kind not in (one.VAR_POSITIONAL, one.VAR_KEYWORD)
    ]
    if needed:
        raise StrategyError(
            f"tfaccel: {text} needs {', '.join(needed)}; expected a function that builds the model "
            "without arguments; give them defaults, or write such a function around it."
        )
    model = build()
    if not isinstance(model, keras.Model):
        raise StrategyError(
            f"tfaccel: {text} returned a {type(model).__name__}; expected a keras.Model."
        )
    return model


def _inputs(
    model: keras.Model, shape: Sequence[int] | None, dtype: str
) -> tuple[Any, tuple[str, ...]]:
    """The specs of a model's inputs, and a note on sizes that were taken from its layers."""
    known = getattr(model, "inputs", None)
    if shape is not None and (not known or len(known) == 1):
        return tf.TensorSpec([None, *shape], dtype), ()
    if (
        shape is not None
        and known
        and all(_filled(t.shape, shape) == tuple(t.shape) for t in known)
    ):
        raise InputError(
            f"tfaccel: --input-shape was given for model {model.name!r}, which has {len(known)} "
            "inputs; expected one, or several of unknown sizes; write the shapes into the model."
        )
    if not known:
        raise InputError(
            f"tfaccel: model {model.name!r} has no known input shape; give it with "
            "--input-shape, such as --input-shape 224,224,3."
        )
    notes: tuple[str, ...] = ()
    if shape is None and any(tuple(t.shape[1:]) == (None,) for t in known):
        longest = longest_sequence(model)
        if longest is not None:
            shape = (longest,)
            notes = (f"sequences of {longest}, the longest that the model has positions for",)
    known = known[0] if isinstance(model, keras.Sequential) else model.input
    specs = keras.tree.map_structure(
        lambda t: tf.TensorSpec(_filled(t.shape, shape), tf.as_dtype(t.dtype)), known
    )
    listed = [tuple(spec.shape.as_list()) for spec in tf.nest.flatten(specs)]
    unknown = [sizes for sizes in listed if None in sizes[1:]]
    if unknown:
        sizes = unknown[0]
        example = ",".join("224" if len(sizes) > 2 and n is None else str(n or 512)
                           for n in sizes[1:])  # fmt: skip
        do = f"give --input-shape, such as --input-shape {example}"
        if shape is not None or len({len(one) for one in unknown}) > 1:
            do = "write them into the model, as no one --input-shape fills all its inputs"
        raise InputError(
            f"tfaccel: model {model.name!r} has an input of shape {sizes}; "
            f"expected known sizes behind the batch; {do}."
        )
    return specs, notes


def longest_sequence(model: keras.Model) -> int | None:
    """The longest sequence for which a model has embeddings of positions; None without any.

    As of keras_hub, and of layers like its own: `max_sequence_length` of a model or layer, and
    `sequence_length` of a layer whose class is called a position embedding.
    """
    found = []
    open_ = [model]
    while open_:
        one = open_.pop()
        open_ += getattr(one, "layers", None) or ()
        found.append(getattr(one, "max_sequence_length", None))
        if type(one).__name__.endswith("PositionEmbedding"):
            found.append(getattr(one, "sequence_length", None))
    return min((n for n in found if isinstance(n, int) and n > 0), default=None)


def _filled(known: Sequence[int | None], shape: Sequence[int] | None) -> tuple[int | None, ...]:
    """An input's shape, whose unknown sizes are those of `shape` if it has as many.

    >>> _filled((None, None), (16,)), _filled((None, 4, None), (16,))
    ((None, 16), (None, 4, None))
    """
    if shape is None or len(known) != len(shape) + 1:
        return tuple(known)
    return (known[0], *(a if a is not None else b for a, b in zip(known[1:], shape, strict=True)))


def _compile(model: keras.Model, outputs: Any) -> tuple[str, ...]:
    """Compiles a model that its builder did not; returns a note on how."""
    several = len(tf.nest.flatten(outputs)) > 1
    classes = not several and (outputs.shape[-1] or 1) > 1
    loss: Any = "mse"
    if classes:
        # Whether the model ends in a softmax changes no shape.
        loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile(keras.optimizers.Adam(), loss)
    name = "SparseCategoricalCrossentropy" if classes else "mean squared error"
    return (f"the builder compiles no model: checked with Adam and {name}",)


def _labels(loss: Any, outputs: Any) -> Any:
    """The specs of the targets of `loss` for `outputs`."""
    if isinstance(loss, dict) and isinstance(outputs, dict):
        return {name: _labels(loss.get(name), spec) for name, spec in outputs.items()}
    if isinstance(outputs, (list, tuple)):
        each = loss if isinstance(loss, (list, tuple)) else [loss] * len(outputs)
        return type(outputs)(_labels(one, spec) for one, spec in zip(each, outputs, strict=True))
    if isinstance(outputs, dict):
        return {name: _labels(loss, spec) for name, spec in outputs.items()}
    dense = tf.TensorSpec(outputs.shape, tf.float32)
    classes = tf.TensorSpec(outputs.shape[:-1], tf.int32)
    name = loss if isinstance(loss, str) else getattr(loss, "__name__", type(loss).__name__)
    tried = (classes, dense) if "sparse" in name.lower() else (dense, classes)
    return next((spec for spec in tried if _compares(loss, spec, outputs)), tried[0])


def _compares(loss: Any, labels: tf.TensorSpec, outputs: tf.TensorSpec) -> bool:
    """Whether `loss` accepts labels of that shape."""
    if loss is None:
        return True
    try:
        tf.function(keras.losses.get(loss), autograph=False).get_concrete_function(labels, outputs)
    except Exception:  # anything a custom loss raises
        return False
    return True


def accumulate(model: keras.Model, steps: int) -> None:
    """Makes the unbuilt optimizer of a compiled model accumulate gradients.

    Raises:
        StrategyError: when the model is not compiled, or its optimizer already has variables.
    """
    optimizer = getattr(model, "optimizer", None)  # a model has it once it is compiled
    if optimizer is None or optimizer.built:
        raise StrategyError(
            f"tfaccel: model {model.name!r} cannot accumulate gradients over {steps} steps: it is "
            "not compiled, or its optimizer is already built; compile it with "
            f"gradient_accumulation_steps={steps}."
        )
    getattr(optimizer, "inner_optimizer", optimizer).gradient_accumulation_steps = steps
