"""The functions that write Keras's model files.

`Model.save`, `keras.saving.save_model` and `FeatureSpace.save` all end in one of two functions that
are not public. Scripts import `save_model` by name, so that replacing the public one would come too
late. Seen with Keras 3.15, watched by
`tests/distribute/test_instances.py`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from keras.src.legacy.saving import legacy_h5_format
from keras.src.saving import saving_lib

__all__ = ["replace_file_writers"]

_WRITERS = ((saving_lib, "save_model"), (legacy_h5_format, "save_model_to_hdf5"))


def replace_file_writers(adapt: Callable[[Callable[..., Any]], Callable[..., Any]]) -> None:
    """Replaces each writer of a file for the whole process; a second call adapts the original.

    Args:
        adapt: returns the function to take the place of `writer(model, filepath, ...)`.
    """
    for module, name in _WRITERS:
        writer = getattr(module, name)
        plain = getattr(writer, "_tfaccel_plain", writer)
        adapted = adapt(plain)
        adapted._tfaccel_plain = plain  # type: ignore[attr-defined]
        setattr(module, name, adapted)
