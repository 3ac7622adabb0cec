"""How TensorFlow was built.

Seen with TensorFlow 2.21, watched by `tests/test_onednn.py`.
"""

from __future__ import annotations

# Whether oneDNN is used is decided when TensorFlow is imported, and not exposed.
from tensorflow.python.util._pywrap_util_port import IsMklEnabled

__all__ = ["is_onednn_enabled"]


def is_onednn_enabled() -> bool:
    """Whether this process uses oneDNN's kernels."""
    return bool(IsMklEnabled())
