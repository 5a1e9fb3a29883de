"""Perturbations of the weights as functions of gradients."""

from collections.abc import Sequence

from torch import Tensor

from steppe.core.numerics import vector
from steppe.core.numerics.vector import ScaledVector, Vec


def sam_perturbation(grads: Vec, rho: float | Sequence[float], eps: float = 1e-12) -> Vec:
    r"""Return :math:`\epsilon = \rho\, g / (\lVert g\rVert_2 + \text{eps})`, the norm over all parameters.

    The first-order maximiser of the loss in an L2 ball of radius rho (Foret et al., ICLR 2021, equation 2);
    zero for a zero gradient. With a radius per tensor, those of radius 0 are not perturbed and do not count in
    the norm.
    """
    if isinstance(rho, Sequence):
        perturbed = vector.only(grads, [r > 0 for r in rho])
        return vector.scale(vector.scale(perturbed, rho), 1 / (vector.norm(perturbed) + eps))
    return vector.scale(grads, rho / (vector.norm(grads) + eps))


def scaled_perturbation(grads: Vec, rho: float | Sequence[float], scale: Vec | None = None) -> Vec | ScaledVector:
    r"""Return `sam_perturbation` for `steppe.core.runtime.Runtime.at`: with one radius, not multiplied out.

    With a ``scale`` s it is that of the space scaled by s, :math:`s \cdot \epsilon(s \cdot g)`.
    """
    scaled = grads if scale is None else vector.times(grads, scale)
    if isinstance(rho, Sequence):
        offset = sam_perturbation(scaled, rho)
        return offset if scale is None else vector.times(offset, scale)
    direction = scaled if scale is None else vector.times(scaled, scale)
    return ScaledVector(direction, rho / (vector.norm(scaled) + 1e-12))


def project(offset: Vec, rho: float | Sequence[float], norm: str) -> Vec:
    """Return the nearest offset of length at most ``rho``: as a whole ('global') or tensor by tensor ('tensor').

    A radius per tensor projects tensor by tensor.
    """
    if norm == "tensor" or isinstance(rho, Sequence):
        radii = rho if isinstance(rho, Sequence) else [rho] * len(offset)
        return [_shortened(o, r) for o, r in zip(offset, radii, strict=True)]
    return vector.scale(offset, (rho / (vector.norm(offset) + 1e-12)).clamp(max=1.0))


def _shortened(offset: Tensor | None, rho: float) -> Tensor | None:
    return None if offset is None else offset * (rho / (vector.norm([offset]) + 1e-12)).clamp(max=1.0)
