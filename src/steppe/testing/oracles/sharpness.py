"""The relatives of sharpness-aware minimisation stated again in float64, one after another."""

from __future__ import annotations

import copy
from collections.abc import Callable

import torch
from torch import Tensor
from torch.func import functional_call, grad

from steppe.testing.oracles.harness import Reference, Restated, Weights, length, plus, times

TINY = 1e-12


def mapped(f: Callable[[Tensor], Tensor], a: Weights) -> Weights:
    """Return ``f`` of each weight."""
    return {k: f(v) for k, v in a.items()}


def product(a: Weights, b: Weights) -> Weights:
    """Return the elementwise product."""
    return {k: a[k] * b[k] for k in a}


def inner(a: Weights, b: Weights) -> float:
    """Return the inner product over all weights."""
    return float(sum((a[k] * b[k]).sum() for k in a))


def climb(g: Weights, rho: float) -> Weights:
    """Return the gradient at length ``rho``."""
    return times(g, rho / length(g))


def minus(a: Weights, b: Weights) -> Weights:
    """Return the difference."""
    return plus(a, times(b, -1.0))


def at_worst(r: Reference, g: Weights, x: Tensor, y: Tensor) -> Weights:
    """Return the gradient at the end of the ascent along ``g``."""
    return r.gradient(plus(r.w, climb(g, r.given["rho"])), x, y)


def asam(r: Reference, x: Tensor, y: Tensor) -> None:
    """Kwon et al., equation 5."""
    g = r.gradient(r.w, x, y)
    t = {k: w.abs() + r.given["eta"] if k.endswith("weight") else torch.ones_like(w) for k, w in r.w.items()}
    if r.given["scaling"] == "all":
        t = mapped(torch.abs, r.w)
    tg = product(t, g)
    r.update(r.gradient(plus(r.w, times(product(t, tg), r.given["rho"] / length(tg))), x, y))


def mixed_sam(r: Reference, x: Tensor, y: Tensor) -> None:
    """RWP paper, section 4.7."""
    g = r.gradient(r.w, x, y)
    alpha = r.given["alpha"]
    r.update(plus(times(g, alpha), times(at_worst(r, g, x, y), 1 - alpha)))


def gsam(r: Reference, x: Tensor, y: Tensor) -> None:
    """Zhuang et al., algorithm 1."""
    g = r.gradient(r.w, x, y)
    g_p = at_worst(r, g, x, y)
    parallel = times(g_p, inner(g, g_p) / inner(g_p, g_p))
    r.update(minus(g_p, times(minus(g, parallel), r.given["alpha"])))


def friendly_sam(r: Reference, x: Tensor, y: Tensor) -> None:
    """Li et al., algorithm 1, in the order of their code."""
    g = r.gradient(r.w, x, y)
    held = r.memory.get("mean")
    d = g if held is None else minus(g, times(held, r.given["sigma"]))
    lam = r.given["lam"]
    r.memory["mean"] = g if held is None else plus(times(held, lam), times(g, 1 - lam))
    r.update(at_worst(r, d, x, y))


def wsam(r: Reference, x: Tensor, y: Tensor) -> None:
    """Yue et al., algorithms 1 and 2."""
    g = r.gradient(r.w, x, y)
    g_p = at_worst(r, g, x, y)
    a = r.given["gamma"] / (1 - r.given["gamma"])
    if r.given["decoupled"]:
        r.update(g)
        r.w = plus(r.w, times(minus(g_p, g), -a * 0.1))
    else:
        r.update(plus(times(g, 1 - a), times(g_p, a)))


def looksam(r: Reference, x: Tensor, y: Tensor) -> None:
    """Liu et al., algorithm 1."""
    t = r.memory.setdefault("t", 0)
    r.memory["t"] = t + 1
    g = r.gradient(r.w, x, y)
    if t % r.given["k"]:
        v = r.memory["v"]
        r.update(plus(g, times(v, r.given["alpha"] * length(g) / (length(v) + TINY))))
        return
    offset = climb(g, r.given["rho"])
    if r.given["layerwise"]:
        offset = {k: r.given["rho"] * t * (float(r.w[k].norm()) / (float(t.norm()) + TINY)) for k, t in g.items()}
    g_s = r.gradient(plus(r.w, offset), x, y)
    r.memory["v"] = minus(g_s, times(g, inner(g, g_s) / inner(g, g)))
    r.update(g_s)


