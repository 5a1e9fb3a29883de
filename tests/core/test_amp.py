"""Half and double precision: the loss scale is nobody's business but the scaler's."""

from __future__ import annotations

import copy

import pytest
import torch
from support.small import BARE, adam, sgd, small_batch, small_net
from torch import Tensor, nn
from torch.amp.grad_scaler import GradScaler

import steppe

every_method = pytest.mark.parametrize("name", BARE)


@every_method
def test_fp16_keeps_fp32_weights_and_trains_beside_fp32(name):
    nets = [small_net(dropout=0.0), small_net(dropout=0.0)]
    steps = [
        steppe.make(name).bind(net, sgd(net, lr=0.01), precision=p)
        for net, p in zip(nets, ("fp32", "fp16"), strict=True)
    ]
    for k in range(5):
        outs = [step(*small_batch(seed=k)) for step in steps]
        assert not outs[1].skipped
        assert outs[1].loss.dtype == torch.float32
    for a, b in zip(nets[0].parameters(), nets[1].parameters(), strict=True):
        assert b.dtype == torch.float32
        assert torch.allclose(a, b, atol=0.02)
    assert not torch.equal(nets[0][0].weight, nets[1][0].weight)


@every_method
def test_the_loss_scale_changes_nothing_that_a_method_does(name):
    """Powers of two scale without rounding, except where fp16 has no numbers left below."""
    nets = [small_net(), small_net()]
    for net, scale in zip(nets, (2.0**10, 2.0**14), strict=True):
        torch.manual_seed(3)
        scaler = GradScaler("cpu", init_scale=scale)
        step = steppe.make(name).bind(net, sgd(net), precision="fp16", scaler=scaler, clip=0.5)
        for k in range(3):
            assert not step(*small_batch(seed=k)).skipped
        assert step.scaler is scaler
        assert scaler.get_scale() == scale
    for a, b in zip(nets[0].parameters(), nets[1].parameters(), strict=True):
        assert torch.allclose(a, b, atol=2e-3)


def test_the_scale_grows_once_per_step_whatever_the_passes():
    for name in BARE:
        net = small_net()
        scaler = GradScaler("cpu", init_scale=4.0, growth_interval=3)
        step = steppe.make(name).bind(net, sgd(net), precision="fp16", scaler=scaler)
        scales = []
        for k in range(6):
            step(*small_batch(seed=k))
            scales.append(scaler.get_scale())
        assert scales == [4, 4, 8, 8, 8, 16], name


@every_method
def test_overflow_skips_the_step_and_backs_off_once(name):
    net = small_net()
    before = copy.deepcopy(net.state_dict())
    optimizer = adam(net)
    # a scale at which every gradient overflows in half precision
    scaler = GradScaler("cpu", init_scale=2.0**60)
    step = steppe.make(name).bind(net, optimizer, precision="fp16", scaler=scaler)
    out = step(*small_batch())
    assert out.skipped
    assert bool(out.loss.isfinite())  # it is the scaled gradient that overflowed
    assert scaler.get_scale() == 2.0**59
    assert not optimizer.state
    assert all(torch.equal(before[k], v) for k, v in net.state_dict().items())
    while step(*small_batch()).skipped:
        assert scaler.get_scale() > 1
    assert optimizer.state


def test_a_run_in_fp16_resumes_with_its_scale():
    straight, first, second = small_net(), small_net(), small_net(5)
    torch.manual_seed(3)
    kw = {"precision": "fp16", "seed": 2}
    o = adam(straight)
    s = steppe.SAM().bind(straight, o, **kw, scaler=GradScaler("cpu", init_scale=2.0**40, growth_interval=2))
    for k in range(60):
        s(*small_batch(seed=k))
    torch.manual_seed(3)
    o1 = adam(first)
    s1 = steppe.SAM().bind(first, o1, **kw, scaler=GradScaler("cpu", init_scale=2.0**40, growth_interval=2))
    for k in range(31):
        s1(*small_batch(seed=k))
    stream = torch.get_rng_state()
    o2 = adam(second)
    s2 = steppe.SAM().bind(second, o2, **kw, scaler=GradScaler("cpu", init_scale=8.0))
    second.load_state_dict(first.state_dict())
    o2.load_state_dict(o1.state_dict())
    s2.load_state_dict(s1.state_dict())
    torch.set_rng_state(stream)
    for k in range(31, 60):
        s2(*small_batch(seed=k))
    assert s2.scaler.state_dict() == s.scaler.state_dict()
    for a, b in zip(straight.state_dict().values(), second.state_dict().values(), strict=True):
        assert torch.equal(a, b)


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_the_users_loss_sees_float32_logits(precision):
    seen = []

    def loss(z: Tensor, y: Tensor) -> Tensor:
        seen.append(z.dtype)
        return nn.functional.cross_entropy(z, y)

    net = small_net()
    out = steppe.SAM().bind(net, sgd(net), loss=loss, precision=precision)(*small_batch())
    assert seen == [torch.float32, torch.float32]
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


def test_fp64_is_double_all_the_way():
    net = small_net(dtype=torch.float64)
    out = steppe.SADT().bind(net, adam(net), precision="fp64")(*small_batch(dtype=torch.float64))
    assert out.loss.dtype == out.logits.dtype == torch.float64
