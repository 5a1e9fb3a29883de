"""The methods of several networks in float64, from the papers' equations.

The weights of one network are those with its prefix: ``networks.0.*``, or ``body.trunk.*`` with
``body.branches.0.*``. Branches are written as whole networks whose lower weights are the same tensors.
"""

import math
from collections.abc import Callable, Mapping

import torch
from torch import Tensor
from torch.func import functional_call, grad

from steppe.testing.oracles.harness import Reference, Weights, averaged, cross_entropy, kl, plus, restated, times

SPLIT = "4"  # the second convolution of the small network
DEFAULT_SPLIT = 4  # the default split point of the small network: its last layer that reduces resolution
STEPS = 100  # the length of training, of which a ramp below 1 is a share


def subset(w: Mapping[str, Tensor], prefix: str) -> Weights:
    """Return the weights with a prefix, without it."""
    return {k.removeprefix(prefix): v for k, v in w.items() if k.startswith(prefix)}


def networks(r: Reference, w: Mapping[str, Tensor]) -> list[Weights]:
    """Return the weights of each network."""
    return [subset(w, f"networks.{m}.") for m in range(r.settings["networks"])]


def branches(r: Reference, w: Mapping[str, Tensor]) -> list[Weights]:
    """Return the weights of each branch as those of a whole network."""
    trunk = subset(w, "body.trunk.")
    return [{**trunk, **subset(w, f"body.branches.{i}.")} for i in range(r.settings["branches"])]


def features(r: Reference, each: list[Weights], x: Tensor) -> Tensor:
    """Return the inputs of all classifiers, side by side."""
    return torch.cat([activations(r, w, x, 11) for w in each], 1)


def supervised(logits: list[Tensor], y: Tensor) -> Tensor:
    """Return the sum of the mean cross-entropies."""
    return torch.stack([cross_entropy(z, y).mean() for z in logits]).sum()


def distillation(r: Reference, teacher: Tensor, z: Tensor) -> Tensor:
    """Return T^2 times the mean divergence of ``z`` from ``teacher`` at temperature T."""
    T = float(r.settings["T"])
    return T * T * kl(teacher, z, T).mean()


def activations(r: Reference, w: Mapping[str, Tensor], x: Tensor, stop: int) -> Tensor:
    """Return the input of module number ``stop`` of the small network."""
    net = r.net[:stop]
    buffers = {k: v.clone() for k, v in net.named_buffers()}
    own = {k: v for k, v in w.items() if int(k.split(".")[0]) < stop}
    z: Tensor = functional_call(net, {**own, **buffers}, (x,))
    return z


def rampup(r: Reference) -> float:
    """Return alpha times the ramp's value in this step, and count the step."""
    step = r.memory.setdefault("step", 0)
    r.memory["step"] = step + 1
    over = r.settings["ramp"] if r.settings["ramp"] >= 1 else STEPS * r.settings["ramp"]
    ramp = math.exp(-5 * (1 - min(step / over, 1)) ** 2) if over else 1.0
    return float(r.settings.get("alpha", 1.0)) * ramp


def dml(r: Reference, x: Tensor, y: Tensor) -> None:
    """Zhang et al., CVPR 2018, equations 5 to 9, network by network."""
    gradients = [_mutual_gradient(r, m, x, y) for m in range(r.settings["networks"])]
    r.update({key: g for gradient in gradients for key, g in gradient.items()})


def dml_alternating(r: Reference, x: Tensor, y: Tensor) -> None:
    """Zhang et al., CVPR 2018, algorithm 1."""
    for m in range(r.settings["networks"]):
        r.update(_mutual_gradient(r, m, x, y))


def _mutual_gradient(r: Reference, m: int, x: Tensor, y: Tensor) -> Weights:
    """Return the gradient of network m, with the others' present predictions as teachers."""
    each = networks(r, r.w)
    teachers = [r.logits(w, x) for k, w in enumerate(each) if k != m]

    def loss(w: Weights) -> Tensor:
        z = r.logits(w, x)
        divergences = torch.stack([distillation(r, t, z) for t in teachers])
        return cross_entropy(z, y).mean() + float(r.settings["lam"]) * divergences.mean()

    return {f"networks.{m}.{k}": g for k, g in grad(loss)(each[m]).items()}


def _common_gradient(r: Reference, target: Tensor, ce: float, lam: float, x: Tensor, y: Tensor) -> Weights:
    """Return the gradient of ce times the cross-entropy plus lam times the distillation, of each network."""

    def loss(w: Weights) -> Tensor:
        z = r.logits(w, x)
        return ce * cross_entropy(z, y).mean() + lam * distillation(r, target, z)

    return {f"networks.{m}.{k}": g for m, w in enumerate(networks(r, r.w)) for k, g in grad(loss)(w).items()}


def kdcl(r: Reference, x: Tensor, y: Tensor) -> None:
    """Guo et al., CVPR 2020, section 3."""
    target = _TARGETS[r.settings["target"]]([r.logits(w, x) for w in networks(r, r.w)], y)
    r.update(_common_gradient(r, target, float(r.settings["ce"]), float(r.settings["lam"]), x, y))


