"""Knowledge distillation by collaborative learning: networks that learn from one teacher made of them all.

    w_m <- U(w_m, grad [ce L(w_m) + lam T^2 KL(softmax(t / T) || softmax(z_m / T))]),   t = target(z_1 .. z_N)

    naive      t = z_k of each sample, k the network with the least cross-entropy on it
    linear     t = sum_m a_m z_m, a on the simplex with the least cross-entropy of t over the batch
    min-logit  t_j = min_m (z_mj - z_mc), c the sample's class: every wrong class is as far as somebody puts it
    general    t = sum_m a_m z_m, a = C^-1 1 / (1' C^-1 1), C_ij = mean <p_i - y, p_j - y>
    mean       t = sum_m z_m / N

The target is a constant in every gradient.

Paper    Guo et al., CVPR 2020, section 3
Code     none by the authors; tianlizhang/OKDPH @ a562089 has the mean, which is none of the paper's
Cost     2 forward, 2 backward, 1 update (one of each of ``networks``)
Limits   networks = 1 is Plain; lam = 0, ce = 1 is Plain for each network
Differs  1. linear and general take the samples of one forward pass; the paper estimates the weights of general
            once an epoch on held-out data, and does not say over which samples it solves linear.
         2. general adds a ridge of 1e-6 times the mean of C's diagonal, and its weights may be negative.
         3. networks see the same image unless the loader gives views; the paper gives each its own.
         4. deployed is the first network, the others are reported beside it.
Start    networks 2, target mean, T 4, ce 0.5, lam 0.5 (OKDPH's code)
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from steppe.core.amp import autocast_disabled, upcast_to_float32
from steppe.core.batch import Batch
from steppe.core.method import Method, name_of, require, with_presets
from steppe.core.model_call import call_model
from steppe.core.numerics.losses import distillation_loss, one_hot
from steppe.core.runtime import Runtime, StepOutput
from steppe.models.multi.ensemble import Ensemble, network_outputs
from steppe.models.multi.inputs import expect_views, fresh_networks, views_of


@dataclass(frozen=True)
class KDCL(Method):
    """Train ``networks`` on the labels, times ``ce``, and towards their ``target``, times ``lam``."""

    limit: ClassVar = {"networks": 1}
    cost: ClassVar = (2, 2, 1)

    networks: int = 2
    target: str = "mean"
    T: float = 4.0
    ce: float = 0.5
    lam: float = 0.5

    def check(self) -> None:
        """Networks is a number, target a name, T a temperature, ce and lam are weights."""
        require(self, "networks", self.networks >= 1, "at least 1 (2 is usual)")
        object.__setattr__(self, "cost", (self.networks, self.networks, 1))
        require(self, "target", self.target in TARGETS, " or ".join(map(repr, TARGETS)))
        require(self, "T", self.T > 0, "a number above 0 (4 is usual)")
        if self.target in ("linear", "general"):
            object.__setattr__(self, "local", "its target weighs networks by the samples of one forward pass")
        for name in ("ce", "lam"):
            require(self, name, getattr(self, name) >= 0, "a number of at least 0 (0.5 is usual)")

    @property
    def views(self) -> int:
        """One for each network."""
        return self.networks

    def build(self, new_model: Callable[[], nn.Module]) -> nn.Module:
        """Return a `Cohort` of freshly initialised networks, the network itself if one is wanted."""
        return Ensemble(fresh_networks(new_model, self.networks)) if self.networks > 1 else new_model()

    def init(self, net: nn.Module) -> nn.Module:
        """Remember nothing; refuse a model that was not built for this."""
        if self.networks > 1:
            expect_views(net, Ensemble, self.networks, name_of(self), "networks")
        return nn.Module()

    def objective(self, batch: Batch, state: nn.Module, rt: Runtime) -> StepOutput:
        """The sum of all networks' losses and of their pulls towards the target."""
        if self.networks == 1:
            return rt.supervised(batch)
        said = call_model(rt.model, views_of(batch, self.networks))
        losses = [self.ce * rt.loss(z, batch.y) for z in said]
        if self.lam:
            z = torch.stack([upcast_to_float32(s.detach()) for s in said])
            with autocast_disabled(z):
                teacher = TARGETS[self.target](z, one_hot(batch.y, z[0]))
            losses += [self.lam * distillation_loss(teacher, s, self.T) for s in said]
        return StepOutput(torch.stack(losses).sum(), said[0])

    def predict(self, net: nn.Module, state: nn.Module, x: Any) -> Tensor:
        """Deploy the first network."""
        return self.outputs(net, state, x)["deployed"]

    def deployed_model(self, net: nn.Module, state: nn.Module, new_model: Callable[[], nn.Module]) -> nn.Module:
        """Deploy the first network alone."""
        first = net.networks[0] if isinstance(net, Ensemble) else net
        return with_presets(new_model(), first.state_dict())

    def outputs(self, net: nn.Module, state: nn.Module, x: Any) -> dict[str, Tensor]:
        """Report each network."""
        return network_outputs(net, x)


