"""Every method in float64, written from the papers' equations without its own code; `harness` has the tools."""

from collections.abc import Callable

import torch
from torch import Tensor

from steppe.testing.oracles.harness import LR, Reference, ReferenceStep, Weights, length, plus, restated, times
from steppe.testing.oracles.online_distillation import PEERS
from steppe.testing.oracles.sharpness import FAMILY, plain
from steppe.testing.oracles.sharpness_variants import VARIANTS


def repeat_step(r: Reference, x: Tensor, y: Tensor) -> None:
    g = r.gradient(r.w, x, y)
    r.update(g)
    r.update(g)


def two_step(r: Reference, x: Tensor, y: Tensor) -> None:
    plain(r, x, y)
    plain(r, x, y)


def gc(r: Reference, x: Tensor, y: Tensor) -> None:
    g = r.gradient(r.w, x, y)
    for k, t in g.items():
        if t.ndim > 1:
            rows = t.reshape(len(t), -1)
            g[k] = (rows - rows.mean(1, keepdim=True)).reshape(t.shape)
    r.update(g)


def agc(r: Reference, x: Tensor, y: Tensor) -> None:
    g = r.gradient(r.w, x, y)
    for k, t in g.items():
        if k == "11.weight":  # the head
            continue
        units = t.reshape(len(t), -1) if t.ndim > 1 else t.reshape(1, -1)
        weights = r.w[k].reshape(units.shape)
        for u, w in zip(units, weights, strict=True):
            largest = r.settings["clipping"] * max(float(w.norm()), r.settings["eps"])
            if float(u.norm()) >= largest:
                u *= largest / max(float(u.norm()), 1e-6)
        g[k] = units.reshape(t.shape)
    r.update(g)


def sam(r: Reference, x: Tensor, y: Tensor) -> None:
    g = r.gradient(r.w, x, y)
    r.update(r.gradient(plus(r.w, times(g, r.settings["rho"] / length(g))), x, y))


def sam_on(r: Reference, x: Tensor, y: Tensor) -> None:
    norms = ("1.weight", "1.bias", "5.weight", "5.bias")
    g = {k: t if k in norms else 0 * t for k, t in r.gradient(r.w, x, y).items()}
    r.update(r.gradient(plus(r.w, times(g, r.settings["rho"] / length(g))), x, y))


def random_sam(r: Reference, x: Tensor, y: Tensor) -> None:
    u = r.draw(1.0)
    r.update(r.gradient(plus(r.w, times(u, r.settings["rho"] / length(u))), x, y))


def flat_lora(r: Reference, x: Tensor, y: Tensor) -> None:
    noisy = dict(r.w)
    noise = r.draw(r.settings["rho"], KERNELS)
    for k in KERNELS:
        n, rows = noise[k], r.w[k].flatten(1)
        size = (rows.square().sum(1) / rows.shape[1]).sqrt()
        noisy[k] = r.w[k] + n * size.reshape(-1, *[1] * (n.ndim - 1))
    r.update(r.gradient(noisy, x, y))


def bi_lora(r: Reference, x: Tensor, y: Tensor) -> None:
    if not r.memory:
        for k in KERNELS:
            m, n = r.w[k].flatten(1).shape
            rank = min(r.settings["rank"], m, n)
            a = torch.randn(rank, n, generator=r.noise, dtype=r.w[k].dtype) / n**0.5
            r.memory[k] = (torch.zeros(m, rank, dtype=a.dtype), a)
    full = {**r.w, **{k: r.w[k] + (b @ a).view_as(r.w[k]) for k, (b, a) in r.memory.items()}}
    g = r.gradient(full, x, y)
    r.update(g)
    for k, (b, a) in r.memory.items():
        G = g[k].flatten(1)
        r.memory[k] = (b + LR * G @ a.T, a + LR * b.T @ G)
    over = length({k: b @ a for k, (b, a) in r.memory.items()}) / r.settings["rho"]
    if over > 1:
        r.memory = {k: (b / over**0.5, a / over**0.5) for k, (b, a) in r.memory.items()}


def sadt(teachers: Callable[[Reference, Weights], list[Weights]], reverse: bool = False) -> ReferenceStep:
    """Return the step with teachers at these weights; ``reverse`` exchanges the arguments of the divergence."""

    def step(r: Reference, x: Tensor, y: Tensor) -> None:
        clean = r.logits(r.w, x)
        g = r.gradient(r.w, x, y)
        r.update(g)
        r.update(plus(g, *[r.kl_gradient(t, clean, x, reverse) for t in teachers(r, g)]))

    return step


KERNELS = ["0.weight", "4.weight", "9.weight", "11.weight"]
CONV, DENSE = ["4.weight", "4.bias"], ["11.weight", "11.bias"]


def _noisy(r: Reference, keys: list[str] | None = None) -> Weights:
    return plus(r.w, r.draw(r.settings["sigma"], keys))


def _ascended(r: Reference, g: Weights, keys: list[str] | None = None) -> Weights:
    return plus(r.w, times(plus(g, r.draw(r.settings["sigma"], keys)), r.settings["ascent"]))


def _bias_times_noise(r: Reference) -> Weights:
    factor = r.draw(r.settings["sigma"], ["11.bias"])["11.bias"]
    return {**r.w, "11.bias": r.w["11.bias"] * factor}


_REFERENCES = [
    restated("plain", plain),
    restated("repeat-step", repeat_step),
    restated("two-step", two_step),
    restated("gc", gc),
    restated("agc", agc, "clipping eps"),
    restated("sam", sam, "rho"),
    restated("sam-on", sam_on, "rho"),
    restated("random-sam", random_sam, "rho"),
    restated("flat-lora", flat_lora, "rho"),
    restated("bi-lora", bi_lora, "rho rank"),
    restated("sadt-v1", sadt(lambda r, g: [_noisy(r)]), "sigma"),
    restated("sadt-v2", sadt(lambda r, g: [_noisy(r, CONV), _noisy(r, DENSE)]), "sigma"),
    restated("sadt-v3", sadt(lambda r, g: [_ascended(r, g)]), "sigma ascent"),
    restated("sadt-v1 notebook", sadt(lambda r, g: [_noisy(r, KERNELS)]), "sigma", preset="notebook"),
    restated(
        "sadt-v2 notebook",
        # position 7 among this network's tensors is the second convolution's bias
        sadt(lambda r, g: [_bias_times_noise(r), _noisy(r, ["4.bias"])], reverse=True),
        "sigma",
        preset="notebook",
    ),
    restated(
        "sadt-v3 notebook",
        sadt(lambda r, g: [_ascended(r, g, KERNELS)], reverse=True),
        "sigma ascent",
        preset="notebook",
    ),
]
REFERENCES = dict([*_REFERENCES, *FAMILY, *VARIANTS, *PEERS])
