"""Methods that use the optimizer's rule and moments: SAMPa's look-ahead, Functional SAM's ascent."""

import copy
from functools import partial

import pytest
import torch
from support.many import sampa_by_halves, together
from support.small import close, small_batch, small_net
from torch import Tensor, nn

import steppe
from steppe.core.method import look_ahead
from steppe.testing import fixtures

OPTIMIZERS = {
    "sgd": partial(torch.optim.SGD, lr=0.1),
    "momentum": partial(torch.optim.SGD, lr=0.1, momentum=0.9, dampening=0.2, weight_decay=0.01),
    "nesterov": partial(torch.optim.SGD, lr=0.1, momentum=0.9, nesterov=True, weight_decay=0.01),
    "adam": partial(torch.optim.Adam, lr=0.01, weight_decay=0.1),
    "adamw": partial(torch.optim.AdamW, lr=0.01, weight_decay=0.1, betas=(0.8, 0.95)),
    "amsgrad": partial(torch.optim.Adam, lr=0.01, amsgrad=True, betas=(0.8, 0.5)),
    "maximize": partial(torch.optim.SGD, lr=0.1, momentum=0.9, weight_decay=0.01, maximize=True),
}


@pytest.mark.parametrize("clip", [None, 0.5])
@pytest.mark.parametrize("name", OPTIMIZERS)
def test_to_look_ahead_is_to_make_the_update_and_take_it_back(name, clip):
    net = small_net(dtype=torch.float64, dropout=0.0)
    first, *others = net.parameters()
    groups = [{"params": [first], "lr": 0.03}, {"params": others}]
    step = steppe.Plain().bind(net, OPTIMIZERS[name](groups), clip=clip)
    for k in range(3):
        grads = [torch.randn(p.shape, dtype=p.dtype) for p in net.parameters()]
        before, saved = [p.detach().clone() for p in net.parameters()], copy.deepcopy(net.state_dict())
        offset = look_ahead(step.runtime, grads)
        assert all(torch.equal(a, b) for a, b in zip(net.state_dict().values(), saved.values(), strict=True))
        for p, g in zip(net.parameters(), grads, strict=True):
            p.grad = g.clone()
        if clip is not None:
            torch.nn.utils.clip_grad_norm_(net.parameters(), clip)
        step.runtime.optimizer.step()
        for p, b, o in zip(net.parameters(), before, offset, strict=True):
            assert torch.allclose(p - b, o, rtol=1e-9, atol=1e-12), (name, k)


class WithLoss(nn.Module):
    """A model that returns its own loss, as those of Hugging Face; ``bare`` without logits."""

    def __init__(self, net: nn.Module, bare: bool = False):
        super().__init__()
        self.net, self.bare = net, bare

    def forward(self, x: Tensor, y: Tensor | None = None) -> Tensor | dict[str, Tensor]:
        z = self.net(x)
        if y is None:
            return z
        loss = nn.functional.cross_entropy(z, y)
        return {"loss": loss} if self.bare else {"loss": loss, "logits": z}


def functional(net: nn.Module, rho: float, steps: int, dtype: torch.dtype = torch.float64) -> None:
    """Train with preconditioned Functional SAM and AdamW, written out with torch.func."""
    optimizer = OPTIMIZERS["adamw"](net.parameters())
    names = [name for name, _ in net.named_parameters()]
    buffers = dict(net.named_buffers())
    for k in range(steps):
        x, y = small_batch(k, dtype=dtype)
        w = {name: p.detach() for name, p in net.named_parameters()}

        def logits(v: dict[str, Tensor], x: Tensor = x) -> Tensor:
            return torch.func.functional_call(net, {**v, **{n: b.clone() for n, b in buffers.items()}}, (x,))

        g = torch.func.grad(lambda v, y=y: nn.functional.cross_entropy(logits(v), y))(w)
        u = dict(g)
        for name, p in net.named_parameters():
            if p in optimizer.state:
                s = optimizer.state[p]
                u[name] = g[name] / ((s["exp_avg_sq"] / (1 - 0.95 ** int(s["step"]))).sqrt() + 1e-8)
        length = torch.cat([t.flatten() for t in u.values()]).norm()
        at = {name: w[name] + rho * u[name] / length for name in names}
        c = (torch.softmax(logits(w), 1) - torch.eye(5, dtype=x.dtype)[y]) / len(y)
        g = torch.func.grad(lambda v, c=c: (c * logits(v)).sum())(at)
        for name, p in net.named_parameters():
            p.grad = g[name]
        optimizer.step()


