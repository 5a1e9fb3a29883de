"""Momentum-SAM: perturb along the optimizer's momentum, which costs no second pass.

    w <- U(w, grad L(w - rho v / |v|)),   v the momentum of U:  v <- mu v + g of SGD, the first moment of Adam

Paper    Becker, Altrock and Risse, 2024, arXiv:2401.12033, algorithm 1
Code     MarlonBecker/MSAM @ 780fa4f
Cost     1 forward, 1 backward, 1 update
Limits   rho = 0 is Plain
Agrees   5e-16 with the authors' SGD, 2e-16 with their AdamW (no BatchNorm), without weight decay
Differs  1. weight decay is the optimizer's, at w. The authors' SGD adds that of the perturbed weights (7e-4 apart
            with decay 5e-4, 7e-16 with it in the loss); their AdamW decays after its update (1e-3 apart with 0.1).
         2. the weights are w between steps; the authors' optimizer leaves them perturbed until it is told to move
            back, before an evaluation.
         3. running statistics come from the perturbed pass, the only one, as in the authors' code.
Start    rho 3 (authors' README: CIFAR-100 and ImageNet, SGD and AdamW)
"""

from dataclasses import dataclass

from steppe.core.method import Batch, Cost, Perturbing, Runtime, ScheduleValue, StepOutput, hyper
from steppe.core.method.numerics import scaled_perturbation, vector


@dataclass(frozen=True)
class MSAM(Perturbing):
    """Minimise the loss at distance ``rho`` along the optimizer's momentum."""

    controls = ("plain",)
    cost = Cost(1, 1, 1)

    rho: ScheduleValue = hyper(3.0, "length of the perturbation", minimum=0, plain_at=0)

    def step(self, batch: Batch, state: object, rt: Runtime) -> StepOutput:
        """Perturb along the momentum, gradient there, restore w, update."""
        v = rt.momentum()
        with rt.at(scaled_perturbation(vector.scale(v, -1.0), self.radius(rt)), clean=True):
            out, g = rt.grad(batch, last=True)
        rt.apply(g)
        return out
