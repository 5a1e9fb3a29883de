"""The methods of several networks stated again in float64; see `reference` for what with.

A network's weights are picked out of all by their names: ``networks.0.*``, or ``body.trunk.*`` with
``body.branches.0.*``. Branches are written as whole networks whose lower weights are the same tensors.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call, grad

from steppe.testing.oracles.harness import Reference, Restated, Weights, plus, times

CUT = "4"  # the second convolution of the small network
DEFAULT = 9  # where the small network is cut if nothing is said: its third layer with weights
STEPS = 100  # of the training whose share a ramp below 1 is
_START = {"ramp": 3}


def part(w: Mapping[str, Tensor], prefix: str) -> Weights:
    """Return the weights below a prefix, without it."""
    return {k.removeprefix(prefix): v for k, v in w.items() if k.startswith(prefix)}


def networks(r: Reference, w: Mapping[str, Tensor]) -> list[Weights]:
    """Return the weights of each network."""
    return [part(w, f"networks.{m}.") for m in range(r.given["networks"])]


def branches(r: Reference, w: Mapping[str, Tensor]) -> list[Weights]:
    """Return the weights of each branch as those of a whole network."""
    trunk = part(w, "body.trunk.")
    return [{**trunk, **part(w, f"body.branches.{i}.")} for i in range(r.given["branches"])]


def entropy(z: Tensor, y: Tensor) -> Tensor:
    """Return the mean cross-entropy."""
    return (torch.logsumexp(z, 1) - z[torch.arange(len(y)), y]).mean()


def pull(teacher: Tensor, z: Tensor, T: float) -> Tensor:
    """Return T^2 times the mean divergence of ``z`` from ``teacher`` at temperature T."""
    p, q = torch.softmax(teacher / T, 1), torch.softmax(z / T, 1)
    divergence: Tensor = (p * (p.log() - q.log())).sum(1).mean()
    return T * T * divergence


def upto(r: Reference, w: Mapping[str, Tensor], x: Tensor, stop: int) -> Tensor:
    """Return what reaches module number ``stop`` of the small network."""
    net = r.net[:stop]
    held = {k: v.clone() for k, v in net.named_buffers()}
    own = {k: v for k, v in w.items() if int(k.split(".")[0]) < stop}
    found: Tensor = functional_call(net, {**own, **held}, (x,))
    return found


def rise(r: Reference) -> float:
    """Return the ramp's value in this step, and count it."""
    step = r.memory.setdefault("step", 0)
    r.memory["step"] = step + 1
    over = r.given["ramp"] if r.given["ramp"] >= 1 else STEPS * r.given["ramp"]
    return math.exp(-5 * (1 - min(step / over, 1)) ** 2) if over else 1.0


def dml(r: Reference, x: Tensor, y: Tensor) -> None:
    """Zhang et al., CVPR 2018, equations 5 to 9, network by network."""
    lessons = [_lesson(r, m, x, y) for m in range(r.given["networks"])]
    r.update({key: g for lesson in lessons for key, g in lesson.items()})


def dml_alternating(r: Reference, x: Tensor, y: Tensor) -> None:
    """Zhang et al., CVPR 2018, algorithm 1."""
    for m in range(r.given["networks"]):
        r.update(_lesson(r, m, x, y))


def _lesson(r: Reference, m: int, x: Tensor, y: Tensor) -> Weights:
    """Return the gradient of network m against what the others say now."""
    each = networks(r, r.w)
    peers = [r.logits(w, x) for k, w in enumerate(each) if k != m]

    def loss(w: Weights) -> Tensor:
        z = r.logits(w, x)
        pulls = torch.stack([pull(t, z, r.given["T"]) for t in peers])
        return entropy(z, y) + float(r.given["lam"]) * pulls.mean()

    return {f"networks.{m}.{k}": g for k, g in grad(loss)(each[m]).items()}


