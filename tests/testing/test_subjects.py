"""The conformance of all methods, of third-party optimizers, and what check_method reports."""

from dataclasses import dataclass
from typing import ClassVar

import pytest
from support import thirdparties

import steppe
from steppe.methods import METHODS
from steppe.testing import CHECKS, OurMethod, ThirdParty, check_method, examine
from steppe.testing.resolve import subjects_of

COMPILED = ("plain", "sam", "sadt-v1", "okdph")  # the others in test_inductor.py
# one or two of each kind of step; the others are checked with the slow tests
FAST = {
    *COMPILED, "two-step", "agc", "asam", "esam", "looksam", "msam", "rwp", "lpf-sgd", "sadt-v2", "saf", "mesa",
    "ema", "lawa", "dml", "dml-alternating", "kdcl", "one", "pcl", "focal-sam", "functional-sam", "sampa",
    "flat-lora",
}  # fmt: skip
EVERY = [name if name in FAST else pytest.param(name, marks=pytest.mark.slow) for name in METHODS]


def outcomes(subject, lab, but=()):
    results = [examine(subject, check, lab) for name, check in CHECKS.items() if name not in but]
    return {s: {r.check: r.why for r in results if r.status == s} for s in ("pass", "fail", "n/a")}


@pytest.mark.parametrize("name", EVERY)
def test_every_method_of_the_list_conforms(name, lab):
    results = outcomes(OurMethod(steppe.make(name), name), lab, () if name in COMPILED else ("compile",))
    assert not results["fail"]
    local = {"ddp-global", "fsdp2"} if METHODS[name]().local else set()
    parts = {"batch-norm"} if name == "lpf-sgd" or METHODS[name]().mixes else set()
    norms = {"accumulation"} if name in ("one", "ffl") else set()  # with BatchNorm of their own, "local" too
    whole = {"fsdp2"} if METHODS[name]().whole else set()
    moved = {"restored"} if METHODS[name]().moves else set()
    assert set(results["n/a"]) <= {"reduces", "masks"} | local | parts | norms | whole | moved


def test_students_with_a_common_start_are_restored(lab):
    [subject] = subjects_of(["okdph:same_start=true"])
    assert examine(subject, CHECKS["restored"], lab).status == "pass"


@pytest.mark.parametrize("spec", ["sam:rho=0.1", "sam+gc", "sadt-v1:preset=notebook", "sam:every=2"])
def test_settings_and_combinations_conform(spec, lab):
    [subject] = subjects_of([spec])
    assert not outcomes(subject, lab)["fail"]


def test_a_two_step_optimizer_fails_only_what_its_form_leaves_to_the_user(lab):
    results = outcomes(ThirdParty(thirdparties.TwoStep), lab)
    assert set(results["fail"]) == {"exception", "batch-norm", "random-stream", "overflow"}
    assert set(results["n/a"]) == {"passes", "reference", "one-rank"}
    assert "counted 2 forward, 2 backward, 1 updates" in results["n/a"]["passes"]


def test_checks_do_not_apply_to_a_closure_optimizer_where_torch_promises_nothing(lab):
    subject = ThirdParty(thirdparties.Closure, form="closure")
    results = outcomes(subject, lab)
    assert set(results["fail"]) == {"exception", "batch-norm", "random-stream"}
    assert "GradScaler does not take closures" in results["n/a"]["fp16"]
    assert set(results["n/a"]) == {"passes", "reference", "fp16", "overflow", "clip-once", "ddp-local", "one-rank"}


def test_rebound_storage_and_lost_momentum_are_detected(lab):
    results = outcomes(ThirdParty(thirdparties.Rebinding), lab)["fail"]
    assert "other memory" in results["restored"]
    assert "from the undisturbed run" in results["resume"]
    assert "fsdp2" in results


def test_the_optimizers_of_torch_are_accepted_and_plain(lab):
    [subject] = subjects_of(["torch.optim:SGD"])
    for check in ("accumulation", "resume", "restored", "random-stream", "batch-norm"):
        assert examine(subject, CHECKS[check], lab).status == "pass"


@dataclass(frozen=True)
class Careless(steppe.Method):
    """Declares a pass that it does not make, and a reference of another equation."""

    cost: ClassVar = (2, 1, 1)

    @staticmethod
    def reference(r, x, y):
        r.update({k: 2 * g for k, g in r.gradient(r.w, x, y).items()})


def test_check_method_raises_with_every_failure_and_the_claim():
    with pytest.raises(AssertionError) as failure:
        check_method(Careless(), checks=["passes", "reference", "restored"])
    text = str(failure.value)
    assert "fails 2 of its checks" in text
    assert "declares 2 forward, 1 backward, 1 updates per step and makes 1 forward" in text
    assert "from its equation" in text
    assert CHECKS["reference"].claim in text
    check_method(steppe.SAM(), checks=["passes", "reference", "restored"])


def test_an_unknown_check_is_an_input_error():
    with pytest.raises(steppe.InputError, match="unknown check 'clip'; did you mean 'clip-once'"):
        check_method(steppe.SAM(), checks=["clip"])


def test_distributed_checks_do_not_apply_to_a_class_that_cannot_be_pickled(lab):
    class Local(steppe.SAM):
        pass

    result = examine(OurMethod(Local()), CHECKS["ddp-global"], lab)
    assert (result.status, "define it in a module" in result.why) == ("n/a", True)


def test_checks_of_constant_settings_do_not_apply_to_a_schedule(lab):
    subject = OurMethod(steppe.SAM(rho=steppe.Linear(0.0, 0.1, 10)))
    results = outcomes(subject, lab)
    assert not results["fail"]
    assert {"reference", "passes"} <= set(results["n/a"])
