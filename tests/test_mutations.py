"""The mutations change what is there."""

from __future__ import annotations

import pytest

from tests.mutations import MUTATIONS, ROOT


@pytest.mark.parametrize("name", MUTATIONS)
def test_a_mutation_finds_its_line(name: str) -> None:
    mutation = MUTATIONS[name]
    assert (ROOT / mutation.path).read_text("utf-8").count(mutation.old) == 1
    assert mutation.new != mutation.old
    for test in mutation.tests.split():
        assert (ROOT / "tests" / "distribute" / test).exists()
