"""Draw a few steps of a method on a model with two weights: where it takes gradients, and the path of the weights.

The method itself trains a logistic regression. `rt.grad` is wrapped to record where each gradient is taken. Radii
and noise are larger than usual, so that they can be seen.
"""

from functools import cache

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import steppe
from steppe import methods
from steppe.core.method import overrides

SIZE, STEPS, START = 320, 4, (-1.6, 1.7)
LOW, HIGH = (-2.2, -1.3), (1.7, 2.6)  # corners of the plotted area
LARGE = {
    **{name: {"gamma": 0.25} for name in ("rwp", "arwp", "lpf-sgd")},
    "sadt-v1": {"sigma": 0.3},
}
MOMENTUM = {"msam": 0.5, "sampa": 0.5}  # of the optimizer, for methods that use it
Point = tuple[float, float]


class TwoWeights(nn.Module):
    """Logistic regression: the logits of the two classes are 0 and w x."""

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
    """Return 24 samples that are not linearly separable."""
    g = torch.Generator().manual_seed(3)
    y = torch.arange(24) % 2
    means = torch.where(y[:, None] == 1, torch.tensor([0.3, 0.25]), torch.tensor([-0.3, -0.25]))
    return means + torch.randn(24, 2, generator=g) * torch.tensor([1.3, 0.8]), y


def path(name: str) -> list[tuple[Point, list[Point]]]:
    """Return where each step starts and where its gradients are taken; the last entry is the end point."""
    large = {"rho": 0.5} if hasattr(methods.make(name), "rho") else LARGE.get(name, {})
    method = methods.make(name, **large)
    net, (x, y) = TwoWeights(), data()
    optimizer = torch.optim.SGD(net.parameters(), lr=2.5, momentum=MOMENTUM.get(name, 0.0))
    step = method.bind(net, optimizer, steps=STEPS, epoch=1, seed=1)
    method.allocate(step.state, len(y), 2)
    points: list[Point] = []
    grad = step.runtime.grad

    def recorded_grad(*args: object, **options: object) -> object:
        points.append(weights_of(net))
        return grad(*args, **options)

    step.runtime.grad = recorded_grad
    steps = []
    for _ in range(STEPS):
        start = weights_of(net)
        points.clear()
        step(steppe.Batch(x, y, torch.arange(len(y))))
        steps.append((start, list(points)))
    return [*steps, (weights_of(net), [])]


def weights_of(net: TwoWeights) -> Point:
    """Return the two weights."""
    a, b = net.w.weight.detach()[0].tolist()
    return a, b


@cache
def contours(levels: int = 7) -> list[str]:
    """Return level sets of the loss as SVG paths, by marching squares on a grid."""
    x, y = data()
    n = 60
    axes = [torch.linspace(low, high, n) for low, high in zip(LOW, HIGH, strict=True)]
    w = torch.cartesian_prod(*axes)
    z = w @ x.T
    loss = F.softplus(torch.where(y == 1, -z, z)).mean(1).reshape(n, n)
    heights = loss.min() + (loss.max() - loss.min()) * torch.linspace(0.02, 0.95, levels) ** 2
    paths = []
    for height in heights.tolist():
        segments = []
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
                    segments.append("M" + "L".join(pixels((a, b)) for a, b in cuts))
        paths.append(f'<path d="{"".join(segments)}"/>')
    return paths


def pixels(point: Point) -> str:
    """Return a point in pixels of the picture, as SVG text."""
    right = (point[0] - LOW[0]) / (HIGH[0] - LOW[0]) * SIZE
    down = (HIGH[1] - point[1]) / (HIGH[1] - LOW[1]) * SIZE
    return f"{right:.0f},{down:.0f}"


def figure(name: str) -> str | None:
    """Return a method's picture as SVG; None if it trains several networks, or needs several layers."""
    method = methods.make(name)
    if overrides(method, "build") or name == "sadt-v2" or getattr(method, "where", "all") != "all":
        return None
    steps = path(name)
    offsets, dots = [], []
    for start, points in steps:
        for point in points:
            x, y = pixels(point).split(",")
            offsets.append(f'<path d="M{pixels(start)}L{x},{y}"/>' if point != start else "")
            dots.append(f'<circle cx="{x}" cy="{y}" r="3.5"/>')
    trajectory = "M" + "L".join(pixels(start) for start, _ in steps)
    x, y = pixels(steps[-1][0]).split(",")
    return "\n".join(
        [
            f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {SIZE} {SIZE}" width="{SIZE}" height="{SIZE}" '
            f'role="img" aria-label="{STEPS} steps of {name}">',
            '<g fill="none" stroke="#8a9a8a" stroke-width="1" opacity="0.6">',
            *contours(),
            "</g>",
            f'<path d="{trajectory}" fill="none" stroke="#2e7d32" stroke-width="2.5"/>',
            f'<g fill="none" stroke="#d2691e" stroke-width="1.2" stroke-dasharray="3 3">{"".join(offsets)}</g>',
            f'<g fill="#d2691e">{"".join(dots)}</g>',
            f'<circle cx="{x}" cy="{y}" r="5" fill="#2e7d32"/>',
            "</svg>",
            "",
        ]
    )