def cross_entropy(z: Tensor, y: Tensor) -> Tensor:
    """Return the cross-entropy of each sample (..., B) from logits (..., B, K) and probabilities (B, K)."""
    return -(y * torch.log_softmax(z, -1)).sum(-1)


def naive(z: Tensor, y: Tensor) -> Tensor:
    """Return, per sample, the logits of the network with the least cross-entropy; z (N, B, K)."""
    best = cross_entropy(z, y).argmin(0)
    return z[best, torch.arange(len(best), device=z.device)]


def min_logit(z: Tensor, y: Tensor) -> Tensor:
    """Return the least gap of each class to the true one; never worse than the best network."""
    true = y.argmax(1)[None, :, None].expand(len(z), -1, 1)
    return (z - z.gather(2, true)).amin(0)


def mean(z: Tensor, y: Tensor) -> Tensor:
    """Return the mean of the logits."""
    return z.mean(0)


def linear(z: Tensor, y: Tensor) -> Tensor:
    """Return the convex combination with the least cross-entropy: Frank-Wolfe from the best network.

    Each step searches its line by bisecting the derivative, so the first is exact for two networks and none
    raises the loss.
    """
    a = torch.nn.functional.one_hot(cross_entropy(z, y).mean(1).argmin(), len(z)).to(z.dtype)
    digits = 52 if z.dtype == torch.float64 else 24

    def error(weights: Tensor) -> Tensor:
        return torch.softmax(torch.einsum("n,nbk->bk", weights, z), 1) - y

    for _ in range(1 if len(z) == 2 else 8):
        corner = torch.einsum("bk,nbk->n", error(a), z).argmin()
        d = torch.nn.functional.one_hot(corner, len(z)).to(z.dtype) - a
        along = torch.einsum("n,nbk->bk", d, z)
        low, high = torch.zeros_like(a[0]), torch.ones_like(a[0])
        for _ in range(digits):
            middle = (low + high) / 2
            falls = (error(a + middle * d) * along).sum() < 0
            low, high = torch.where(falls, middle, low), torch.where(falls, high, middle)
        a = a + low * d
    return torch.einsum("n,nbk->bk", a, z)


def general(z: Tensor, y: Tensor) -> Tensor:
    """Return the combination whose error has the least expected square, weights summing to one."""
    error = (torch.softmax(z, 2) - y).flatten(1)
    c = error @ error.T / z.shape[1]
    c = c + 1e-6 * c.diagonal().mean() * torch.eye(len(z), dtype=z.dtype, device=z.device)
    w = torch.linalg.solve(c, torch.ones(len(z), dtype=z.dtype, device=z.device))
    return torch.einsum("n,nbk->bk", w / w.sum(), z)


TARGETS: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "naive": naive,
    "linear": linear,
    "min-logit": min_logit,
    "general": general,
    "mean": mean,
}
