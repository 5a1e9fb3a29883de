"""Norm-based capacity: margins, products of layers' norms, distance from the initial weights, as logarithms.

The generalisation bounds of Neyshabur, Golowich and Bartlett consist of these terms, for networks of sequential
layers with 1-Lipschitz, homogeneous activations. BatchNorm, skips, pooling and attention are treated as such
activations, so for a modern network the terms are reported but bound nothing.
"""

import math
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn.modules.conv import _ConvNd

from steppe.core.model_call import call_model
from steppe.core.numerics.filters import Units, norms_of_units, units_of
from steppe.core.numerics.vector import Vec
from steppe.diagnostics.calibration import margins
from steppe.diagnostics.loss_surface import LossSurface
from steppe.errors import InputError

_WIDTHS = ("in_features", "out_features", "in_channels", "out_channels")


@dataclass(frozen=True)
class Norms:
    r"""Norms of a network of L layers W_l (convolutions and linear ones), and the terms of three bounds.

    Attributes:
        layers: L.
        margin: The 10th percentile :math:`\gamma` of the samples' margins, in logits.
        frobenius: :math:`\ln\prod_l\lVert W_l\rVert_F`.
        spectral: :math:`\ln\prod_l s_l` with :math:`s_l` the largest singular value of a layer as an operator.
        distance: :math:`\lVert w-w_0\rVert`; None without initial weights.
        neyshabur: :math:`\ln[2^L\,B\prod_l\lVert W_l\rVert_F/(\gamma\sqrt n)]` with B the largest norm of an
            input (Neyshabur, Tomioka and Srebro, COLT 2015).
        golowich: The same with :math:`\sqrt L` in place of :math:`2^L` (Golowich, Rakhlin and Shamir, COLT 2018).
        bartlett: :math:`\ln[\frac{b\ln W}{\gamma\sqrt n}\prod_l s_l\,(\sum_l
            (\lVert W_l^\top-M_l^\top\rVert_{2,1}/s_l)^{2/3})^{3/2}]` with b the root mean square norm of an input,
            W the largest width, M_l the initial weights (of a frozen layer its weights), or 0 without ``start``
            (Bartlett, Foster and Telgarsky, NeurIPS 2017).

    The last three are None unless the margin is above 0; otherwise a tenth of the samples is misclassified.
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
    """Return the norms of a network that was trained on ``samples`` samples.

    Args:
        surface: The network and its training samples, or a random part of them, for margins and input norms.
        samples: Number n of training samples.
        start: Initial weights in the surface's order.
        steps: Power iterations for a convolution's largest singular value.
        seed: Seed of the initial vectors.

    Raises:
        InputError: ``samples`` is below 1, inputs are no tensors, targets no class indices, or there is no layer.
    """
    if samples < 1:
        raise InputError(f"samples is {samples}; give at least 1")
    if not all(isinstance(part.x, Tensor) for part in surface.batch.parts()):
        raise InputError("a batch's inputs are not a tensor; norms of inputs need tensors")
    layers = _layers(surface)
    if not layers:
        raise InputError("the model has no convolution or linear layer, whose norms are multiplied")
    if any(layer.weight.is_complex() for layer, _ in layers):  # type: ignore[operator]
        raise InputError("a layer's weights are complex; the bounds are of real layers")
    rng = torch.Generator().manual_seed(seed)
    frobenius = spectral = 0.0
    ratios, widest = [], 1
    weights = _weights(surface, layers)
    with nullcontext() if start is None else surface.with_values(start):
        initial = [torch.zeros_like(w) for w in weights] if start is None else _weights(surface, layers)
    _weights(surface, layers)  # weights that a hook computes are those of the last pass
    for (layer, shape), weight, before in zip(layers, weights, initial, strict=True):
        largest = operator_norm(layer, shape, steps=steps, rng=rng)
        frobenius += _ln(float(weight.norm()))
        spectral += _ln(largest)
        moved = weight - before
        norm_2_1 = float(norms_of_units(moved, units_of(moved, layer) or Units((1,))).sum())
        ratios.append((norm_2_1 / largest) ** (2 / 3) if largest else math.inf)
        widest = max(widest, *(int(getattr(layer, name, 1)) for name in _WIDTHS))
    margin = float(np.quantile(margins(surface.outputs(), _classes(surface)), 0.1))
    lengths = torch.cat([part.x.double().flatten(1).norm(dim=1) for part in surface.batch.parts()])
    count = len(layers)

    def term(value: float) -> float | None:
        return value - math.log(margin) - 0.5 * math.log(samples) if margin > 0 else None

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
    """Return the largest singular value of a layer without bias as a map of inputs of ``shape`` (no batch axis).

    Exact for a linear layer. For a convolution, with its padding and strides, ``steps`` power iterations give a
    lower bound: for an input of d numbers its mean relative error is at most about ln(d) / (2 steps) (Kuczynski
    and Wozniakowski, SIAM Journal on Matrix Analysis 13, 1992).
    """
    weight = layer.weight.detach().double()  # type: ignore[operator]
    if isinstance(layer, nn.Linear):
        return float(torch.linalg.matrix_norm(weight, 2))
    # a layer that computes its weight takes none in its place
    module = layer if "weight" in layer._parameters else _with_weight(layer, weight)
    parameters: dict[str, Tensor] = {"weight": weight}
    if module.bias is not None:
        parameters["bias"] = torch.zeros_like(module.bias, dtype=torch.float64)  # type: ignore[arg-type]
    v = torch.randn(1, *shape, dtype=torch.float64, generator=rng).to(weight.device)
    value = 0.0
    for _ in range(steps):
        v = (v / v.norm()).requires_grad_()
        with torch.enable_grad():
            out: Tensor = functional_call(module, parameters, (v,))
            value = float(out.detach().norm())
            if not value:
                return 0.0
            # the gradient of half the squared norm is A^T A v
            (v,) = torch.autograd.grad(0.5 * (out**2).sum(), v)
        v = v.detach()
    return value


def _with_weight(layer: nn.Module, weight: Tensor) -> nn.Module:
    """Return a convolution as this one, without bias, whose weight is a parameter."""
    kinds = (nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)
    names = ["in_channels", "out_channels", "kernel_size", "stride", "padding", "dilation", "groups"]
    names += ["padding_mode"]
    names += ["output_padding"] if getattr(layer, "transposed", False) else []
    kind: Any = next(kind for kind in kinds if isinstance(layer, kind))
    plain: nn.Module = kind(**{name: getattr(layer, name) for name in names}, bias=False, device="meta")
    plain.weight = nn.Parameter(weight, requires_grad=False)
    return plain


def _weights(surface: LossSurface, layers: list[tuple[nn.Module, tuple[int, ...]]]) -> list[Tensor]:
    """Return the layers' weights in double precision; a pass computes those that hooks compute."""
    with surface.evaluation_mode(), torch.no_grad():
        call_model(surface.net, next(iter(surface.batch.split(1))).x)
        return [layer.weight.detach().double().clone() for layer, _ in layers]  # type: ignore[operator]


