"""Complex parameters as pairs of real numbers: norms, products and perturbations are of real vectors.

A complex parameter of shape (...) counts as its real view (..., 2), as it does for PyTorch's optimizers. The view
has the parameter's own storage. What looks a parameter up, by identity or number of dimensions, asks `leaf`.
"""

from collections.abc import Sequence
from typing import Any, TypeVar, cast

import torch
from torch import Tensor, nn

from steppe.core.numerics import vector
from steppe.core.numerics.vector import Vec
from steppe.errors import InputError

P = TypeVar("P", bound=Tensor | None)


def real_view(t: P) -> P:
    """Return the real view (..., 2) of a complex tensor, anything else as it is."""
    if t is None or not t.is_complex() or t.layout != torch.strided:
        return t
    return cast(P, torch.view_as_real(t.resolve_conj()))


def real_views(params: list[nn.Parameter]) -> list[Any]:
    """Return the parameters with the real view of each complex one in its place; the same list if there is none.

    Raises InputError for a complex parameter that is sharded.
    """
    if not any(p.is_complex() for p in params):
        return params
    if vector.any_sharded(params):
        raise InputError("a parameter of a sharded model is complex; keep it as torch.view_as_real(p), or use DDP")
    views: list[Any] = []
    with torch.inference_mode(False), torch.no_grad():
        for p in params:
            views.append(real_view(p))
            if p.is_complex():
                views[-1].leaf = p
    return views


def leaf(p: P) -> P:
    """Return the parameter that a tensor of `real_views` stands for: itself if it is real."""
    own: P = getattr(p, "leaf", p)
    return own


def like_leaf(t: Tensor, p: Tensor) -> Tensor:
    """Return a tensor of the shape of ``p``, such as its gradient, in the type of the parameter it stands for."""
    return t if leaf(p) is p else torch.view_as_complex(t.contiguous())


def like_leaves(values: Vec, params: Sequence[Tensor]) -> Vec:
    """Return a vector in the types of the parameters that ``params`` stand for."""
    return [None if t is None else like_leaf(t, p) for t, p in zip(values, params, strict=True)]


def stale(views: Sequence[Tensor]) -> bool:
    """Return whether a parameter has another storage than its view, as after ``model.to``."""
    return any(v.data_ptr() != leaf(v).data_ptr() for v in views)


def with_type_of(module: nn.Module, net: nn.Module) -> nn.Module:
    """Move a module to the device and real type of a network, and return it; complex tensors stay complex."""
    like = real_view(next(net.parameters()))
    moved: nn.Module = module._apply(  # type: ignore[no-untyped-call]
        lambda t: t.to(like) if t.is_floating_point() else t.to(like.device)
    )
    return moved
