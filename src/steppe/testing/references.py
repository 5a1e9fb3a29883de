"""Every method stated again in float64, from the papers' equations, with functions instead of modules.

A reference shares no code with the methods: weights are a dictionary, gradients come from torch.func, the
optimizer (momentum and weight decay) is written out, BatchNorm's running statistics are left to the first pass.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from torch.func import functional_call, grad

from steppe.testing import nets

LR, MOMENTUM, DECAY = 0.1, 0.9, 1e-2
Weights = dict[str, Tensor]


class Reference:
    """Hand-written steps of one method on the small network without dropout.

    ``w`` holds the weights, ``given`` the method's settings, ``noise`` a generator that stands where the
    method's own stands, ``memory`` what a method remembers from step to step.
    """

    def __init__(self, given: Mapping[str, Any]) -> None:
        self.given = given
        self.net = nets.small(dtype=torch.float64, dropout=0.0)
        self.w: Weights = {k: v.detach().clone() for k, v in self.net.named_parameters()}
        self.velocity: Weights = {}
        self.noise = torch.Generator()
        self.memory: dict[str, Any] = {}

    def logits(self, w: Weights, x: Tensor) -> Tensor:
        """Return the logits (B, classes) at weights ``w``."""
        buffers = {k: v.clone() for k, v in self.net.named_buffers()}
        z: Tensor = functional_call(self.net, {**w, **buffers}, (x,))
        return z

    def loss(self, w: Weights, x: Tensor, y: Tensor) -> Tensor:
        """Return the mean cross-entropy, written out."""
        z = self.logits(w, x)
        return (torch.logsumexp(z, 1) - z[torch.arange(len(y)), y]).mean()

    def gradient(self, w: Weights, x: Tensor, y: Tensor) -> Weights:
        """Return the gradient of the loss at ``w``."""
        g: Weights = grad(self.loss)(w, x, y)
        return g

    def update(self, g: Weights) -> None:
        """Let SGD with momentum and weight decay make its step from gradient ``g``."""
        for k, w in self.w.items():
            d = g[k] + DECAY * w
            self.velocity[k] = MOMENTUM * self.velocity[k] + d if k in self.velocity else d
            self.w[k] = w - LR * self.velocity[k]

    def draw(self, scale: float, keys: list[str] | None = None) -> Weights:
        """Return Gaussian noise, zero for weights that are not among ``keys``."""
        return {
            k: scale * torch.randn(w.shape, generator=self.noise, dtype=w.dtype) if keys is None or k in keys
            else torch.zeros_like(w)
            for k, w in self.w.items()
        }  # fmt: skip

    def kl_gradient(self, at: Weights, clean: Tensor, x: Tensor, reverse: bool = False) -> Weights:
        """Return the gradient at ``at`` of the divergence from the clean logits, or of the reverse one."""

        def divergence(w: Weights) -> Tensor:
            p, q = torch.softmax(clean, 1), torch.softmax(self.logits(w, x), 1)
            if reverse:
                p, q = q, p
            return (p * (p.log() - q.log())).sum(1).mean()

        g: Weights = grad(divergence)(at)
        return g


Step = Callable[[Reference, Tensor, Tensor], None]


def plus(*terms: Weights) -> Weights:
    """Return the sum."""
    return {k: torch.stack([t[k] for t in terms]).sum(0) for k in terms[0]}


def times(a: Weights, by: float) -> Weights:
    """Return the multiple."""
    return {k: v * by for k, v in a.items()}


def length(a: Weights) -> float:
    """Return the L2 norm over all weights."""
    return float(torch.stack([(v**2).sum() for v in a.values()]).sum() ** 0.5)


def plain(r: Reference, x: Tensor, y: Tensor) -> None:
    r.update(r.gradient(r.w, x, y))


def repeat_step(r: Reference, x: Tensor, y: Tensor) -> None:
    g = r.gradient(r.w, x, y)
    r.update(g)
    r.update(g)


def two_step(r: Reference, x: Tensor, y: Tensor) -> None:
    plain(r, x, y)
    plain(r, x, y)


def gc(r: Reference, x: Tensor, y: Tensor) -> None:
    g = r.gradient(r.w, x, y)
    for k, t in g.items():
        if t.ndim > 1:
            rows = t.reshape(len(t), -1)
            g[k] = (rows - rows.mean(1, keepdim=True)).reshape(t.shape)
    r.update(g)


def agc(r: Reference, x: Tensor, y: Tensor) -> None:
    g = r.gradient(r.w, x, y)
    for k, t in g.items():
        if k == "11.weight":  # the head
            continue
        units = t.reshape(len(t), -1) if t.ndim > 1 else t.reshape(1, -1)
        weights = r.w[k].reshape(units.shape)
        for u, w in zip(units, weights, strict=True):
            most = r.given["clipping"] * max(float(w.norm()), r.given["eps"])
            if float(u.norm()) >= most:
                u *= most / max(float(u.norm()), 1e-6)
        g[k] = units.reshape(t.shape)
    r.update(g)


def sam(r: Reference, x: Tensor, y: Tensor) -> None:
    g = r.gradient(r.w, x, y)
    r.update(r.gradient(plus(r.w, times(g, r.given["rho"] / length(g))), x, y))


def random_sam(r: Reference, x: Tensor, y: Tensor) -> None:
    u = r.draw(1.0)
    r.update(r.gradient(plus(r.w, times(u, r.given["rho"] / length(u))), x, y))


def sadt(teachers: Callable[[Reference, Weights], list[Weights]], reverse: bool = False) -> Step:
    """Return the step whose teachers' weights are those; ``reverse`` turns the divergence round."""

    def step(r: Reference, x: Tensor, y: Tensor) -> None:
        clean = r.logits(r.w, x)
        up = r.gradient(r.w, x, y)
        r.update(up)
        r.update(plus(up, *[r.kl_gradient(t, clean, x, reverse) for t in teachers(r, up)]))

    return step


