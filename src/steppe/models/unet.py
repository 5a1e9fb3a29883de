"""A small network of U-Net's shape for dense targets, one output per pixel and class."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

WIDTHS = (16, 32, 64)


def _double(inputs: int, outputs: int) -> nn.Sequential:
    """Return twice a 3x3 convolution, BatchNorm and ReLU."""
    layers: list[nn.Module] = []
    for channels in (inputs, outputs):
        layers += [nn.Conv2d(channels, outputs, 3, padding=1, bias=False), nn.BatchNorm2d(outputs), nn.ReLU()]
    return nn.Sequential(*layers)


class UNet(nn.Module):
    """Images (B, C, H, W) to logits (B, outputs, H, W), for any height and width."""

    def __init__(self, outputs: int, channels: int) -> None:
        super().__init__()
        narrow = (channels, *WIDTHS[:-1])
        self.down = nn.ModuleList(_double(a, b) for a, b in zip(narrow, WIDTHS, strict=True))
        self.up = nn.ModuleList(
            _double(wide + skip, skip) for skip, wide in zip(WIDTHS[-2::-1], WIDTHS[::-1], strict=False)
        )
        self.head = nn.Conv2d(WIDTHS[0], outputs, 1)
        for layer in self.modules():
            if isinstance(layer, nn.Conv2d) and layer is not self.head:
                nn.init.kaiming_normal_(layer.weight)

    def forward(self, x: Tensor) -> Tensor:
        """Return the logits."""
        skips: list[Tensor] = []
        for i, part in enumerate(self.down):
            x = part(F.max_pool2d(x, 2, ceil_mode=True) if i else x)
            skips.append(x)
        for part, skip in zip(self.up, skips[-2::-1], strict=True):
            x = part(torch.cat([F.interpolate(x, size=skip.shape[2:]), skip], 1))
        logits: Tensor = self.head(x)
        return logits


def unet_small(outputs: int, channels: int) -> UNet:
    """Build a U-Net of three resolutions with 16, 32 and 64 channels, for images of any size.

    At each resolution are two 3x3 convolutions with padding, BatchNorm and ReLU; max-pooling halves the
    resolution, and nearest-neighbour interpolation restores it, where the features before pooling are joined. For
    images of 3 channels and 2 outputs it has 118,610 parameters.

    Convolutions start normal with variance 2 / fan-in (He et al., ICCV 2015, arXiv:1502.01852), the last one as
    PyTorch does. Differs from the original: padding, BatchNorm, interpolation in place of transposed convolutions,
    a quarter of the channels and two resolutions fewer.

    Source: Ronneberger et al., MICCAI 2015, arXiv:1505.04597.
    """
    return UNet(outputs, channels)
