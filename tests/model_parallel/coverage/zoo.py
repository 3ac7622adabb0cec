"""All rows of the coverage table, by name."""

from __future__ import annotations

from dataclasses import replace

from tests.model_parallel.coverage import layers, measures, networks, preprocessing, sequences
from tests.model_parallel.coverage.expected import EXPECTED
from tests.model_parallel.coverage.row import Row

_ROOMS = (layers, sequences, preprocessing, measures, networks)

ZOO: dict[str, Row] = {
    row.name: replace(row, expected=EXPECTED.get(row.name, row.expected))
    for room in _ROOMS
    for row in room.rows()
}
