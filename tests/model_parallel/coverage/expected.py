"""What is expected of a row that does more than work: which operations run replicated, or why not.

The operations are those of `REPLICATED_OPS` that were in its steps.
"""

from __future__ import annotations

EXPECTED: dict[str, str] = {}
