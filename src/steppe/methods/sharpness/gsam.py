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
from typing import ClassVar

from torch import nn

from steppe.core.method import Batch, Method, Runtime, StepOutput, plain_step, require
from steppe.core.numerics import vector
from steppe.core.numerics.perturbations import sam_perturbation, scaled_perturbation
from steppe.core.numerics.vector import Vec
from steppe.core.schedules import ScheduleValue, lowest


@dataclass(frozen=True)
class GSAM(Method):
    """SAM at distance ``rho``, minus ``alpha`` times the clean gradient's part orthogonal to the perturbed one."""

    controls: ClassVar[tuple[str, ...]] = ("two-step",)
    limit: ClassVar = {"rho": 0.0}
    cost: ClassVar = (2, 2, 1)

    rho: ScheduleValue = 0.05
    alpha: float = 0.4
    adaptive: str = "none"
    descend: str = "perturbed"

    def check(self) -> None:
        require(self, "rho", lowest(self.rho) >= 0, "a number of at least 0 (0.05 is usual)")
        require(self, "alpha", self.alpha >= 0, "a number of at least 0 (0.01 to 1)")
        require(self, "adaptive", self.adaptive in ("none", "abs", "square"), "'none', 'abs' or 'square'")
        require(self, "descend", self.descend in ("perturbed", "clean"), "'perturbed' or 'clean'")

    def step(self, batch: Batch, state: nn.Module, rt: Runtime) -> StepOutput:
        """Gradient g at w, gradient g_p at w + e, restore w, update with g_p less the orthogonal part of g."""
        rho = rt.setting("rho", self.rho)
        if rho == 0:
            return plain_step(batch, rt)
        out, g = rt.grad(batch)
        g = rt.shared(g)
        with rt.at(self._perturbation(g, rho, rt)):
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

    def _perturbation(self, g: Vec, rho: float | list[float], rt: Runtime) -> Vec | vector.ScaledVector:
        if self.adaptive == "none":
            return scaled_perturbation(g, rho)
        size: Vec = [p.detach().abs() for p in rt.params]
        if self.adaptive == "abs":
            return vector.times(sam_perturbation(g, rho), size)
        return vector.times(sam_perturbation(vector.times(g, size), rho), size)
