"""The compile check with torch's default compiler; the other tests use a backend that generates no code."""

from collections.abc import Iterator

import pytest
from support.mutants import MUTANTS

import steppe
from steppe.methods import METHODS
from steppe.testing import CHECKS, CheckContext, OurMethod, examine

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def compiling() -> Iterator[CheckContext]:
    with CheckContext() as context:
        yield context


@pytest.mark.parametrize("name", METHODS)
def test_a_compiled_model_trains_as_the_eager_one(name, compiling):
    result = examine(OurMethod(steppe.make(name), name), CHECKS["compile"], compiling)
    assert result.status == "pass", result.why


@pytest.mark.parametrize("mutant", [m for m, (check, _) in MUTANTS.items() if check == "compile"])
def test_a_broken_method_is_caught(mutant, compiling):
    result = examine(OurMethod(mutant()), CHECKS["compile"], compiling)
    assert result.status == "fail" and MUTANTS[mutant][1] in result.why