def _layers(surface: LossSurface) -> list[tuple[nn.Module, tuple[int, ...]]]:
    """Return each layer in the order of execution, with the shape of its input."""
    shapes: dict[nn.Module, tuple[int, ...]] = {}

    def record(module: nn.Module, inputs: Any) -> None:
        shapes.setdefault(module, tuple(inputs[0].shape[1:]))

    layers = [m for m in surface.net.modules() if isinstance(m, nn.Linear | _ConvNd)]
    hooks = [layer.register_forward_pre_hook(record) for layer in layers]
    try:
        with surface.evaluation_mode(), torch.no_grad():
            call_model(surface.net, next(iter(surface.batch.split(1))).x)
    finally:
        for hook in hooks:
            hook.remove()
    return list(shapes.items())


def _classes(surface: LossSurface) -> Tensor:
    y = torch.cat([part.y for part in surface.batch.parts()])
    if y.is_floating_point() or y.ndim != 1:
        raise InputError("the targets are not class indices; a margin needs classes")
    return y


def _distance(surface: LossSurface, start: Vec) -> float:
    pairs = zip(surface.params, start, strict=True)
    return math.sqrt(
        sum(float((p.detach().double() - s.double()).square().sum()) for p, s in pairs if s is not None)
    )


def _ln(value: float) -> float:
    return math.log(value) if value else -math.inf
