"""A compiled model is compiled in the first epoch, and not again: not for another rate, size or kind of step."""

import pytest
import torch
from torch._dynamo.utils import counters

from steppe.methods import METHODS, make
from steppe.testing import fixtures

EPOCH, EPOCHS = 6, 3
SHORT = ("sam", "sadt-v1", "ema")


# the stand-ins of branches see outputs within the compiler
@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor:UserWarning")
@pytest.mark.parametrize(
    "name", [name if name in SHORT else pytest.param(name, marks=pytest.mark.slow) for name in METHODS]
)
def test_no_method_compiles_after_the_first_epoch(name: str) -> None:
    torch._dynamo.reset()
    counters.clear()
    method = make(name)
    net = method.build(fixtures.small)
    optimizer = torch.optim.SGD(net.parameters(), 0.05, momentum=0.9)
    # what is compiled depends on what is called, not on what compiles it
    step = method.bind(torch.compile(net, backend="eager"), optimizer, steps=EPOCH * EPOCHS, epoch=EPOCH)
    compiled = []
    for k in range(EPOCH * EPOCHS):
        optimizer.param_groups[0]["lr"] = 0.05 / (1 + k)
        step(fixtures.batch(k, 8 if k % EPOCH == EPOCH - 1 else 12))
        compiled.append(counters["stats"]["unique_graphs"])
    torch._dynamo.reset()
    assert 0 < compiled[EPOCH - 1] == compiled[-1]
