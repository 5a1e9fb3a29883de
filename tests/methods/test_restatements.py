"""Every method stated again in float64, from the papers' equations, with functions instead of modules.

The reference shares no code with the package: weights are a dictionary, gradients come from torch.func, the
optimizer (momentum and weight decay) is written out, BatchNorm's running statistics are left to the first pass.
"""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from small import small_batch, small_net
from torch import Tensor
from torch.func import functional_call, grad

import steppe
from steppe.methods import METHODS

LR, MOMENTUM, DECAY = 0.1, 0.9, 1e-2
Weights = dict[str, Tensor]


class Reference:
    """Two hand-written steps of one method on the small network without dropout."""

    def __init__(self) -> None:
        self.net = small_net(dtype=torch.float64, dropout=0.0)
        self.w: Weights = {k: v.detach().clone() for k, v in self.net.named_parameters()}
        self.velocity: Weights = {}
        self.noise = torch.Generator()

    def logits(self, w: Weights, x: Tensor) -> Tensor:
        buffers = {k: v.clone() for k, v in self.net.named_buffers()}
        z: Tensor = functional_call(self.net, {**w, **buffers}, (x,))
        return z

    def loss(self, w: Weights, x: Tensor, y: Tensor) -> Tensor:
        z = self.logits(w, x)
        return (torch.logsumexp(z, 1) - z[torch.arange(len(y)), y]).mean()

    def update(self, g: Weights) -> None:
        for k, w in self.w.items():
            d = g[k] + DECAY * w
            self.velocity[k] = MOMENTUM * self.velocity[k] + d if k in self.velocity else d
            self.w[k] = w - LR * self.velocity[k]

    def draw(self, scale: float, keys: list[str] | None = None) -> Weights:
        return {
            k: scale * torch.randn(w.shape, generator=self.noise, dtype=w.dtype) if keys is None or k in keys
            else torch.zeros_like(w)
            for k, w in self.w.items()
        }  # fmt: skip

    def kl_gradient(self, at: Weights, clean: Tensor, x: Tensor, reverse: bool = False) -> Weights:
        def divergence(w: Weights) -> Tensor:
            p, q = torch.softmax(clean, 1), torch.softmax(self.logits(w, x), 1)
            if reverse:
                p, q = q, p
            return (p * (p.log() - q.log())).sum(1).mean()

        return grad(divergence)(at)


def plus(*terms: Weights) -> Weights:
    return {k: sum(t[k] for t in terms) for k in terms[0]}


def times(a: Weights, by: float) -> Weights:
    return {k: v * by for k, v in a.items()}


def length(a: Weights) -> float:
    return float(sum((v**2).sum() for v in a.values()) ** 0.5)


def plain(r: Reference, x: Tensor, y: Tensor) -> None:
    r.update(grad(r.loss)(r.w, x, y))


def repeat_step(r: Reference, x: Tensor, y: Tensor) -> None:
    g = grad(r.loss)(r.w, x, y)
    r.update(g)
    r.update(g)


def two_step(r: Reference, x: Tensor, y: Tensor) -> None:
    plain(r, x, y)
    plain(r, x, y)


def gc(r: Reference, x: Tensor, y: Tensor) -> None:
    g = grad(r.loss)(r.w, x, y)
    for k, t in g.items():
        if t.ndim > 1:
            rows = t.reshape(len(t), -1)
            g[k] = (rows - rows.mean(1, keepdim=True)).reshape(t.shape)
    r.update(g)


def agc(r: Reference, x: Tensor, y: Tensor) -> None:
    g = grad(r.loss)(r.w, x, y)
    for k, t in g.items():
        if k == "11.weight":  # the head
            continue
        units = t.reshape(len(t), -1) if t.ndim > 1 else t.reshape(1, -1)
        weights = r.w[k].reshape(units.shape)
        for u, w in zip(units, weights, strict=True):
            most = 0.01 * max(float(w.norm()), 1e-3)
            if float(u.norm()) >= most:
                u *= most / max(float(u.norm()), 1e-6)
        g[k] = units.reshape(t.shape)
    r.update(g)


