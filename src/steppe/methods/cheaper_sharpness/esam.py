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

import torch

from steppe.core.method import Batch, Cost, Perturbing, Runtime, ScheduleValue, StepOutput, hyper
from steppe.core.method.numerics import Offset, Vec, sam_perturbation, scaled_perturbation, vector


@dataclass(frozen=True)
class ESAM(Perturbing):
    """SAM at distance ``rho`` in a share ``beta`` of the weights, on a share ``gamma`` of the samples."""

    controls = ("plain", "two-step")
    single = "it compares the losses of single samples at one network's outputs"
    local = "each process chooses among its own samples"

    rho: ScheduleValue = hyper(0.05, "radius of the ball", minimum=0, plain_at=0)
    beta: float = hyper(0.6, "share of the weights that are perturbed", above=0, maximum=1)
    gamma: float = hyper(0.5, "share of the samples of the update", above=0, maximum=1, plain_only_at=1)
    mask: str = hyper("tensor", "what is perturbed or not as a whole", choices=("tensor", "element"))

    @property
    def cost(self) -> Cost:
        return Cost(1 + (self.gamma != 1) + self.gamma, 1 + self.gamma, 1)

    @property
    def on_host(self) -> str:
        tensors = self.beta != 1 and self.mask == "tensor"
        return "it chooses tensors (mask='element' or beta=1 needs no host)" if tensors else ""

    def step(self, batch: Batch, state: object, rt: Runtime) -> StepOutput:
        """Perturb a part of w, choose the sharpest samples, take their gradient, restore w, update."""
        out, g = rt.grad(batch, where=self._tensors(rt))
        with rt.at(self._perturbation(rt.shared(g), rt)):
            _, g = rt.grad(batch if self.gamma == 1 else self._sharpest(batch, out, rt))
        rt.apply(g)
        return out

    def _tensors(self, rt: Runtime) -> list[bool] | None:
        """Return which tensors are perturbed, None for all."""
        where = self.perturbed(rt)
        if self.beta == 1 or self.mask == "element":
            return where
        rng = rt.host_rng
        uniform = torch.rand(len(rt.params), generator=rng, device=rng.device)
        if where is not None:
            uniform = uniform.masked_fill(~torch.tensor(where), 2.0)
        chosen: list[bool] = (uniform < self.beta).tolist()
        numbers = uniform.tolist()
        chosen[numbers.index(min(numbers))] = True
        return chosen

    def _perturbation(self, g: Vec, rt: Runtime) -> Offset:
        rho = self.radius(rt)
        if self.beta == 1:
            return scaled_perturbation(g, rho)
        e = vector.scale(sam_perturbation(g, rho), 1 / self.beta)
        return e if self.mask == "tensor" else vector.times(e, vector.bernoulli(rt.params, self.beta, rt.rng))

    def _sharpest(self, batch: Batch, out: StepOutput, rt: Runtime) -> Batch:
        """Return the samples whose loss rises most."""
        before, after = rt.losses(out.logits, batch), rt.losses(rt.outputs(batch), batch)
        # a sample whose labels are all ignored adds 0 to both, and comes last
        rise = (after - before).masked_fill((after == 0) & (before == 0), -math.inf)
        count = max(min(2, len(batch)), math.floor(self.gamma * len(batch)))
        return batch.take(rise.topk(count).indices.sort().values)
