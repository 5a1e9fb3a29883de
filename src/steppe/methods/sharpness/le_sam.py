"""Loss-equated SAM: a budget for the rise of the loss instead of a radius.

    w <- U(w, grad L(w + e)),   e = rho_t g / |g|,   rho_t = min(sigma / |g|, rho),   g = grad L(w)

To first order the loss rises by sigma, whatever the length of the gradient.

Paper    Wang et al., ICML 2026, arXiv:2605.10183
Code     smithgun2005/LE-SAM-ICML2026 @ 2b3ecd9
Cost     2 forward, 2 backward, 1 update
Limits   sigma = 0 or rho = 0 is Plain; a sigma above rho |g| is SAM
Agrees   1e-12, as the authors add 1e-12 below the root of |g|^2
Differs  1. sigma is a constant unless it is scheduled; the authors' rises in a straight line for 10 of 200 epochs
            and falls to zero along a cosine over the last 40.
         2. rho_t is computed as rho times min(1, sigma / <g, e>), e the perturbation of radius rho: the same, also
            where parameter groups have radii of their own.
         3. running statistics come from the clean pass only; the authors' code counts both.
Start    sigma 0.35 without a largest radius, rho 999 (authors' README: CIFAR-100, ResNet-18, SGD); our default,
         sigma 0.05, is SAM's rise at rho 0.05 and a gradient of length 1
"""

from dataclasses import dataclass

from steppe.core.method import Batch, Cost, InputError, Perturbing, Runtime, ScheduleValue, StepOutput, hyper
from steppe.core.method.numerics import sam_perturbation, vector


@dataclass(frozen=True)
class LESAM(Perturbing):
    """SAM at the distance at which the loss rises by ``sigma`` to first order, at most ``rho``."""

    controls = ("sam", "two-step")
    cost = Cost(2, 2, 1)

    sigma: ScheduleValue = hyper(0.05, "rise of the loss, to first order", minimum=0, plain_at=0)
    rho: ScheduleValue = hyper(0.5, "largest radius", minimum=0, plain_at=0)

    def step(self, batch: Batch, state: object, rt: Runtime) -> StepOutput:
        """Gradient at w, perturb until the loss has risen by sigma, gradient there, restore w, update."""
        out, g = rt.grad(batch)
        g = rt.shared(g)
        e = sam_perturbation(g, self.radius(rt))
        sigma = rt.setting("sigma", self.sigma)
        if isinstance(sigma, list):
            raise InputError("sigma is of the whole loss, and parameter groups have several; give all the same")
        share = vector.dot(g, e).reciprocal() * sigma
        with rt.at(vector.scale(e, share.clamp(max=1.0))):
            _, g = rt.grad(batch)
        rt.apply(g)
        return out