def sam(r: Reference, x: Tensor, y: Tensor) -> None:
    g = grad(r.loss)(r.w, x, y)
    r.update(grad(r.loss)(plus(r.w, times(g, 0.05 / length(g))), x, y))


def random_sam(r: Reference, x: Tensor, y: Tensor) -> None:
    u = r.draw(1.0)
    r.update(grad(r.loss)(plus(r.w, times(u, 0.05 / length(u))), x, y))


def sadt(teachers: Callable[[Reference, Weights], list[Weights]], reverse: bool = False):
    def step(r: Reference, x: Tensor, y: Tensor) -> None:
        clean = r.logits(r.w, x)
        up = grad(r.loss)(r.w, x, y)
        r.update(up)
        r.update(plus(up, *[r.kl_gradient(t, clean, x, reverse) for t in teachers(r, up)]))

    return step


KERNELS = ["0.weight", "4.weight", "9.weight", "11.weight"]
CONV, DENSE = ["4.weight", "4.bias"], ["11.weight", "11.bias"]


def bias_times_noise(r: Reference) -> Weights:
    factor = r.draw(0.1, ["11.bias"])["11.bias"]
    return {**r.w, "11.bias": r.w["11.bias"] * factor}


RESTATED = {
    "plain": (steppe.Plain(), plain),
    "repeat-step": (steppe.RepeatStep(), repeat_step),
    "two-step": (steppe.TwoStep(), two_step),
    "gc": (steppe.GC(), gc),
    "agc": (steppe.AGC(), agc),
    "sam": (steppe.SAM(), sam),
    "random-sam": (steppe.RandomSAM(), random_sam),
    "sadt-v1": (steppe.SADT(sigma=0.1), sadt(lambda r, up: [plus(r.w, r.draw(0.1))])),
    "sadt-v2": (
        steppe.SADT(variant=2, sigma=0.1),
        sadt(lambda r, up: [plus(r.w, r.draw(0.1, CONV)), plus(r.w, r.draw(0.1, DENSE))]),
    ),
    "sadt-v3": (
        steppe.SADT(variant=3, sigma=0.1, ascent=0.05),
        sadt(lambda r, up: [plus(r.w, times(plus(up, r.draw(0.1)), 0.05))]),
    ),
    "sadt-v1 notebook": (
        steppe.SADT(preset="notebook"),
        sadt(lambda r, up: [plus(r.w, r.draw(1e-4, KERNELS))]),
    ),
    "sadt-v2 notebook": (
        steppe.SADT(variant=2, preset="notebook"),
        sadt(lambda r, up: [bias_times_noise(r), plus(r.w, r.draw(0.1, ["4.bias"]))], reverse=True),
    ),
    "sadt-v3 notebook": (
        steppe.SADT(variant=3, preset="notebook"),
        sadt(lambda r, up: [plus(r.w, times(plus(up, r.draw(1e-4, KERNELS)), 1e-3))], reverse=True),
    ),
}


def test_every_method_is_stated_again():
    assert set(METHODS) <= set(RESTATED)


@pytest.mark.parametrize("name", RESTATED)
def test_two_steps_equal_the_restatement(name: str):
    method, restated = RESTATED[name]
    net = small_net(dtype=torch.float64, dropout=0.0)
    optimizer = torch.optim.SGD(net.parameters(), LR, momentum=MOMENTUM, weight_decay=DECAY)
    step, reference = method.bind(net, optimizer, seed=11), Reference()
    if name == "sadt-v2 notebook":  # position 7 in this network is the second convolution's bias
        assert list(net.state_dict())[8] == "4.bias"
    reference.noise.set_state(step.runtime.rng.get_state())
    for k in range(2):
        batch = small_batch(seed=k, dtype=torch.float64)
        step(*batch)
        restated(reference, *batch)
    for key, p in net.named_parameters():
        assert torch.allclose(p, reference.w[key], rtol=1e-9, atol=1e-11), key
