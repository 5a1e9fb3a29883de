r"""PAC-Bayes bounds on the error of a randomised network.

The posterior is :math:`Q = N(w, \sigma^2 I)` over the trainable weights, the prior :math:`N(w_0, \sigma^2 I)`
around weights :math:`w_0` that do not depend on the data (the run's own initialisation, or 0), so that
:math:`\mathrm{KL} = \lVert w - w_0\rVert^2 / (2\sigma^2)`. Each bound holds with probability at least
:math:`1-\delta` over the draw of the n training samples, for the mean error of networks drawn from Q, not for the
network itself. BatchNorm's running statistics are treated as fixed although they come from the data, so with
BatchNorm the bounds are heuristic. A bound of 1 or more says nothing and is called vacuous.

The OKDPH paper prints a "PAC-Bayes bound" (supplement, table 5) whose formula was never published. Its numbers are
close to a constant times the number of parameters and bound no error. This module does not reproduce it.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from scipy.optimize import brentq
from scipy.special import rel_entr

from steppe.core.numerics import vector
from steppe.core.numerics.vector import Vec
from steppe.diagnostics.loss_surface import LossSurface
from steppe.errors import InputError

BoundKind = Literal["mcallester", "seeger", "catoni"]
SIGMAS = tuple(10 ** (-3 + 2.5 * j / 10) for j in range(11))
CONSTANTS = (0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0)


@dataclass(frozen=True)
class Bound:
    """One bound on the error of the randomised network, and its terms.

    Attributes:
        kind: Author of the bound.
        value: The bound as a fraction; vacuous if 1 or more.
        sigma: The noise of the grid with the smallest bound.
        divergence: KL(Q, P) at this sigma, in nats.
        measured: Mean training error of the sampled networks.
        empirical: Upper bound on the training error of Q, from these networks.
        samples: Training samples n.
        confidence: 1 - delta, for all estimates together.
    """

    kind: BoundKind
    value: float
    sigma: float
    divergence: float
    measured: float
    empirical: float
    samples: int
    confidence: float

    @property
    def vacuous(self) -> bool:
        """Return whether the bound is 1 or more."""
        return not self.value < 1

    def __str__(self) -> str:
        """Return the bound as one line."""
        about = f"sigma {self.sigma:.3g}, KL {self.divergence:.4g}, {self.samples} samples"
        if self.vacuous:
            return f"{self.kind}: vacuous ({about})"
        return f"{self.kind}: error at most {self.value:.1%} with confidence {self.confidence:.0%} ({about})"


def bernoulli_kl(q: float, p: float) -> float:
    r"""Return :math:`\mathrm{kl}(q\|p) = q\ln\frac qp + (1-q)\ln\frac{1-q}{1-p}` of two error rates, in nats."""
    if not (0 <= q <= 1 and 0 <= p <= 1):
        raise ValueError(f"q is {q} and p is {p}; error rates lie between 0 and 1")
    return float(rel_entr(q, p) + rel_entr(1 - q, 1 - p))


def bernoulli_kl_inverse(q: float, budget: float) -> float:
    r"""Return the largest p with :math:`\mathrm{kl}(q\|p) \le` ``budget``, to 1e-12.

    Raises ValueError if q is not an error rate or the budget is negative.
    """
    if not 0 <= q <= 1 or not budget >= 0:
        raise ValueError(f"q is {q} and the budget {budget}; give a rate and at least 0")
    if q == 0:
        return -math.expm1(-budget)
    highest = 1 - 1e-15
    if q >= highest or bernoulli_kl(q, highest) <= budget:
        return 1.0
    return float(brentq(lambda p: bernoulli_kl(q, p) - budget, q, highest, xtol=1e-13)) if budget else q


def mcallester(empirical: float, divergence: float, n: int, delta: float) -> float:
    r"""Return :math:`\hat R + \sqrt{(\mathrm{KL} + \ln(2\sqrt n/\delta)) / 2n}` (McAllester 1999; Maurer 2004)."""
    return empirical + math.sqrt((divergence + math.log(2 * math.sqrt(n) / delta)) / (2 * n))


def seeger(empirical: float, divergence: float, n: int, delta: float) -> float:
    r"""Return the largest R with :math:`\mathrm{kl}(\hat R\|R) \le (\mathrm{KL} + \ln(2\sqrt n/\delta)) / n`.

    Seeger, JMLR 3 (2002), with Maurer's constant (arXiv:cs/0411099); never above McAllester's.
    """
    return bernoulli_kl_inverse(empirical, (divergence + math.log(2 * math.sqrt(n) / delta)) / n)


def catoni(
    empirical: float, divergence: float, n: int, delta: float, constants: Sequence[float] = CONSTANTS
) -> float:
    r"""Return the least over C of :math:`(1-e^{-C\hat R-(\mathrm{KL}+\ln(1/\delta_C))/n}) / (1-e^{-C})`.

    :math:`\delta_C = \delta/J` for J constants fixed beforehand, by a union bound over them (Catoni, PAC-
    Bayesian Supervised Classification, IMS Lecture Notes 56, 2007, theorem 1.2.6).
    """
    cost = (divergence + math.log(len(constants) / delta)) / n
    return min(-math.expm1(-c * empirical - cost) / -math.expm1(-c) for c in constants)


FORMULAS: dict[BoundKind, Callable[[float, float, int, float], float]] = {
    "mcallester": mcallester,
    "seeger": seeger,
    "catoni": catoni,
}


def bounds(
    surface: LossSurface,
    start: Vec | None = None,
    *,
    sigmas: Sequence[float] = SIGMAS,
    delta: float = 0.05,
    draws: int = 30,
    seed: int = 0,
) -> list[Bound]:
    r"""Return McAllester's, Seeger's and Catoni's bounds, each at the best sigma of a grid.

    The grid is fixed beforehand. By a union bound each of its J values gets :math:`\delta/J`, a tenth of it for
    the draws. The error of Q on the training samples is bounded through ``draws`` networks by
    :math:`\mathrm{kl}^{-1}(\hat R, \ln(2/\delta')/\text{draws})` (Langford and Caruana, NeurIPS 2001), which
    is a large part of the bound if there are few draws.

    Args:
        surface: The network and its training samples, all of them or a random part fixed beforehand.
        start: Initial weights w_0 in the surface's order; 0 if not given.
        sigmas: Standard deviations, fixed independently of the data.
        delta: Probability with which each of the three bounds may fail.
        draws: Networks sampled per sigma.
        seed: Of the draws.

    Raises:
        InputError: Targets are not class indices, delta is not between 0 and 1, or ``draws`` is below 1.
    """
    if not 0 < delta < 1:
        raise InputError(f"delta is {delta}; give a number between 0 and 1")
    if draws < 1:
        raise InputError(f"draws is {draws}; give at least 1")
    moved = vector.clone([*surface.params])
    squared = float(vector.norm(moved if start is None else vector.add(moved, start, by=-1.0)).double()) ** 2
    best: dict[BoundKind, Bound] = {}
    each = delta / len(sigmas)
    for sigma in sigmas:
        divergence = squared / (2 * sigma**2)
        measured = gibbs_error(surface, sigma, draws, seed)
        empirical = bernoulli_kl_inverse(measured, math.log(2 / (0.1 * each)) / draws)
        for kind, formula in FORMULAS.items():
            value = formula(empirical, divergence, len(surface), 0.9 * each)
            if kind not in best or value < best[kind].value:
                best[kind] = Bound(kind, value, sigma, divergence, measured, empirical, len(surface), 1 - delta)
    return list(best.values())


def gibbs_error(surface: LossSurface, sigma: float, draws: int, seed: int = 0) -> float:
    """Return the mean error of ``draws`` networks from N(w, sigma^2 I) on all samples of the surface.

    Raises InputError if the targets are not class indices.
    """
    rng = torch.Generator(device=surface.params[0].device).manual_seed(seed)
    errors = []
    for _ in range(draws):
        with surface.at(vector.scale(vector.gaussian(surface.params, rng), sigma)):
            accuracy = surface.value().accuracy
        if accuracy is None:
            raise InputError("the targets are not class indices; a PAC-Bayes bound needs errors")
        errors.append(1 - accuracy)
    return math.fsum(errors) / draws
