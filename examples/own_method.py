"""A method of your own, without changing the package: SAM with the opposite perturbation."""

from dataclasses import dataclass

import torch

import steppe
from steppe.core.method import hyper
from steppe.core.method.numerics import scaled_perturbation


@dataclass(frozen=True)
class DownhillSAM(steppe.Method):
    """w <- U(w, grad L(w - rho g / |g|)),   g = grad L(w)."""

    rho: float = hyper(0.05, "length of the perturbation", minimum=0, plain_at=0)

    def step(self, batch, state, rt):
        out, g = rt.grad(batch)
        with rt.at(scaled_perturbation(g, -self.rho)):
            _, g = rt.grad(batch)
        rt.apply(g)
        return out


torch.manual_seed(0)
model = torch.nn.Linear(8, 3)
step = DownhillSAM(rho=0.1).bind(model, torch.optim.SGD(model.parameters(), lr=0.5))
x = torch.randn(90, 8)
y = x[:, :3].argmax(1)
for _ in range(50):
    out = step(x, y)
print(f"loss {out.loss:.3f} after 50 steps, {step.passes}")
