"""Deferred errors: whether the steps dispatched to the mesh have succeeded.

DTensor runs steps asynchronously, and reports a failure when a result is read. A `fit` whose logs
are not read would continue, and report stale metrics: a loss of 0.0.
"""

from __future__ import annotations

from typing import Any

import tensorflow as tf


class DeferredErrors:
    """Reads one result of each step, while the next one runs."""

    def __init__(self) -> None:
        self._result: tf.Tensor | None = None

    def follow(self, results: Any) -> Any:
        """Checks the previous step, and keeps a result of this one.

        Args:
            results: what a step has returned.

        Returns:
            `results`.

        Raises:
            tf.errors.OpError: the previous step failed.
        """
        self.check()
        tensors = [leaf for leaf in tf.nest.flatten(results) if tf.is_tensor(leaf)]
        self._result = tensors[0] if tensors else None
        return results

    def check(self) -> None:
        """Waits for the last step.

        Raises:
            tf.errors.OpError: it failed.
        """
        result, self._result = self._result, None
        if result is not None:
            result.numpy()
