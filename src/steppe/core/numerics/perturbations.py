"""Perturbations of the weights as functions of gradients."""

from collections.abc import Sequence
from typing import TypeVar

import torch
from torch import Tensor, nn

from steppe.core.numerics import vector
from steppe.core.numerics.filters import is_weight
from steppe.core.numerics.vector import ScaledVector, Vec

T = TypeVar("T")
Radius = float | Tensor | Sequence[float]
Offset = Vec | ScaledVector
_TINY = 1e-12
NORMS = ("global", "network", "tensor", "none")  # of `ball_perturbation`


def sam_perturbation(grads: Vec, rho: Radius, eps: float = _TINY) -> Vec:
    r"""Return :math:`\epsilon = \rho\, g / (\lVert g\rVert_2 + \text{eps})`, the norm over all parameters.

    The first-order maximiser of the loss in an L2 ball of radius rho (Foret et al., ICLR 2021, equation 2);
    zero for a zero gradient. With a radius per tensor, those of radius 0 are not perturbed and do not count in
    the norm.
    """
    if isinstance(rho, Sequence):
        perturbed = vector.only(grads, [vector.nonzero(r) for r in rho])
        return vector.scale(vector.scale(perturbed, rho), 1 / (vector.norm(perturbed) + eps))
    return vector.scale(grads, vector.over(rho, vector.norm(grads) + eps))


def scaled_perturbation(grads: Vec, rho: Radius, scale: Vec | None = None) -> Offset:
    r"""Return `sam_perturbation` for `steppe.core.runtime.Runtime.at`: with one radius, not multiplied out.

    With a ``scale`` s it is that of the space scaled by s, :math:`s \cdot \epsilon(s \cdot g)`.
    """
    scaled = grads if scale is None else vector.times(grads, scale)
    if isinstance(rho, Sequence):
        offset = sam_perturbation(scaled, rho)
        return offset if scale is None else vector.times(offset, scale)
    direction = scaled if scale is None else vector.times(scaled, scale)
    return ScaledVector(direction, vector.over(rho, vector.norm(scaled) + _TINY))


def ball_perturbation(
    grads: Vec,
    rho: Radius,
    norm: str = "global",
    member: Sequence[int] = (),
    start: Offset | None = None,
) -> Offset:
    r"""Return `sam_perturbation` in one ball, or in several: one for each tensor, or for each network.

    Args:
        grads: The gradient g.
        rho: The radius of a ball, or one for each tensor.
        norm: 'global', one ball; 'tensor', one for each tensor; 'network', one for the tensors of each network;
            'none', no ball: e + rho g, whatever its length.
        member: The number of each tensor's network.
        start: The offset e of an ascent step before; the result is then :math:`P(e + \rho g / |g|)`, P the
            projection onto the ball (see `project`).
    """
    if norm == "none":
        offset = vector.scale(grads, rho)
        return offset if start is None else vector.add(_multiplied_out(start), offset)
    if start is None:
        if norm == "global":
            return scaled_perturbation(grads, rho)
        if norm == "network" and not isinstance(rho, Sequence):
            return ScaledVector(grads, vector.map_groups(lambda part: _factors(part, rho), grads, member))
    if norm == "tensor":
        offset = vector.scale(vector.each_unit(grads), rho)
    elif norm == "network":
        offset = vector.map_groups(lambda part: sam_perturbation(part, rho), grads, member)
    else:
        offset = sam_perturbation(grads, rho)
    if start is None:
        return offset
    offset = vector.add(_multiplied_out(start), offset)
    if norm == "network":
        return vector.map_groups(lambda part: project(part, rho, "global"), offset, member)
    return project(offset, rho, norm)


def _multiplied_out(offset: Offset) -> Vec:
    return offset.vector() if isinstance(offset, ScaledVector) else offset


def _factors(grads: Vec, rho: float | Tensor) -> Vec:
    """Return the factor of a perturbation for each tensor."""
    times = vector.over(rho, vector.norm(grads) + _TINY)
    return [None if t is None else times for t in grads]


