"""Every planted fault of `tests.bench.mutations` still applies, and the tests that must catch it exist."""

import pytest

from tests.bench.mutations import MUTATIONS, ROOT, Mutation, why_not


@pytest.mark.parametrize("mutation", MUTATIONS, ids=[m.name for m in MUTATIONS])
def test_a_mutation_applies_to_the_code(mutation: Mutation) -> None:
    assert why_not(ROOT, mutation) is None


def test_a_mutation_whose_text_is_gone_is_reported() -> None:
    gone = MUTATIONS[0]._replace(old="no such text")
    assert "0 times" in (why_not(ROOT, gone) or "")
