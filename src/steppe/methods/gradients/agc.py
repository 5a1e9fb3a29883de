"""Adaptive gradient clipping: no output unit's gradient may exceed a fraction of that unit's weights.

    g_k <- g_k * c max(|w_k|, e) / |g_k|   where |g_k| >= c max(|w_k|, e),   else g_k

Paper    Brock et al., ICML 2021, arXiv:2102.06171, equation 3
Code     deepmind/deepmind-research nfnets @ d8df415
Cost     1 forward, 1 backward, 1 update
Limits   clipping = inf is Plain
Differs  1. the last linear layer's weight is not clipped, as in the authors' code; clip_head = True clips it too,
            as the SADT notebook does. It is that of each network, branch, and head that a method adds.
         2. units where nothing is clipped keep their gradient bit for bit.
         3. a unit of an embedding is a row, as in timm; of a transposed convolution an output channel.
Start    clipping 0.01 (paper, batch 4096; up to 0.16 for small batches), eps 1e-3
"""

from dataclasses import dataclass

import torch

from steppe.core.method import Cost, Method, Runtime, hyper
from steppe.core.method.numerics import Vec, filters, leaf


@dataclass(frozen=True)
class AGC(Method):
    """Clip each unit's gradient to ``clipping`` times its weight norm, floored at ``eps``."""

    cost = Cost(1, 1, 1)

    clipping: float = hyper(
        0.01, "largest ratio of gradient to weights", above=0, usual="0.01 to 0.16", plain_at=float("inf")
    )
    eps: float = hyper(
        1e-3,
        "least norm of a unit's weights",
        above=0,
        remedy="a number above 0: without it weights that start at zero stay there",
    )
    clip_head: bool = hyper(False, "clip the last linear layer's weight too")

    def transform(self, grads: Vec, rt: Runtime) -> Vec:
        heads = rt.once("agc heads", lambda: set(map(id, filters.output_layers(rt.net))))
        clipped: Vec = []
        for g, p, owner in zip(grads, rt.params, rt.owners, strict=True):
            if g is None or (id(owner) in heads and leaf(p).ndim > 1 and not self.clip_head):
                clipped.append(g)
                continue
            units = filters.units_of(p, owner)
            largest = self.clipping * filters.unit_norms(p.detach(), units).clamp(min=self.eps)
            norm = filters.unit_norms(g, units)
            clipped.append(torch.where(norm < largest, g, g * (largest / norm.clamp(min=1e-6))))
        return clipped
