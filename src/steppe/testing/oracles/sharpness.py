"""The relatives of SAM in float64, one function each from the papers' equations."""

import torch
from torch import Tensor
from torch.func import grad

from steppe.testing.oracles.harness import (
    Reference,
    Weights,
    averaged,
    cross_entropy,
    kl,
    length,
    plus,
    restated,
    times,
)

TINY = 1e-12


def inner(a: Weights, b: Weights) -> float:
    """Return the inner product over all weights."""
    return float(sum((a[k] * b[k]).sum() for k in a))


def minus(a: Weights, b: Weights) -> Weights:
    """Return the difference."""
    return plus(a, times(b, -1.0))


def sam_gradient(r: Reference, g: Weights, x: Tensor, y: Tensor) -> Weights:
    """Return the gradient at w + rho g / ||g||."""
    return r.gradient(plus(r.w, times(g, r.settings["rho"] / length(g))), x, y)


def asam(r: Reference, x: Tensor, y: Tensor) -> None:
    """Kwon et al., equation 5."""
    g = r.gradient(r.w, x, y)
    if r.settings["scaling"] == "all":
        t = {k: w.abs() for k, w in r.w.items()}
    else:
        t = {k: w.abs() + r.settings["eta"] if k.endswith("weight") else 0 * w + 1 for k, w in r.w.items()}
    tg = {k: t[k] * g[k] for k in g}
    offset = times({k: t[k] * tg[k] for k in g}, r.settings["rho"] / length(tg))
    r.update(r.gradient(plus(r.w, offset), x, y))


def msam(r: Reference, x: Tensor, y: Tensor) -> None:
    """Becker et al., algorithm 1; the momentum is zero at first."""
    v = r.velocity
    r.update(r.gradient(plus(r.w, times(v, -r.settings["rho"] / length(v))) if v else r.w, x, y))


def mixed_sam(r: Reference, x: Tensor, y: Tensor) -> None:
    """RWP paper, section 4.7."""
    g = r.gradient(r.w, x, y)
    alpha = r.settings["alpha"]
    r.update(plus(times(g, alpha), times(sam_gradient(r, g, x, y), 1 - alpha)))


def gsam(r: Reference, x: Tensor, y: Tensor) -> None:
    """Zhuang et al., algorithm 1."""
    g = r.gradient(r.w, x, y)
    g_p = sam_gradient(r, g, x, y)
    parallel = times(g_p, inner(g, g_p) / inner(g_p, g_p))
    r.update(minus(g_p, times(minus(g, parallel), r.settings["alpha"])))


def friendly_sam(r: Reference, x: Tensor, y: Tensor) -> None:
    """Li et al., algorithm 1, in the order of their code."""
    g = r.gradient(r.w, x, y)
    mean = r.memory.get("mean")
    d = g if mean is None else minus(g, times(mean, r.settings["sigma"]))
    r.memory["mean"] = g if mean is None else averaged(mean, g, r.settings["lam"])
    r.update(sam_gradient(r, d, x, y))


def wsam(r: Reference, x: Tensor, y: Tensor) -> None:
    """Yue et al., algorithms 1 and 2."""
    g = r.gradient(r.w, x, y)
    g_p = sam_gradient(r, g, x, y)
    a = r.settings["gamma"] / (1 - r.settings["gamma"])
    if r.settings["decoupled"]:
        r.update(g)
        r.w = plus(r.w, times(minus(g_p, g), -a * 0.1))
    else:
        r.update(plus(times(g, 1 - a), times(g_p, a)))


def looksam(r: Reference, x: Tensor, y: Tensor) -> None:
    """Liu et al., algorithm 1."""
    t = r.memory.setdefault("t", 0)
    r.memory["t"] = t + 1
    g = r.gradient(r.w, x, y)
    if t % r.settings["k"]:
        v = r.memory["v"]
        r.update(plus(g, times(v, r.settings["alpha"] * length(g) / (length(v) + TINY))))
        return
    rho = r.settings["rho"]
    offset = times(g, rho / length(g))
    if r.settings["layerwise"]:
        offset = {k: rho * t * (float(r.w[k].norm()) / (float(t.norm()) + TINY)) for k, t in g.items()}
    g_s = r.gradient(plus(r.w, offset), x, y)
    r.memory["v"] = minus(g_s, times(g, inner(g, g_s) / inner(g, g)))
    r.update(g_s)


def esam(r: Reference, x: Tensor, y: Tensor) -> None:
    """Du et al., algorithm 1, with whole tensors as in their code."""
    u = torch.rand(len(r.w), generator=r.host_noise, device=r.host_noise.device)
    chosen = u < r.settings["beta"]
    chosen[u.argmin()] = True
    g = {k: t if keep else 0 * t for (k, t), keep in zip(r.gradient(r.w, x, y).items(), chosen, strict=True)}
    perturbed = plus(r.w, times(g, r.settings["rho"] / r.settings["beta"] / length(g)))
    rise = cross_entropy(r.logits(perturbed, x), y) - cross_entropy(r.logits(r.w, x), y)
    rows = rise.sort(descending=True).indices[: int(r.settings["gamma"] * len(y))].sort().values
    r.update(r.gradient(perturbed, x[rows], y[rows]))


def filter_noise(r: Reference) -> Weights:
    """Return noise whose standard deviation is gamma times the norm of each filter, row or vector."""
    noise = r.draw(1.0)
    for k, w in r.w.items():
        rows = w.reshape(len(w), -1) if w.ndim > 1 else w.reshape(1, -1)
        scale = r.settings["gamma"] * rows.norm(dim=1, keepdim=True)
        noise[k] = (noise[k].reshape(rows.shape) * scale).reshape(w.shape)
    return noise


