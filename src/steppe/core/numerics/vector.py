"""Vectors in parameter space: one tensor per trainable parameter, None for a parameter without one.

A gradient, a perturbation and a direction are all a ``Vec``. None counts as zero, and stays None wherever the
result is zero, so that an optimizer skips the parameters that plain training skips. The tensors of a sharded
model are DTensors: norms and inner products are over all shards, and noise is that of the unsharded model.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import compress
from typing import Any

import torch
from torch import Tensor, nn

Vec = list[Tensor | None]


def sharded(t: Tensor) -> bool:
    """Return whether a tensor is a DTensor: its class is imported, which takes long, only where there are any."""
    return hasattr(t, "to_local")


_WRITES, _DTYPE = operator.attrgetter("_version"), operator.attrgetter("dtype")
PLAIN = frozenset((Tensor, nn.Parameter, type(None)))
_WIDE = frozenset((torch.float32, torch.float64))
# Vectors of at most so many elements are copied in less time than an operation takes on a processor.
_SMALL = 4096


def any_sharded(tensors: Sequence[Tensor | None]) -> bool:
    """Return whether one of the tensors is a DTensor."""
    return not PLAIN.issuperset(map(type, tensors)) and any(t is not None and sharded(t) for t in tensors)


class Measured(list[Tensor | None]):
    """A vector that remembers its norm, for as long as its tensors are the same ones and have not been written to.

    A step needs the norm of a gradient to know that it is finite, and most methods need it again. ``measure`` is
    what `measure_of` returned for tensors of these shapes and types.
    """

    _state: tuple[list[Tensor | None], int] | None = None

    def norm(self, measure: Callable[[list[Tensor]], Tensor] | None = None) -> Tensor:
        """Return the norm, measured only once."""
        tensors = present(self)
        writes = sum(map(_WRITES, tensors))  # it only grows
        if self._state is None or self._state[1] != writes or not all(map(operator.is_, self, self._state[0])):
            self._norm = measure(tensors) if measure and len(tensors) == len(self) else _norm(tensors)
            self._state = self[:], writes
        return self._norm

    def measured(self) -> Tensor | None:
        """Return the norm if it was measured and still holds."""
        same = self._state is not None and self._state[1] == sum(map(_WRITES, present(self)))
        return self._norm if same and all(map(operator.is_, self, self._state[0])) else None  # type: ignore[index]


def measure_of(like: Sequence[Tensor]) -> Callable[[list[Tensor]], Tensor]:
    """Return the function that measures vectors of tensors like these: faster where all are small."""
    kind = not any_sharded(like) and _WIDE.issuperset(map(_DTYPE, like)) and like[0].device.type == "cpu"
    return _flat_norm if kind and max(map(Tensor.numel, like)) <= _SMALL else _norm


def _flat_norm(tensors: list[Tensor]) -> Tensor:
    whole: Tensor = torch.linalg.vector_norm(torch._C._nn.flatten_dense_tensors(tensors))
    return whole


@dataclass(frozen=True)
class ScaledVector:
    """``times`` a direction, multiplied out only where it is added to something.

    ``times`` is one number, 0-dimensional, or for each tensor a number, or one number per unit in a shape that
    broadcasts; None where there is no tensor.
    """

    direction: Vec
    times: Tensor | Vec

    def vector(self) -> Vec:
        """Return it multiplied out."""
        each = self.times
        return times(self.direction, each) if isinstance(each, list) else scale(self.direction, each)


def factors(offset: Vec | ScaledVector) -> tuple[Vec, list[Tensor], Tensor | list[Tensor] | None]:
    """Return an offset's direction, the tensors of it that are not None, and the factors of these, if any."""
    if not isinstance(offset, ScaledVector):
        return offset, present(offset), None
    direction, by = offset.direction, offset.times
    return direction, present(direction), present(by) if isinstance(by, list) else by


def _local(t: Tensor) -> Tensor:
    local: Tensor = t.to_local() if sharded(t) else t  # type: ignore[attr-defined]
    return local


