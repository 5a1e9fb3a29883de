"""Efficient SAM: perturb some of the weights, and update on the sharpest samples.

    w <- U(w, grad L_{B+}(w + e)),   e = (rho / beta) g_S / |g_S|,   g_S: that of a random part S of the tensors
    B+: the gamma |B| samples whose loss rises most from w to w + e

Paper    Du et al., ICLR 2022, arXiv:2110.03141, algorithm 1
Code     dydjw9/Efficient_SAM @ 1e06840
Cost     3 forward, 2 backward, 1 update at most; with gamma: 2 + gamma forward, 1 + gamma backward, of which the
         first leaves out the weights that are not in S
Limits   rho = 0 with gamma = 1 is Plain; beta = gamma = 1 is SAM
Differs  1. S is made of whole tensors, each kept with probability beta (authors' code), which saves backward work;
            mask = 'element' is the paper's form: elements kept, the norm that of the whole gradient.
         2. exactly max(2, floor(gamma |B|)) samples are kept, two because BatchNorm takes no single one; the
            authors' code keeps one less than floor(gamma |B|), and none on ties.
         3. at least one tensor is kept; dropout masks are replayed where the losses are compared; running
            statistics come from the first pass only, the authors' code counts all three.
         4. each process chooses among its own samples, by what each adds to the loss: weighted by class, if the
            loss is; samples whose labels are all ignored come last.
         5. a model with a backward pass in Python (reentrant checkpoints) computes it in full for all weights.
Start    rho 0.05, beta 0.6, gamma 0.5 (CIFAR, ResNet-18, authors' script)
"""

import math
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import nn

from steppe.core.method import Batch, Method, Runtime, StepOutput, plain_step, require
from steppe.core.numerics import vector
from steppe.core.numerics.perturbations import sam_perturbation, scaled_perturbation
from steppe.core.numerics.vector import Vec
from steppe.core.schedules import ScheduleValue, lowest


@dataclass(frozen=True)
class ESAM(Method):
    """SAM at distance ``rho`` in a share ``beta`` of the weights, on a share ``gamma`` of the samples."""

    controls: ClassVar[tuple[str, ...]] = ("plain", "two-step")
    single: ClassVar = "it compares the losses of single samples at one network's outputs"
    limit: ClassVar = {"rho": 0.0, "gamma": 1.0}
    local: ClassVar = "each process chooses among its own samples"

    rho: ScheduleValue = 0.05
    beta: float = 0.6
    gamma: float = 0.5
    mask: str = "tensor"

    def check(self) -> None:
        require(self, "rho", lowest(self.rho) >= 0, "a number of at least 0 (0.05 is usual)")
        require(self, "beta", 0 < self.beta <= 1, "a number above 0 and at most 1 (0.6 is usual)")
        require(self, "gamma", 0 < self.gamma <= 1, "a number above 0 and at most 1 (0.5 is usual)")
        require(self, "mask", self.mask in ("tensor", "element"), "'tensor' or 'element'")
        sharp = 0 if self.gamma == 1 else 1
        object.__setattr__(self, "cost", (1 + sharp + self.gamma, 1 + self.gamma, 1))

    def step(self, batch: Batch, state: nn.Module, rt: Runtime) -> StepOutput:
        """Perturb a part of w, choose the sharpest samples, take their gradient, restore w, update."""
        rho = rt.setting("rho", self.rho)
        if rho == 0 and self.gamma == 1:
            return plain_step(batch, rt)
        out, g = rt.grad(batch, where=self._tensors(rt))
        with rt.at(self._perturbation(rt.shared(g), rho, rt)):
            sharp = batch if self.gamma == 1 else self._sharpest(batch, out, rt)
            _, g = rt.grad(sharp)
        rt.apply(g)
        return out

    def _tensors(self, rt: Runtime) -> list[bool] | None:
        """Return which tensors are perturbed, None for all."""
        if self.beta == 1 or self.mask == "element":
            return None
        uniform = torch.rand(len(rt.params), generator=rt.rng, device=rt.rng.device)
        chosen = uniform < self.beta
        chosen[uniform.argmin()] = True
        return [bool(c) for c in chosen.tolist()]

    def _perturbation(self, g: Vec, rho: float | list[float], rt: Runtime) -> Vec | vector.ScaledVector:
        if self.beta == 1:
            return scaled_perturbation(g, rho)
        offset = vector.scale(sam_perturbation(g, rho), 1 / self.beta)
        if self.mask == "tensor":
            return offset
        return vector.times(offset, vector.bernoulli(rt.params, self.beta, rt.rng))

    def _sharpest(self, batch: Batch, out: StepOutput, rt: Runtime) -> Batch:
        before, after = rt.losses(out.logits, batch), rt.losses(rt.outputs(batch), batch)
        # a sample whose labels are all ignored adds 0 to both, and comes last
        rise = (after - before).masked_fill((after == 0) & (before == 0), -math.inf)
        count = max(min(2, len(batch)), math.floor(self.gamma * len(batch)))
        return batch.take(rise.topk(count).indices.sort().values)
