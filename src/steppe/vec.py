"""Vectors in parameter space: one tensor per trainable parameter, None where a parameter has no part in it.

A gradient, a perturbation and a direction are all a ``Vec``. None reads as zero, and stays None wherever the
result is zero, so that an optimizer skips the parameters that plain training skips.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

Vec = list[Tensor | None]


def _present(a: Sequence[Tensor | None]) -> list[Tensor]:
    return [t for t in a if t is not None]


def _pairs(a: Vec, b: Vec) -> tuple[list[Tensor], list[Tensor]]:
    both = [(s, t) for s, t in zip(a, b, strict=True) if s is not None and t is not None]
    return [s for s, _ in both], [t for _, t in both]


def map_each(f: Callable[[Tensor], Tensor], a: Vec) -> Vec:
    """Apply ``f`` to each tensor that is there."""
    return [None if t is None else f(t) for t in a]


def clone(a: Vec) -> Vec:
    """Return a copy in fresh storage."""
    return map_each(lambda t: t.detach().clone(), a)


def norm(a: Vec) -> Tensor:
    r"""Return the global L2 norm :math:`\sqrt{\sum_i a_i^2}`, 0-dimensional, accumulated in at least float32."""
    tensors = _present(a)
    if not tensors:
        return torch.zeros(())
    wide = [t if t.dtype in (torch.float32, torch.float64) else t.float() for t in tensors]
    total: Tensor = torch.linalg.vector_norm(torch.stack(torch._foreach_norm(wide)))
    return total


def dot(a: Vec, b: Vec) -> Tensor:
    r"""Return the inner product :math:`\sum_i a_i b_i`, 0-dimensional."""
    s, t = _pairs(a, b)
    if not s:
        return torch.zeros(())
    return torch.stack([(p * q).sum() for p, q in zip(s, t, strict=True)]).sum()


def scale(a: Vec, by: float | Tensor) -> Vec:
    """Return ``by * a``."""
    tensors = _present(a)
    scaled = iter(torch._foreach_mul(tensors, by)) if tensors else iter(())
    return [None if t is None else next(scaled) for t in a]


def add(a: Vec, b: Vec, by: float = 1.0) -> Vec:
    """Return ``a + by * b``; None plus something is something."""
    s, t = _pairs(a, b)
    summed = iter(torch._foreach_add(s, t, alpha=by)) if s else iter(())
    out: Vec = []
    for p, q in zip(a, b, strict=True):
        if p is not None and q is not None:
            out.append(next(summed))
        else:
            out.append(p if q is None else q * by)
    return out


def only(a: Vec, where: Sequence[bool]) -> Vec:
    """Return ``a`` with None wherever ``where`` is False."""
    return [t if keep else None for t, keep in zip(a, where, strict=True)]


def gaussian(like: Sequence[Tensor], rng: torch.Generator, where: Sequence[bool] | None = None) -> Vec:
    """Return standard normal noise shaped like the given tensors, drawn in their order from ``rng`` alone."""
    keep = [True] * len(like) if where is None else where
    return [
        torch.randn(t.shape, generator=rng, dtype=t.dtype, device=t.device) if k else None
        for t, k in zip(like, keep, strict=True)
    ]