def _layout(t: Tensor) -> Any:
    return (t.device_mesh, t.placements) if sharded(t) else None  # type: ignore[attr-defined]


def present(a: Sequence[Tensor | None]) -> list[Tensor]:
    """Return the tensors that are not None."""
    return [t for t in a if t is not None]


def _pairs(a: Vec, b: Vec) -> tuple[list[Tensor], list[Tensor]]:
    both = [(s, t) for s, t in zip(a, b, strict=True) if s is not None and t is not None]
    return [s for s, _ in both], [t for _, t in both]


def map_each(f: Callable[[Tensor], Tensor], a: Vec) -> Vec:
    """Apply ``f`` to each tensor that is not None."""
    return [None if t is None else f(t) for t in a]


def clone(a: Vec) -> Vec:
    """Return a copy in fresh storage."""
    tensors = present(a)
    if any_sharded(tensors) or not tensors or tensors[0].device.type == "cpu":
        with torch.no_grad():
            return map_each(torch.Tensor.clone, a)
    return scale(map_each(torch.Tensor.detach, a), 1.0)  # in one launch


def norm(a: Vec) -> Tensor:
    r"""Return the global L2 norm :math:`\sqrt{\sum_i a_i^2}`, 0-dimensional, accumulated in at least float32."""
    return a.norm() if isinstance(a, Measured) else _norm(present(a))


def _norm(tensors: list[Tensor]) -> Tensor:
    if not tensors:
        return torch.zeros(())
    if not _WIDE.issuperset(map(_DTYPE, tensors)):
        tensors = [t if t.dtype in _WIDE else t.float() for t in tensors]
    if any_sharded(tensors):
        groups = _by_layout(tensors)
        norms = [_local_norm(group) for group in groups.values()]
        squares = [_over_shards(n.square(), layout) for n, layout in zip(norms, groups, strict=True)]
        return torch.stack(squares).sum().sqrt()
    return _local_norm(tensors)


def _local_norm(tensors: list[Tensor]) -> Tensor:
    if tensors[0].device.type == "cpu":
        # to measure a small tensor takes longer than to join it to others
        small = [t.numel() <= _SMALL for t in tensors]
        if all(small):
            return _flat_norm(tensors)
        if any(small):
            joined = torch._C._nn.flatten_dense_tensors(list(compress(tensors, small)))
            tensors = [*compress(tensors, map(operator.not_, small)), joined]
    whole: Tensor = torch.linalg.vector_norm(torch.stack(torch._foreach_norm(tensors)))
    return whole


def dot(a: Vec, b: Vec) -> Tensor:
    r"""Return the inner product :math:`\sum_i a_i b_i`, 0-dimensional."""
    s, t = _pairs(a, b)
    if not s:
        return torch.zeros(())
    if s[0].device.type != "cpu" and not any_sharded(s) and not any_sharded(t):
        # a GPU takes longer to launch the sum of each than to join them
        return torch.cat([p.reshape(-1) for p in torch._foreach_mul(s, t)]).sum()
    groups = _by_layout([p * q for p, q in zip(s, t, strict=True)])
    sums = [_over_shards(torch.stack([p.sum() for p in group]).sum(), k) for k, group in groups.items()]
    return torch.stack(sums).sum()


def finite_check(a: Vec) -> Tensor:
    """Return a scalar that is finite only if all entries on this process are."""
    return norm(map_each(_local, a) if any_sharded(a) else a)


def all_finite(number: Tensor) -> Tensor:
    """Return whether a number is finite, 0-dimensional, without waiting for it."""
    # less itself, what is not finite is not zero; isfinite() is twice as many operations
    zero: Tensor = (number - number) == 0
    return zero


def scale(a: Vec, by: float | Tensor | Sequence[float]) -> Vec:
    """Return ``by * a``; a sequence has one factor per tensor."""
    tensors = present(a)
    if isinstance(by, Sequence):
        by = [f for f, t in zip(by, a, strict=True) if t is not None]
    if len(tensors) == len(a) > 0:
        return list(torch._foreach_mul(tensors, by))
    scaled = iter(torch._foreach_mul(tensors, by)) if tensors else iter(())
    return [None if t is None else next(scaled) for t in a]


