"""The conformance checks of all methods on the device."""

from collections.abc import Iterator

import pytest
import torch

from steppe.testing import CHECKS, CheckContext, OurMethod, examine
from steppe.testing.context import exact_results
from steppe.testing.resolve import subjects_of

TWO_PROCESSES = ("ddp-local", "ddp-global", "fsdp2", "one-rank")
COMPILED = ("sam", "esam", "kdcl")


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