def project(offset: Vec, rho: Radius, norm: str) -> Vec:
    """Return the offset at a length of at most ``rho``: shortened as a whole ('global') or each tensor ('tensor').

    With a radius per tensor the whole is as long as it is with each tensor divided by its radius, at most 1.
    """
    if norm == "tensor":
        radii = rho if isinstance(rho, Sequence) else [rho] * len(offset)
        return [_shortened(o, r) for o, r in zip(offset, radii, strict=True)]
    if isinstance(rho, Sequence):
        inside = [vector.nonzero(r) for r in rho]
        factors = [1 / r if vector.nonzero(r) else 0.0 for r in rho]
        in_radii = vector.scale(vector.only(offset, inside), factors)
        return vector.scale(offset, vector.over(1.0, vector.norm(in_radii) + _TINY).clamp(max=1.0))
    return vector.scale(offset, vector.over(rho, vector.norm(offset) + _TINY).clamp(max=1.0))


def _shortened(offset: Tensor | None, rho: float | Tensor) -> Tensor | None:
    return None if offset is None else offset * vector.over(rho, vector.norm([offset]) + _TINY).clamp(max=1.0)


def adaptive_perturbation(grads: Vec, rho: Radius, weights: Sequence[Tensor], adaptive: str) -> Offset:
    r"""Return SAM's perturbation as GSAM adapts it to the weights (Zhuang et al., ICLR 2022).

    'none' is SAM's; 'abs' is :math:`|w| \cdot \epsilon(g)`; 'square' is :math:`|w| \cdot \epsilon(|w| \cdot g)`.
    """
    if adaptive == "none":
        return scaled_perturbation(grads, rho)
    size: Vec = [w.detach().abs() for w in weights]
    direction = grads if adaptive == "abs" else vector.times(grads, size)
    return vector.times(sam_perturbation(direction, rho), size)


def layerwise_perturbation(grads: Vec, rho: Radius, weights: Sequence[Tensor], cap: float | None = None) -> Vec:
    r"""Return :math:`\epsilon_l = \rho\,|w_l|\, g_l / |g_l|` for each tensor l (Liu et al., CVPR 2022).

    ``cap`` is the largest ratio :math:`|w_l| / |g_l|`.
    """
    radii = rho if isinstance(rho, Sequence) else [rho] * len(grads)
    offset: Vec = []
    for g, w, radius in zip(grads, weights, radii, strict=True):
        if g is None or not vector.nonzero(radius):
            offset.append(None)
            continue
        length = vector.norm([g])
        ratio = torch.where(length > 0, vector.norm([w.detach()]) / (length + _TINY), 0.0)
        offset.append(g * (radius * (ratio if cap is None else ratio.clamp(max=cap))))
    return offset


def orthogonal_part(a: Vec, b: Vec, norm: str = "global") -> Vec:
    """Return the part of ``a`` orthogonal to ``b``: of the whole vector, or of each tensor ('tensor')."""
    if norm == "global":
        return vector.orthogonal_part(a, b)
    return [vector.orthogonal_part([s], [t])[0] for s, t in zip(a, b, strict=True)]


def at_length_of(grads: Vec, a: Vec, norm: str = "global") -> Vec:
    """Return ``a`` at the length of ``grads``, None where that is None: as a whole, or each tensor ('tensor')."""
    own = vector.only(a, [g is not None for g in grads])
    if norm == "global":
        return vector.scale(own, vector.norm(grads) / (vector.norm(own) + _TINY))
    return [
        None if v is None else v * (vector.norm([g]) / (vector.norm([v]) + _TINY))
        for v, g in zip(own, grads, strict=True)
    ]


def asam_scale(params: Sequence[nn.Parameter], owners: Sequence[nn.Module], eta: float | None) -> Vec:
    """Return T of ASAM for each parameter: |w| + eta for weights, 1 for others; without ``eta`` |w| for all."""
    weights = [p.detach() for p in params]
    sizes = [w.abs() for w in weights] if vector.any_sharded(weights) else torch._foreach_abs(weights)
    if eta is None:
        return list(sizes)
    scaled = [is_weight(p, owner) for p, owner in zip(params, owners, strict=True)]
    larger = iter(vector.add_number([s for s, w in zip(sizes, scaled, strict=True) if w], eta))
    return [next(larger) if w else torch.ones_like(s) for s, w in zip(sizes, scaled, strict=True)]


def with_decay(result: tuple[T, Vec], params: Sequence[nn.Parameter], decay: float) -> tuple[T, Vec]:
    """Return an output and its gradient plus ``decay`` times the weights: that of decay/2 |w|^2 in the loss."""
    out, grads = result
    if not decay:
        return result
    weights: Vec = [None if g is None else p.detach() for p, g in zip(params, grads, strict=True)]
    return out, vector.add(grads, weights, by=decay)
