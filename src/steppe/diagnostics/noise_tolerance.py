r"""Measures that papers report in place of a bound: how much noise the weights bear, and what that costs in nats.

They order networks, and bound nothing: their constants are conventions, and with BatchNorm the norms in them
change with weight decay alone. Dziugaite et al. (NeurIPS 2020) and Jiang et al. (ICLR 2020) study how well each of
them goes with generalisation.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import torch

from steppe.core.numerics import vector
from steppe.core.numerics.vector import Vec
from steppe.diagnostics.loss_surface import LossSurface
from steppe.diagnostics.pac_bayes import gibbs_error
from steppe.errors import InputError

EPSILON = 1e-3  # least noise on a weight where it is in proportion to it
_LARGEST = 2.0  # noise is searched for up to here, as the published code does


@dataclass(frozen=True)
class NoiseTolerance:
    r"""Sharpness-form measures of one network.

    Attributes:
        sigma: The largest noise it bears, see `bearable_noise`.
        flatness: :math:`1/\sigma^2`.
        origin: :math:`\lVert w\rVert^2/(4\sigma^2) + \ln(n/\sigma) + 10`, for a prior around 0.
        start: The same with :math:`\lVert w-w_0\rVert^2`, for a prior around the initial weights; None without
            them.
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
    r"""Return the largest :math:`\sigma \le 2` whose noise changes the error by ``drop`` at most.

    The change is :math:`|E_u[\mathrm{err}(w+u)] - \mathrm{err}(w)|`, over ``draws`` networks with the same draws
    at all scales: :math:`u \sim N(0, \sigma^2 I)`, or with 'magnitude' :math:`u_i \sim N(0, \sigma^2 w_i^2 +
    \epsilon^2)`, :math:`\epsilon = 10^{-3}`. Found by ``steps`` bisections, so to :math:`2^{1-\text{steps}}`; 0
    where even less noise is too much (Jiang et al., ICLR 2020, appendix).

    Raises InputError if ``drop`` is not between 0 and 1, draws or steps are below 1, there is no such noise, or
    targets are no classes.
    """
    if not 0 < drop < 1:
        raise InputError(f"drop is {drop}; give a number between 0 and 1")
    if draws < 1 or steps < 1:
        raise InputError(f"draws is {draws} and steps is {steps}; give at least 1 of each")
    if noise not in ("isotropic", "magnitude"):
        raise InputError(f"noise is {noise!r}; choose isotropic or magnitude")
    here = gibbs_error(surface, 0.0, 1)

    def bears(sigma: float) -> bool:
        if noise == "isotropic":
            return abs(gibbs_error(surface, sigma, draws, seed) - here) <= drop
        rng = torch.Generator(device=surface.params[0].device).manual_seed(seed)
        scale: Vec = [(sigma**2 * p.detach() ** 2 + EPSILON**2).sqrt() for p in surface.params]
        errors = []
        for _ in range(draws):
            with surface.at(vector.times(vector.gaussian(surface.params, rng), scale)):
                errors.append(1 - (surface.value().accuracy or 0.0))
        return abs(math.fsum(errors) / draws - here) <= drop

    low, high = 0.0, _LARGEST
    if bears(high):
        return high
    for _ in range(steps):
        middle = (low + high) / 2
        if bears(middle):
            low = middle
        else:
            high = middle
    return low


def magnitude_aware(moved: Vec, sigma: float, samples: int) -> float:
    r"""Return the measure of noise in proportion to the weights, in nats, of ``moved`` = w - w_0 (or w).

    .. math:: \tfrac14\sum_i \ln\frac{\epsilon^2 + (\sigma^2+1)\lVert w-w_0\rVert^2/P}
        {\epsilon^2 + \sigma^2 (w_i-w_{0,i})^2} + \ln\frac n\sigma + 10

    with :math:`\epsilon = 10^{-3}`, P weights, n ``samples``, and :math:`\sigma` what `bearable_noise` finds with
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
    """Return the measures of a network that bears noise ``sigma`` and was trained on ``samples`` samples.

    ``start`` are its initial weights in the surface's order.

    Raises InputError if ``sigma`` is not above 0 or ``samples`` below 1.
    """
    _check(sigma, samples)
    weights = vector.clone([*surface.params])

    def nats(moved: Vec) -> float:
        squared = float(vector.norm(moved).double()) ** 2
        return squared / (4 * sigma**2) + math.log(samples / sigma) + 10

    begun = None if start is None else nats(vector.add(weights, start, by=-1.0))
    return NoiseTolerance(sigma, 1 / sigma**2, nats(weights), begun)


def gaussian_divergence(moved: Vec, posterior: float, prior: float) -> float:
    r"""Return :math:`\mathrm{KL}(N(w,\sigma_q^2 I)\,\|\,N(w_0,\sigma_p^2 I))` in nats, of ``moved`` = w - w_0.

    It is :math:`P[\ln(\sigma_p/\sigma_q) + \sigma_q^2/2\sigma_p^2 - 1/2] + \lVert w-w_0\rVert^2/2\sigma_p^2`. With
    unequal deviations the first part, a constant times the P weights, outweighs all else: the OKDPH paper's table,
    whose formula was never published, looks like it.

    Raises InputError if a deviation is not above 0.
    """
    if not (posterior > 0 and prior > 0):
        raise InputError(f"deviations are {posterior} and {prior}; give numbers above 0")
    count = sum(t.numel() for t in moved if t is not None)
    each = math.log(prior / posterior) + posterior**2 / (2 * prior**2) - 0.5
    return count * each + float(vector.norm(moved).double()) ** 2 / (2 * prior**2)


def _check(sigma: float, samples: int) -> None:
    if not sigma > 0:
        raise InputError(f"sigma is {sigma}; give a number above 0")
    if samples < 1:
        raise InputError(f"samples is {samples}; give at least 1")
