"""Flat-LoRA: train low-rank adapters at random noise on the full weights, not in the adapters' own subspace.

    w <- U(w, grad L(W' + n)),   W' = W + s B A,   n ~ N(0, (rho |W'_k| / sqrt(d))^2) for every element of row k
    W the frozen weight below an adapter, w the trainable weights (A, B and others), d the inputs of a row

Paper    Li et al., ICML 2025, arXiv:2409.14396, algorithm 1
Code     nblt/Flat-LoRA @ bbe6732
Cost     1 forward, 1 backward, 1 update
Limits   rho = 0 is Plain
Agrees   3e-16 with SGD, 2e-16 with AdamW, for the same noise and rho = cosine(0,0.3)
Differs  1. rho is a constant unless it is scheduled; the paper's rises, rho = cosine(0,0.05).
         2. W is restored from a copy, bit for bit; the authors store the noise's seed and subtract it again, which
            takes no memory and moves W by rounding errors (4e-16 in 10 steps of float64).
         3. a network without adapters has its trainable kernels in the place of W'.
         4. the running statistics come from the noisy pass, the only one.
Start    rho cosine(0,0.05) (paper: T5, ViT and Llama with LoRA)
"""

from dataclasses import dataclass

from steppe.core.method import Batch, Cost, Method, Runtime, ScheduleValue, StepOutput, hyper
from steppe.core.method.numerics import ScaledVector, Vec, filters, full_weights, vector


@dataclass(frozen=True)
class FlatLoRA(Method):
    """Minimise the loss at noise of size ``rho`` on the full weights below low-rank adapters."""

    controls = ("plain", "lpf-sgd")
    cost = Cost(1, 1, 1)

    rho: ScheduleValue = hyper(0.05, "noise, relative to the root mean square of a row", minimum=0, plain_at=0)

    def step(self, batch: Batch, state: object, rt: Runtime) -> StepOutput:
        """Gradient at noise on the full weights, restore them, update."""
        weights = rt.once("full weights", lambda: full_weights(rt.net, rt.params, rt.owners))
        tensors, rho = [w.tensor for w in weights], rt.setting("rho", self.rho)
        deviation: Vec = []
        for w in weights:
            whole, units = w.value(), filters.units_of(w.tensor, w.owner)
            inputs = units.fan_in(whole) if units else whole.numel()
            deviation.append(filters.unit_norms(whole, units) * (w.own(rho) / inputs**0.5))
        with rt.at(ScaledVector(vector.gaussian(tensors, rt.rng), deviation), clean=True, of=tensors):
            out, g = rt.grad(batch)
        rt.apply(g)
        return out
