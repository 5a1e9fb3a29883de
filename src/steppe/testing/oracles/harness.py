"""The tools of the references: functions instead of modules, in float64, and no code of the methods.

Weights are a dictionary, gradients come from torch.func, the optimizer (momentum and weight decay) is written out,
and BatchNorm's running statistics are left to the first pass.
"""

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

    ``w`` are the weights, initially those of ``trained`` if a method trains more than the network; ``settings``
    the method's fields; ``noise`` a generator in the state of the method's own; ``memory`` what a method keeps
    from step to step.
    """

    def __init__(self, settings: Mapping[str, Any], trained: nn.Module | None = None) -> None:
        self.settings = settings
        self.net = fixtures.small(dtype=torch.float64, dropout=0.0)
        start = self.net if trained is None else trained
        self.w: Weights = {k: v.detach().clone() for k, v in start.named_parameters()}
        self.velocity: Weights = {}
        device = next(self.net.parameters()).device
        self.noise = torch.Generator(device)
        # of choices that the host makes: the same one on a processor
        self.host_noise = self.noise if device.type == "cpu" else torch.Generator("cpu")
        self.memory: dict[str, Any] = {}

    def logits(self, w: Weights, x: Tensor) -> Tensor:
        """Return the logits (B, classes) at weights ``w``, in training mode."""
        z: Tensor = functional_call(self.net, {**w, **self.buffers()}, (x,))
        return z

    def eval_logits(self, w: Weights, buffers: Weights, x: Tensor) -> Tensor:
        """Return the logits (B, classes) at these weights and running statistics, in evaluation mode."""
        self.net.eval()
        z: Tensor = functional_call(self.net, {**w, **buffers}, (x,))
        self.net.train()
        return z

    def buffers(self) -> Weights:
        """Return a copy of the network's first running statistics."""
        return {k: v.clone() for k, v in self.net.named_buffers()}

    def moved_buffers(self, w: Weights, buffers: Weights, x: Tensor) -> Weights:
        """Return the running statistics after a pass on ``x`` in training mode."""
        moved = {k: v.clone() for k, v in buffers.items()}
        functional_call(self.net, {**w, **moved}, (x,))
        return moved

    def loss(self, w: Weights, x: Tensor, y: Tensor) -> Tensor:
        """Return the mean cross-entropy."""
        return cross_entropy(self.logits(w, x), y).mean()

    def gradient(self, w: Weights, x: Tensor, y: Tensor) -> Weights:
        """Return the gradient of the loss at ``w``."""
        g: Weights = grad(self.loss)(w, x, y)
        return g

    def update(self, g: Weights) -> None:
        """Make SGD's step with momentum and weight decay from gradient ``g``, of all weights or some."""
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
            z = self.logits(w, x)
            return (kl(z, clean) if reverse else kl(clean, z)).mean()

        g: Weights = grad(divergence)(at)
        return g


ReferenceStep = Callable[[Reference, Tensor, Tensor], None]


def cross_entropy(z: Tensor, y: Tensor) -> Tensor:
    """Return the cross-entropy of each sample (B,)."""
    return torch.logsumexp(z, 1) - z[torch.arange(len(y)), y]


def kl(teacher: Tensor, z: Tensor, T: float = 1.0) -> Tensor:
    """Return KL(softmax(teacher / T) || softmax(z / T)) of each sample (B,)."""
    p, q = torch.softmax(teacher / T, 1), torch.softmax(z / T, 1)
    return (p * (p.log() - q.log())).sum(1)


def plus(*terms: Weights) -> Weights:
    """Return the sum."""
    return {k: torch.stack([t[k] for t in terms]).sum(0) for k in terms[0]}


def times(a: Weights, by: float) -> Weights:
    """Return the multiple."""
    return {k: v * by for k, v in a.items()}


def length(a: Weights) -> float:
    """Return the L2 norm over all weights."""
    return float(torch.stack([(v**2).sum() for v in a.values()]).sum() ** 0.5)


def averaged(mean: Weights, new: Weights, decay: float) -> Weights:
    """Return decay times the mean plus 1 - decay times the new values; integers are the new ones."""
    return {k: decay * v + (1 - decay) * new[k] if v.is_floating_point() else new[k] for k, v in mean.items()}


@dataclass(frozen=True)
class Restated:
    """A reference of the method ``name`` at ``settings``, for any value of the settings in ``free``."""

    name: str
    step: ReferenceStep
    free: tuple[str, ...] = ()
    settings: Mapping[str, Any] = field(default_factory=dict)


def restated(key: str, step: ReferenceStep, free: str = "", **settings: Any) -> tuple[str, Restated]:
    """Return an entry of a table; ``key`` begins with the method's name, ``free`` lists names."""
    return key, Restated(key.split()[0], step, tuple(free.split()), settings)