def kdcl(r: Reference, x: Tensor, y: Tensor) -> None:
    """Guo et al., CVPR 2020, section 3."""
    each = networks(r, r.w)
    target = _TARGETS[r.given["target"]]([r.logits(w, x) for w in each], y)
    ce, lam, total = float(r.given["ce"]), float(r.given["lam"]), Weights()
    for m, own in enumerate(each):

        def loss(w: Weights) -> Tensor:
            z = r.logits(w, x)
            return ce * entropy(z, y) + lam * pull(target, z, r.given["T"])

        total |= {f"networks.{m}.{k}": g for k, g in grad(loss)(own).items()}
    r.update(total)


def _naive(said: list[Tensor], y: Tensor) -> Tensor:
    rows = []
    for b in range(len(y)):
        wrong = [float(entropy(z[b : b + 1], y[b : b + 1])) for z in said]
        rows.append(said[wrong.index(min(wrong))][b])
    return torch.stack(rows)


def _min_logit(said: list[Tensor], y: Tensor) -> Tensor:
    gaps = [torch.stack([z[b] - z[b, c] for b, c in enumerate(y.tolist())]) for z in said]
    return torch.stack(gaps).min(0).values


def _linear(said: list[Tensor], y: Tensor) -> Tensor:
    """Return the best point between two, by golden section."""
    ratio, low, high = (math.sqrt(5) - 1) / 2, 0.0, 1.0

    def slope(a: float) -> float:
        z = a * said[0] + (1 - a) * said[1]
        error = torch.softmax(z, 1) - torch.eye(z.shape[1], dtype=z.dtype)[y]
        return float((error * (said[0] - said[1])).sum())

    for _ in range(80):
        middle = low + ratio * (high - low)
        low, high = (low, middle) if slope(middle) > 0 else (middle, high)
    return low * said[0] + (1 - low) * said[1]


def _general(said: list[Tensor], y: Tensor) -> Tensor:
    true = torch.eye(said[0].shape[1], dtype=torch.float64)[y]
    errors = [torch.softmax(z, 1) - true for z in said]
    c = torch.stack([torch.stack([(a * b).sum(1).mean() for b in errors]) for a in errors])
    c = c + 1e-6 * c.trace() / len(said) * torch.eye(len(said), dtype=torch.float64)
    w = c.inverse().sum(1)
    return torch.stack([v * z for v, z in zip(w / w.sum(), said, strict=True)]).sum(0)


def _mean(said: list[Tensor], y: Tensor) -> Tensor:
    return torch.stack(said).mean(0)


_TARGETS: dict[str, Callable[[list[Tensor], Tensor], Tensor]] = {
    "naive": _naive,
    "min-logit": _min_logit,
    "linear": _linear,
    "general": _general,
    "mean": _mean,
}


def okdph(r: Reference, x: Tensor, y: Tensor) -> None:
    """Zhang et al., CVPR 2023, equations 1 and 2, with equal shares."""
    g, count = r.given, r.given["networks"]
    each = networks(r, r.w)
    hybrid = times(plus(*each), 1 / count)
    target = torch.stack([r.logits(w, x) for w in (*each, hybrid)]).mean(0)
    felt = {"none": 0.0, "chain": 1 / count, "full": 1.0}[g["gradient"]]
    omega, beta, total = float(g["omega"]), float(g["beta"]), Weights()
    shared = times(r.gradient(hybrid, x, y), (1 - omega) * felt)
    for m, own in enumerate(each):

        def loss(w: Weights) -> Tensor:
            z = r.logits(w, x)
            return omega * entropy(z, y) + beta * pull(target, z, g["T"])

        total |= {f"networks.{m}.{k}": v for k, v in plus(grad(loss)(own), shared).items()}
    r.update(total)
    step = r.memory.setdefault("step", 0)
    r.memory["step"] = step + 1
    if step % int(g["every"][:-1]) == 0:
        each = networks(r, r.w)
        if g["fuse"] == "after":
            hybrid = times(plus(*each), 1 / count)
        for m, own in enumerate(each):
            moved = plus(times(own, 1 - g["gamma"]), times(hybrid, g["gamma"]))
            r.w |= {f"networks.{m}.{k}": v for k, v in moved.items()}


