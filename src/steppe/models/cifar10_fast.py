"""A small, fast network: whitening of patches, three groups of two convolutions, a scaled classifier.

Its ideas are those of the public CIFAR-10 speed records (KellerJordan/cifar10-airbench, airbench94; Page, "How to
train your ResNet", 2018): a whitening layer for 2x2 patches of which only the bias is trained, convolutions that
start as the identity, BatchNorm with momentum 0.4 of which only the bias is trained, GELU, small logits.
"""

from collections import OrderedDict

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from steppe.models.keras_layers import check_images

MIN_SIZE = 12

_PATCH, _WIDTHS = 2, (64, 256, 256)
_EPS = 5e-4  # added to second moments, so that directions of little variance are not scaled up
_NORM_EPS, _MOMENTUM = 1e-12, 0.4
_LOGIT_SCALE = 1 / 9


class Whitening(nn.Module):
    """Project each patch, with both signs, onto directions in which patches of the training images vary equally.

    It maps (B, C, H, W) to (B, 2 C k^2, H - k + 1, W - k + 1) with k = 2. The directions are no parameters; until
    `learn` sets them they are random and orthogonal.
    """

    directions: Tensor

    def __init__(self, channels: int):
        super().__init__()
        size = channels * _PATCH**2
        self.register_buffer(
            "directions", self._both_signs(nn.init.orthogonal_(torch.empty(size, size)), channels)
        )
        self.bias = nn.Parameter(torch.zeros(2 * size))

    @torch.no_grad()
    def learn(self, x: Tensor) -> None:
        """Set the directions from images (B, C, H, W): eigenvectors of the patches' second moments.

        Each is divided by the root of the sum of its eigenvalue and 5e-4.
        """
        patches = F.unfold(x, _PATCH).transpose(1, 2).flatten(0, 1).double()
        values, vectors = torch.linalg.eigh(patches.T @ patches / len(patches))
        whitening = vectors.T / (values + _EPS).sqrt()[:, None]
        self.directions.copy_(self._both_signs(whitening.to(self.directions.dtype), x.shape[1]))

    def forward(self, x: Tensor) -> Tensor:
        """Return the projections of each patch."""
        return F.conv2d(x, self.directions, self.bias)

    @staticmethod
    def _both_signs(rows: Tensor, channels: int) -> Tensor:
        kernels = rows.view(len(rows), channels, _PATCH, _PATCH)
        return torch.cat([kernels, -kernels])


class ConvGroup(nn.Module):
    """Two 3x3 convolutions with BatchNorm, whose scale stays 1, and GELU; 2x2 max-pooling follows the first."""

    def __init__(self, inputs: int, width: int):
        super().__init__()
        self.conv1, self.bn1 = _conv(inputs, width), _norm(width)
        self.conv2, self.bn2 = _conv(width, width), _norm(width)
        self.pool, self.act = nn.MaxPool2d(2), nn.GELU()

    def forward(self, x: Tensor) -> Tensor:
        """Return feature maps of half the side."""
        x = self.act(self.bn1(self.pool(self.conv1(x))))
        out: Tensor = self.act(self.bn2(self.conv2(x)))
        return out


class GlobalMaxPool(nn.Module):
    """The maximum of each channel over all positions, (B, C, H, W) to (B, C, 1, 1).

    The values and gradients of `nn.AdaptiveMaxPool2d`, whose gradient on a GPU has no deterministic algorithm.
    """

    def forward(self, x: Tensor) -> Tensor:
        """Return the maxima."""
        return F.max_pool2d(x, x.shape[2:])


class ScaledLinear(nn.Linear):
    """A linear layer whose outputs are multiplied by 1/9."""

    def forward(self, x: Tensor) -> Tensor:
        """Return logits."""
        return super().forward(x) * _LOGIT_SCALE


def cifar10_fast(classes: int, channels: int, size: int) -> nn.Sequential:
    """Build the network: 1,972,504 parameters for 10 classes of colour images, 1,971,352 of them trained."""
    check_images("cifar10-fast", classes, channels, size, MIN_SIZE)
    parts: OrderedDict[str, nn.Module] = OrderedDict(whiten=Whitening(channels), act=nn.GELU())
    inputs = 2 * channels * _PATCH**2
    for number, width in enumerate(_WIDTHS, 1):
        parts[f"group{number}"] = ConvGroup(inputs, width)
        inputs = width
    parts |= {"most": GlobalMaxPool(), "flatten": nn.Flatten()}
    parts["head"] = ScaledLinear(inputs, classes, bias=False)
    return nn.Sequential(parts)


def learn(net: nn.Module, x: Tensor) -> None:
    """Set the layers of ``net`` that are computed from images before training, from images (B, C, H, W)."""
    for part in net.modules():
        if isinstance(part, Whitening):
            part.learn(x)


def learns(net: nn.Module) -> bool:
    """Return whether a network has such layers."""
    return any(isinstance(part, Whitening) for part in net.modules())


def _conv(inputs: int, width: int) -> nn.Conv2d:
    layer = nn.Conv2d(inputs, width, 3, padding=1, bias=False)
    # the first filters start as the identity
    nn.init.dirac_(layer.weight.data[:inputs])
    return layer


def _norm(width: int) -> nn.BatchNorm2d:
    layer = nn.BatchNorm2d(width, eps=_NORM_EPS, momentum=_MOMENTUM)
    layer.weight.requires_grad_(False)
    return layer
