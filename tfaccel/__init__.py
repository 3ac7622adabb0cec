"""tfaccel: a strategy is the only thing that changes."""

from __future__ import annotations

__version__ = "0.1.0.dev0"
