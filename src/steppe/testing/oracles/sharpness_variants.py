"""The newer relatives of SAM in float64, one function each from the papers' equations."""

import math

import torch
from torch import Tensor
from torch.func import grad

from steppe.testing.oracles.harness import (
    DECAY,
    LR,
    MOMENTUM,
    Reference,
    Weights,
    cross_entropy,
    length,
    plus,
    restated,
    times,
)
from steppe.testing.oracles.online_distillation import STEPS
from steppe.testing.oracles.sharpness import plain, sam_gradient


def unnormalised_sam(r: Reference, x: Tensor, y: Tensor) -> None:
    """Andriushchenko and Flammarion, ICML 2022: e = rho g."""
    w = r.w
    for _ in range(r.settings["ascents"]):
        w = plus(w, times(r.gradient(w, x, y), r.settings["rho"]))
    r.update(r.gradient(w, x, y))


def ssam(r: Reference, x: Tensor, y: Tensor) -> None:
    """Tan et al., algorithm 1."""
    g = r.gradient(r.w, x, y)
    g_p = sam_gradient(r, g, x, y)
    r.update(times(g_p, length(g) / length(g_p)))


def vasso(r: Reference, x: Tensor, y: Tensor) -> None:
    """Li and Giannakis, algorithm 1; the mean begins with the first gradient."""
    g, theta = r.gradient(r.w, x, y), r.settings["theta"]
    d = plus(times(r.memory["d"], 1 - theta), times(g, theta)) if "d" in r.memory else g
    r.memory["d"] = d
    r.update(sam_gradient(r, d, x, y))


def le_sam(r: Reference, x: Tensor, y: Tensor) -> None:
    """Wang et al.: the radius from a budget of the loss."""
    g = r.gradient(r.w, x, y)
    radius = min(r.settings["sigma"] / length(g), r.settings["rho"])
    r.update(r.gradient(plus(r.w, times(g, radius / length(g))), x, y))


def async_sam(r: Reference, x: Tensor, y: Tensor) -> None:
    """Jo, Lim and Lee, on one process."""
    g = sam_gradient(r, r.memory["h"], x, y) if "h" in r.memory else r.gradient(r.w, x, y)
    r.memory["h"] = g
    r.update(g)


def ae_sam(r: Reference, x: Tensor, y: Tensor) -> None:
    """Jiang et al., algorithm 1."""
    t, mean, variance = r.memory.get("moments", (0, 0.0, math.exp(-10)))
    delta, done = r.settings["delta"], t / STEPS
    g = r.gradient(r.w, x, y)
    square = length(g) ** 2
    mean = delta * mean + (1 - delta) * square
    variance = delta * variance + (1 - delta) * (square - mean) ** 2
    r.memory["moments"] = t + 1, mean, variance
    threshold = r.settings["lam1"] * done + r.settings["lam2"] * (1 - done)
    r.update(sam_gradient(r, g, x, y) if square >= mean + threshold * variance**0.5 else g)


def class_weighted(r: Reference, x: Tensor, y: Tensor, a: Tensor) -> None:
    """Zhou et al. and Li et al.: the gradients of the parts of the loss, written out."""

    def gradient(w: Weights, each: Tensor) -> Weights:
        g: Weights = grad(lambda v: (cross_entropy(r.logits(v, x), y) * each[y]).mean())(w)
        return g

    g_a = gradient(r.w, a)
    at = plus(r.w, times(g_a, r.settings["rho"] / length(g_a))) if length(g_a) else r.w
    r.update(plus(gradient(r.w, 1 - a), gradient(at, a)))
    r.memory["counts"] = class_counts(r) + torch.bincount(y, minlength=CLASSES)


def class_counts(r: Reference) -> Tensor:
    """Return how many samples of each class were in the batches before."""
    counts: Tensor = r.memory.get("counts", torch.zeros(CLASSES, dtype=torch.int64))
    return counts


def imbsam(r: Reference, x: Tensor, y: Tensor) -> None:
    """Zhou et al.: a is 1 in small classes."""
    n = class_counts(r)
    class_weighted(r, x, y, (n * CLASSES < r.settings["small"] * n.sum()).double())


def focal_sam(r: Reference, x: Tensor, y: Tensor) -> None:
    """Li et al.: a falls with the share of the class."""
    n = class_counts(r)
    share = n.double() / max(int(n.sum()), 1)
    class_weighted(r, x, y, r.settings["lam"] * (1 - share) ** r.settings["gamma"])


def functional_sam(r: Reference, x: Tensor, y: Tensor) -> None:
    """Singh et al.: the softmax minus the target at w, times the Jacobian at w + e."""
    g = r.gradient(r.w, x, y)
    c = (torch.softmax(r.logits(r.w, x), 1) - torch.eye(CLASSES, dtype=x.dtype)[y]) / len(y)
    at = plus(r.w, times(g, r.settings["rho"] / length(g)))
    r.update(grad(lambda w: (c * r.logits(w, x)).sum())(at))


def sampa(r: Reference, x: Tensor, y: Tensor) -> None:
    """Xie et al., algorithm 1, with SGD's momentum and decay in the point that is looked ahead to."""
    h, at, ahead = r.memory.get("h"), r.w, r.w
    if h is not None:
        at = plus(r.w, times(h, r.settings["rho"] / length(h)))
        ahead = plus(r.w, times(plus(h, times(r.w, DECAY), times(r.velocity, MOMENTUM)), -LR))
    r.memory["h"] = r.gradient(ahead, x, y)
    lam = r.settings["lam"]
    r.update(plus(times(r.gradient(at, x, y), 1 - lam), times(r.memory["h"], lam)))


def lookahead(r: Reference, x: Tensor, y: Tensor) -> None:
    """Zhang et al., algorithm 1."""
    slow = r.memory.setdefault("slow", dict(r.w))
    r.update(r.gradient(r.w, x, y))
    r.memory["steps"] = r.memory.get("steps", 0) + 1
    if r.memory["steps"] % r.settings["every"] == 0:
        alpha = r.settings["alpha"]
        r.w = plus(times(slow, 1 - alpha), times(r.w, alpha))
        r.memory["slow"] = dict(r.w)


CLASSES = 5  # of the small network
VARIANTS = [
    restated("sam unnormalised", unnormalised_sam, "rho", norm="none"),
    restated("sam unnormalised twice", unnormalised_sam, "rho", norm="none", ascents=2),
    restated("ssam", ssam, "rho"),
    restated("vasso", vasso, "rho theta"),
    restated("le-sam", le_sam, "sigma rho"),
    restated("le-sam capped", le_sam, "sigma rho", rho=0.01),
    restated("async-sam", async_sam, "rho"),
    restated("ae-sam", ae_sam, "rho delta lam1 lam2", lam1=0.6, lam2=0.6),
    restated("functional-sam", functional_sam, "rho"),
    restated("sampa", sampa, "rho lam"),
    restated("lawa", plain, "k every"),
    restated("lookahead", lookahead, "alpha every", every=2),
    restated("averages", plain, "decays k start every update", start=0),
    restated("imbsam", imbsam, "rho small"),
    restated("focal-sam", focal_sam, "rho gamma lam"),
]
