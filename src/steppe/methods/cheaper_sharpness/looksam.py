"""LookSAM: perturb only on every k-th step, and reuse what the perturbed gradient added in between.

    every k-th step   w <- U(w, g_s),   g_s = grad L(w + e),   v = g_s - <g_s, u> u,   u = g / |g|
    other steps       w <- U(w, g + alpha |g| v / |v|)
    LookSAM: e = rho g / |g|        Look-LayerSAM: e_l = rho |w_l| g_l / |g_l| for each tensor l

Paper    Liu et al., CVPR 2022, arXiv:2203.02714, algorithm 1 and section 3.3
Code     none official; rollovd/LookSAM @ 8f5c8ef, Leminhbinh0209/LookSAM @ 4040208
Cost     2 forward, 2 backward, 1 update; on average 1 + 1/k forward and backward
Limits   rho = 0 is Plain; k = 1 is SAM; alpha = 0 is SAM on every k-th step
Differs  1. inner products and norms are over all parameters (paper); norm = 'tensor' takes each tensor's own, as
            the code of rollovd and of pytorch_optimizer does.
         2. v is formed from the gradients of all processes, so that it is the same on all.
         3. layerwise: tensors whose weight or gradient is zero are not perturbed; the trust ratio |w| / |g| may
            be capped (cap).
Start    k 5, alpha 0.7, rho 0.1; layerwise for batches of 4,096 and more (paper)
"""

from dataclasses import dataclass

from steppe.core.method import Batch, Cost, ParamState, Perturbing, Runtime, ScheduleValue, StepOutput, hyper
from steppe.core.method.numerics import at_length_of, orthogonal_part, perturbations, vector


class PerturbedPart(ParamState):
    """v, what the last perturbed gradient added."""

    v = ParamState.Vector()


@dataclass(frozen=True)
class LookSAM(Perturbing[PerturbedPart]):
    """SAM at distance ``rho`` on every ``k``-th step, its direction with weight ``alpha`` on the others."""

    controls = ("plain",)
    cost = Cost(2, 2, 1)

    rho: ScheduleValue = hyper(0.1, "radius of the ball", minimum=0, plain_at=0)
    k: int = hyper(5, "one step in k is SAM's", minimum=1)
    alpha: float = hyper(0.7, "weight of v on the other steps", minimum=0)
    norm: str = hyper("global", "norms and products over all, or per tensor", choices=("global", "tensor"))
    layerwise: bool = hyper(False, "perturb each tensor by its own norm (Look-LayerSAM)")
    cap: float | None = hyper(None, "largest ratio |w_l| / |g_l| of layerwise", above=0)

    def step(self, batch: Batch, state: PerturbedPart, rt: Runtime) -> StepOutput:
        """A step of SAM that stores v, or an update with the gradient plus the stored v."""
        rho = self.radius(rt)
        out, g = rt.grad(batch)
        if rt.decide(lambda: rt.now.step % self.k == 0):
            s = rt.shared(g)
            layers = perturbations.layerwise_perturbation(s, rho, rt.params, self.cap) if self.layerwise else None
            with rt.at(layers or perturbations.scaled_perturbation(s, rho)):
                _, g_s = rt.grad(batch)
            v = orthogonal_part(rt.all_reduce_mean(g_s), rt.all_reduce_mean(g), self.norm) if self.k > 1 else None
            rt.apply(g_s)
            if v is not None:
                state.v = v
        elif self.alpha == 0 or rt.decide(lambda: not state.writes):
            rt.apply(g)
        else:
            g = rt.shared(g)
            rt.apply(vector.add(g, at_length_of(g, state.v, self.norm), by=self.alpha))
        return out
