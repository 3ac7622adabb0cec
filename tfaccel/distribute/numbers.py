"""Variables of several replicas, read as a number outside a step: as a plain variable is.

TensorFlow's have `numpy()` alone, and callbacks say `int(optimizer.iterations)`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np


class Numbers:
    """Mixin for a distributed variable."""

    numpy: Callable[[], Any]

    def __array__(self, dtype: Any = None, copy: Any = None) -> np.ndarray:
        return np.array(self.numpy(), dtype=dtype)

    def __int__(self) -> int:
        return int(self.numpy())

    def __float__(self) -> float:
        return float(self.numpy())

    def __complex__(self) -> complex:
        return complex(self.numpy())

    def __bool__(self) -> bool:
        return bool(self.numpy())
