"""Adaptive sharpness-aware minimisation: SAM in a ball that is measured relative to the weights.

    w <- U(w, grad L(w + e)),   e = rho T^2 g / |T g|,   g = grad L(w),   T = |w| + eta for weights, 1 for biases

Paper    Kwon et al., ICML 2021, arXiv:2102.11600, equation 5
Code     SamsungLabs/ASAM @ f156a68; davda54/sam @ 3c3afdb (adaptive = True)
Cost     2 forward, 2 backward, 1 update
Limits   rho = 0 is Plain
Agrees   4e-12 with mueller-mp/SAM-ON @ d0fa4c9 (also where = norm)
Differs  1. a weight is what its module calls so; the authors' code looks for 'weight' in the full name.
         2. scaling = 'all' is davda54's form: T = |w| for every parameter (eta is not used). Zero weights are
            then never perturbed. Its best rho is about four times larger.
         3. running statistics come from the clean pass only; the authors' code counts both.
Start    rho 0.5 (CIFAR-10) or 1.0 (CIFAR-100 and ImageNet), eta 0.01 (authors' class; their script has 0);
         rho 2 with scaling = 'all' (davda54's example)
"""

from dataclasses import dataclass

from steppe.core.method import Batch, Cost, Perturbing, Runtime, ScheduleValue, StepOutput, hyper
from steppe.core.method.numerics import asam_scale, scaled_perturbation


@dataclass(frozen=True)
class ASAM(Perturbing):
    """Minimise the loss at the worst point of a ball whose radius ``rho`` is relative to each weight."""

    controls = ("two-step",)
    cost = Cost(2, 2, 1)

    rho: ScheduleValue = hyper(0.5, "radius of the ball, relative to the weights", minimum=0, plain_at=0)
    eta: float = hyper(0.01, "added to |w|", minimum=0, usual="0.01 or 0")
    scaling: str = hyper("weights", "parameters whose ball is relative", choices=("weights", "all"))

    def step(self, batch: Batch, state: object, rt: Runtime) -> StepOutput:
        """Gradient at w, perturb in the scaled space, gradient there, restore w, update."""
        out, g = rt.grad(batch, where=self.perturbed(rt))
        t = asam_scale(rt.params, rt.owners, None if self.scaling == "all" else self.eta)
        with rt.at(scaled_perturbation(rt.shared(g), self.radius(rt), t)):
            _, g = rt.grad(batch, last=True)
        rt.apply(g)
        return out
