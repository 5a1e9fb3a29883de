"""Parts of a network: its output units (filters), noise in proportion to them, and named scopes of parameters."""

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from steppe.core.numerics import vector
from steppe.core.numerics.vector import ScaledVector, Vec
from steppe.errors import InputError

SCOPES = ("all", "kernels", "last-conv", "last-dense", "last-bias", "tensor:INDEX")


def unit_dims(param: Tensor, owner: nn.Module) -> tuple[int, ...] | None:
    """Return the dimensions that one output unit spans, None if the tensor has no units (bias, norm, embedding).

    Linear and convolution weights (out, in, ...) have a unit per entry of dimension 0, transposed
    convolutions (in, out, ...) per entry of dimension 1.
    """
    if param.ndim <= 1 or isinstance(owner, nn.Embedding):
        return None
    transposed = isinstance(owner, nn.ConvTranspose1d | nn.ConvTranspose2d | nn.ConvTranspose3d)
    unit = 1 if transposed else 0
    return tuple(d for d in range(param.ndim) if d != unit)


def last_of(net: nn.Module, *kinds: type[nn.Module]) -> nn.Module | None:
    """Return the last module of these kinds, None if there is none.

    Last in the order of registration (of ``net.modules()``), which need not be the order of execution.
    """
    modules = [m for m in net.modules() if isinstance(m, kinds)]
    return modules[-1] if modules else None


def in_scope(net: nn.Module, params: Sequence[nn.Parameter], scope: str) -> list[bool]:
    """Return for each parameter whether it is in ``scope``.

    'all'; 'kernels' (tensors of two or more dimensions); 'last-conv' and 'last-dense' (weight and bias of the
    last convolution or linear layer, in order of registration); 'last-bias' (bias of the last linear layer);
    'tensor:INDEX' (position among parameters and running statistics in order of registration, counters left
    out: the order of a Keras weight list; the index of a running statistic selects no parameter).

    Raises InputError if the network has no such layer or no tensor of that index.
    """
    if scope == "all":
        return [True] * len(params)
    if scope == "kernels":
        return [p.ndim > 1 for p in params]
    if scope.startswith("tensor:"):
        tensors = [(k, t) for k, t in net.state_dict(keep_vars=True).items() if t.is_floating_point()]
        index = int(scope.removeprefix("tensor:"))
        if index >= len(tensors):
            raise InputError(f"scope {scope!r}: the network has {len(tensors)} tensors; give a smaller index")
        return [p is tensors[index][1] for p in params]
    if scope == "last-conv":
        layer = last_of(net, nn.Conv1d, nn.Conv2d, nn.Conv3d)
    else:
        layer = last_of(net, nn.Linear)
    if layer is None:
        missing = "convolution" if scope == "last-conv" else "linear layer"
        raise InputError(f"scope {scope!r}: the network has no {missing}; choose scope 'all' or 'kernels'")
    inside = {id(layer.bias)} if scope == "last-bias" else {id(p) for p in layer.parameters()}
    return [id(p) in inside for p in params]


def is_weight(param: nn.Parameter, owner: nn.Module) -> bool:
    """Return whether a module holds the parameter as a weight: linear, convolution, norm scale, embedding."""
    return any(p is param and "weight" in name for name, p in owner.named_parameters(recurse=False))


def filter_noise(
    params: Sequence[nn.Parameter],
    owners: Sequence[nn.Module],
    gamma: float | Sequence[float],
    rng: torch.Generator,
    damping: Vec | None = None,
) -> ScaledVector:
    r"""Return filter-wise Gaussian noise: :math:`N(0, (\gamma\lVert w_k\rVert_2)^2)` for each element of unit k.

    A unit is a filter of a convolution, a row of a matrix, or a whole bias or norm parameter (Bisla et al.,
    AISTATS 2022; Li et al., RWP, section 3.2). The standard deviation is not divided by the unit's size. A unit
    that is zero gets no noise. ``damping`` is a further factor of each unit.
    """
    deviation = filter_deviation(params, owners, gamma)
    if damping is not None:
        deviation = vector.times(deviation, damping)
    return ScaledVector(vector.gaussian(params, rng), deviation)


def filter_deviation(
    params: Sequence[nn.Parameter], owners: Sequence[nn.Module], gamma: float | Sequence[float]
) -> Vec:
    r"""Return :math:`\gamma\lVert w_k\rVert_2`, the deviation of `filter_noise`, in a form that broadcasts."""
    weights = [p.detach() for p in params]
    dims = [_filter_dims(p, o) for p, o in zip(params, owners, strict=True)]
    whole = [w for w, d in zip(weights, dims, strict=True) if d is None]
    norms: Vec
    if whole and not vector.any_sharded(whole):
        of_whole = iter(torch._foreach_norm(whole))
        norms = [next(of_whole) if d is None else unit_norms(w, d) for w, d in zip(weights, dims, strict=True)]
    else:
        norms = [unit_norms(w, d) for w, d in zip(weights, dims, strict=True)]
    return vector.scale(norms, gamma)


def unit_sums(values: Vec, params: Sequence[nn.Parameter], owners: Sequence[nn.Module]) -> Vec:
    """Return the sum of ``values`` over each unit of `filter_noise`, kept broadcastable."""
    return [
        None if v is None else v.sum(_filter_dims(p, owner) or tuple(range(v.ndim)), keepdim=True)
        for v, p, owner in zip(values, params, owners, strict=True)
    ]


def _filter_dims(param: Tensor, owner: nn.Module) -> tuple[int, ...] | None:
    return tuple(range(1, param.ndim)) if isinstance(owner, nn.Embedding) else unit_dims(param, owner)


def unit_norms(t: Tensor, dims: tuple[int, ...] | None) -> Tensor:
    """Return the L2 norm of each output unit, kept broadcastable; of the whole tensor where it has no units."""
    if dims is None:
        dims = tuple(range(t.ndim))
    return torch.linalg.vector_norm(t, dim=dims, keepdim=True) if t.ndim else t.abs()


def fan_in(t: Tensor, dims: tuple[int, ...]) -> int:
    """Return how many weights one output unit has."""
    return math.prod(t.shape[d] for d in dims)
