"""A small network for many runs: whitened patches first, three groups of two convolutions, a scaled classifier.

Its ideas are those of the public CIFAR-10 speed records (KellerJordan/cifar10-airbench, airbench94; Page, "How to
train your ResNet", 2018): a first layer that whitens 2x2 patches and is not trained but for its bias, convolutions
that start as the identity, BatchNorm with a short memory, GELU, small logits.
"""

from __future__ import annotations

from collections import OrderedDict

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from steppe.models.keras_layers import check

LEAST = 12

_PATCH, _WIDTHS = 2, (64, 256, 256)
_SOFT = 5e-4  # added to variances: directions that hardly vary are not blown up to the others' size
_MOMENTUM = 0.4  # share of the present batch in BatchNorm's running statistics
_SCALE = 1 / 9  # of the logits


class Whitening(nn.Module):
    """Project each patch onto directions in which the patches of the training images vary equally, both signs.

    It maps (B, C, H, W) to (B, 2 C k^2, H - k + 1, W - k + 1) with k = 2. The directions are no parameters; until
    `learn` has seen images they are random ones, orthogonal to each other.
    """

    directions: Tensor

    def __init__(self, channels: int):
        super().__init__()
        size = channels * _PATCH**2
        self.register_buffer("directions", self._both(nn.init.orthogonal_(torch.empty(size, size)), channels))
        self.bias = nn.Parameter(torch.zeros(2 * size))

    @torch.no_grad()
    def learn(self, x: Tensor) -> None:
        """Take the directions from images (B, C, H, W): eigenvectors of the patches' second moments.

        Each is divided by the root of its eigenvalue plus 5e-4.
        """
        patches = F.unfold(x, _PATCH).transpose(1, 2).flatten(0, 1).double()
        values, vectors = torch.linalg.eigh(patches.T @ patches / len(patches))
        whitening = vectors.T / (values + _SOFT).sqrt()[:, None]
        self.directions.copy_(self._both(whitening.to(self.directions.dtype), x.shape[1]))

    def forward(self, x: Tensor) -> Tensor:
        """Return how far each patch goes in each direction."""
        return F.conv2d(x, self.directions, self.bias)

    @staticmethod
    def _both(rows: Tensor, channels: int) -> Tensor:
        kernels = rows.view(len(rows), channels, _PATCH, _PATCH)
        return torch.cat([kernels, -kernels])


class ConvGroup(nn.Module):
    """Two 3x3 convolutions with BatchNorm and GELU, the first with a maximum over 2x2 after it."""

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


class Scaled(nn.Linear):
    """A linear layer without bias whose outputs are a ninth of what they would be."""

    def forward(self, x: Tensor) -> Tensor:
        """Return logits."""
        return super().forward(x) * _SCALE


def cifar10_fast(classes: int, channels: int, size: int) -> nn.Sequential:
    """Build the network: 1,972,504 parameters for 10 classes of colour images.

    Raises:
        InputError: ``size`` is below 12, ``classes`` below 2, or ``channels`` is not 1 or 3.
    """
    check("cifar10-fast", classes, channels, size, LEAST)
    parts: OrderedDict[str, nn.Module] = OrderedDict(whiten=Whitening(channels), act=nn.GELU())
    inputs = 2 * channels * _PATCH**2
    for number, width in enumerate(_WIDTHS, 1):
        parts[f"group{number}"] = ConvGroup(inputs, width)
        inputs = width
    parts["most"] = nn.AdaptiveMaxPool2d(1)
    parts["flatten"] = nn.Flatten()
    parts["head"] = Scaled(inputs, classes, bias=False)
    return nn.Sequential(parts)


def learn(net: nn.Module, x: Tensor) -> None:
    """Let the layers that learn from images before training, wherever they are, see ``x`` (B, C, H, W)."""
    for part in net.modules():
        if isinstance(part, Whitening):
            part.learn(x)


def learns(net: nn.Module) -> bool:
    """Return whether a network has such layers."""
    return any(isinstance(part, Whitening) for part in net.modules())


def _conv(inputs: int, width: int) -> nn.Conv2d:
    layer = nn.Conv2d(inputs, width, 3, padding=1, bias=False)
    # the first filters pass their input on, so that depth costs nothing at first
    nn.init.dirac_(layer.weight.data[:inputs])
    return layer


def _norm(width: int) -> nn.BatchNorm2d:
    return nn.BatchNorm2d(width, momentum=_MOMENTUM)