def test_functional_sam_with_preconditioned_ascent_is_its_equation_written_out():
    """In one batch, in micro-batches, and with the loss in the model."""
    start = fixtures.smooth(dtype=torch.float64)
    expected = copy.deepcopy(start)
    functional(expected, 0.1, 3)
    method = steppe.FunctionalSAM(rho=0.1, ascent="preconditioned")
    for options in ({}, {"microbatch": 5}, {"loss": "model"}):
        net = copy.deepcopy(start)
        model = WithLoss(net) if "loss" in options else net
        step = method.bind(model, OPTIMIZERS["adamw"](net.parameters()), **options)
        for k in range(3):
            step(*small_batch(k, dtype=torch.float64))
        assert close(net, expected, rtol=1e-8, atol=1e-10), options
        assert step.passes.per_step() == (2, 2, 1)
    bare = WithLoss(small_net(), bare=True)
    with pytest.raises(steppe.InputError, match="logits from which the loss follows"):
        method.bind(bare, OPTIMIZERS["adamw"](bare.parameters()), loss="model")(*small_batch())


def test_functional_sam_keeps_the_divergence_of_what_it_is_combined_with():
    """With rho near 0 it is plain training on the combined objective."""
    nets = [small_net(dropout=0.0), small_net(dropout=0.0)]
    for net, spec in zip(nets, ("functional-sam:rho=1e-7+mesa:lam=5", "plain+mesa:lam=5"), strict=True):
        step = steppe.parse(spec).bind(net, torch.optim.SGD(net.parameters(), 0.3))
        for k in range(4):
            step(*small_batch(k))
    assert close(nets[0], nets[1], rtol=1e-4, atol=1e-5)


def test_functional_sam_refuses_terms_of_the_loss_that_do_not_follow_from_the_logits():
    net = small_net(dropout=0.0)

    def penalised(z: Tensor, y: Tensor) -> Tensor:
        return nn.functional.cross_entropy(z, y) + 0.01 * sum(p.square().sum() for p in net.parameters())

    step = steppe.FunctionalSAM().bind(net, OPTIMIZERS["adamw"](net.parameters()), loss=penalised)
    with pytest.raises(steppe.InputError, match="a term that does not follow from them"):
        step(*small_batch())


@pytest.mark.parametrize("spec", ["sampa:rho=0.5", "async-sam:rho=0.5"])
def test_the_gradient_of_the_step_before_is_zero_where_that_step_had_none(spec):
    heads = nn.ModuleList([nn.Linear(4, 3), nn.Linear(4, 3)])

    class TwoHeads(nn.Module):
        heads: nn.ModuleList

        def __init__(self) -> None:
            super().__init__()
            self.heads, self.used = heads, 0

        def forward(self, x: Tensor) -> Tensor:
            output: Tensor = self.heads[self.used](x)
            return output

    net = TwoHeads()
    step = steppe.parse(spec).bind(net, torch.optim.SGD(net.parameters(), 0.1))
    for net.used in (0, 1):
        step(torch.randn(6, 4), torch.arange(6) % 3)
        length = [float(h.norm()) for h in step.state.h]
        assert (length[0] > 0) == (net.used == 0) and (length[2] > 0) == (net.used == 1), length


@pytest.mark.slow
def test_sampa_by_halves_mixes_the_gradients_of_the_two_halves_of_the_processes():
    processes = together(3, sampa_by_halves)
    for process in processes[1:]:
        assert all(map(torch.equal, processes[0]["values"], process["values"]))
    first, second = ([p["gradients"][k] for p in processes] for k in (0, 1))
    for i, moved in enumerate(processes[0]["moved"]):
        perturbed = (second[0][i] + second[2][i]) / 2
        assert torch.allclose(moved, 0.7 * perturbed + 0.3 * second[1][i], atol=1e-6)
    h = torch.cat([t.flatten() for t in first[1]])
    for process in (processes[0], processes[2]):
        e = torch.cat([t.flatten() for t in process["offset"]])
        assert torch.allclose(e, 0.2 * h / h.norm(), atol=1e-5)
    ahead = torch.cat([t.flatten() for t in processes[1]["offset"]])
    assert torch.allclose(ahead, -h, atol=1e-5)  # a rate of 1, and no momentum