def gather(total: Vec, a: Vec, by: float) -> Vec:
    """Return ``total + by * a`` in the storage of ``total``, of ``a`` where that is None; both are consumed."""
    if any_sharded(a) or any_sharded(total):
        return add(total, scale(a, by))
    s, t = _pairs(total, a)
    if s:
        torch._foreach_add_(s, t, alpha=by)
    alone = [q for p, q in zip(total, a, strict=True) if p is None and q is not None]
    if alone:
        torch._foreach_mul_(alone, by)
    return [q if p is None else p for p, q in zip(total, a, strict=True)]


def add(a: Vec, b: Vec, by: float = 1.0) -> Vec:
    """Return ``a + by * b``; None plus something is something, itself where there is nothing to do."""
    s, t = _pairs(a, b)
    if len(s) == len(a) > 0:
        return list(torch._foreach_add(s, t, alpha=by))
    summed = iter(torch._foreach_add(s, t, alpha=by) if s else ())
    alone = [q for p, q in zip(a, b, strict=True) if p is None and q is not None]
    scaled = iter(alone if by == 1 or not alone else torch._foreach_mul(alone, by))
    out: Vec = []
    for p, q in zip(a, b, strict=True):
        if p is None:
            out.append(None if q is None else next(scaled))
        else:
            out.append(p if q is None else next(summed))
    return out


def map_groups(f: Callable[[Vec], Vec], a: Vec, group: Sequence[int]) -> Vec:
    """Apply ``f`` to each group's tensors by themselves; ``group`` numbers the group of each tensor."""
    parts = [f(only(a, [g == one for g in group])) for one in sorted(set(group))]
    return [next((t for t in each if t is not None), None) for each in zip(*parts, strict=True)]


def move(tensors: Sequence[Tensor], by: Sequence[Tensor], times: Any = None) -> None:
    """Add to each tensor in place ``by``, or ``times`` as much (see `ScaledVector`); no graph is recorded."""
    if not tensors:
        return
    if any_sharded(tensors):
        factors = times if isinstance(times, Sequence) else [times] * len(tensors)
        for t, o, factor in zip(tensors, by, factors, strict=True):
            t.add_(o if factor is None else o * factor)
    elif times is not None and tensors[0].device.type == "cpu" and _WIDE.issuperset(map(_DTYPE, tensors)):
        each = [times] * len(tensors) if isinstance(times, Tensor) else times
        torch._foreach_addcmul_(list(tensors), list(by), each)
    else:
        torch._foreach_add_(list(tensors), list(by) if times is None else torch._foreach_mul(list(by), times))


def add_number(a: list[Tensor], number: float) -> list[Tensor]:
    """Return each tensor plus a number."""
    if any_sharded(a) or not a:
        return [t + number for t in a]
    return list(torch._foreach_add(a, number))


def lerp(a: Vec, b: Vec, weight: float) -> Vec:
    """Return ``a + weight (b - a)``, which is ``a`` itself where ``a`` and ``b`` agree."""
    return add(a, add(b, a, by=-1.0), by=weight)


def approach(a: Sequence[Tensor], b: Sequence[Tensor], weight: float | Tensor) -> None:
    """Set each tensor of ``a`` to ``(1 - weight) a + weight b``."""
    if isinstance(weight, Tensor):
        torch._foreach_lerp_(list(a), list(b), [like(weight, t) for t in a])
    else:
        torch._foreach_lerp_(list(a), list(b), weight)


def like(number: float | Tensor, t: Tensor) -> Any:
    """Return a number in the precision of a tensor."""
    return number.to(t.dtype) if isinstance(number, Tensor) else number


def nonzero(number: Any) -> bool:
    """Return whether a number is not 0; one that is a tensor is not, see `steppe.core.runtime.Runtime.setting`."""
    return isinstance(number, Tensor) or bool(number)


