"""Draw what a method does: where it takes gradients, and where its updates lead, with two weights.

A logistic regression with two weights is trained for a few steps by the method itself, and every point at which it
asked for a gradient is kept. Distances are larger than usual, to be seen.
"""

from __future__ import annotations

from functools import cache

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import steppe
from steppe import methods
from steppe.core.method import overrides

SIZE, STEPS, START = 320, 4, (-1.6, 1.7)
LOW, HIGH = (-2.2, -1.3), (1.7, 2.6)  # the part of the plane that is shown
LARGE = {
    **{name: {"gamma": 0.25} for name in ("rwp", "arwp", "lpf-sgd")},
    "sadt-v1": {"sigma": 0.3},
}
Point = tuple[float, float]


class TwoWeights(nn.Module):
    """Two classes by one logit, w x."""

    def __init__(self) -> None:
        super().__init__()
        self.w = nn.Linear(2, 1, bias=False)
        with torch.no_grad():
            self.w.weight.copy_(torch.tensor([START]))

    def forward(self, x: Tensor) -> Tensor:
        """Return the logits (B, 2)."""
        z: Tensor = self.w(x)
        return torch.cat([torch.zeros_like(z), z], 1)


def data() -> tuple[Tensor, Tensor]:
    """Return 24 samples that no line separates."""
    g = torch.Generator().manual_seed(3)
    y = torch.arange(24) % 2
    means = torch.where(y[:, None] == 1, torch.tensor([0.3, 0.25]), torch.tensor([-0.3, -0.25]))
    return means + torch.randn(24, 2, generator=g) * torch.tensor([1.3, 0.8]), y


def path(name: str) -> list[tuple[Point, list[Point]]]:
    """Return for each step where it began and where its gradients were taken; at the end where it led."""
    known = methods.make(name)
    large = {"rho": 0.5} if hasattr(known, "rho") else LARGE.get(name, {})
    method = methods.make(name, **large)
    net, (x, y) = TwoWeights(), data()
    step = method.bind(net, torch.optim.SGD(net.parameters(), lr=2.5), steps=STEPS, epoch=1, seed=1)
    method.allocate(step.state, len(y), 2)
    asked: list[Point] = []
    grad = step.runtime.grad

    def watched(*args: object, **options: object) -> object:
        asked.append(place(net))
        return grad(*args, **options)

    step.runtime.grad = watched
    found = []
    for _ in range(STEPS):
        began = place(net)
        asked.clear()
        step(steppe.Batch(x, y, torch.arange(len(y))))
        found.append((began, list(asked)))
    return [*found, (place(net), [])]


def place(net: TwoWeights) -> Point:
    """Return the weights."""
    a, b = net.w.weight.detach()[0].tolist()
    return a, b


@cache
def contours(levels: int = 7) -> list[str]:
    """Return the loss's level sets as strokes, found along the edges of a grid."""
    x, y = data()
    n = 60
    axes = [torch.linspace(low, high, n) for low, high in zip(LOW, HIGH, strict=True)]
    w = torch.cartesian_prod(*axes)
    z = w @ x.T
    loss = F.softplus(torch.where(y == 1, -z, z)).mean(1).reshape(n, n)
    heights = loss.min() + (loss.max() - loss.min()) * torch.linspace(0.02, 0.95, levels) ** 2
    strokes = []
    for height in heights.tolist():
        parts = []
        for i in range(n - 1):
            for j in range(n - 1):
                corners = [(i, j), (i + 1, j), (i + 1, j + 1), (i, j + 1)]
                cuts = []
                for (a, b), (c, d) in zip(corners, corners[1:] + corners[:1], strict=True):
                    p, q = float(loss[a, b]) - height, float(loss[c, d]) - height
                    if (p < 0) != (q < 0):
                        t = p / (p - q)
                        ends = zip(axes, (a, b), (c, d), strict=True)
                        cuts.append([float(axis[k] + t * (axis[m] - axis[k])) for axis, k, m in ends])
                if len(cuts) == 2:
                    parts.append("M" + "L".join(pixels((a, b)) for a, b in cuts))
        strokes.append(f'<path d="{"".join(parts)}"/>')
    return strokes


def pixels(point: Point) -> str:
    """Return a point of the plane in the picture."""
    right = (point[0] - LOW[0]) / (HIGH[0] - LOW[0]) * SIZE
    down = (HIGH[1] - point[1]) / (HIGH[1] - LOW[1]) * SIZE
    return f"{right:.0f},{down:.0f}"


def figure(name: str) -> str | None:
    """Return the picture of a method as SVG; None for those that train several networks or look for a layer."""
    if overrides(methods.make(name), "build") or name == "sadt-v2":
        return None
    found = path(name)
    looks, dots = [], []
    for began, asked in found:
        for point in asked:
            x, y = pixels(point).split(",")
            looks.append(f'<path d="M{pixels(began)}L{x},{y}"/>' if point != began else "")
            dots.append(f'<circle cx="{x}" cy="{y}" r="3.5"/>')
    way = "M" + "L".join(pixels(began) for began, _ in found)
    x, y = pixels(found[-1][0]).split(",")
    return "\n".join(
        [
            f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {SIZE} {SIZE}" width="{SIZE}" height="{SIZE}" '
            f'role="img" aria-label="{STEPS} steps of {name}">',
            '<g fill="none" stroke="#8a9a8a" stroke-width="1" opacity="0.6">',
            *contours(),
            "</g>",
            f'<path d="{way}" fill="none" stroke="#2e7d32" stroke-width="2.5"/>',
            f'<g fill="none" stroke="#d2691e" stroke-width="1.2" stroke-dasharray="3 3">{"".join(looks)}</g>',
            f'<g fill="#d2691e">{"".join(dots)}</g>',
            f'<circle cx="{x}" cy="{y}" r="5" fill="#2e7d32"/>',
            "</svg>",
            "",
        ]
    )
