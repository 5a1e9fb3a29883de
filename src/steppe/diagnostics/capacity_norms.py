r"""Norm-based capacity terms: margins, products of layers' norms, distance from the start. Logarithms throughout.

They are what bounds of Neyshabur, Golowich and Bartlett depend on, for networks whose layers stand in a row with
1-Lipschitz, homogeneous activations between them. BatchNorm, skips, pooling and attention are passed over as if
they were such activations, so for a modern network they are reported, and bound nothing.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.func import functional_call

from steppe.core.model_call import call_model
from steppe.core.numerics.filters import unit_dims, unit_norms
from steppe.core.numerics.vector import Vec
from steppe.diagnostics.calibration import margins
from steppe.diagnostics.loss_surface import LossSurface
from steppe.errors import InputError

_CONVOLUTIONS = (
    nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d,
)  # fmt: skip


@dataclass(frozen=True)
class Norms:
    r"""Norms of a network of L layers W_l (convolutions and linear ones), and what bounds make of them.

    Attributes:
        layers: L.
        margin: The 10th percentile of the samples' margins, in logits: :math:`\gamma`.
        frobenius: :math:`\ln\prod_l\lVert W_l\rVert_F`.
        spectral: :math:`\ln\prod_l s_l`, of each layer's largest singular value as an operator on its input.
        distance: :math:`\lVert w-w_0\rVert`; None without a start.
        neyshabur: :math:`\ln[2^L\,B\prod_l\lVert W_l\rVert_F/(\gamma\sqrt n)]` with B the largest norm of an
            input (Neyshabur, Tomioka and Srebro, COLT 2015).
        golowich: The same with :math:`\sqrt L` in place of :math:`2^L` (Golowich, Rakhlin and Shamir, COLT 2018).
        bartlett: :math:`\ln[\frac{b\ln W}{\gamma\sqrt n}\prod_l s_l\,(\sum_l
            (\lVert W_l^\top-M_l^\top\rVert_{2,1}/s_l)^{2/3})^{3/2}]` with b the root mean square norm of an input,
            W the largest width, M_l the initial weights, or 0 without a start (Bartlett, Foster and Telgarsky,
            NeurIPS 2017).

    The last three are None where the margin is not above 0: a tenth of the samples is then misclassified.
    """

    layers: int
    margin: float
    frobenius: float
    spectral: float
    distance: float | None
    neyshabur: float | None
    golowich: float | None
    bartlett: float | None


def norms(
    surface: LossSurface, samples: int, start: Vec | None = None, *, steps: int = 30, seed: int = 0
) -> Norms:
    """Return the norms of a network that was trained on ``samples`` samples, with margins and inputs of these.

    Args:
        surface: The network and samples it was trained on, or a random part of them.
        samples: Training samples n.
        start: Initial weights in the surface's order.
        steps: Power iterations for a convolution's largest singular value.
        seed: Of their first vectors.

    Raises:
        InputError: ``samples`` is below 1, inputs are no tensors, targets no class indices, or there is no layer.
    """
    if samples < 1:
        raise InputError(f"samples is {samples}; give at least 1")
    if not all(isinstance(part.x, Tensor) for part in surface.batch.parts()):
        raise InputError("a batch's inputs are no tensor; the norm of an input is that of a tensor")
    held = {id(p): i for i, p in enumerate(surface.params)}
    found = _inputs(surface)
    if not found:
        raise InputError("the model has no convolution or linear layer; there is no norm to multiply")
    rng = torch.Generator().manual_seed(seed)
    frobenius = spectral = 0.0
    ratios, widest = [], 1
    for layer, shape in found:
        weight = layer.weight.detach().double()  # type: ignore[operator]
        largest = operator_norm(layer, shape, steps=steps, rng=rng)
        frobenius += _ln(float(weight.norm()))
        spectral += _ln(largest)
        begun = start[held[id(layer.weight)]] if start is not None and id(layer.weight) in held else None
        moved = weight if begun is None else weight - begun.double()
        units = float(unit_norms(moved, unit_dims(moved, layer) or (1,)).sum())
        ratios.append((units / largest) ** (2 / 3) if largest else math.inf)
        widest = max(widest, _width(layer))
    spread = margins(surface.outputs(), _classes(surface))
    margin = float(np.quantile(spread, 0.1))
    lengths = _lengths(surface)
    scale = None if not margin > 0 else -math.log(margin) - 0.5 * math.log(samples)
    count = len(found)

    def term(value: float) -> float | None:
        return None if scale is None else value + scale

    return Norms(
        layers=count,
        margin=margin,
        frobenius=frobenius,
        spectral=spectral,
        distance=None if start is None else _distance(surface, start),
        neyshabur=term(count * math.log(2) + frobenius + _ln(float(lengths.max()))),
        golowich=term(0.5 * math.log(count) + frobenius + _ln(float(lengths.max()))),
        bartlett=term(
            spectral + 1.5 * _ln(sum(ratios)) + _ln(math.log(widest)) + _ln(float((lengths**2).mean().sqrt()))
        ),
    )


def operator_norm(
    layer: nn.Module, shape: tuple[int, ...], *, steps: int = 30, rng: torch.Generator | None = None
) -> float:
    """Return the largest singular value of a layer as a linear map of inputs of ``shape`` (without the batch).

    Of a linear layer exactly; of a convolution, with its padding and strides, by so many power iterations, from
    below: for an input of d numbers the mean shortfall is at most a share of about ln(d) / (2 steps), however
    close the largest values are (Kuczynski and Wozniakowski, SIAM Journal on Matrix Analysis 13, 1992). Its bias
    does not count.
    """
    weight = layer.weight.detach().double()  # type: ignore[operator]
    if isinstance(layer, nn.Linear):
        return float(torch.linalg.matrix_norm(weight, 2))
    given: dict[str, Tensor] = {"weight": weight}
    if layer.bias is not None:
        given["bias"] = torch.zeros_like(layer.bias, dtype=torch.float64)  # type: ignore[arg-type]
    v = torch.randn(1, *shape, dtype=torch.float64, generator=rng).to(weight.device)
    found = 0.0
    for _ in range(steps):
        v = (v / v.norm()).requires_grad_()
        with torch.enable_grad():
            out: Tensor = functional_call(layer, given, (v,))
            found = float(out.detach().norm())
            if not found:
                return 0.0
            # the gradient of half the squared length is the transposed map of the map
            (v,) = torch.autograd.grad(0.5 * (out**2).sum(), v)
        v = v.detach()
    return found


def _inputs(surface: LossSurface) -> list[tuple[nn.Module, tuple[int, ...]]]:
    """Return each layer, in the order of execution, with the shape of its input."""
    found: dict[nn.Module, tuple[int, ...]] = {}

    def note(module: nn.Module, given: Any) -> None:
        found.setdefault(module, tuple(given[0].shape[1:]))

    layers = [m for m in surface.net.modules() if isinstance(m, (nn.Linear, *_CONVOLUTIONS))]
    hooks = [layer.register_forward_pre_hook(note) for layer in layers]
    training = [m for m in surface.net.modules() if m.training]
    try:
        for m in training:
            m.training = False
        with torch.no_grad():
            call_model(surface.net, next(iter(surface.batch.split(1))).x)
    finally:
        for m in training:
            m.training = True
        for hook in hooks:
            hook.remove()
    return list(found.items())


def _classes(surface: LossSurface) -> Tensor:
    y = torch.cat([part.y for part in surface.batch.parts()])
    if y.is_floating_point() or y.ndim != 1:
        raise InputError("the targets are no class indices; a margin is about classes")
    return y


def _lengths(surface: LossSurface) -> Tensor:
    return torch.cat([part.x.double().flatten(1).norm(dim=1) for part in surface.batch.parts()])


def _distance(surface: LossSurface, start: Vec) -> float:
    pairs = zip(surface.params, start, strict=True)
    return math.sqrt(
        sum(float((p.detach().double() - s.double()).square().sum()) for p, s in pairs if s is not None)
    )


def _width(layer: nn.Module) -> int:
    names = ("in_features", "out_features", "in_channels", "out_channels")
    return max(int(getattr(layer, name, 1)) for name in names)


def _ln(value: float) -> float:
    return math.log(value) if value else -math.inf
