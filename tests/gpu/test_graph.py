"""A step that is captured whole makes the updates of the eager one, on changing data, rates and batch sizes."""

import pytest
import torch

from steppe import InputError
from steppe.testing import OurMethod, fixtures
from steppe.testing.context import exact_results
from steppe.testing.resolve import subjects_of
from steppe.testing.subjects import SubjectOptions

SIZES = (12,) * 6 + (8,) * 6 + (12,) * 3  # enough of each to be captured and replayed


def trained(subject: OurMethod, device: str, graph: bool) -> fixtures.Tensors:
    """Return the weights after steps on batches of `SIZES`, whose learning rate falls."""
    net = subject.build(lambda: fixtures.small(dtype=torch.float64, dropout=0.0)).to(device)
    optimizer = torch.optim.SGD(net.parameters(), 0.1, momentum=0.9, fused=True)
    step = subject.method.bind(net, optimizer, steps=100, **({"graph": True} if graph else {}))
    for k, size in enumerate(SIZES):
        for group in optimizer.param_groups:
            group["lr"] = 0.125 - k / 256  # a captured step reads it in single precision, which has these values
        step(fixtures.batch(k, size, torch.float64).to(torch.device(device)))
    return {name: p.cpu() for name, p in fixtures.weights(net).items()}


def test_a_captured_step_equals_the_eager_one(name: str, device: str) -> None:
    subject = subjects_of([name])[0]
    assert isinstance(subject, OurMethod)
    with exact_results(device):
        if subject.method.on_host:
            with pytest.raises(InputError, match="needs the host"):
                trained(subject, device, graph=True)
            return
        eager = trained(subject, device, graph=False)
        captured = trained(subject, device, graph=True)
    assert all(bool(v.isfinite().all()) for v in captured.values())
    session = subject.start(fixtures.smooth, SubjectOptions(device=device))
    noise = session.noise()
    session.train(range(3))
    if torch.equal(noise, session.noise()):  # else the draws of a replay are others
        assert fixtures.distance(eager, captured) < 1e-9