def _naive(logits: list[Tensor], y: Tensor) -> Tensor:
    losses = [cross_entropy(z, y).tolist() for z in logits]
    best = [min(range(len(logits)), key=lambda m: losses[m][b]) for b in range(len(y))]
    return torch.stack([logits[m][b] for b, m in enumerate(best)])


def _min_logit(logits: list[Tensor], y: Tensor) -> Tensor:
    gaps = [torch.stack([z[b] - z[b, c] for b, c in enumerate(y.tolist())]) for z in logits]
    return torch.stack(gaps).min(0).values


def _linear(logits: list[Tensor], y: Tensor) -> Tensor:
    """Return the best point between two, by golden section."""
    ratio, low, high = (math.sqrt(5) - 1) / 2, 0.0, 1.0

    def slope(a: float) -> float:
        z = a * logits[0] + (1 - a) * logits[1]
        error = torch.softmax(z, 1) - torch.eye(z.shape[1], dtype=z.dtype)[y]
        return float((error * (logits[0] - logits[1])).sum())

    for _ in range(80):
        middle = low + ratio * (high - low)
        low, high = (low, middle) if slope(middle) > 0 else (middle, high)
    return low * logits[0] + (1 - low) * logits[1]


def _general(logits: list[Tensor], y: Tensor) -> Tensor:
    true = torch.eye(logits[0].shape[1], dtype=torch.float64)[y]
    errors = [torch.softmax(z, 1) - true for z in logits]
    c = torch.stack([torch.stack([(a * b).sum(1).mean() for b in errors]) for a in errors])
    c = c + 1e-6 * c.trace() / len(logits) * torch.eye(len(logits), dtype=torch.float64)
    w = c.inverse().sum(1)
    return torch.stack([v * z for v, z in zip(w / w.sum(), logits, strict=True)]).sum(0)


_TARGETS: dict[str, Callable[[list[Tensor], Tensor], Tensor]] = {
    "naive": _naive,
    "min-logit": _min_logit,
    "linear": _linear,
    "general": _general,
    "mean": lambda logits, y: torch.stack(logits).mean(0),
}


def okdph(r: Reference, x: Tensor, y: Tensor) -> None:
    """Zhang et al., CVPR 2023, equations 1 and 2, with equal shares."""
    g, count = r.settings, r.settings["networks"]
    each = networks(r, r.w)
    hybrid = times(plus(*each), 1 / count)
    target = torch.stack([r.logits(w, x) for w in (*each, hybrid)]).mean(0)
    share = {"none": 0.0, "chain": 1 / count, "full": 1.0}[g["gradient"]]
    omega = float(g["omega"])
    of_hybrid = times(r.gradient(hybrid, x, y), (1 - omega) * share)
    own = _common_gradient(r, target, omega, float(g["beta"]), x, y)
    r.update({key: v + of_hybrid[key.split(".", 2)[2]] for key, v in own.items()})
    step = r.memory.setdefault("step", 0)
    r.memory["step"] = step + 1
    if step % int(g["every"][:-1]) == 0:
        each = networks(r, r.w)
        if g["fuse"] == "after":
            hybrid = times(plus(*each), 1 / count)
        for m, w in enumerate(each):
            fused = plus(times(w, 1 - g["gamma"]), times(hybrid, g["gamma"]))
            r.w |= {f"networks.{m}.{k}": v for k, v in fused.items()}


