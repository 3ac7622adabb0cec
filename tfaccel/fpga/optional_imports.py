"""Dependencies of `tfaccel[fpga]`, imported when needed."""

from __future__ import annotations

import importlib
from typing import Any

from tfaccel.errors import FpgaError


def require(module: str) -> Any:
    """Imports one of hls4ml, hgq or da4ml, or a module of theirs.

    Args:
        module: its name, such as ``"hgq.layers"``.

    Raises:
        FpgaError: it is not installed.
    """
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as error:
        name = module.partition(".")[0]
        if error.name is None or error.name.partition(".")[0] != name:
            raise
        raise FpgaError(
            f"{name} is not installed, and FPGAs need it: run `pip install 'tfaccel[fpga]'` "
            "(Python 3.11 or 3.12)."
        ) from error
