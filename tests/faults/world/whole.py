"""Steps on batches of any form, cut in any way: each equals that on the whole batch, or is refused in one line.

The whole batch's step is written out in plain PyTorch, in float64.
"""

import contextlib
import copy
import random
import warnings
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn

from faults.outcome import Case, Where, compared
from faults.world.steps import OPTIMIZERS, STEPS, TOLERANCE, Net, Samples, drawn

RHO = 0.3
METHODS = ("plain", "sam", "sam", "asam")


def groups_of(net: nn.Module, loss: Any, rhos: tuple[float, float] | None) -> list[dict[str, Any]]:
    """Return parameter groups: the head apart, with ``rhos`` of their own if there are some."""
    rest = [p for name, p in net.named_parameters() if not name.startswith("head")]
    rest += list(loss.parameters()) if isinstance(loss, nn.Module) else []
    groups = [{"params": rest}, {"params": list(net.head.parameters())}]
    for group, rho in zip(groups, rhos or (), strict=False):
        group["rho"] = rho
    return groups


@contextlib.contextmanager
def buffers_kept(*modules: Any) -> Iterator[None]:
    before = [(b, b.clone()) for m in modules if isinstance(m, nn.Module) for b in m.buffers()]
    yield
    for buffer, value in before:
        buffer.copy_(value)


class Written:
    """A step in plain PyTorch: the mean gradient of the parts, perturbed as the method says."""

    def __init__(self, method: str, net: nn.Module, loss: Any, optimizer: torch.optim.Optimizer, rhos: Any):
        self.method, self.net, self.loss, self.optimizer = method, net, loss, optimizer
        self.params = [p for group in optimizer.param_groups for p in group["params"]]
        sizes = [len(group["params"]) for group in optimizer.param_groups]
        self.rhos = [rho for rho, n in zip(rhos or (RHO, RHO), sizes, strict=True) for _ in range(n)]

    def grads(self, parts: list[tuple[Any, Any]], weights: list[float]) -> tuple[Tensor, list[Tensor]]:
        value, total = torch.zeros(()), [torch.zeros_like(p) for p in self.params]
        for (x, y), weight in zip(parts, weights, strict=True):
            z = self.net(**x) if isinstance(x, dict) else self.net(x)
            if not weight:  # no label in it
                continue
            out = self.loss(z, y)
            each = torch.autograd.grad(out, self.params, allow_unused=True)
            share = weight / sum(weights)
            value = value + share * out.detach()
            total = [t if g is None else t + share * g for t, g in zip(total, each, strict=True)]
            self.used = [g is not None for g in each]
        return value, total

    def __call__(self, parts: list[tuple[Any, Any]], weights: list[float]) -> Tensor:
        value, grads = self.grads(parts, weights)
        if self.method != "plain":
            scales = [p.detach().abs() if self.method == "asam" else torch.ones_like(p) for p in self.params]
            length = torch.stack(
                [(g * s).norm() for g, s, rho in zip(grads, scales, self.rhos, strict=True) if rho]
            ).norm()
            before = [p.detach().clone() for p in self.params]
            with torch.no_grad():
                for p, g, s, rho in zip(self.params, grads, scales, self.rhos, strict=True):
                    p += rho * s**2 * g / (length + 1e-12)
            with buffers_kept(self.net, self.loss):
                _, grads = self.grads(parts, weights)
            with torch.no_grad():
                for p, w in zip(self.params, before, strict=True):
                    p.copy_(w)
        for p, g, used in zip(self.params, grads, self.used, strict=True):
            p.grad = g if used else None
        self.optimizer.step()
        self.optimizer.zero_grad()
        return value


def cuts(r: random.Random, count: int) -> tuple[str, list[int]]:
    """Return how a batch is cut, and the sizes of its parts."""
    way = r.choice(("whole", "microbatch", "microbatch", "list", "list"))
    if way == "whole":
        return way, [count]
    if way == "microbatch":
        size = r.choice((2, 3, 4, 5))
        return way, [min(size, count - start) for start in range(0, count, size)]
    sizes = []
    while sum(sizes) < count:
        sizes.append(min(r.choice((1, 2, 3, 5)), count - sum(sizes)))
    return way, sizes if len(sizes) > 1 else [count - 1, 1]


