"""Every method stated again in float64, from the papers' equations; see `reference` for what with."""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor

from steppe.testing.oracles.harness import Reference, ReferenceStep, Restated, Weights, length, plus, times
from steppe.testing.oracles.online_distillation import PEERS
from steppe.testing.oracles.sharpness import FAMILY


def plain(r: Reference, x: Tensor, y: Tensor) -> None:
    r.update(r.gradient(r.w, x, y))


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
            most = r.given["clipping"] * max(float(w.norm()), r.given["eps"])
            if float(u.norm()) >= most:
                u *= most / max(float(u.norm()), 1e-6)
        g[k] = units.reshape(t.shape)
    r.update(g)


def sam(r: Reference, x: Tensor, y: Tensor) -> None:
    g = r.gradient(r.w, x, y)
    r.update(r.gradient(plus(r.w, times(g, r.given["rho"] / length(g))), x, y))


def random_sam(r: Reference, x: Tensor, y: Tensor) -> None:
    u = r.draw(1.0)
    r.update(r.gradient(plus(r.w, times(u, r.given["rho"] / length(u))), x, y))


def sadt(teachers: Callable[[Reference, Weights], list[Weights]], reverse: bool = False) -> ReferenceStep:
    """Return the step whose teachers' weights are those; ``reverse`` turns the divergence round."""

    def step(r: Reference, x: Tensor, y: Tensor) -> None:
        clean = r.logits(r.w, x)
        up = r.gradient(r.w, x, y)
        r.update(up)
        r.update(plus(up, *[r.kl_gradient(t, clean, x, reverse) for t in teachers(r, up)]))

    return step


KERNELS = ["0.weight", "4.weight", "9.weight", "11.weight"]
CONV, DENSE = ["4.weight", "4.bias"], ["11.weight", "11.bias"]


def _noisy(r: Reference, keys: list[str] | None = None) -> Weights:
    return plus(r.w, r.draw(r.given["sigma"], keys))


def _climbed(r: Reference, up: Weights, keys: list[str] | None = None) -> Weights:
    return plus(r.w, times(plus(up, r.draw(r.given["sigma"], keys)), r.given["ascent"]))


def _bias_times_noise(r: Reference) -> Weights:
    factor = r.draw(r.given["sigma"], ["11.bias"])["11.bias"]
    return {**r.w, "11.bias": r.w["11.bias"] * factor}


REFERENCES: dict[str, Restated] = {
    "plain": Restated("plain", plain),
    "repeat-step": Restated("repeat-step", repeat_step),
    "two-step": Restated("two-step", two_step),
    "gc": Restated("gc", gc),
    "agc": Restated("agc", agc, ("clipping", "eps")),
    "sam": Restated("sam", sam, ("rho",)),
    "random-sam": Restated("random-sam", random_sam, ("rho",)),
    "sadt-v1": Restated("sadt-v1", sadt(lambda r, up: [_noisy(r)]), ("sigma",)),
    "sadt-v2": Restated("sadt-v2", sadt(lambda r, up: [_noisy(r, CONV), _noisy(r, DENSE)]), ("sigma",)),
    "sadt-v3": Restated("sadt-v3", sadt(lambda r, up: [_climbed(r, up)]), ("sigma", "ascent")),
    "sadt-v1 notebook": Restated(
        "sadt-v1", sadt(lambda r, up: [_noisy(r, KERNELS)]), ("sigma",), {"preset": "notebook"}
    ),
    "sadt-v2 notebook": Restated(
        "sadt-v2",
        # position 7 among this network's tensors is the second convolution's bias
        sadt(lambda r, up: [_bias_times_noise(r), _noisy(r, ["4.bias"])], reverse=True),
        ("sigma",),
        {"preset": "notebook"},
    ),
    "sadt-v3 notebook": Restated(
        "sadt-v3",
        sadt(lambda r, up: [_climbed(r, up, KERNELS)], reverse=True),
        ("sigma", "ascent"),
        {"preset": "notebook"},
    ),
    **FAMILY,
    **PEERS,
}
