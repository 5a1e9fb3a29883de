"""Sharpness-aware minimisation: descend with the gradient taken at the worst point nearby.

    w <- U(w, grad L(w + e)),   e = rho g / |g|,   g = grad L(w)

Paper    Foret et al., ICLR 2021, arXiv:2010.01412, Algorithm 1
Code     google-research/sam @ dae9904 (the authors', JAX); davda54/sam @ 3c3afdb (widely used, PyTorch)
Cost     2 forward, 2 backward, 1 update
Limits   rho = 0 is Plain
Differs  1. weight decay is the optimizer's, at w; the authors put it into the loss, so also into the gradient
            at w + e.
         2. both passes see the same dropout masks, as the authors' do; davda54's draws new ones.
         3. running statistics come from the clean pass only, as the authors' do; davda54's counts both.
         4. a zero gradient gives e = 0; the authors' code has no guard and gives NaN.
         5. the reported loss is the clean pass's; the authors log the perturbed one.
Start    rho 0.05 (CIFAR-10), 0.1 (CIFAR-100) with SGD; 0.001 for transformers with Adam (RWP paper, tables 1, 9)
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import nn

from steppe.batch import Batch
from steppe.method import Method, descend, require
from steppe.perturb import ascent
from steppe.runtime import Out, Runtime
from steppe.schedule import Value, lowest


@dataclass(frozen=True)
class SAM(Method):
    """Minimise the loss at the first-order worst point of a ball of radius ``rho``."""

    controls: ClassVar[tuple[str, ...]] = ("two-step",)

    rho: Value = 0.05

    def check(self) -> None:
        """Rho is a radius."""
        require(self, "rho", lowest(self.rho) >= 0, "a number of at least 0 (0.05 is usual)")

    def step(self, batch: Batch, state: nn.Module, rt: Runtime) -> Out:
        """Climb, look, come back, descend."""
        rho = rt.setting("rho", self.rho)
        if rho == 0:
            return descend(batch, rt)
        out, g = rt.grad(rt.objective, batch)
        with rt.at(ascent(rt.shared(g), rho)):
            _, g = rt.grad(rt.objective, batch)
        rt.apply(g)
        return out
