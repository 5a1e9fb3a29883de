"""What accelerator.prepare gives, bound: the same steps as without it."""

from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from support.many import batch, distributed, farthest, smooth_net, together, values
from support.many import sgd as many_sgd
from support.small import sgd, small_batch, small_net
from torch import Tensor

import steppe

accelerate = pytest.importorskip("accelerate")

from steppe.integrations import load_deployed, load_state, read_state, write_state  # noqa: E402
from steppe.integrations.accelerate import bind  # noqa: E402

FSDP1 = SimpleNamespace(fsdp_plugin=SimpleNamespace(fsdp_version=1))


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
        ({"distributed_type": "MEGATRON_LM"}, "distributed_type is MEGATRON_LM"),
        ({"distributed_type": "FSDP", "state": FSDP1}, "fsdp_version is 1.*use fsdp_version: 2"),
        ({"parallelism_config": SimpleNamespace(cp_enabled=True)}, "cp_size is above 1"),
        ({"gradient_accumulation_steps": 4}, "gradient_accumulation_steps is 4; leave it at 1"),
    ],
)
def test_what_cannot_be_bound_is_said(change, message):
    usual = {"mixed_precision": "no", "distributed_type": "NO", "gradient_accumulation_steps": 1}
    net = small_net()
    with pytest.raises(steppe.InputError, match=message):
        bind(steppe.SAM(), SimpleNamespace(**usual | change), net, sgd(net))


def sharded_state(rank: int, folder: str) -> tuple[list[Tensor], list[Tensor]]:
    """Save the mean of a model in shards, train on and load it; return it as it was and as it is loaded."""
    net, path = smooth_net(), Path(folder)
    step = steppe.EMA(decay=0.9).bind(distributed(net, "fsdp"), many_sgd(net))
    x, y = batch(0, 6)
    for _ in range(2):
        step(x, y)
    with step.deployed_weights():
        mean = values(net)
    write_state(path, step.state_dict(), rank, 2)
    torch.distributed.barrier()
    for _ in range(2):
        step(x, y)
    load_state(step, read_state(path, rank, 2))
    with step.deployed_weights():
        return mean, values(net)


def test_the_mean_of_a_sharded_model_is_saved_whole(tmp_path):
    for mean, loaded in together(2, sharded_state, str(tmp_path)):
        assert farthest(mean, loaded) == 0
    net = smooth_net()
    load_deployed(net, "ema", tmp_path)
    assert farthest(values(net), mean) == 0