def esam(r: Reference, x: Tensor, y: Tensor) -> None:
    """Du et al., algorithm 1, with whole tensors as their code has it."""
    drawn = torch.rand(len(r.w), generator=r.noise)
    kept = drawn < r.given["beta"]
    kept[drawn.argmin()] = True
    g = {k: t if keep else 0 * t for (k, t), keep in zip(r.gradient(r.w, x, y).items(), kept, strict=True)}
    there = plus(r.w, climb(g, r.given["rho"] / r.given["beta"]))

    def each(w: Weights) -> Tensor:
        z = r.logits(w, x)
        return torch.logsumexp(z, 1) - z[torch.arange(len(y)), y]

    rise = each(there) - each(r.w)
    rows = rise.sort(descending=True).indices[: int(r.given["gamma"] * len(y))].sort().values
    r.update(r.gradient(there, x[rows], y[rows]))


def filter_noise(r: Reference, gamma: float) -> Weights:
    """Return noise whose standard deviation is gamma times the norm of each filter, row or vector."""
    noise = r.draw(1.0)
    for k, w in r.w.items():
        rows = w.reshape(len(w), -1) if w.ndim > 1 else w.reshape(1, -1)
        scale = gamma * rows.norm(dim=1, keepdim=True)
        noise[k] = (noise[k].reshape(rows.shape) * scale).reshape(w.shape)
    return noise


def r_sam(r: Reference, x: Tensor, y: Tensor) -> None:
    """Liu et al., NeurIPS 2022."""
    there = plus(r.w, filter_noise(r, r.given["gamma"]))
    g = r.gradient(there, x, y)
    r.update(r.gradient(plus(there, climb(g, r.given["rho"])), x, y))


def rwp(r: Reference, x: Tensor, y: Tensor) -> None:
    """Li et al., equations 10 and 14."""
    g = r.gradient(r.w, x, y)
    noisy = r.gradient(plus(r.w, filter_noise(r, r.given["gamma"])), x, y)
    alpha = r.given["alpha"]
    r.update(plus(times(g, alpha), times(noisy, 1 - alpha)))


def arwp(r: Reference, x: Tensor, y: Tensor) -> None:
    """Li et al., TMLR 2024."""
    past = r.memory.setdefault("F", times(r.w, 0.0))
    noise = filter_noise(r, r.given["gamma"])
    for k, f in past.items():
        of_unit = f.reshape(len(f), -1).sum(1) if f.ndim > 1 else f.sum().reshape(1)
        noise[k] = noise[k] / (1 + r.given["eta"] * of_unit.reshape(-1, *[1] * (f.ndim - 1))) ** 0.5
    g = r.gradient(r.w, x, y)
    noisy = r.gradient(plus(r.w, noise), x, y)
    alpha = r.given["alpha"]
    r.memory["F"] = {k: r.given["beta"] * f + noisy[k] ** 2 for k, f in past.items()}
    r.update(plus(times(g, alpha), times(noisy, 1 - alpha)))


