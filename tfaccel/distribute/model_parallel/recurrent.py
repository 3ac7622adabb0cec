"""Unrolls recurrent layers, so that they run on a mesh with the results of their loop.

The loop keeps its outputs in a TensorList, for which DTensor has no layout.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import keras
import tensorflow as tf

from tfaccel.distribute import _private
from tfaccel.distribute.model_parallel.unsupported import CannotDivideError
from tfaccel.distribute.replacements import Replacements


@contextmanager
def unrolled(model: keras.Model) -> Iterator[None]:
    """Unrolls the recurrent layers of `model` while a step is traced.

    Raises:
        CannotDivideError: inside, where a layer is called on sequences of unknown length.
    """
    rolled = [
        layer
        for layer in _private.layers_of(model)
        if isinstance(layer, keras.layers.RNN) and not layer.unroll
    ]
    masked_backwards = [
        layer
        for layer in rolled
        if layer.go_backwards and layer.return_sequences and layer.zero_output_for_mask
    ]
    with Replacements() as replacements:
        for layer in rolled:
            replacements.replace(layer, "unroll", True)
            replacements.replace(layer, "call", _of_known_length(layer.call, layer.name))
        for layer in masked_backwards:
            replacements.replace(layer, "zero_output_for_mask", False)
            replacements.replace(layer, "call", _with_zeroed_steps(layer.call))
        yield


def _of_known_length(call: Callable[..., Any], name: str) -> Callable[..., Any]:
    @functools.wraps(call)
    def known(sequences: Any, *args: Any, **kwargs: Any) -> Any:
        if any(each.shape[1] is None for each in tf.nest.flatten(sequences)):
            reason = (
                f"layer {name!r} is recurrent and the length of its sequences differs from batch "
                "to batch"
            )
            raise CannotDivideError(
                f"tfaccel: {reason}; expected one length: pad them to it in the dataset.", reason
            )
        return call(sequences, *args, **kwargs)

    return known


def _with_zeroed_steps(call: Callable[..., Any]) -> Callable[..., Any]:
    """Zeros the masked steps of a `go_backwards` layer, which returns its last step first.

    Keras 3.15 zeros those of an unrolled layer in the order of the mask, which is the input's: a
    masked `Bidirectional` layer with `return_sequences` then masks other steps than its loop does.
    """

    @functools.wraps(call)
    def zeroed(sequences: Any, *args: Any, mask: Any = None, **kwargs: Any) -> Any:
        result = call(sequences, *args, mask=mask, **kwargs)
        if mask is None:
            return result
        outputs, *states = result if isinstance(result, (list, tuple)) else (result,)
        # Without tf.reverse, for which DTensor has no rule.
        kept = tf.stack(tf.unstack(mask, axis=1)[::-1], axis=1)
        kept = tf.reshape(kept, [*tf.unstack(tf.shape(kept)), *[1] * (outputs.shape.rank - 2)])
        outputs = tf.where(kept, outputs, tf.zeros_like(outputs))
        return (outputs, *states) if states else outputs

    return zeroed