def norm(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """Return BatchNorm of vectors (B, C) in training."""
    spread = ((x - x.mean(0)) ** 2).mean(0)
    return (x - x.mean(0)) / torch.sqrt(spread + 1e-5) * weight + bias


def one(r: Reference, x: Tensor, y: Tensor) -> None:
    """Lan et al., NeurIPS 2018, equations 4 to 8."""
    g, weight = r.given, float(r.given["alpha"]) * rise(r)

    def loss(w: Weights) -> Tensor:
        each = branches(r, w)
        said = [r.logits(own, x) for own in each]
        h = upto(r, each[0], x, int(g["split_at"] or DEFAULT))
        h = h.mean((2, 3)) if h.ndim == 4 else h
        scores = norm(h @ w["gate.0.weight"].T + w["gate.0.bias"], w["gate.1.weight"], w["gate.1.bias"])
        share = torch.softmax(scores.clamp(min=0), 1)
        ensemble = torch.stack([share[:, i : i + 1] * z for i, z in enumerate(said)]).sum(0)
        teacher = ensemble.detach() if g["detach"] else ensemble
        pulls = torch.stack([pull(teacher, z, g["T"]) for z in said]).sum()
        return torch.stack([entropy(z, y) for z in (*said, ensemble)]).sum() + weight * pulls

    r.update(grad(loss)(r.w))


def okddip(r: Reference, x: Tensor, y: Tensor) -> None:
    """Chen et al., AAAI 2020, equations 3 to 8, attention written out pair by pair."""
    g, weight = r.given, float(r.given["alpha"]) * rise(r)
    peers = g["branches"] - 1

    def loss(w: Weights) -> Tensor:
        if g["form"] == "branch":
            each = branches(r, w)
        else:
            each = [part(w, f"body.networks.{i}.") for i in range(g["branches"])]
        said = [r.logits(own, x) for own in each]
        kept = [z.detach() for z in said] if g["detach"] else said
        h = [upto(r, own, x, 11) for own in each[:peers]]
        total = torch.stack([entropy(z, y) for z in said]).sum()
        for j in range(peers):
            q = h[j] @ w["query.weight"].T
            scores = torch.stack([(q * (h[k] @ w["key.weight"].T)).sum(1) for k in range(peers)], 1)
            a = torch.softmax(scores, 1)
            target = torch.stack([a[:, k : k + 1] * kept[k] for k in range(peers)]).sum(0)
            total = total + weight * pull(target, said[j], g["T"])
        return total + weight * pull(torch.stack(kept[:peers]).mean(0), said[peers], g["T"])

    r.update(grad(loss)(r.w))


def ffl(r: Reference, x: Tensor, y: Tensor) -> None:
    """Kim et al., ICPR 2020, equations 3 to 8, on maps of one position, where a filter's middle alone counts."""
    g, weight = r.given, rise(r)

    def loss(w: Weights) -> Tensor:
        each = branches(r, w)
        said = [r.logits(own, x) for own in each]
        f = torch.cat([upto(r, own, x, 11) for own in each], 1)
        f = norm(f * w["fusion.0.weight"][:, 0, 1, 1], w["fusion.1.weight"], w["fusion.1.bias"]).clamp(min=0)
        f = f @ w["fusion.3.weight"][:, :, 0, 0].T
        f = norm(f, w["fusion.4.weight"], w["fusion.4.bias"]).clamp(min=0)
        fused = f @ w["fusion.8.weight"].T + w["fusion.8.bias"]
        total = torch.stack([entropy(z, y) for z in (*said, fused)]).sum()
        for z in said:
            total = total + weight * pull(fused.detach(), z, g["T"])
        return total + weight * pull(torch.stack(said).mean(0).detach(), fused, g["T"])

    r.update(grad(loss)(r.w))


def pcl(r: Reference, x: Tensor, y: Tensor) -> None:
    """Wu and Gong, AAAI 2021, equations 2 to 8; the mean's running statistics are averaged like its weights."""
    g, held, weight = r.given, r.memory, rise(r)
    count = g["branches"]
    if "mean" not in held:
        held["mean"], held["t"] = dict(r.w), 0
        held["b"] = [{k: v.clone() for k, v in r.net.named_buffers()} for _ in range(count)]
        held["mean b"] = [dict(b) for b in held["b"]]
    past = [_still(r.net, w, b, x) for w, b in zip(branches(r, held["mean"]), held["mean b"], strict=True)]
    for own, b in zip(branches(r, r.w), held["b"], strict=True):
        b |= _moved(r.net, own, b, x)

    def loss(w: Weights) -> Tensor:
        each = branches(r, w)
        said = [r.logits(own, x) for own in each]
        f = torch.cat([upto(r, own, x, 11) for own in each], 1)
        joint = f @ w["classifier.weight"].T + w["classifier.bias"]
        total = torch.stack([entropy(z, y) for z in (*said, joint)]).sum()
        for j, z in enumerate(said):
            others = torch.stack([pull(t, z, g["T"]) for k, t in enumerate(past) if k != j])
            total = total + weight * (pull(joint.detach(), z, g["T"]) + others.mean())
        return total

    r.update(grad(loss)(r.w))
    d = min(g["decay"], 1 - 1 / (held["t"] + 1))
    held["t"] += 1
    held["mean"] = plus(times(held["mean"], d), times(r.w, 1 - d))
    held["mean b"] = [
        {k: d * v + (1 - d) * now[k] if v.is_floating_point() else now[k] for k, v in b.items()}
        for b, now in zip(held["mean b"], held["b"], strict=True)
    ]


def _still(net: nn.Module, w: Weights, buffers: Mapping[str, Tensor], x: Tensor) -> Tensor:
    """Return the logits of a network in evaluation."""
    net.eval()
    z: Tensor = functional_call(net, {**w, **buffers}, (x,))
    net.train()
    return z


def _moved(net: nn.Module, w: Weights, buffers: Mapping[str, Tensor], x: Tensor) -> dict[str, Tensor]:
    """Return the buffers after a pass in training."""
    own = {k: v.clone() for k, v in buffers.items()}
    functional_call(net, {**w, **own}, (x,))
    return own


def _restated(
    step: Callable[[Reference, Tensor, Tensor], None], name: str, free: str, **settings: Any
) -> Restated:
    return Restated(name, step, tuple(free.split()), settings)


_OKDPH = "networks omega beta gamma every T deploy preset same_start gradient fuse"
_BRANCHED = "branches T ramp alpha detach factor decay split_at form"
PEERS: dict[str, Restated] = {
    "dml": _restated(dml, "dml", "networks lam T"),
    "dml of three": _restated(dml, "dml", "networks lam T", networks=3, T=2.0, lam=0.7),
    "dml-alternating": _restated(dml_alternating, "dml-alternating", "networks lam T"),
    "dml-alternating of three": _restated(
        dml_alternating, "dml-alternating", "networks lam T", networks=3, T=2.0, lam=0.7
    ),
    "kdcl": _restated(kdcl, "kdcl", "networks target T ce lam"),
    **{
        f"kdcl {target}": _restated(kdcl, "kdcl", "networks target T ce lam", target=target)
        for target in ("naive", "linear", "min-logit", "general")
    },
    "kdcl general of three": _restated(kdcl, "kdcl", "networks target T ce lam", target="general", networks=3),
    "okdph": _restated(okdph, "okdph", _OKDPH),
    **{
        f"okdph {gradient}": _restated(
            okdph, "okdph", _OKDPH, gradient=gradient, same_start=False, every="2b", omega=0.6, gamma=0.3
        )
        for gradient in ("none", "chain", "full")
    },
    "okdph fused before": _restated(
        okdph, "okdph", _OKDPH, same_start=False, every="2b", gamma=0.7, gradient="none", fuse="before"
    ),
    "okdph of three": _restated(okdph, "okdph", _OKDPH, networks=3, same_start=False, every="3b"),
    "one": _restated(one, "one", _BRANCHED, split_at=CUT, **_START),
    "one attached": _restated(one, "one", _BRANCHED, split_at=CUT, detach=False, **_START),
    "okddip": _restated(okddip, "okddip", _BRANCHED, split_at=CUT, factor=2, **_START),
    "okddip of networks": _restated(okddip, "okddip", _BRANCHED, form="network", factor=2, detach=False, **_START),
    "ffl": _restated(ffl, "ffl", _BRANCHED, split_at=CUT, **_START),
    "pcl": _restated(pcl, "pcl", _BRANCHED, split_at=CUT, **_START),
}
