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
from typing import ClassVar

import torch
from torch import nn

from steppe.core.method import Batch, Method, Runtime, StepOutput, plain_step, require
from steppe.core.numerics import vector
from steppe.core.numerics.perturbations import scaled_perturbation
from steppe.core.numerics.vector import Vec
from steppe.core.schedules import ScheduleValue, lowest
from steppe.core.state.param_state import ParamState

_TINY = 1e-12


@dataclass(frozen=True)
class LookSAM(Method):
    """SAM at distance ``rho`` on every ``k``-th step, its direction with weight ``alpha`` on the others."""

    controls: ClassVar[tuple[str, ...]] = ("plain",)
    limit: ClassVar = {"rho": 0.0}
    cost: ClassVar = (2, 2, 1)

    rho: ScheduleValue = 0.1
    k: int = 5
    alpha: float = 0.7
    norm: str = "global"
    layerwise: bool = False
    cap: float | None = None

    def check(self) -> None:
        require(self, "rho", lowest(self.rho) >= 0, "a number of at least 0 (0.1 is usual)")
        require(self, "k", self.k >= 1, "at least 1 (5 is usual)")
        require(self, "alpha", self.alpha >= 0, "a number of at least 0 (0.7 is usual)")
        require(self, "norm", self.norm in ("global", "tensor"), "'global' or 'tensor'")
        require(self, "cap", self.cap is None or self.cap > 0, "a number above 0, or leave it out")

    def init(self, net: nn.Module) -> nn.Module:
        """Keep v."""
        return ParamState(net)

    def step(self, batch: Batch, state: nn.Module, rt: Runtime) -> StepOutput:
        """A step of SAM that stores v, or an update with the gradient plus the stored v."""
        rho = rt.setting("rho", self.rho)
        if rho == 0:
            return plain_step(batch, rt)
        assert isinstance(state, ParamState)
        out, g = rt.grad(batch)
        if rt.now.step % self.k == 0:
            common = rt.shared(g)
            with rt.at(self._layerwise(common, rho, rt) if self.layerwise else scaled_perturbation(common, rho)):
                _, g_s = rt.grad(batch)
            added = self._added(rt.all_reduce_mean(g_s), rt.all_reduce_mean(g)) if self.k > 1 else None
            rt.apply(g_s)
            if added is not None:
                state.write(rt.params, rt.net, added)
        elif self.alpha == 0 or not state.writes:
            rt.apply(g)
        else:
            g = rt.shared(g)
            rt.apply(vector.add(g, self._rescaled(g, state.read(rt.params, rt.net)), by=self.alpha))
        return out

    def _added(self, g_s: Vec, g: Vec) -> Vec:
        """Return v, the part of g_s orthogonal to g."""
        if self.norm == "global":
            return vector.orthogonal_part(g_s, g)
        return [vector.orthogonal_part([s], [t])[0] for s, t in zip(g_s, g, strict=True)]

    def _rescaled(self, g: Vec, added: Vec) -> Vec:
        """Return v at the length of the present gradient, None where that is None."""
        added = vector.only(added, [t is not None for t in g])
        if self.norm == "global":
            return vector.scale(added, vector.norm(g) / (vector.norm(added) + _TINY))
        return [
            None if v is None else v * (vector.norm([t]) / (vector.norm([v]) + _TINY))
            for v, t in zip(added, g, strict=True)
        ]

    def _layerwise(self, g: Vec, rho: float | list[float], rt: Runtime) -> Vec:
        """Return e of Look-LayerSAM."""
        radii = rho if isinstance(rho, list) else [rho] * len(g)
        offset: Vec = []
        for t, p, radius in zip(g, rt.params, radii, strict=True):
            if t is None or radius == 0:
                offset.append(None)
                continue
            length = vector.norm([t])
            ratio = vector.norm([p.detach()]) / (length + _TINY)
            ratio = torch.where(length > 0, ratio, 0.0)
            offset.append(t * (radius * (ratio if self.cap is None else ratio.clamp(max=self.cap))))
        return offset
