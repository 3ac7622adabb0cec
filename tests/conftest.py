"""The order of the files, of which `make test` gives the next one to each process that is free.

Those that take minutes come first: the last ones would have the others wait.
"""

from __future__ import annotations

from pathlib import Path

import pytest

TESTS = Path(__file__).parent
LONGEST = (
    "conformance/test_conformance.py",
    "survival/test_survival.py",
    "checkpoint/test_resume.py",
    "programs/test_programs.py",
    "distribute/test_workers.py",
    "distribute/test_stateful_layers.py",
    "distribute/test_first_step_check.py",
    "model_parallel/coverage/test_coverage.py",
    "distribute/test_global_batch.py",
    "fpga/test_quantized.py",
    "tpu/test_check.py",
    "distribute/test_padding.py",
    "model_parallel/test_files.py",
    "launch/test_training.py",
)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    places = {TESTS / name: place for place, name in enumerate(LONGEST)}
    items.sort(key=lambda item: places.get(item.path, len(places)))
