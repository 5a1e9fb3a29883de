"""Half and double precision: which types the loss and the weights have, and the state of the loss scale."""

from contextlib import nullcontext

import pytest
import torch
from support.small import adam, sgd, small_batch, small_net
from torch import Tensor, nn
from torch.amp.grad_scaler import GradScaler

import steppe


def test_the_scale_grows_once_per_step_and_resume_restores_it():
    for name in ("plain", "sam", "sadt-v2", "two-step"):
        net = small_net()
        scaler = GradScaler("cpu", init_scale=4.0, growth_interval=3)
        step = steppe.make(name).bind(net, sgd(net), precision="fp16", scaler=scaler)
        scales = []
        for k in range(6):
            step(*small_batch(seed=k))
            scales.append(scaler.get_scale())
        assert scales == [4, 4, 8, 8, 8, 16], name
    nets = [small_net(), small_net()]
    step, other = (
        steppe.SAM().bind(net, sgd(net), precision="fp16", scaler=GradScaler("cpu", init_scale=2.0**e))
        for net, e in zip(nets, (6, 3), strict=True)
    )
    for k in range(3):
        step(*small_batch(seed=k))
    other.load_state_dict(step.state_dict())
    assert other.scaler.state_dict() == step.scaler.state_dict()
    assert step.scaler.state_dict()["_growth_tracker"] == 3


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_the_users_loss_sees_float32_logits(precision):
    dtypes = []

    def loss(z: Tensor, y: Tensor) -> Tensor:
        dtypes.append(z.dtype)
        return nn.functional.cross_entropy(z, y)

    net = small_net()
    out = steppe.SAM().bind(net, sgd(net), loss=loss, precision=precision)(*small_batch())
    assert dtypes == [torch.float32, torch.float32]
    assert out.logits.dtype == torch.float16 if precision == "fp16" else torch.bfloat16


@pytest.mark.parametrize(
    ("options", "dtype", "message"),
    [
        ({"precision": "fp64"}, torch.float32, "call model.double"),
        ({"precision": "fp16"}, torch.float16, "keep the weights in float32"),
        ({"precision": "bf16", "scaler": GradScaler("cpu")}, torch.float32, "only 'fp16' scales the loss"),
    ],
)
def test_precisions_that_do_not_fit_the_weights_are_refused(options, dtype, message):
    net = small_net(dtype=dtype)
    with pytest.raises(steppe.InputError, match=message):
        steppe.SAM().bind(net, sgd(net), **options)


@pytest.mark.parametrize(
    "spec", ["sam", "asam", "gsam", "looksam", "rwp", "sampa", "two-step", "sadt-v1", "sadt-v2"]
)
def test_an_autocast_around_the_steps_changes_no_bit(spec):
    ends = []
    for outer in (False, True):
        net = small_net(dropout=0.0)
        step = steppe.parse(spec).bind(net, sgd(net), precision="bf16")
        with torch.autocast("cpu", torch.bfloat16) if outer else nullcontext():
            losses = [step(*small_batch(seed=k)).loss for k in range(3)]
        ends.append([*losses, *net.state_dict().values()])
    assert all(map(torch.equal, *ends))


@pytest.mark.parametrize("first", ["skipped step", "deployed weights", "lookahead"])
def test_weights_that_are_restored_or_set_are_those_of_the_next_pass_in_one_autocast(first):
    ends = []
    for outer in (False, True):
        net = small_net(dropout=0.0)
        factors = iter([1.0, 1.0, 1.0, float("nan") if first == "skipped step" else 1.0])
        method = steppe.Lookahead(every=1) if first == "lookahead" else steppe.On(steppe.TwoStep(), steppe.EMA())

        def loss(z: Tensor, y: Tensor, factors=factors) -> Tensor:
            return nn.functional.cross_entropy(z, y) * next(factors, 1.0)

        step = method.bind(net, sgd(net), precision="bf16", loss=loss)
        with torch.autocast("cpu", torch.bfloat16) if outer else nullcontext():
            step(*small_batch(seed=0))
            if first == "skipped step":
                assert step(*small_batch(seed=1)).skipped
            elif first == "deployed weights":
                step.predict(small_batch()[0])
            ends.append(step(*small_batch(seed=2)).loss)
    assert torch.equal(*ends)


def test_fp64_is_double_all_the_way():
    net = small_net(dtype=torch.float64)
    out = steppe.SADT().bind(net, adam(net), precision="fp64")(*small_batch(dtype=torch.float64))
    assert out.loss.dtype == out.logits.dtype == torch.float64
