"""All rows of the coverage table, by name."""

from __future__ import annotations

from tests.model_parallel.coverage import layers
from tests.model_parallel.coverage.row import Row

ZOO: dict[str, Row] = {row.name: row for rooms in (layers,) for row in rooms.rows()}
