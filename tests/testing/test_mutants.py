"""Every check is broken on purpose, and must notice; what is sound must pass."""

from __future__ import annotations

import pytest
from support.mutants import MUTANTS, DecidesAlone, Sound

from steppe.testing import CHECKS, CheckContext, OurMethod, examine


@pytest.mark.parametrize("check", CHECKS.values(), ids=lambda c: c.name)
def test_the_sound_method_passes(check, lab):
    result = examine(OurMethod(Sound()), check, lab)
    assert result.status == "pass", result.why


@pytest.mark.parametrize("mutant", MUTANTS, ids=lambda m: m.__name__)
def test_a_broken_method_is_caught_and_told_why(mutant, lab):
    name, word = MUTANTS[mutant]
    if mutant is DecidesAlone:  # one process waits for the other, as long as it may
        with CheckContext(timeout=10) as impatient:
            result = examine(OurMethod(mutant()), CHECKS[name], impatient)
    else:
        result = examine(OurMethod(mutant()), CHECKS[name], lab)
    assert result.status == "fail"
    assert word in result.why


def test_every_check_has_a_mutant():
    assert {check for check, _ in MUTANTS.values()} == set(CHECKS)
