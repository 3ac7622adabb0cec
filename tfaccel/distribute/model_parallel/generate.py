"""Text from keras_hub's language models: generated on the host, from whole copies of the weights.

`generate` is a loop over a key-value cache, which is updated by slices that DTensor cannot write.
So every process computes it as one device would.
"""

from __future__ import annotations

import functools
from typing import Any

import keras

from tfaccel.distribute.mixins import mix_in
from tfaccel.distribute.model_parallel.host_copies import HostCopies, mesh_variables


class GeneratesOnHost:
    """Mixin for a keras_hub model with a `generate`."""

    generate_function: Any

    def make_generate_function(self) -> Any:
        """As keras_hub's; with several processes, all must call the returned function."""
        function = super().make_generate_function()  # type: ignore[misc]
        if hasattr(function, "_tfaccel_on_copies"):
            return function
        copies = HostCopies(self._generate_variables)

        @functools.wraps(function)
        def on_copies(*args: Any, **kwargs: Any) -> Any:
            with copies.used():
                return function(*args, **kwargs)

        on_copies._tfaccel_on_copies = True  # type: ignore[attr-defined]
        self.generate_function = on_copies
        return on_copies

    def _generate_variables(self) -> list[Any]:
        variables = [*self.variables, *getattr(self.sampler, "variables", ())]  # type: ignore[attr-defined]
        return mesh_variables(variables)


def enable_generate(model: keras.Model) -> None:
    """Lets `model` generate, if it has a `generate`."""
    if hasattr(model, "make_generate_function"):
        mix_in(model, GeneratesOnHost)