def lpf_sgd(r: Reference, x: Tensor, y: Tensor) -> None:
    """Bisla et al., algorithm 1; parts of nearly equal size, of two samples at least."""
    parts = min(r.given["M"], len(y) // 2)
    total = times(r.w, 0.0)
    for i in range(parts):
        part = slice(i * len(y) // parts, (i + 1) * len(y) // parts)
        g = r.gradient(plus(r.w, filter_noise(r, r.given["gamma"])), x[part], y[part])
        total = plus(total, times(g, len(y[part]) / len(y)))
    r.update(total)


def pulled(r: Reference, past: Tensor, rows: Tensor, x: Tensor, y: Tensor) -> Weights:
    """Return the gradient of the loss plus the divergence of ``rows`` from ``past`` at a temperature."""
    T, lam = r.given["T"], r.given["lam"] * (r.given["T"] ** 2 if r.given["squared"] else 1.0)

    def loss(w: Weights) -> Tensor:
        p, q = torch.softmax(past / T, 1), torch.softmax(r.logits(w, x) / T, 1)
        divergence: Tensor = ((p * (p.log() - q.log())).sum(1) * rows).mean()
        return r.loss(w, x, y) + float(lam) * divergence

    g: Weights = grad(loss)(r.w)
    return g


def saf(r: Reference, x: Tensor, y: Tensor) -> None:
    """Du et al., equation 8; every batch has the same samples."""
    said = r.memory.setdefault("said", [])
    now = r.logits(r.w, x)
    old = len(said) >= r.given["past"] and len(said) >= r.given["start"]
    g = pulled(r, said[-r.given["past"]], torch.ones(len(y)), x, y) if old else r.gradient(r.w, x, y)
    said.append(now)
    r.update(g)


def mesa(r: Reference, x: Tensor, y: Tensor) -> None:
    """Du et al., section 3.3, with the warm-up; running statistics are averaged like the weights."""
    held = r.memory
    if not held:
        held["w"], held["t"] = dict(r.w), 0
        held["b"] = {k: v.clone() for k, v in r.net.named_buffers()}
        held["mean"] = copy.deepcopy(held["b"])
    teacher = copy.deepcopy(r.net).eval()
    past: Tensor = functional_call(teacher, {**held["w"], **held["mean"]}, (x,))
    g = pulled(r, past, torch.ones(len(y)), x, y)
    functional_call(r.net, {**r.w, **held["b"]}, (x,))  # moves its running statistics in place
    r.update(g)
    d = min(r.given["decay"], (1 + held["t"]) / (10 + held["t"]))
    held["t"] += 1
    held["w"] = plus(times(held["w"], d), times(r.w, 1 - d))
    held["mean"] = {k: d * v + (1 - d) * held["b"][k] for k, v in held["mean"].items() if v.is_floating_point()}


def _plain(r: Reference, x: Tensor, y: Tensor) -> None:
    r.update(r.gradient(r.w, x, y))


FAMILY: dict[str, Restated] = {
    "asam": Restated("asam", asam, ("rho", "eta", "scaling")),
    "asam all": Restated("asam", asam, ("rho", "eta", "scaling"), {"scaling": "all"}),
    "mixed-sam": Restated("mixed-sam", mixed_sam, ("rho", "alpha")),
    "gsam": Restated("gsam", gsam, ("rho", "alpha")),
    "friendly-sam": Restated("friendly-sam", friendly_sam, ("rho", "sigma", "lam")),
    "wsam": Restated("wsam", wsam, ("rho", "gamma", "decoupled")),
    "wsam coupled": Restated("wsam", wsam, ("rho", "gamma", "decoupled"), {"decoupled": False}),
    "looksam": Restated("looksam", looksam, ("rho", "k", "alpha", "layerwise"), {"k": 2}),
    "look-layersam": Restated("look-layersam", looksam, ("rho", "k", "alpha", "layerwise"), {"k": 2}),
    "esam": Restated("esam", esam, ("rho", "beta", "gamma")),
    "r-sam": Restated("r-sam", r_sam, ("rho", "gamma")),
    "rwp": Restated("rwp", rwp, ("gamma", "alpha")),
    "arwp": Restated("arwp", arwp, ("gamma", "alpha", "eta", "beta"), {"eta": 3.0}),
    "lpf-sgd": Restated("lpf-sgd", lpf_sgd, ("gamma", "M"), {"gamma": 0.05, "M": 5}),
    "saf": Restated("saf", saf, ("lam", "T", "past", "start", "squared"), {"past": 2, "start": 3}),
    "mesa": Restated("mesa", mesa, ("lam", "T", "decay", "squared")),
    "swa": Restated("swa", _plain, ("start", "every"), {"start": 0}),
    "ema": Restated("ema", _plain, ("decay",)),
}
