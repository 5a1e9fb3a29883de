"""What accelerator.prepare gives, bound: the same steps as without it."""

from types import SimpleNamespace

import pytest
import torch
from support.small import sgd, small_batch, small_net

import steppe

accelerate = pytest.importorskip("accelerate")

from steppe.integrations.accelerate import bind  # noqa: E402


@pytest.fixture(autouse=True)
def _forgotten():
    yield
    accelerate.state.AcceleratorState._reset_state(reset_partial_state=True)


@pytest.mark.parametrize("precision", ["no", "bf16"])
def test_the_steps_are_those_of_a_loop_without_it(precision):
    nets = [small_net(), small_net()]
    accelerator = accelerate.Accelerator(cpu=True, mixed_precision=precision)
    data = torch.utils.data.TensorDataset(*small_batch(count=48))
    loader = torch.utils.data.DataLoader(data, batch_size=12)
    model, optimizer, prepared = accelerator.prepare(nets[0], sgd(nets[0]), loader)
    scheduler = torch.optim.lr_scheduler.StepLR(optimizer.optimizer, 1, gamma=0.9)
    step = bind(steppe.SAM(rho=0.1), accelerator, model, optimizer, clip=1.0)
    torch.manual_seed(3)
    for x, y in prepared:
        assert not step(x, y).skipped
        scheduler.step()
    base = sgd(nets[1])
    mine = steppe.SAM(rho=0.1).bind(nets[1], base, clip=1.0, precision="fp32" if precision == "no" else precision)
    torch.manual_seed(3)
    for x, y in loader:
        mine(x, y)
        base.param_groups[0]["lr"] *= 0.9
    for a, b in zip(nets[0].state_dict().values(), nets[1].state_dict().values(), strict=True):
        assert torch.allclose(a, b, atol=1e-7)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"mixed_precision": "fp8"}, "mixed_precision is 'fp8'"),
        ({"distributed_type": "DistributedType.DEEPSPEED"}, "distributed_type is DEEPSPEED"),
        ({"gradient_accumulation_steps": 4}, "gradient_accumulation_steps is 4; leave it at 1"),
    ],
)
def test_what_cannot_be_bound_is_said(change, message):
    usual = {"mixed_precision": "no", "distributed_type": "NO", "gradient_accumulation_steps": 1}
    net = small_net()
    with pytest.raises(steppe.InputError, match=message):
        bind(steppe.SAM(), SimpleNamespace(**usual | change), net, sgd(net))
