"""Sharpness: how much the loss rises around the weights, in the worst case and on average.

All values are rises of the mean loss, in its unit. They compare networks only if all are measured on the same
samples with the same radius. Rescaling a layer in front of BatchNorm leaves the function as it is but changes all
measures here except the adaptive and the filter-wise ones.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import torch

from steppe.core.numerics import vector
from steppe.core.numerics.filters import filter_noise
from steppe.core.numerics.perturbations import sam_perturbation
from steppe.core.numerics.vector import Vec
from steppe.diagnostics.loss_surface import LossSurface
from steppe.errors import InputError

Ball = Literal["euclidean", "adaptive"]
Noise = Literal["isotropic", "filter"]


@dataclass(frozen=True)
class SharpnessEstimate:
    """A mean over ``n`` independent draws and its standard error (None for a single draw)."""

    mean: float
    error: float | None
    n: int


def worst_case_sharpness(
    surface: LossSurface, rho: float = 0.05, *, steps: int = 1, m: int | None = None, ball: Ball = "euclidean"
) -> float:
    r"""Return SAM's sharpness, the mean over groups of :math:`\max_{\epsilon} L(w+\epsilon) - L(w)`.

    The maximum is over a ball of radius ``rho`` and is approached from below by projected ascent,

    .. math:: \epsilon_0 = 0,\quad \epsilon_{k+1} = \Pi_\rho(\epsilon_k + \rho\, a(g_k)),\quad
        g_k = \nabla L(w+\epsilon_k),

    and the highest point is used. One step is SAM's own estimate and may be negative. In the 'euclidean'
    ball :math:`a(g) = g/\lVert g\rVert` (Foret et al., ICLR 2021, equation 2). The 'adaptive' one is
    :math:`\lVert \epsilon / |w| \rVert \le \rho` with :math:`a(g) = w^2 g / \lVert w g\rVert`, which is
    invariant under rescaling of weights (Kwon et al., ASAM, ICML 2021, without their constant added to
    :math:`|w|`). Where the gradient is 0, so is the sharpness; where the loss on the way is NaN, it is infinite.

    Args:
        surface: The network and its data.
        rho: Radius: of the weights' change, or for 'adaptive' of their relative change.
        steps: Gradient evaluations per group; one more evaluation of the loss each.
        m: Samples that share a perturbation (m-sharpness); all if None.
        ball: 'euclidean' or 'adaptive'.

    Raises:
        InputError: ``rho`` is negative, ``steps`` or ``m`` is below 1, or ``ball`` is unknown.
    """
    if not rho >= 0:
        raise InputError(f"rho is {rho}; give a radius of at least 0")
    if steps < 1:
        raise InputError(f"steps is {steps}; give at least 1")
    if ball not in ("euclidean", "adaptive"):
        raise InputError(f"ball is {ball!r}; choose euclidean or adaptive")
    rises = [_rise(group, rho, steps, ball) * group.weight for group in surface.split(m)]
    return math.fsum(rises) / surface.weight


def average_sharpness(
    surface: LossSurface, sigma: float = 0.01, *, noise: Noise = "isotropic", pairs: int = 10, seed: int = 0
) -> SharpnessEstimate:
    r"""Return the mean rise under Gaussian noise, :math:`E_u[L(w + u)] - L(w)`, with its standard error.

    'isotropic': :math:`u \sim N(0, \sigma^2 I)`. 'filter': :math:`u_k \sim N(0, \sigma^2 \lVert w_k\rVert^2 I)`
    for each filter k (Bisla et al., AISTATS 2022; Li et al., RWP, section 3.2). Draws come in antithetic pairs
    ``u, -u``, in which the gradient's part cancels exactly; the error is that of the mean over pairs. For a
    quadratic the isotropic value is :math:`\sigma^2\,\mathrm{tr}(H)/2`.

    Raises InputError if ``sigma`` is negative, ``pairs`` is below 1 or ``noise`` is unknown.
    """
    if not sigma >= 0:
        raise InputError(f"sigma is {sigma}; give at least 0")
    if pairs < 1:
        raise InputError(f"pairs is {pairs}; give at least 1")
    draw = _sampler(surface, sigma, noise)
    rng = torch.Generator(device=surface.params[0].device).manual_seed(seed)
    clean_loss = surface.loss()
    rises = []
    for _ in range(pairs):
        offset = draw(rng)
        total = 0.0
        for sign in (1.0, -1.0):
            with surface.at(vector.scale(offset, sign)):
                total += surface.loss()
        rises.append(total / 2 - clean_loss)
    return estimate(rises)


def estimate(values: list[float]) -> SharpnessEstimate:
    """Return mean and standard error of independent draws."""
    n = len(values)
    mean = math.fsum(values) / n
    spread = math.fsum((v - mean) ** 2 for v in values)
    return SharpnessEstimate(mean, math.sqrt(spread / (n - 1) / n) if n > 1 else None, n)


def _rise(surface: LossSurface, rho: float, steps: int, ball: Ball) -> float:
    """Return the highest rise along the projected ascent."""
    scale = [p.detach().abs() for p in surface.params] if ball == "adaptive" else None
    # in scaled coordinates the adaptive ball is round
    point: Vec = [None] * len(surface.params)
    start, highest = 0.0, -math.inf
    for step in range(steps):
        with surface.at(_scaled(point, scale)):
            loss, grads = surface.gradient()
        if step == 0:
            start = loss
        else:
            highest = max(highest, _above(start, loss))
        if float(vector.norm(_scaled(grads, scale))) == 0:
            return max(highest, 0.0)
        moved = vector.add(point, sam_perturbation(_scaled(grads, scale), rho))
        point = vector.scale(moved, (rho / (vector.norm(moved) + 1e-30)).clamp(max=1.0)) if step else moved
    with surface.at(_scaled(point, scale)):
        return max(highest, _above(start, surface.loss()))


def _above(start: float, loss: float) -> float:
    return math.inf if math.isnan(loss) else loss - start


def _scaled(a: Vec, scale: list[torch.Tensor] | None) -> Vec:
    return a if scale is None else vector.times(a, list(scale))


def _sampler(surface: LossSurface, sigma: float, noise: Noise) -> Callable[[torch.Generator], Vec]:
    if noise == "isotropic":
        return lambda rng: vector.scale(vector.gaussian(surface.params, rng), sigma)
    if noise == "filter":
        return lambda rng: filter_noise(surface.params, surface.owners, sigma, rng).vector()
    raise InputError(f"noise is {noise!r}; choose isotropic or filter")
