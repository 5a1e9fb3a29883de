"""Low-pass filter SGD: minimise the loss smoothed by a Gaussian, with a sample of it per part of the batch.

    w <- U(w, 1/M sum_i grad L_{B_i}(w + n_i)),   n_i ~ N(0, (gamma |w_k|)^2) per filter,   B = B_1 + ... + B_M

Paper    Bisla et al., AISTATS 2022, arXiv:2201.08025, algorithm 1
Code     devansh20la/LPF-SGD @ 378896c
Cost     1 forward, 1 backward, 1 update
Limits   gamma = 0 is Plain
Differs  1. gamma is a constant unless scheduled; the paper's is gamma_0 (1 + alpha (1 - cos(pi t / T)) / 2), here
            gamma = cosine(gamma_0,gamma_0 (1 + alpha)).
         2. running statistics come from the noisy passes, the only ones, as in the authors' code.
Start    M 8, gamma cosine(0.0005,0.008) (wide networks); M 1, gamma 0.002 (CIFAR) or 0.0005 (ImageNet) for ResNets
"""

from dataclasses import dataclass
from itertools import pairwise

import torch

from steppe.core.method import Batch, Cost, Perturbing, Runtime, ScheduleValue, StepOutput, hyper, join_logits
from steppe.core.method.numerics import ScaledVector, Vec, filters, vector


@dataclass(frozen=True)
class LPFSGD(Perturbing):
    """Update with the mean gradient of ``M`` parts of the batch, each at its own filter-wise noise ``gamma``."""

    controls = ("plain",)
    cost = Cost(1, 1, 1)
    local = "each part of a process's batch has noise of its own"

    gamma: ScheduleValue = hyper(5e-4, "noise, relative to a filter's norm", minimum=0, plain_at=0)
    M: int = hyper(8, "parts of the batch", minimum=1)

    def step(self, batch: Batch, state: object, rt: Runtime) -> StepOutput:
        """Gradient of each part at its own noise, restore w, update with their mean."""
        total: Vec = [None] * len(rt.params)
        outs = []
        deviation = filters.filter_deviation(rt.params, rt.owners, self.radius(rt, "gamma"))
        count = max(1, min(self.M, len(batch) // 2))  # BatchNorm refuses a part of a single sample
        for a, b in pairwise(i * len(batch) // count for i in range(count + 1)):
            part = batch.take(slice(a, b))
            weight = rt.weight(part) / rt.weight(batch)
            with rt.at(ScaledVector(vector.gaussian(rt.params, rt.rng), deviation), clean=True):
                out, g = rt.grad(part)
            total = vector.gather(total, g, weight)
            outs.append(StepOutput(out.loss * weight, out.logits))
        rt.apply(total)
        return StepOutput(torch.stack([o.loss for o in outs]).sum(), join_logits([o.logits for o in outs]))
