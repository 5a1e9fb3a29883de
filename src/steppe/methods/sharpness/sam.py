"""Sharpness-aware minimisation: update with the gradient at the worst point nearby.

    w <- U(w, grad L(w + e)),   e = rho g / |g|,   g = grad L(w)
    several ascents:  e <- P(e + rho g_e / |g_e|),   g_e = grad L(w + e),   P the projection onto |e| <= rho
    where = norm (SAM-ON):  g that of the norm parameters alone, e = 0 elsewhere
    norm = none (unnormalised SAM):  e <- e + rho g_e, from e = 0

Paper    Foret et al., ICLR 2021, arXiv:2010.01412, Algorithm 1; SAM-ON: Mueller et al., NeurIPS 2023, 2306.04226
Code     google-research/sam @ dae9904 (the authors', JAX); davda54/sam @ 3c3afdb (widely used, PyTorch);
         mueller-mp/SAM-ON @ d0fa4c9
Cost     2 forward, 2 backward, 1 update
Limits   rho = 0 is Plain
Agrees   4e-16 with davda54's step and 0 with norm = none (cltan023/stablesam2024); 4e-12 with SAM-ON, whose guard
         against a zero gradient is another
Differs  1. weight decay is the optimizer's, at w; the authors put it into the loss, so also into the gradient
            at w + e: decay = 0.001 does that (leave out the optimizer's then).
         2. both passes see the same dropout masks, as the authors' do; davda54's draws new ones.
         3. running statistics come from the clean pass only, as the authors'; davda54's and SAM-ON's count both.
         4. a zero gradient gives e = 0; the authors' code has no guard and gives NaN.
         5. the reported loss is the clean pass's; the authors log the perturbed one.
         6. where = norm saves the other weights' backward pass in the first pass (no compiled or sharded model).
         7. norm = 'none' is Andriushchenko and Flammarion's (ICML 2022, arXiv:2206.06232): its rho is another
            quantity, the step of an ascent.
Start    rho 0.05 (CIFAR-10), 0.1 (CIFAR-100) with SGD; 0.001 for transformers with Adam (RWP v1, tables 1, 9);
         SAM-ON: search far larger radii, as few weights are perturbed (authors' ASAM-ON: 10). Not for
         language-model pretraining: there plain SAM is worse than AdamW, also at twice its compute (Singh et al.,
         ICML 2025, arXiv:2502.02407, 24M to 1.2B parameters); see functional-sam
"""

from dataclasses import dataclass

from steppe.core.method import Batch, Cost, Perturbing, Runtime, ScheduleValue, StepOutput, hyper
from steppe.core.method.numerics import NORMS, Offset, ball_perturbation, vector, with_decay


@dataclass(frozen=True)
class SAM(Perturbing):
    """Minimise the loss at the first-order worst point of a ball of radius ``rho``."""

    controls = ("two-step",)

    rho: ScheduleValue = hyper(0.05, "radius of the ball", minimum=0, plain_at=0)
    ascents: int = hyper(1, "ascent steps", minimum=1)
    norm: str = hyper("global", "one ball, one per network or tensor, or no ball", choices=NORMS)
    decay: float = hyper(0.0, "adds decay/2 |w|^2 to the loss of every pass", minimum=0, plain_only_at=0)

    @property
    def cost(self) -> Cost:
        return Cost(self.ascents + 1, self.ascents + 1, 1)

    def step(self, batch: Batch, state: object, rt: Runtime) -> StepOutput:
        """Gradient at w, perturb to w + e, gradient there, restore w, update."""
        rho = self.radius(rt)
        out, g = with_decay(rt.grad(batch, where=self.perturbed(rt, rho)), rt.params, self.decay)
        e: Offset | None = None if self.ascents == 1 else [None] * len(g)
        for left in reversed(range(self.ascents if vector.nonzero(rho) else 0)):
            e = ball_perturbation(rt.shared(g), rho, self.norm, rt.member, e)
            with rt.at(e):
                _, g = with_decay(rt.grad(batch, last=not left), rt.params, self.decay)
        rt.apply(g)
        return out
