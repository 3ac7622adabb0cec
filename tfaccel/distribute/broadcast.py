"""Broadcast: gives every worker the chief's values, under any strategy of several workers."""

from __future__ import annotations

from typing import Any, Protocol

import numpy as np
import tensorflow as tf

from tfaccel.distribute.step import transport_dtype

_MAX_BYTES = 2000  # of a text; all workers send this many


class Workers(Protocol):
    """The interface of a strategy."""

    cluster: Any

    def sum_over_workers(self, tensors: list[tf.Tensor]) -> list[tf.Tensor]:
        """Sums each tensor over all workers, who must all call.

        Args:
            tensors: of dtypes that `transport_dtype` returns, of one shape on all workers.
        """


def broadcast(strategy: Workers, values: list[Any]) -> list[tf.Tensor]:
    """Gives every worker the chief's values; every worker must call.

    Args:
        strategy: of several workers, in whose cross-replica context this is called.
        values: tensors or arrays, the same dtypes and shapes on every worker.

    Returns:
        What the chief passed.
    """
    tensors = [tf.convert_to_tensor(value) for value in values]
    # A sum in which all but one contribute zero.
    sent = [t if strategy.cluster.is_chief else tf.zeros_like(t) for t in tensors]
    sums = strategy.sum_over_workers([tf.cast(t, transport_dtype(t.dtype)) for t in sent])
    return [tf.cast(found, t.dtype) for found, t in zip(sums, tensors, strict=True)]


def broadcast_text(strategy: Workers, text: str) -> str:
    """As `broadcast`, for the chief's text, truncated after some 2000 bytes."""
    (received,) = broadcast(strategy, [encode(text)])
    return decode(received)


def encode(text: str) -> np.ndarray:
    """The text as an array of constant size, int32."""
    padded = np.frombuffer(text.encode()[:_MAX_BYTES].ljust(_MAX_BYTES, b"\0"), np.uint8)
    return padded.astype(np.int32)


def decode(numbers: Any) -> str:
    """The inverse of `encode`.

    >>> decode(encode("disk full"))
    'disk full'
    """
    return bytes(np.asarray(numbers).astype(np.uint8)).rstrip(b"\0").decode(errors="ignore")