def r_sam(r: Reference, x: Tensor, y: Tensor) -> None:
    """Liu et al., NeurIPS 2022."""
    noisy = plus(r.w, filter_noise(r))
    g = r.gradient(noisy, x, y)
    r.update(r.gradient(plus(noisy, times(g, r.settings["rho"] / length(g))), x, y))


def rwp(r: Reference, x: Tensor, y: Tensor) -> None:
    """Li et al., arXiv:2211.13489v1, algorithm 1."""
    g = r.gradient(r.w, x, y)
    noisy = r.gradient(plus(r.w, filter_noise(r)), x, y)
    alpha = r.settings["alpha"]
    r.update(plus(times(g, alpha), times(noisy, 1 - alpha)))


def arwp(r: Reference, x: Tensor, y: Tensor) -> None:
    """Li et al., TMLR 2024, and their code: each element of a vector has its own F."""
    fisher = r.memory.setdefault("F", times(r.w, 0.0))
    noise = filter_noise(r)
    for k, f in fisher.items():
        of_unit = f.reshape(len(f), -1).sum(1)
        noise[k] = noise[k] / (1 + r.settings["eta"] * of_unit.reshape(-1, *[1] * (f.ndim - 1))) ** 0.5
    g = r.gradient(r.w, x, y)
    noisy = r.gradient(plus(r.w, noise), x, y)
    alpha = r.settings["alpha"]
    r.memory["F"] = {k: r.settings["beta"] * f + noisy[k] ** 2 for k, f in fisher.items()}
    r.update(plus(times(g, alpha), times(noisy, 1 - alpha)))


def lpf_sgd(r: Reference, x: Tensor, y: Tensor) -> None:
    """Bisla et al., algorithm 1; parts of nearly equal size, of two samples at least."""
    parts = min(r.settings["M"], len(y) // 2)
    total = times(r.w, 0.0)
    for i in range(parts):
        part = slice(i * len(y) // parts, (i + 1) * len(y) // parts)
        g = r.gradient(plus(r.w, filter_noise(r)), x[part], y[part])
        total = plus(total, times(g, len(y[part]) / len(y)))
    r.update(total)


def distillation_gradient(r: Reference, teacher: Tensor, x: Tensor, y: Tensor) -> Weights:
    """Return the gradient of the loss plus lam times the divergence from ``teacher`` at temperature T."""
    T, lam = r.settings["T"], r.settings["lam"] * (r.settings["T"] ** 2 if r.settings["squared"] else 1.0)

    def loss(w: Weights) -> Tensor:
        return r.loss(w, x, y) + float(lam) * kl(teacher, r.logits(w, x), T).mean()

    g: Weights = grad(loss)(r.w)
    return g


def saf(r: Reference, x: Tensor, y: Tensor) -> None:
    """Du et al., equation 8; every batch has the same samples."""
    bank = r.memory.setdefault("bank", [])
    now = r.logits(r.w, x)
    old = len(bank) >= r.settings["past"] and len(bank) >= r.settings["start"]
    g = distillation_gradient(r, bank[-r.settings["past"]], x, y) if old else r.gradient(r.w, x, y)
    bank.append(now)
    r.update(g)


def mesa(r: Reference, x: Tensor, y: Tensor) -> None:
    """Du et al., section 3.3, with the warm-up; its running statistics come from training passes near the mean."""
    m = r.memory
    if not m:
        m |= {"mean": dict(r.w), "mean buffers": r.buffers(), "t": 0}
    d = min(r.settings["decay"], (1 + m["t"]) / (10 + m["t"]))
    m["t"] += 1
    moved = r.moved_buffers(averaged(m["mean"], r.w, d), m["mean buffers"], x)
    r.update(distillation_gradient(r, r.eval_logits(m["mean"], m["mean buffers"], x), x, y))
    m["mean"], m["mean buffers"] = averaged(m["mean"], r.w, d), moved


def plain(r: Reference, x: Tensor, y: Tensor) -> None:
    """A step of the base optimizer."""
    r.update(r.gradient(r.w, x, y))


FAMILY = [
    restated("asam", asam, "rho eta scaling"),
    restated("asam all", asam, "rho eta scaling", scaling="all"),
    restated("msam", msam, "rho"),
    restated("mixed-sam", mixed_sam, "rho alpha"),
    restated("gsam", gsam, "rho alpha"),
    restated("friendly-sam", friendly_sam, "rho sigma lam"),
    restated("wsam", wsam, "rho gamma decoupled"),
    restated("wsam coupled", wsam, "rho gamma decoupled", decoupled=False),
    restated("looksam", looksam, "rho k alpha layerwise", k=2),
    restated("look-layersam", looksam, "rho k alpha layerwise", k=2),
    restated("esam", esam, "rho beta gamma"),
    restated("r-sam", r_sam, "rho gamma"),
    restated("rwp", rwp, "gamma alpha"),
    restated("arwp", arwp, "gamma alpha eta beta", eta=3.0),
    restated("lpf-sgd", lpf_sgd, "gamma M", gamma=0.05, M=5),
    restated("saf", saf, "lam T past start squared", past=2, start=3),
    restated("mesa", mesa, "lam T decay squared"),
    restated("swa", plain, "start every", start=0),
    restated("ema", plain, "decay"),
]
