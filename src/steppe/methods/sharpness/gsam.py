"""Surrogate-gap SAM: SAM that also reduces the gap between the worst loss nearby and the loss at the weights.

    w <- U(w, g_p - alpha (g - <g, u> u)),   u = g_p / |g_p|,   g_p = grad L(w + rho g / |g|),   g = grad L(w)

Paper    Zhuang et al., ICLR 2022, arXiv:2203.08065, algorithm 1
Code     juntang-zhuang/GSAM @ a770275 (PyTorch); google-research/big_vision @ aa4b5850 (the authors', JAX)
Cost     2 forward, 2 backward, 1 update
Limits   rho = 0 is Plain; alpha = 0 is SAM
Differs  1. rho is a constant unless it is tied to the learning rate, as the paper does:
            rho = with-lr(rho_max,lr_max,rho_min,lr_min).
         2. if g_p is zero, so is the gradient of the update; the authors' code then ascends the clean loss.
         3. adaptive = 'abs' scales the ascent by |w| (paper, JAX), 'square' by w^2, norm of |w| g (PyTorch).
         4. descend = 'clean' is big_vision's option: g + alpha (g_p - <g_p, v> v), v = g / |g|.
Start    ResNet-50: rho 0.04 to 0.02, alpha 0.01; ViT-B/32: rho 0.6 to 0.1, alpha 0.6 (authors' README);
         CIFAR: adaptive, rho 2, alpha 0.4 (their PyTorch example)
"""

from dataclasses import dataclass

from steppe.core.method import Batch, Cost, Perturbing, Runtime, ScheduleValue, StepOutput, hyper
from steppe.core.method.numerics import adaptive_perturbation, vector


@dataclass(frozen=True)
class GSAM(Perturbing):
    """SAM at distance ``rho``, minus ``alpha`` times the clean gradient's part orthogonal to the perturbed one."""

    controls = ("two-step",)
    cost = Cost(2, 2, 1)

    rho: ScheduleValue = hyper(0.05, "radius of the ball", minimum=0, plain_at=0)
    alpha: float = hyper(0.4, "weight of the orthogonal part", minimum=0, usual="0.01 to 1")
    adaptive: str = hyper("none", "how the ascent is scaled by the weights", choices=("none", "abs", "square"))
    descend: str = hyper("perturbed", "the gradient to which the part is added", choices=("perturbed", "clean"))

    def step(self, batch: Batch, state: object, rt: Runtime) -> StepOutput:
        """Gradient g at w, gradient g_p at w + e, restore w, update with g_p less the orthogonal part of g."""
        out, g = rt.grad(batch)
        g = rt.shared(g)
        with rt.at(adaptive_perturbation(g, self.radius(rt), rt.params, self.adaptive)):
            _, g_p = rt.grad(batch)
        g_p = rt.shared(g_p)
        if self.alpha == 0:
            rt.apply(g_p)
        elif self.descend == "clean":
            rt.apply(vector.add(g, vector.orthogonal_part(g_p, g), by=self.alpha))
        else:
            # without a perturbed gradient there is nothing to be orthogonal to
            length = vector.norm(g_p)
            part = vector.scale(vector.orthogonal_part(g, g_p), (length > 1e-12).to(length.dtype))
            rt.apply(vector.add(g_p, part, by=-self.alpha))
        return out
