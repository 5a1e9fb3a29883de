"""All methods on the device against the processor, in float64."""

import torch

from steppe.testing import fixtures
from steppe.testing.resolve import subjects_of
from steppe.testing.subjects import SubjectOptions


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
