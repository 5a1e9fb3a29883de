"""Sharpness-aware minimisation: update with the gradient at the worst point nearby.

    w <- U(w, grad L(w + e)),   e = rho g / |g|,   g = grad L(w)
    several ascents:  e <- P(e + rho g_e / |g_e|),   g_e = grad L(w + e),   P the projection onto |e| <= rho

Paper    Foret et al., ICLR 2021, arXiv:2010.01412, Algorithm 1
Code     google-research/sam @ dae9904 (the authors', JAX); davda54/sam @ 3c3afdb (widely used, PyTorch)
Cost     2 forward, 2 backward, 1 update
Limits   rho = 0 is Plain
Differs  1. weight decay is the optimizer's, at w; the authors put it into the loss, so also into the gradient
            at w + e: decay = 0.001 does that (leave out the optimizer's then).
         2. both passes see the same dropout masks, as the authors' do; davda54's draws new ones.
         3. running statistics come from the clean pass only, as the authors' do; davda54's counts both.
         4. a zero gradient gives e = 0; the authors' code has no guard and gives NaN.
         5. the reported loss is the clean pass's; the authors log the perturbed one.
Start    rho 0.05 (CIFAR-10), 0.1 (CIFAR-100) with SGD; 0.001 for transformers with Adam (RWP paper v1,
         tables 1, 9)
"""

from dataclasses import dataclass
from typing import ClassVar

from torch import nn

from steppe.core.method import Batch, Method, Runtime, StepOutput, plain_step, require
from steppe.core.numerics import vector
from steppe.core.numerics.perturbations import project, sam_perturbation, scaled_perturbation
from steppe.core.numerics.vector import Vec
from steppe.core.schedules import ScheduleValue, lowest


@dataclass(frozen=True)
class SAM(Method):
    """Minimise the loss at the first-order worst point of a ball of radius ``rho``.

    ``ascents`` is the number of ascent steps; ``norm`` 'tensor' gives each tensor its own ball, 'network' each
    network or branch of an ensemble; ``decay`` adds decay/2 |w|^2 to the loss of every pass.
    """

    controls: ClassVar[tuple[str, ...]] = ("two-step",)
    limit: ClassVar = {"rho": 0.0}
    cost: ClassVar = (2, 2, 1)

    rho: ScheduleValue = 0.05
    ascents: int = 1
    norm: str = "global"
    decay: float = 0.0

    def check(self) -> None:
        require(self, "rho", lowest(self.rho) >= 0, "a number of at least 0 (0.05 is usual)")
        require(self, "ascents", self.ascents >= 1, "at least 1")
        require(self, "norm", self.norm in ("global", "network", "tensor"), "'global', 'network' or 'tensor'")
        require(self, "decay", self.decay >= 0, "a number of at least 0")
        object.__setattr__(self, "cost", (self.ascents + 1, self.ascents + 1, 1))

    def step(self, batch: Batch, state: nn.Module, rt: Runtime) -> StepOutput:
        """Gradient at w, perturb to w + e, gradient there, restore w, update."""
        rho = rt.setting("rho", self.rho)
        if rho == 0 and not self.decay:
            return plain_step(batch, rt)
        out, g = self._gradient(batch, rt)
        offset: Vec = [None] * len(g)
        e: Vec | vector.ScaledVector
        for _ in range(self.ascents if rho else 0):
            g = rt.shared(g)
            if self.ascents > 1:
                e = offset = self._projected(vector.add(offset, self._perturbation(g, rho, rt)), rho, rt)
            else:
                e = self._scaled_perturbation(g, rho, rt)
            with rt.at(e):
                _, g = self._gradient(batch, rt)
        rt.apply(g)
        return out

    def _gradient(self, batch: Batch, rt: Runtime) -> tuple[StepOutput, Vec]:
        out, g = rt.grad(batch)
        if self.decay:
            w: Vec = [None if t is None else p.detach() for p, t in zip(rt.params, g, strict=True)]
            g = vector.add(g, w, by=self.decay)
        return out, g

    def _scaled_perturbation(self, g: Vec, rho: float | list[float], rt: Runtime) -> Vec | vector.ScaledVector:
        """Return the perturbation of a single ascent step, not multiplied out if it has one radius."""
        if self.norm == "global":
            return scaled_perturbation(g, rho)
        if self.norm == "tensor" or isinstance(rho, list):
            return self._perturbation(g, rho, rt)

        def factors(part: Vec) -> Vec:
            times = rho / (vector.norm(part) + 1e-12)
            return [None if t is None else times for t in part]

        return vector.ScaledVector(g, vector.map_groups(factors, g, rt.member))

    def _perturbation(self, g: Vec, rho: float | list[float], rt: Runtime) -> Vec:
        if self.norm == "tensor":
            return vector.scale(vector.each_unit(g), rho)
        if self.norm == "network":
            return vector.map_groups(lambda part: sam_perturbation(part, rho), g, rt.member)
        return sam_perturbation(g, rho)

    def _projected(self, offset: Vec, rho: float | list[float], rt: Runtime) -> Vec:
        if self.norm == "network":
            return vector.map_groups(lambda part: project(part, rho, "global"), offset, rt.member)
        return project(offset, rho, self.norm)
