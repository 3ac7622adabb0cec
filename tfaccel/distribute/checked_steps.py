"""Which steps of a model have been checked since it was compiled.

A model is checked once for each kind of step. Keras's own steps are equivalent for this, so that
checking the first of several is enough; a user's own step is checked separately.
"""

from __future__ import annotations

import weakref
from typing import Any

import keras

from tfaccel.distribute.custom_parts import has_custom_step

KINDS = ("train", "test", "predict")


class CheckedSteps:
    """Tracks the first step of each kind of each model since it was compiled."""

    def __init__(self) -> None:
        self._done: dict[str, weakref.WeakKeyDictionary[Any, Any]] = {
            kind: weakref.WeakKeyDictionary() for kind in KINDS
        }

    def is_new(self, model: keras.Model, kind: str) -> bool:
        """Whether this is the first call for this kind of step since the last `compile`.

        Args:
            model: whose step it is.
            kind: ``"train"``, ``"test"`` or ``"predict"``.
        """
        if self._is_done(model, kind):
            return False
        self._done[kind][model] = weakref.ref(_mark(model, kind))
        return True

    def is_pending(self, model: keras.Model, kind: str) -> bool:
        """Whether there was no call for this kind of step since the last `compile` yet."""
        return not self._is_done(model, kind)

    def is_known(self, model: keras.Model, kind: str) -> bool:
        """Whether an earlier check also covers this Keras step.

        Args:
            model: whose step it is.
            kind: as in `is_new`.
        """
        before = KINDS[: KINDS.index(kind)]
        return not has_custom_step(model, (kind,)) and any(
            self._is_done(model, each) and not has_custom_step(model, (each,)) for each in before
        )

    def _is_done(self, model: keras.Model, kind: str) -> bool:
        done = self._done[kind].get(model)
        return done is not None and done() is _mark(model, kind)


def _mark(model: keras.Model, kind: str) -> Any:
    """Another object after each `compile`."""
    function = getattr(model, f"{kind}_function")
    return model if function is None else function
