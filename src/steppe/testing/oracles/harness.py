"""What a method is stated again with, in float64: functions instead of modules, and no code of the methods.

A reference shares no code with the methods: weights are a dictionary, gradients come from torch.func, the
optimizer (momentum and weight decay) is written out, BatchNorm's running statistics are left to the first pass.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call, grad

from steppe.testing import fixtures

LR, MOMENTUM, DECAY = 0.1, 0.9, 1e-2
Weights = dict[str, Tensor]


class Reference:
    """Hand-written steps of one method on the small network without dropout, or on several.

    ``w`` holds the weights, those that ``trained`` starts with if a method trains more than the network;
    ``given`` the method's settings, ``noise`` a generator that stands where the method's own stands, ``memory``
    what a method remembers from step to step.
    """

    def __init__(self, given: Mapping[str, Any], trained: nn.Module | None = None) -> None:
        self.given = given
        self.net = fixtures.small(dtype=torch.float64, dropout=0.0)
        start = self.net if trained is None else trained
        self.w: Weights = {k: v.detach().clone() for k, v in start.named_parameters()}
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
        """Let SGD with momentum and weight decay make its step from gradient ``g``, of all weights or some."""
        for k in g:
            w = self.w[k]
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


ReferenceStep = Callable[[Reference, Tensor, Tensor], None]


def plus(*terms: Weights) -> Weights:
    """Return the sum."""
    return {k: torch.stack([t[k] for t in terms]).sum(0) for k in terms[0]}


def times(a: Weights, by: float) -> Weights:
    """Return the multiple."""
    return {k: v * by for k, v in a.items()}


def length(a: Weights) -> float:
    """Return the L2 norm over all weights."""
    return float(torch.stack([(v**2).sum() for v in a.values()]).sum() ** 0.5)


@dataclass(frozen=True)
class Restated:
    """A reference of the method ``name`` at ``settings``, for any value of the settings in ``free``."""

    name: str
    step: ReferenceStep
    free: tuple[str, ...] = ()
    settings: Mapping[str, Any] = field(default_factory=dict)
