"""tfaccel: a strategy is the only thing that changes.

Names are imported when they are first used, so that `import tfaccel` costs nothing.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from tfaccel.distribute.model_parallel.layout_map import LayoutMap
    from tfaccel.fpga.export import export_fpga
    from tfaccel.monitoring.callback import monitor
    from tfaccel.placement.visualize import visualize
    from tfaccel.planner.plan import plan
    from tfaccel.planner.planned_strategy import strategy
    from tfaccel.strategies.describe import describe, is_chief

__version__ = "0.1.0.dev0"

__all__ = [
    "LayoutMap",
    "__version__",
    "checkpoint",
    "describe",
    "export_fpga",
    "fpga",
    "is_chief",
    "monitor",
    "plan",
    "strategy",
    "visualize",
]

_HOME = {
    "LayoutMap": "tfaccel.distribute.model_parallel.layout_map",
    "strategy": "tfaccel.planner.planned_strategy",
    "describe": "tfaccel.strategies.describe",
    "export_fpga": "tfaccel.fpga.export",
    "is_chief": "tfaccel.strategies.describe",
    "monitor": "tfaccel.monitoring.callback",
    "plan": "tfaccel.planner.plan",
    "visualize": "tfaccel.placement.visualize",
}


def __getattr__(name: str) -> Any:
    if name in ("checkpoint", "fpga"):
        return importlib.import_module(f"tfaccel.{name}")
    if name not in _HOME:
        raise AttributeError(f"module 'tfaccel' has no attribute {name!r}")
    return getattr(importlib.import_module(_HOME[name]), name)


def __dir__() -> list[str]:
    return sorted(__all__)