KERNELS = ["0.weight", "4.weight", "9.weight", "11.weight"]
CONV, DENSE = ["4.weight", "4.bias"], ["11.weight", "11.bias"]


def _noisy(r: Reference, keys: list[str] | None = None) -> Weights:
    return plus(r.w, r.draw(r.given["sigma"], keys))


def _climbed(r: Reference, up: Weights, keys: list[str] | None = None) -> Weights:
    return plus(r.w, times(plus(up, r.draw(r.given["sigma"], keys)), r.given["ascent"]))


def _bias_times_noise(r: Reference) -> Weights:
    factor = r.draw(r.given["sigma"], ["11.bias"])["11.bias"]
    return {**r.w, "11.bias": r.w["11.bias"] * factor}


@dataclass(frozen=True)
class Restated:
    """A reference of the method ``name`` at ``settings``, for any value of the settings in ``free``."""

    name: str
    step: Step
    free: tuple[str, ...] = ()
    settings: Mapping[str, Any] = field(default_factory=dict)


REFERENCES: dict[str, Restated] = {
    "plain": Restated("plain", plain),
    "repeat-step": Restated("repeat-step", repeat_step),
    "two-step": Restated("two-step", two_step),
    "gc": Restated("gc", gc),
    "agc": Restated("agc", agc, ("clipping", "eps")),
    "sam": Restated("sam", sam, ("rho",)),
    "random-sam": Restated("random-sam", random_sam, ("rho",)),
    "sadt-v1": Restated("sadt-v1", sadt(lambda r, up: [_noisy(r)]), ("sigma",)),
    "sadt-v2": Restated("sadt-v2", sadt(lambda r, up: [_noisy(r, CONV), _noisy(r, DENSE)]), ("sigma",)),
    "sadt-v3": Restated("sadt-v3", sadt(lambda r, up: [_climbed(r, up)]), ("sigma", "ascent")),
    "sadt-v1 notebook": Restated(
        "sadt-v1", sadt(lambda r, up: [_noisy(r, KERNELS)]), ("sigma",), {"preset": "notebook"}
    ),
    "sadt-v2 notebook": Restated(
        "sadt-v2",
        # position 7 among this network's tensors is the second convolution's bias
        sadt(lambda r, up: [_bias_times_noise(r), _noisy(r, ["4.bias"])], reverse=True),
        ("sigma",),
        {"preset": "notebook"},
    ),
    "sadt-v3 notebook": Restated(
        "sadt-v3",
        sadt(lambda r, up: [_climbed(r, up, KERNELS)], reverse=True),
        ("sigma", "ascent"),
        {"preset": "notebook"},
    ),
}
