"""Gradient centralisation: subtract its mean from each output unit's gradient.

    g_k <- g_k - mean(g_k)        for every output unit k of every weight with two or more dimensions

Paper    Yong et al., ECCV 2020, arXiv:2004.01461, equation 1
Code     Yonghongwei/Gradient-Centralization @ ed2a608
Cost     1 forward, 1 backward, 1 update
Limits   on a network of vectors only (no weight with two dimensions) it is Plain
Differs  1. units with a single weight are not changed; the authors' code freezes them (their mean is themselves).
         2. the raw gradient is centred before the optimizer, weight decay is not; the authors' SGD centres
            the sum of gradient and weight decay, their Adam by default the final direction.
         3. transposed convolutions (also grouped ones) are centred per output channel, embeddings not at all; the
            authors' code centres over all dimensions but the first.
Start    nothing to set; conv_only = True does not centre linear layers (authors' option)
"""

from dataclasses import dataclass

from steppe.core.method import Cost, Method, Runtime, hyper
from steppe.core.method.numerics import Vec, filters, leaf


@dataclass(frozen=True)
class GC(Method):
    """Centralise the gradient of each output unit."""

    cost = Cost(1, 1, 1)

    conv_only: bool = hyper(False, "of convolutions only")

    def transform(self, grads: Vec, rt: Runtime) -> Vec:
        centred: Vec = []
        for g, p, owner in zip(grads, rt.params, rt.owners, strict=True):
            units = None if isinstance(owner, filters.EMBEDDINGS) else filters.units_of(p, owner)
            if g is None or units is None or units.fan_in(p) == 1 or (self.conv_only and leaf(p).ndim < 3):
                centred.append(g)
            else:
                centred.append(g - units.reduce(lambda t, dims: t.mean(dims, keepdim=True), g))
        return centred
