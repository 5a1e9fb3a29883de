"""Parts of a network: its output units (filters), noise in proportion to them, and named scopes of parameters."""

import math
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from steppe.core.multi_network import MultiNetwork
from steppe.core.numerics import vector
from steppe.core.numerics.complex_params import leaf
from steppe.core.numerics.vector import ScaledVector, Vec
from steppe.errors import InputError

SCOPES = ("all", "kernels", "last-conv", "last-dense", "last-bias", "tensor:INDEX")


EMBEDDINGS = (nn.Embedding, nn.EmbeddingBag)


@dataclass(frozen=True)
class Units:
    """How a tensor divides into output units: ``dims`` are those that one unit spans.

    The first dimension is in ``groups``, each of which has units of its own (grouped transposed convolutions).
    """

    dims: tuple[int, ...]
    groups: int = 1

    def reduce(self, f: Callable[[Tensor, tuple[int, ...]], Tensor], t: Tensor) -> Tensor:
        """Return ``f(t, dims)``, which keeps dimensions, of each unit, in a shape that broadcasts to that of t."""
        if self.groups == 1:
            return f(t, self.dims)
        split = t.reshape(self.groups, -1, *t.shape[1:])
        each = f(split, (1, *(d + 1 for d in self.dims[1:])))
        return each.expand(-1, split.shape[1], *each.shape[2:]).flatten(0, 1)

    def fan_in(self, t: Tensor) -> int:
        """Return how many weights one unit has."""
        return math.prod(t.shape[d] for d in self.dims) // self.groups


