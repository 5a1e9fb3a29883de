"""Adaptive gradient clipping: no output unit's gradient may exceed a fraction of that unit's weights.

    g_k <- g_k * c max(|w_k|, e) / |g_k|   where |g_k| >= c max(|w_k|, e),   else g_k

Paper    Brock et al., ICML 2021, arXiv:2102.06171, equation 3
Code     deepmind/deepmind-research nfnets @ d8df415
Cost     1 forward, 1 backward, 1 update
Limits   clipping = inf is Plain
Differs  1. the last linear layer's weight is not clipped, as in the authors' code; clip_head = True clips it too,
            as the SADT notebook does.
         2. units where nothing is clipped keep their gradient bit for bit.
         3. a unit of an embedding is a row, as in timm; of a transposed convolution an output channel.
Start    clipping 0.01 (paper, batch 4096; up to 0.16 for small batches), eps 1e-3
"""

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import nn

from steppe.core.method import Method, Runtime, require
from steppe.core.numerics.complex_params import leaf
from steppe.core.numerics.filters import last_of, unit_norms, units_of
from steppe.core.numerics.vector import Vec


@dataclass(frozen=True)
class AGC(Method):
    """Clip each unit's gradient to ``clipping`` times its weight norm, floored at ``eps``."""

    limit: ClassVar = {"clipping": float("inf")}
    cost: ClassVar = (1, 1, 1)

    clipping: float = 0.01
    eps: float = 1e-3
    clip_head: bool = False

    def check(self) -> None:
        require(self, "clipping", self.clipping > 0, "a number above 0 (0.01 to 0.16)")
        require(self, "eps", self.eps > 0, "a number above 0: without it weights that start at zero stay there")

    def transform(self, grads: Vec, rt: Runtime) -> Vec:
        head = rt.once("agc head", lambda: last_of(rt.net, nn.Linear))
        clipped: Vec = []
        for g, p, owner in zip(grads, rt.params, rt.owners, strict=True):
            if g is None or (owner is head and leaf(p).ndim > 1 and not self.clip_head):
                clipped.append(g)
                continue
            units = units_of(p, owner)
            largest = self.clipping * unit_norms(p.detach(), units).clamp(min=self.eps)
            norm = unit_norms(g, units)
            clipped.append(torch.where(norm < largest, g, g * (largest / norm.clamp(min=1e-6))))
        return clipped
