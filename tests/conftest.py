"""The order of the files, of which `make test` gives the next one to each process that is free.

Those that take minutes come first: the last ones would have the others wait.
"""

from __future__ import annotations

from pathlib import Path

import pytest

TESTS = Path(__file__).parent
LONGEST = (
    "conformance/test_conformance.py",
    "checkpoint/test_resume.py",
    "survival/test_survival.py",
    "programs/test_programs.py",
    "distribute/test_workers.py",
    "distribute/test_first_step_check.py",
    "fpga/test_quantized.py",
    "tpu/test_check.py",
    "distribute/test_stateful_layers.py",
    "docs/test_snippets.py",
    "model_parallel/coverage/test_coverage.py",
    "distribute/test_padding.py",
    "distribute/test_global_batch.py",
    "distribute/test_sync_frequency.py",
    "distribute/test_gradients.py",
    "distribute/test_per_worker.py",
    "model_parallel/test_mesh_check.py",
)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    places = {TESTS / name: place for place, name in enumerate(LONGEST)}
    items.sort(key=lambda item: places.get(item.path, len(places)))
