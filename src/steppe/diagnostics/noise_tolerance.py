"""Noise tolerance: the largest weight noise that keeps the error, and the measures of Jiang et al. made of it.

The measures order networks and bound nothing: their constants are conventions, and with BatchNorm the norms in
them depend on weight decay alone. Dziugaite et al. (NeurIPS 2020) and Jiang et al. (ICLR 2020) study how well they
predict generalisation.
"""

import math
from dataclasses import dataclass
from typing import Literal

import torch

from steppe.core.numerics import vector
from steppe.core.numerics.vector import Vec
from steppe.diagnostics.loss_surface import LossSurface
from steppe.diagnostics.pac_bayes import gibbs_error
from steppe.errors import InputError

EPSILON = 1e-3  # smallest noise on a weight if the noise is proportional to the weight
_LARGEST = 2.0  # upper end of the search, as in the published code


@dataclass(frozen=True)
class NoiseTolerance:
    r"""Sharpness measures of one network.

    Attributes:
        sigma: The largest tolerated noise, see `max_tolerated_noise`.
        flatness: :math:`1/\sigma^2`.
        origin: :math:`\lVert w\rVert^2/(4\sigma^2) + \ln(n/\sigma) + 10`, for a prior around 0.
        start: The same with :math:`\lVert w-w_0\rVert^2`, for a prior around the initial weights, if given.
    """

    sigma: float
    flatness: float
    origin: float
    start: float | None


def max_tolerated_noise(
    surface: LossSurface,
    drop: float = 0.1,
    *,
    noise: Literal["isotropic", "magnitude"] = "isotropic",
    draws: int = 10,
    steps: int = 15,
    seed: int = 0,
) -> float:
    r"""Return the largest :math:`\sigma \le 2` whose weight noise changes the error by at most ``drop``.

    The change is :math:`|E_u[\mathrm{err}(w+u)] - \mathrm{err}(w)|`, over ``draws`` networks with the same draws
    for all sigma: :math:`u \sim N(0, \sigma^2 I)`, or with 'magnitude' :math:`u_i \sim N(0, \sigma^2 w_i^2 +
    \epsilon^2)`, :math:`\epsilon = 10^{-3}`. Found by ``steps`` bisections, so to :math:`2^{1-\text{steps}}`; 0
    if even less noise is too much (Jiang et al., ICLR 2020, appendix).

    Raises InputError if ``drop`` is not between 0 and 1, ``draws`` or ``steps`` is below 1, ``noise`` is unknown
    or targets are not class indices.
    """
    if not 0 < drop < 1:
        raise InputError(f"drop is {drop}; give a number between 0 and 1")
    if draws < 1 or steps < 1:
        raise InputError(f"draws is {draws} and steps is {steps}; give at least 1 of each")
    if noise not in ("isotropic", "magnitude"):
        raise InputError(f"noise is {noise!r}; choose isotropic or magnitude")
    clean_error = gibbs_error(surface, 0.0, 1)

    def tolerates(sigma: float) -> bool:
        if noise == "isotropic":
            return abs(gibbs_error(surface, sigma, draws, seed) - clean_error) <= drop
        rng = torch.Generator(device=surface.params[0].device).manual_seed(seed)
        scale: Vec = [(sigma**2 * p.detach() ** 2 + EPSILON**2).sqrt() for p in surface.params]
        errors = []
        for _ in range(draws):
            with surface.at(vector.times(vector.gaussian(surface.params, rng), scale)):
                errors.append(1 - (surface.value().accuracy or 0.0))
        return abs(math.fsum(errors) / draws - clean_error) <= drop

    low, high = 0.0, _LARGEST
    if tolerates(high):
        return high
    for _ in range(steps):
        middle = (low + high) / 2
        if tolerates(middle):
            low = middle
        else:
            high = middle
    return low


def magnitude_aware(moved: Vec, sigma: float, samples: int) -> float:
    r"""Return the measure for noise proportional to the weights, in nats; ``moved`` is w - w_0 (or w).

    .. math:: \tfrac14\sum_i \ln\frac{\epsilon^2 + (\sigma^2+1)\lVert w-w_0\rVert^2/P}
        {\epsilon^2 + \sigma^2 (w_i-w_{0,i})^2} + \ln\frac n\sigma + 10

    with :math:`\epsilon = 10^{-3}`, P weights, n ``samples``, and :math:`\sigma` from `max_tolerated_noise` with
    noise 'magnitude' (Jiang et al., ICLR 2020, appendix).

    Raises InputError if ``sigma`` is not above 0 or ``samples`` below 1.
    """
    _check(sigma, samples)
    parts = [t.double() for t in moved if t is not None]
    count = sum(t.numel() for t in parts)
    mean = sum(float(t.square().sum()) for t in parts) / count
    top = math.log(EPSILON**2 + (sigma**2 + 1) * mean)
    below = sum(float(torch.log(EPSILON**2 + sigma**2 * t.square()).sum()) for t in parts)
    return 0.25 * (count * top - below) + math.log(samples / sigma) + 10


def noise_tolerance(surface: LossSurface, sigma: float, samples: int, start: Vec | None = None) -> NoiseTolerance:
    """Return the measures of a network that tolerates noise ``sigma`` and was trained on ``samples`` samples.

    ``start`` are its initial weights in the surface's order.

    Raises InputError if ``sigma`` is not above 0 or ``samples`` below 1.
    """
    _check(sigma, samples)
    weights = vector.clone([*surface.params])

    def nats(moved: Vec) -> float:
        squared = float(vector.norm(moved).double()) ** 2
        return squared / (4 * sigma**2) + math.log(samples / sigma) + 10

    from_start = None if start is None else nats(vector.add(weights, start, by=-1.0))
    return NoiseTolerance(sigma, 1 / sigma**2, nats(weights), from_start)


def _check(sigma: float, samples: int) -> None:
    if not sigma > 0:
        raise InputError(f"sigma is {sigma}; give a number above 0")
    if samples < 1:
        raise InputError(f"samples is {samples}; give at least 1")
