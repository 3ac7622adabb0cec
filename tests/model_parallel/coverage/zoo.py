"""All rows of the coverage table, by name."""

from __future__ import annotations

from tests.model_parallel.coverage import layers, measures, networks, preprocessing, sequences
from tests.model_parallel.coverage.row import Row

_ROOMS = (layers, sequences, preprocessing, measures, networks)

ZOO: dict[str, Row] = {row.name: row for room in _ROOMS for row in room.rows()}
