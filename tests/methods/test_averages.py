"""The family of averages: running means without bias, windows, moments, choice, statistics, host memory."""

import copy

import pytest
import torch
from support.small import bound, indexed, same, small_net
from torch import Tensor, nn

import steppe


def weights(net: nn.Module) -> Tensor:
    return torch.cat([p.detach().flatten() for p in net.parameters()])


def deployed(step: steppe.Step, net: nn.Module) -> Tensor:
    with step.deployed_weights():
        return weights(net)


@pytest.mark.parametrize("device", ["model", "cpu"])
def test_each_average_is_the_formula_of_its_paper(device):
    method = steppe.Averages(decays="0.5 0.9", k=3, every=2, start=4, device=device)
    net, step = bound(method, small_net(dtype=torch.float64, dropout=0.0))
    path = [weights(net)]
    for t in range(1, 12):
        step(steppe.Batch(indexed(t).x.double(), indexed(t).y))
        path.append(weights(net))

    def ema(d: float) -> Tensor:
        terms = [(1 - d) * d ** (11 - i) * path[i] for i in range(1, 12)]
        return torch.stack(terms).sum(0) / (1 - d**11)

    # periods of two steps end after steps 2, 4, ...; SWA begins with the step number 4, counted from 0
    expected = {
        "ema 0.5": ema(0.5),
        "ema 0.9": ema(0.9),
        "swa": (path[6] + path[8] + path[10]) / 3,
        "lawa 3": (path[6] + path[8] + path[10]) / 3,
        "weights": path[11],
    }
    assert method.names == list(expected)
    for name, mean in expected.items():
        assert method.choose(step.state, {"weights": -1, name: 2, "of another": 3}) == name
        assert torch.allclose(deployed(step, net), mean, rtol=1e-10), name
    assert torch.equal(weights(net), path[11])


@pytest.mark.parametrize("spec", ["ema:decay=0.999", "averages:decays=0.999,k=3,every=1,start=0"])
def test_the_mean_of_weights_in_half_precision_moves_by_less_than_their_digits(spec):
    net = nn.Linear(4, 3).bfloat16()
    step = steppe.parse(spec).bind(net, torch.optim.SGD(net.parameters(), 0.0))
    x, y = torch.randn(6, 4, dtype=torch.bfloat16), torch.arange(6) % 3
    for k in range(300):
        if k == 200:
            before = weights(net).float()
            average = step.state if spec.startswith("ema") else step.state[0]
            start = torch.cat([average.get_buffer(str(i)).flatten() for i in range(2)]).clone()
            with torch.no_grad():
                for p in net.parameters():
                    p += 1
        step(x, y)
    mean = torch.cat([average.get_buffer(str(i)).flatten() for i in range(2)])
    assert torch.allclose(start, before, atol=1e-6)
    if spec.startswith("ema"):
        decays = [min(0.999, (1 + t) / (10 + t)) for t in range(200, 300)]
        rest = torch.tensor(decays).double().prod()
    else:
        rest = torch.tensor((1 - 0.999**200) / (1 - 0.999**300) * 0.999**100)
    assert torch.allclose(mean - start, (1 - rest.float()) * (weights(net).float() - before), atol=1e-3)
    assert torch.equal(deployed(step, net), mean.bfloat16())
    if not spec.startswith("ema"):
        with step.method._at(net, step.state, 2):  # the mean of equal networks
            assert torch.equal(weights(net), (before.bfloat16() + 1))


def test_ema_deploys_the_weights_until_there_is_a_mean():
    net, step = bound(steppe.EMA(), small_net(dropout=0.0))
    with torch.no_grad():
        net[0].weight += 1
    assert torch.equal(deployed(step, net), weights(net))


def test_lawa_is_the_mean_of_the_last_networks_and_is_saved_with_them():
    net, step = bound(steppe.LAWA(k=2, every=3), small_net(dropout=0.0))
    path = []
    for t in range(8):
        assert torch.equal(deployed(step, net), weights(net)) == (t < 4)  # the first mean is of one network
        step(indexed(t))
        path.append(weights(net))
    assert torch.allclose(deployed(step, net), (path[2] + path[5]) / 2, atol=1e-6)
    other, again = bound(steppe.LAWA(k=2, every=3), small_net(seed=5, dropout=0.0))
    other.load_state_dict(net.state_dict())
    again.load_state_dict(step.state_dict())
    again.runtime.optimizer.load_state_dict(copy.deepcopy(step.runtime.optimizer.state_dict()))
    for one in (step, again):
        one(indexed(8))
    assert torch.equal(deployed(step, net), deployed(again, other))
    assert torch.allclose(deployed(step, net), (path[5] + weights(net)) / 2, atol=1e-6)


def test_moments_at_the_end_of_epochs_are_periods_of_their_steps():
    nets = []
    for every, options in ((4, {}), ("1e", {"epoch": 4})):
        net, step = bound(steppe.SWA(start=0, every=every), small_net(dropout=0.0), **options)
        for t in range(10):
            step(indexed(t))
        with step.deployed_weights():
            nets.append(small_net())
            nets[-1].load_state_dict(net.state_dict())
    assert same(*nets)
    with pytest.raises(steppe.InputError, match="the length of an epoch is unknown"):
        bound(steppe.SWA(start=0, every="1e"), small_net())[1](indexed(0))
    for every in ("5b", 0, "e"):
        with pytest.raises(steppe.InputError, match="every is .*; give at least 1 step, or the end of epochs"):
            steppe.SWA(every=every)


def test_lawa_s_running_statistics_are_those_of_its_mean():
    """The network stands still for most of a period, so that they end at the batch's at the period's mean."""
    net, step = bound(steppe.LAWA(k=2, every=100), small_net(dropout=0.0))
    for t in range(300):
        for group in step.runtime.optimizer.param_groups:
            group["lr"] = 0.1 if t < 210 else 0.0
        step(indexed(t if t < 210 else 0))
    with step.deployed_weights():
        mean = copy.deepcopy(net.state_dict())
    reference = small_net(dropout=0.0)
    reference.load_state_dict(mean)
    reference[1].momentum = 1.0
    reference(indexed(0).x)
    assert torch.allclose(mean["1.running_mean"], reference[1].running_mean, atol=1e-3)
    assert torch.allclose(mean["1.running_var"], reference[1].running_var, rtol=1e-2)
    assert not torch.allclose(net[1].running_var, reference[1].running_var, rtol=1e-2)


def test_the_choice_is_saved_and_every_output_is_named():
    net, step = bound(steppe.parse("sam+averages:decays=0.9 0.99,k=0,swa=false"), small_net(dropout=0.0))
    for t in range(3):
        step(indexed(t))
    base = step.state["base"]
    outputs = step.method.outputs(net.eval(), step.state, indexed(0).x)
    assert list(outputs) == ["deployed", "ema 0.9", "ema 0.99", "weights"]
    assert torch.equal(outputs["deployed"], outputs["ema 0.9"]) and base.chosen == 0
    assert step.method.choose(step.state, {"ema 0.9": (0.5, -1), "ema 0.99": (0.7, -2), "weights": (0.7, -3)})
    saved = step.state_dict()
    _, again = bound(steppe.parse("sam+averages:decays=0.9 0.99,k=0,swa=false"), small_net(dropout=0.0))
    again.load_state_dict(saved)
    assert again.state["base"].chosen == 1
    assert torch.equal(step.predict(indexed(0).x), outputs["ema 0.99"])
    assert steppe.EMA().choose(step.state, {"deployed": 1}) is None
