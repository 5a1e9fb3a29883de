"""Every check catches the methods that are broken in its point, and passes the sound one."""

import pytest
from support.mutants import MUTANTS, DecidesAlone, Sound

from steppe.testing import CHECKS, CheckContext, OurMethod, examine


def test_the_sound_method_passes_every_check(lab):
    results = [examine(OurMethod(Sound()), check, lab) for check in CHECKS.values()]
    assert not [(r.check, r.status, r.why) for r in results if r.status != "pass"]


@pytest.mark.parametrize("mutant", [m for m in MUTANTS if m is not DecidesAlone], ids=lambda m: m.__name__)
def test_a_broken_method_is_caught_by_its_check(mutant, lab):
    name, message = MUTANTS[mutant]
    result = examine(OurMethod(mutant()), CHECKS[name], lab)
    assert result.status == "fail"
    assert message in result.why


@pytest.mark.slow  # the processes wait for each other until the time limit
def test_a_method_that_skips_on_one_process_only_is_caught():
    name, message = MUTANTS[DecidesAlone]
    with CheckContext(timeout=10) as impatient:
        result = examine(OurMethod(DecidesAlone()), CHECKS[name], impatient)
    assert result.status == "fail"
    assert message in result.why


def test_every_check_has_a_mutant():
    assert {check for check, _ in MUTANTS.values()} == set(CHECKS)
