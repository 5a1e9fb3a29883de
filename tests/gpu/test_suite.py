"""All methods on the device: against the processor in float64, and the conformance checks."""

from collections.abc import Iterator

import pytest
import torch

from steppe.testing import CHECKS, CheckContext, OurMethod, examine, fixtures
from steppe.testing.context import exact_results
from steppe.testing.resolve import subjects_of
from steppe.testing.subjects import SubjectOptions

TWO_PROCESSES = ("ddp-local", "ddp-global", "fsdp2", "one-rank")
COMPILED = ("sam", "esam", "kdcl")


def path(name: str, device: str) -> tuple[fixtures.Tensors, bool]:
    """Return the weights after four steps in float64, and whether the method drew noise."""
    (subject,) = subjects_of([name])
    options = SubjectOptions(device=device, precision="fp64")
    session = subject.start(lambda: fixtures.small(dtype=torch.float64, dropout=0.0), options)
    noise = session.noise()
    for k in range(4):
        assert not session.step(fixtures.batch(k, dtype=torch.float64))
    drew = not torch.equal(noise, session.noise())
    return {k: v.cpu() for k, v in fixtures.weights(session.net).items()}, drew


def test_four_steps_equal_those_of_the_processor(name: str, device: str) -> None:
    expected, drew = path(name, "cpu")
    weights, drew_too = path(name, device)
    assert drew == drew_too
    # generators of two devices draw other numbers
    limit = 1e-10 if device == "cpu" or not drew else 1.0
    assert fixtures.distance(expected, weights) < limit


@pytest.fixture(scope="module")
def contexts() -> Iterator[dict[str, CheckContext]]:
    made: dict[str, CheckContext] = {}
    yield made
    for context in made.values():
        context.pool.close()


def test_the_checks_hold_on_the_device(name: str, device: str, contexts: dict[str, CheckContext]) -> None:
    """All but those of two processes, which `steppe conformance` runs, and compilation of a few."""
    context = contexts.setdefault(device, CheckContext(device))
    (subject,) = subjects_of([name])
    assert isinstance(subject, OurMethod)
    left_out = {*TWO_PROCESSES, *(() if name in COMPILED else ("compile",))}
    with exact_results(device), torch.random.fork_rng():
        results = [examine(subject, check, context) for k, check in CHECKS.items() if k not in left_out]
    assert not [(r.check, r.why) for r in results if r.status == "fail"]