def units_of(param: Tensor, owner: nn.Module) -> Units | None:
    """Return the output units of a tensor, None if it has none (bias, norm).

    Linear and convolution weights (out, in, ...) have a unit per entry of dimension 0, and so have embeddings: a
    row. Transposed convolutions (in, out / groups, ...) and the Conv1D (in, out) of GPT-2 have one per entry of
    dimension 1, transposed convolutions in each group.
    """
    if leaf(param).ndim <= 1:
        return None
    groups = 0
    if isinstance(owner, nn.ConvTranspose1d | nn.ConvTranspose2d | nn.ConvTranspose3d):
        # lengths of weight normalisation have other shapes
        whole = param.shape[:2] == (owner.in_channels, owner.out_channels // owner.groups)
        groups = owner.groups if whole else 0
    # others name a subclass of nn.Conv1d so
    in_out = type(owner).__name__ == "Conv1D" and not isinstance(owner, nn.Conv1d)
    dims = tuple(d for d in range(param.ndim) if d != (1 if groups or in_out else 0))
    return Units(dims, groups or 1)


def last_of(net: nn.Module, *kinds: type[nn.Module]) -> nn.Module | None:
    """Return the last module of these kinds, None if there is none.

    Last in the order of registration (of ``net.modules()``), which need not be the order of execution.
    """
    modules = [m for m in net.modules() if isinstance(m, kinds)]
    return modules[-1] if modules else None


def output_layers(net: nn.Module) -> list[nn.Module]:
    """Return the last linear layer of a network; of several networks or branches that of each.

    Those of a method's own heads, modules without a network or branch inside, are among them.
    """
    parts: list[nn.Module] = [net]
    if isinstance(net, MultiNetwork):
        members = list(net.members)
        inside = {id(m) for one in members for m in one.modules()}
        parts = [*members, *(child for child in net.children() if inside.isdisjoint(map(id, child.modules())))]
    return [layer for part in parts if (layer := last_of(part, nn.Linear)) is not None]


def are_scopes(text: str) -> bool:
    """Return whether a text has one or more scopes, as `in_scope` takes them; each may end in *."""
    scopes = [s.removesuffix("*") for s in text.split()]
    return bool(scopes) and all(s in SCOPES[:-1] or re.fullmatch(r"tensor:\d+", s) for s in scopes)


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
        return [leaf(p).ndim > 1 for p in params]
    if scope.startswith("tensor:"):
        tensors = [
            (k, t) for k, t in net.state_dict(keep_vars=True).items() if t.is_floating_point() or t.is_complex()
        ]
        index = int(scope.removeprefix("tensor:"))
        if index >= len(tensors):
            raise InputError(f"scope {scope!r}: the network has {len(tensors)} tensors; give a smaller index")
        return [leaf(p) is tensors[index][1] for p in params]
    if scope == "last-conv":
        layer = last_of(net, nn.Conv1d, nn.Conv2d, nn.Conv3d)
    else:
        layer = last_of(net, nn.Linear)
    if layer is None:
        missing = "convolution" if scope == "last-conv" else "linear layer"
        raise InputError(f"scope {scope!r}: the network has no {missing}; choose scope 'all' or 'kernels'")
    inside = {id(layer.bias)} if scope == "last-bias" else {id(p) for p in layer.parameters()}
    return [id(leaf(p)) in inside for p in params]


def scope_noise(
    net: nn.Module,
    params: Sequence[nn.Parameter],
    sigma: float,
    rng: torch.Generator,
    once: Callable[[Any, Callable[[], list[bool]]], list[bool]],
    scope: str,
) -> Vec:
    """Return noise N(0, sigma^2) on the parameters of a scope.

    If the scope ends in *, it is the offset that multiplies the weights by such noise. ``once`` caches which
    parameters are in the scope.
    """
    own = scope.removesuffix("*")
    noise = vector.gaussian(params, rng, once(("scope", own), partial(in_scope, net, params, own)), sigma)
    if own == scope:
        return noise
    return [None if n is None else p.detach() * (n - 1) for n, p in zip(noise, params, strict=True)]


def is_weight(param: nn.Parameter, owner: nn.Module) -> bool:
    """Return whether a module holds the parameter as a weight: linear, convolution, norm scale, embedding."""
    return any(p is leaf(param) and "weight" in name for name, p in owner.named_parameters())


def filter_noise(
    params: Sequence[nn.Parameter],
    owners: Sequence[nn.Module],
    gamma: float | Sequence[float],
    rng: torch.Generator,
    damping: Vec | None = None,
) -> ScaledVector:
    r"""Return filter-wise Gaussian noise: :math:`N(0, (\gamma\lVert w_k\rVert_2)^2)` for each element of unit k.

    A unit is a filter of a convolution, a row of a matrix, or a whole bias or norm parameter (Bisla et al.,
    AISTATS 2022; Li et al., RWP, arXiv:2211.13489v1, section 3.2). The standard deviation is not divided by the
    unit's size. A unit that is zero gets no noise. ``damping`` is a further factor.
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
    units = [units_of(p, o) for p, o in zip(params, owners, strict=True)]
    whole = [w for w, u in zip(weights, units, strict=True) if u is None]
    norms: Vec
    if whole and not vector.any_sharded(whole):
        of_whole = iter(torch._foreach_norm(whole))
        norms = [next(of_whole) if u is None else unit_norms(w, u) for w, u in zip(weights, units, strict=True)]
    else:
        norms = [unit_norms(w, u) for w, u in zip(weights, units, strict=True)]
    return vector.scale(norms, gamma)


def unit_sums(values: Vec, params: Sequence[nn.Parameter], owners: Sequence[nn.Module]) -> Vec:
    """Return the sum of ``values`` over each output unit, kept broadcastable; themselves where there is none."""
    units = [units_of(p, owner) for p, owner in zip(params, owners, strict=True)]
    return [
        v if v is None or u is None else u.reduce(lambda t, dims: t.sum(dims, keepdim=True), v)
        for v, u in zip(values, units, strict=True)
    ]


def unit_norms(t: Tensor, units: Units | None) -> Tensor:
    """Return the L2 norm of each output unit, kept broadcastable; of the whole tensor where it has no units."""
    if not t.ndim:
        return t.abs()
    if units is None:
        units = Units(tuple(range(t.ndim)))
    return units.reduce(lambda s, dims: torch.linalg.vector_norm(s, dim=dims, keepdim=True), t)


def norms_of_units(t: Tensor, units: Units) -> Tensor:
    """Return the L2 norm of each output unit, once each."""
    return unit_norms(t, units)[:: t.shape[0] // units.groups if units.groups > 1 else 1].reshape(-1)