def over(number: Any, t: Tensor) -> Tensor:
    """Return ``number / t``, as PyTorch computes it for a number that is no tensor."""
    quotient: Tensor = t.reciprocal() * number
    return quotient


def each_unit(a: Vec, eps: float = 1e-12) -> Vec:
    """Return each tensor at length 1, zero where it is zero."""
    return map_each(lambda t: t / (norm([t]) + eps), a)


def clip(a: Vec, largest: float, group: Sequence[int] | None = None) -> Vec:
    """Return ``a`` at a norm of at most ``largest``, or each group's tensors by themselves."""
    if group is not None:
        return map_groups(lambda part: clip(part, largest), a, group)
    return scale(a, (largest / (norm(a) + 1e-6)).clamp(max=1.0))


def times(a: Vec, b: Vec) -> Vec:
    """Return the elementwise product; None times something is None."""
    s, t = _pairs(a, b)
    if any_sharded(s):
        products = iter([p * q for p, q in zip(s, t, strict=True)])
    else:
        products = iter(torch._foreach_mul(s, t) if s else ())
    return [None if p is None or q is None else next(products) for p, q in zip(a, b, strict=True)]


def orthogonal_part(a: Vec, b: Vec) -> Vec:
    r"""Return the part of ``a`` orthogonal to ``b``, :math:`a - \langle a,b\rangle b/\lVert b\rVert^2`.

    It is ``a`` where ``b`` is zero.
    """
    length = norm(b)
    along = dot(a, b) / (length.square() + torch.finfo(length.dtype).tiny)
    return add(a, scale(b, -along))


def only(a: Vec, where: Sequence[bool]) -> Vec:
    """Return ``a`` with None wherever ``where`` is False."""
    return [t if keep else None for t, keep in zip(a, where, strict=True)]


def gaussian(
    like: Sequence[Tensor], rng: torch.Generator, where: Sequence[bool] | None = None, sigma: float = 1.0
) -> Vec:
    """Return noise N(0, sigma^2) of the tensors' shapes, drawn in their order from ``rng`` alone."""

    def draw(t: Tensor) -> Tensor:
        if type(t) in PLAIN:
            # what torch.randn does, in half the time for a small tensor
            return torch.empty_like(t, memory_format=torch.contiguous_format).normal_(0.0, sigma, generator=rng)
        return _shard(torch.randn(t.shape, generator=rng, dtype=t.dtype, device=t.device), t) * sigma

    if where is None or all(where):
        return list(map(draw, like))
    return [draw(t) if w else None for t, w in zip(like, where, strict=True)]


def bernoulli(like: Sequence[Tensor], probability: float, rng: torch.Generator) -> Vec:
    """Return ones with this probability, else zeros, of the tensors' shapes, from ``rng`` alone."""
    uniform = [torch.rand(t.shape, generator=rng, device=t.device) for t in like]
    return [_shard((u < probability).to(t.dtype), t) for u, t in zip(uniform, like, strict=True)]


def _shard(whole: Tensor, like: Tensor) -> Tensor:
    """Return this process's shard: every rank draws the whole, so noise does not depend on their number."""
    if not sharded(like):
        return whole
    from torch.distributed.tensor import distribute_tensor

    mesh, placements = _layout(like)
    return distribute_tensor(whole, mesh, placements, src_data_rank=None)


def _by_layout(tensors: Sequence[Tensor]) -> dict[Any, list[Tensor]]:
    """Return the local tensors grouped by how they are sharded, None for those that are not."""
    groups: dict[Any, list[Tensor]] = {}
    for t in tensors:
        groups.setdefault(_layout(t), []).append(_local(t))
    return groups


def _over_shards(value: Tensor, layout: Any) -> Tensor:
    """Return the sum of the shards' values."""
    if layout is None:
        return value
    from torch.distributed.tensor import DTensor, Partial, Shard

    mesh, placements = layout
    summed = [Partial() if isinstance(p, Shard) else p for p in placements]
    whole: Tensor = DTensor.from_local(value, mesh, summed).full_tensor()
    return whole