def norm(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """Return BatchNorm of vectors (B, C) in training."""
    variance = ((x - x.mean(0)) ** 2).mean(0)
    return (x - x.mean(0)) / torch.sqrt(variance + 1e-5) * weight + bias


def one(r: Reference, x: Tensor, y: Tensor) -> None:
    """Lan et al., NeurIPS 2018, equations 4 to 8."""
    weight = rampup(r)

    def loss(w: Weights) -> Tensor:
        each = branches(r, w)
        logits = [r.logits(own, x) for own in each]
        h = activations(r, each[0], x, int(r.settings["split_at"] or DEFAULT_SPLIT))
        h = h.mean((2, 3)) if h.ndim == 4 else h
        scores = norm(h @ w["gate.0.weight"].T + w["gate.0.bias"], w["gate.1.weight"], w["gate.1.bias"])
        gate = torch.softmax(scores.clamp(min=0), 1)
        ensemble = torch.stack([gate[:, i : i + 1] * z for i, z in enumerate(logits)]).sum(0)
        teacher = ensemble.detach() if r.settings["detach"] else ensemble
        divergences = torch.stack([distillation(r, teacher, z) for z in logits])
        return supervised([*logits, ensemble], y) + weight * divergences.sum()

    r.update(grad(loss)(r.w))


def okddip(r: Reference, x: Tensor, y: Tensor) -> None:
    """Chen et al., AAAI 2020, equations 3 to 8, attention written out pair by pair."""
    g, weight = r.settings, rampup(r)
    peers = g["branches"] - 1

    def loss(w: Weights) -> Tensor:
        if g["form"] == "branch":
            each = branches(r, w)
        else:
            each = [subset(w, f"body.networks.{i}.") for i in range(g["branches"])]
        logits = [r.logits(own, x) for own in each]
        teachers = [z.detach() for z in logits] if g["detach"] else logits
        h = [activations(r, own, x, 11) for own in each[:peers]]
        total = supervised(logits, y)
        for j in range(peers):
            q = h[j] @ w["query.weight"].T
            scores = torch.stack([(q * (h[k] @ w["key.weight"].T)).sum(1) for k in range(peers)], 1)
            a = torch.softmax(scores, 1)
            target = torch.stack([a[:, k : k + 1] * teachers[k] for k in range(peers)]).sum(0)
            total = total + weight * distillation(r, target, logits[j])
        return total + weight * distillation(r, torch.stack(teachers[:peers]).mean(0), logits[peers])

    r.update(grad(loss)(r.w))


def ffl(r: Reference, x: Tensor, y: Tensor) -> None:
    """Kim et al., ICPR 2020, equations 3 to 8; on maps of one position only the middle of a filter counts."""
    weight = rampup(r)

    def loss(w: Weights) -> Tensor:
        each = branches(r, w)
        logits = [r.logits(own, x) for own in each]
        f = norm(
            features(r, each, x) * w["fusion.0.weight"][:, 0, 1, 1], w["fusion.1.weight"], w["fusion.1.bias"]
        ).clamp(min=0)
        f = f @ w["fusion.3.weight"][:, :, 0, 0].T
        f = norm(f, w["fusion.4.weight"], w["fusion.4.bias"]).clamp(min=0)
        fused = f @ w["fusion.8.weight"].T + w["fusion.8.bias"]
        total = supervised([*logits, fused], y)
        for z in logits:
            total = total + weight * distillation(r, fused.detach(), z)
        return total + weight * distillation(r, torch.stack(logits).mean(0).detach(), fused)

    r.update(grad(loss)(r.w))


def pcl(r: Reference, x: Tensor, y: Tensor) -> None:
    """Wu and Gong, AAAI 2021, equations 2 to 8; the mean runs in training mode."""
    m, weight = r.memory, rampup(r)
    if "mean" not in m:
        m |= {"mean": dict(r.w), "t": 0}
    past = [r.logits(w, x) for w in branches(r, m["mean"])]

    def loss(w: Weights) -> Tensor:
        each = branches(r, w)
        logits = [r.logits(own, x) for own in each]
        joint = features(r, each, x) @ w["classifier.weight"].T + w["classifier.bias"]
        total = supervised([*logits, joint], y)
        for j, z in enumerate(logits):
            others = torch.stack([distillation(r, t, z) for k, t in enumerate(past) if k != j])
            total = total + weight * (distillation(r, joint.detach(), z) + others.mean())
        return total

    r.update(grad(loss)(r.w))
    d = min(r.settings["decay"], 1 - 1 / (m["t"] + 1))
    m["t"] += 1
    m["mean"] = averaged(m["mean"], r.w, d)


_MUTUAL = "networks lam T"
_KDCL = "networks target T ce lam"
_OKDPH = "networks omega beta gamma every T deploy preset same_start gradient fuse"
_BRANCHED = "branches T ramp alpha detach factor decay split_at form"
_MIXED = {"same_start": False, "every": "2b"}
PEERS = [
    restated("dml", dml, _MUTUAL),
    restated("dml of three", dml, _MUTUAL, networks=3, T=2.0, lam=0.7),
    restated("dml-alternating", dml_alternating, _MUTUAL),
    restated("dml-alternating of three", dml_alternating, _MUTUAL, networks=3, T=2.0, lam=0.7),
    restated("kdcl", kdcl, _KDCL),
    *(restated(f"kdcl {t}", kdcl, _KDCL, target=t) for t in ("naive", "linear", "min-logit", "general")),
    restated("kdcl general of three", kdcl, _KDCL, target="general", networks=3),
    restated("okdph", okdph, _OKDPH),
    restated("okdph none", okdph, _OKDPH, gradient="none", omega=0.6, gamma=0.3, **_MIXED),
    restated("okdph chain", okdph, _OKDPH, gradient="chain", omega=0.6, gamma=0.3, **_MIXED),
    restated("okdph full", okdph, _OKDPH, gradient="full", omega=0.6, gamma=0.3, **_MIXED),
    restated("okdph fused before", okdph, _OKDPH, gradient="none", gamma=0.7, fuse="before", **_MIXED),
    restated("okdph of three", okdph, _OKDPH, networks=3, same_start=False, every="3b"),
    restated("one", one, _BRANCHED, split_at=SPLIT, ramp=3),
    restated("one attached", one, _BRANCHED, split_at=SPLIT, detach=False, ramp=3),
    restated("okddip", okddip, _BRANCHED, split_at=SPLIT, factor=2, ramp=3),
    restated("okddip of networks", okddip, _BRANCHED, form="network", factor=2, detach=False, ramp=3),
    restated("ffl", ffl, _BRANCHED, split_at=SPLIT, ramp=3),
    restated("pcl", pcl, _BRANCHED, split_at=SPLIT, ramp=3),
]
