"""Low-rank perturbations of a network's full weights that ascend."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from steppe.core.method.optimizer_state import first_update
from steppe.core.numerics import vector
from steppe.core.numerics._adapters import FullWeight
from steppe.core.numerics.complex_params import leaf
from steppe.core.numerics.vector import Vec

if TYPE_CHECKING:
    from steppe.core.runtime import Runtime


class AuxiliaryAdapters(nn.Module):
    """Factors B (m, r) and A (r, n) of a perturbation B A of each full weight, seen as m rows of n.

    B starts at zero and A at random, as those of an adapter: the first perturbation is zero. r is ``rank``, at
    most m and n.
    """

    content = "two factors of each full weight"

    def __init__(self, rank: int):
        super().__init__()
        self.rank = rank

    def perturbation(self, weights: Sequence[FullWeight], rt: Runtime) -> Vec:
        """Return B A of each weight, in its shape."""
        pairs = zip(self._factors(weights, rt), weights, strict=True)
        return [(b @ a).view(w.tensor.shape).to(w.tensor) for (b, a), w in pairs]

    def ascend(self, weights: Sequence[FullWeight], grads: Vec, radii: Sequence[Any], rt: Runtime) -> None:
        """Move the factors up the gradients of the full weights, by `first_update`, and clip them to the radii.

        The perturbations E_i then fulfil sum_i (|E_i| / radius_i)^2 <= 1; equal radii are that of a ball.
        """
        if not weights:
            return
        pairs = self._factors(weights, rt)
        products: Vec = []
        for g, (b, a) in zip(grads, pairs, strict=True):
            rows = None if g is None else g.flatten(1).to(b)
            products += [None, None] if rows is None else [rows @ a.T, b.T @ rows]
        factors, owners = [f for pair in pairs for f in pair], [w.index for w in weights for _ in range(2)]
        means = rt.all_reduce_mean(products, of=factors)
        # a step that the device skips, and a gradient beyond the precision, must not reach the factors
        good = ~(rt.step_state.bad > 0) & vector.all_finite(vector.finite_check(means))
        for factor, d, index in zip(factors, means, owners, strict=True):
            if d is not None:
                factor.sub_(first_update(rt, index, torch.where(good, d, 0.0)))
        squares = [((b.T @ b) * (a @ a.T)).sum() / r**2 for (b, a), r in zip(pairs, radii, strict=True)]
        # each factor takes the square root of what their product shrinks by
        shrink = torch.stack(squares).sum().sqrt().clamp(min=1.0).rsqrt()
        for factor in factors:
            factor.mul_(shrink)

    def _factors(self, weights: Sequence[FullWeight], rt: Runtime) -> list[tuple[Tensor, Tensor]]:
        names = rt.once("names of tensors", lambda: {id(p): n for n, p in rt.net.named_parameters()})
        keys = [names.get(id(leaf(w.tensor)), f"extra {w.index}").replace(".", "/") for w in weights]
        return [self._pair(k, w.tensor, rt) for k, w in zip(keys, weights, strict=True)]

    def _pair(self, name: str, t: Tensor, rt: Runtime) -> tuple[Tensor, Tensor]:
        m, n = t.shape[0], t.shape[1:].numel()  # a view of a complex weight cannot be indexed here
        r = min(self.rank, m, n)
        b, a = (self._buffers.get(f"{name}/{factor}") for factor in "BA")
        if b is None or a is None or b.shape != (m, r) or a.shape != (r, n):
            wide = torch.promote_types(t.dtype, torch.float32)
            b, a = (torch.zeros(shape, dtype=wide, device=t.device) for shape in ((m, r), (r, n)))
            draw = vector.gaussian([a], rt.rng, sigma=n**-0.5)
            # all processes have that of the first
            (a,) = vector.present(rt.all_reduce_mean(draw, weight=float(rt.parallel.rank == 0), of=[a]))
        elif b.device == t.device:
            return b, a
        self.register_buffer(f"{name}/B", b := b.to(t.device))
        self.register_buffer(f"{name}/A", a := a.to(t.device))
        return b, a

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *rest: Any) -> None:
        """Have the buffers that were saved."""
        self._buffers.clear()
        for key in [k for k in state_dict if k.startswith(prefix)]:
            self.register_buffer(key.removeprefix(prefix), torch.zeros_like(state_dict[key]))
        super()._load_from_state_dict(state_dict, prefix, *rest)


@contextmanager
def full_gradients(weights: Sequence[FullWeight], rt: Runtime) -> Iterator[Callable[[Vec], Vec]]:
    """Have passes compute the gradients of full weights too.

    Yields a function that returns them, from the gradients of the trainable parameters.
    """
    frozen = [w.tensor for w in weights if not w.tensor.requires_grad]
    for t in frozen:
        t.requires_grad_(True)
    own = [rt.params[w.index] is w.tensor for w in weights]

    def gradients(g: Vec) -> Vec:
        below = rt.precision.unscaled([None if o else w.tensor.grad for o, w in zip(own, weights, strict=True)])
        return [g[w.index] if o else b for o, w, b in zip(own, weights, below, strict=True)]

    try:
        yield gradients
    finally:
        for t in frozen:
            t.requires_grad_(False)
            t.grad = None