def situation(name: str, r: random.Random, where: Where) -> Case:
    """Draw a batch, a loss, an optimizer and a cut; take some steps, whole and written out."""
    from steppe.errors import InputError

    drawn_, method, optimizer = drawn(r), r.choice(METHODS), r.choice(sorted(OPTIMIZERS))
    samples, count = drawn_.samples, len(drawn_.samples.y)
    way, sizes = cuts(r, count)
    norm = samples.target != "dense" and 1 not in sizes and r.random() < 0.25
    rhos = r.choice((None, (0.2, 0.0), (0.1, 0.4))) if not optimizer.startswith("Adadelta") else None
    rhos = rhos if method != "plain" else None
    seed = r.randrange(1000)
    nets = [Net(seed, norm) for _ in range(2)]
    losses = [copy.deepcopy(drawn_.loss) for _ in range(2)]
    optimizers = [OPTIMIZERS[optimizer](groups_of(n, f, rhos)) for n, f in zip(nets, losses, strict=True)]
    whole = [list(range(count))]
    pieces = [list(range(sum(sizes[:i]), sum(sizes[: i + 1]))) for i in range(len(sizes))]
    name = f"{name}: {method}, {optimizer}{', own rho' if rhos else ''}, {drawn_.name}, {way} {sizes}"
    name += ", BatchNorm" if norm else ""
    written = Written(method, nets[1], losses[1], optimizers[1], rhos)
    parts = [samples.batch(rows) for rows in (pieces if norm else whole)]
    weights = [float((drawn_.weigh or _length)(_Rows(y))) for _, y in parts]
    outputs: list[Tensor] = []
    before = [p.detach().clone() for p in nets[0].parameters()]
    try:
        for loss in steps(method, nets[0], losses[0], optimizers[0], drawn_, way, pieces):
            outputs.append(loss)
            before = [p.detach().clone() for p in nets[0].parameters()]
    except InputError as error:
        if "\n" in str(error):
            return Case(name, "traceback", str(error))
        # the loss may be the mean by chance in a first step: the weights are those of the steps before
        moved = any(not torch.equal(p, w) for p, w in zip(nets[0].parameters(), before, strict=True))
        unclear = drawn_.unclear or (samples.target == "tuple" and set(sizes) == {2})
        fine = unclear and "sample" in str(error)
        if moved or not (fine or (way != "whole" and drawn_.outcome == "refused")):
            return Case(name, "lost", f"refused{' and moved' if moved else ''}: {error}")
        return Case(name, "held")
    except Exception as error:
        return Case(name, "traceback", f"{type(error).__name__}: {error}"[:200])
    expected = [written(parts, weights) for _ in range(STEPS)]
    return compared(name, difference(outputs, expected, nets, buffers=norm or way == "whole"))


class _Rows:
    """What the counting functions use of a batch."""

    def __init__(self, y: Any):
        self.y = y


def _length(rows: _Rows) -> int:
    y = rows.y["y"] if isinstance(rows.y, dict) else rows.y[0] if isinstance(rows.y, tuple) else rows.y
    return len(y)


def steps(
    method: str, net: Net, loss: Any, optimizer: torch.optim.Optimizer, drawn_: Any, way: str, pieces: Any
) -> Iterator[Tensor]:
    """Bind the method and take the steps; yield their losses."""
    import steppe

    options = {} if method == "plain" else {"rho": RHO} | ({"scaling": "all"} if method == "asam" else {})
    bound = {"weigh": drawn_.weigh} if drawn_.weigh else {}
    bound |= {"microbatch": len(pieces[0])} if way == "microbatch" else {}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        step = steppe.make(method, **options).bind(net, optimizer, loss=loss, **bound)
    samples: Samples = drawn_.samples
    for _ in range(STEPS):
        if way == "list":
            out = step([samples.batch(rows) for rows in pieces])
        else:
            out = step(*samples.batch(range(len(samples.y))))
        yield out.loss


def difference(outputs: list[Tensor], expected: list[Tensor], nets: list[Net], *, buffers: bool) -> str | None:
    """Say in what two trainings differ, None if in nothing."""
    for i, (a, b) in enumerate(zip(outputs, expected, strict=True), 1):
        if not torch.allclose(a.double(), b.double(), rtol=TOLERANCE, atol=TOLERANCE):
            return f"loss {float(a):.12g} for {float(b):.12g} in step {i}"
    first, second = (dict(n.state_dict() if buffers else n.named_parameters()) for n in nets)
    for name, value in first.items():
        error = float((value - second[name]).detach().abs().max())
        if not error <= TOLERANCE:
            return f"{name} differs by {error:.2g}"
    return None
