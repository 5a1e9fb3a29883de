"""The networks of the OKDPH authors' code, and the ResNets of the literature that they are named after."""

from collections import OrderedDict
from collections.abc import Sequence
from functools import partial
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from steppe.models.keras_layers import check_images
from steppe.models.vgg_cifar import BLOCKS, conv3x3

MIN_SIZE = 8
Fan = Literal["fan_in", "fan_out"]


def _conv(inputs: int, outputs: int, side: int, stride: int = 1, mode: Fan = "fan_out") -> nn.Conv2d:
    layer = nn.Conv2d(inputs, outputs, side, stride, side // 2, bias=False)
    nn.init.kaiming_normal_(layer.weight, mode=mode, nonlinearity="relu")
    return layer


class BasicBlock(nn.Module):
    """Convolutions of these widths, with BatchNorm after each, plus a shortcut; ReLU after the sum.

    ``sides`` are the kernels' sides; the first 3x3 convolution has the stride.
    """

    def __init__(
        self, inputs: int, widths: Sequence[int], sides: Sequence[int], stride: int, shortcut: nn.Module
    ) -> None:
        super().__init__()
        parts: list[nn.Module] = []
        first = list(sides).index(3)
        for i, (width, side) in enumerate(zip(widths, sides, strict=True)):
            parts += [_conv(inputs, width, side, stride if i == first else 1), nn.BatchNorm2d(width), nn.ReLU()]
            inputs = width
        self.inner, self.shortcut, self.relu = nn.Sequential(*parts[:-1]), shortcut, nn.ReLU()

    def forward(self, x: Tensor) -> Tensor:
        """Return ReLU of the sum of convolutions and shortcut."""
        joined: Tensor = self.relu(self.inner(x) + self.shortcut(x))
        return joined


class PaddedShortcut(nn.Module):
    """The shortcut without weights: every second pixel, and further channels of zeros on both sides."""

    def __init__(self, more: int) -> None:
        super().__init__()
        self.more = more

    def forward(self, x: Tensor) -> Tensor:
        """Return (B, C + more, H / 2, W / 2)."""
        return F.pad(x[:, :, ::2, ::2], (0, 0, 0, 0, self.more // 2, self.more - self.more // 2))


def _resnet(
    name: str, classes: int, channels: int, size: int, units: int, *, inner: int = 0, padded: bool = False
) -> nn.Sequential:
    """Build three stages of ``units`` blocks; with ``inner`` bottlenecks, that wide in the first stage."""
    check_images(name, classes, channels, size, MIN_SIZE)
    parts: OrderedDict[str, nn.Module] = OrderedDict(conv1=_conv(channels, 16, 3), bn1=nn.BatchNorm2d(16))
    parts["relu"] = nn.ReLU()
    inputs = 16
    for stage in range(3):
        blocks = []
        for unit in range(units):
            stride = 2 if stage and not unit else 1
            outputs = (64 if inner else 16) * 2**stage
            wide = inner * 2**stage
            widths, sides = ((wide, wide, outputs), (1, 3, 1)) if inner else ((outputs, outputs), (3, 3))
            shortcut: nn.Module = nn.Identity()
            if inputs != outputs:
                projected = nn.Sequential(_conv(inputs, outputs, 1, stride), nn.BatchNorm2d(outputs))
                shortcut = PaddedShortcut(outputs - inputs) if padded else projected
            blocks.append(BasicBlock(inputs, widths, sides, stride, shortcut))
            inputs = outputs
        parts[f"layer{stage + 1}"] = nn.Sequential(*blocks)
    parts |= {"mean": nn.AdaptiveAvgPool2d(1), "flatten": nn.Flatten(), "head": nn.Linear(inputs, classes)}
    return nn.Sequential(parts)


def resnet32(classes: int, channels: int, size: int) -> nn.Sequential:
    """Build ResNet-32 as the literature has it: 464,154 parameters for 3x32x32 images and 10 classes.

    A 3x3 convolution of 16 filters, three stages of five blocks of two 3x3 convolutions with 16, 32 and 64
    filters, strides 1, 2, 2, and the classifier of the mean over positions. Shortcuts have no weights: where the
    shape changes they take every second pixel and add channels of zeros. Convolutions start normal with variance 2
    / fan-out, the rest as PyTorch does.

    Source: He et al., CVPR 2016, arXiv:1512.03385, section 4.2, option A.
    """
    return _resnet("resnet32", classes, channels, size, 5, padded=True)


def resnet110(classes: int, channels: int, size: int) -> nn.Sequential:
    """Build ResNet-110 as the literature has it: `resnet32` with 18 blocks a stage, 1,727,962 parameters.

    Source: He et al., CVPR 2016, arXiv:1512.03385, section 4.2, option A.
    """
    return _resnet("resnet110", classes, channels, size, 18, padded=True)


def resnet32_okdph(classes: int, channels: int, size: int) -> nn.Sequential:
    """Build OKDPH's ResNet32: `resnet32` with projections as shortcuts, 466,906 parameters for 10 classes.

    Where the shape changes the shortcut is a 1x1 convolution with stride 2 and BatchNorm.

    Source: tianlizhang/OKDPH @ a562089.
    """
    return _resnet("resnet32-okdph", classes, channels, size, 5)


def resnet110_okdph(classes: int, channels: int, size: int) -> nn.Sequential:
    """Build OKDPH's ResNet110: 1,147,738 parameters for 3x32x32 images and 10 classes.

    Three stages of twelve bottlenecks (1x1, 3x3, 1x1) of inner width 16, 32, 64 and four times as many outputs;
    projections as shortcuts at the entry of every stage; otherwise as `resnet32`.

    Source: tianlizhang/OKDPH @ a562089.
    """
    return _resnet("resnet110-okdph", classes, channels, size, 12, inner=16)


def wrn20_8_okdph(classes: int, channels: int, size: int) -> nn.Sequential:
    """Build OKDPH's WRN20-8: 6,848,090 parameters for 3x32x32 images and 10 classes.

    It is no Wide ResNet of the literature: three stages of two bottlenecks of inner width 128, 256, 512
    and 64, 128, 256 outputs; otherwise as `resnet110_okdph`. `wrn_16_8` is one.

    Source: tianlizhang/OKDPH @ a562089.
    """
    return _resnet("wrn20-8-okdph", classes, channels, size, 2, inner=128)


def vgg16_okdph(classes: int, channels: int, size: int) -> nn.Sequential:
    """Build OKDPH's VGG16: 15,253,578 parameters for 3x32x32 images and 10 classes.

    Five blocks of 3x3 convolutions with biases, BatchNorm and ReLU (two of 64, two of 128, three each of 256, 512
    and 512 filters), each with 2x2 max-pooling, the first under the name ``stem``; the mean over positions (a
    single one for 32x32 images); twice a dense layer of 512 units and ReLU, without dropout; the classifier.
    Convolutions start normal with variance 2 / fan-out, dense layers with deviation 0.01, biases at 0.

    Source: tianlizhang/OKDPH @ a562089.

    Raises InputError if ``size`` is below 32, ``classes`` below 1, or ``channels`` is not 1 or 3.
    """
    check_images("vgg16-okdph", classes, channels, size, 32)
    parts: OrderedDict[str, nn.Module] = OrderedDict()
    inputs = channels
    names = ("stem", "layer1", "layer2", "layer3", "layer4")
    for name, widths in zip(names, BLOCKS, strict=True):
        block: list[nn.Module] = []
        for width in widths:
            block += [conv3x3(inputs, width), nn.BatchNorm2d(width), nn.ReLU()]
            inputs = width
        parts[name] = nn.Sequential(*block, nn.MaxPool2d(2))
    parts |= {"mean": nn.AdaptiveAvgPool2d(1), "flatten": nn.Flatten()}
    parts |= {"fc1": _dense(512), "relu1": nn.ReLU(), "fc2": _dense(512), "relu2": nn.ReLU()}
    parts["head"] = _dense(classes)
    return nn.Sequential(parts)


def _dense(outputs: int) -> nn.Linear:
    layer = nn.Linear(512, outputs)
    nn.init.normal_(layer.weight, std=0.01)
    nn.init.zeros_(layer.bias)
    return layer


class DenseLayer(nn.Module):
    """BatchNorm, ReLU, a 1x1 convolution, BatchNorm, ReLU, a 3x3 one; the output is appended to the input."""

    def __init__(self, inputs: int, growth: int) -> None:
        super().__init__()
        self.inner = nn.Sequential(
            *(nn.BatchNorm2d(inputs), nn.ReLU(), _dense_conv(inputs, 4 * growth, 1)),
            *(nn.BatchNorm2d(4 * growth), nn.ReLU(), _dense_conv(4 * growth, growth, 3)),
        )

    def forward(self, x: Tensor) -> Tensor:
        """Return (B, inputs + growth, H, W)."""
        return torch.cat([x, self.inner(x)], 1)


_dense_conv = partial(_conv, mode="fan_in")


def densenet40_12(classes: int, channels: int, size: int) -> nn.Sequential:
    """Build DenseNet-BC-40 with growth 12: 176,122 parameters for 3x32x32 images and 10 classes.

    A 3x3 convolution of 24 filters; three blocks of six layers, each a 1x1 convolution to 48 and a 3x3 one to 12
    filters, whose output is appended to the layer's input; between the blocks BatchNorm, ReLU, a 1x1 convolution
    to half the channels and 2x2 mean-pooling; BatchNorm, ReLU, the mean over positions, the classifier.
    Convolutions start normal with variance 2 / fan-in.

    Source: Huang et al., CVPR 2017, arXiv:1608.06993, in the form of tianlizhang/OKDPH @ a562089; the literature's
    DenseNet-40-12 has no bottlenecks.
    """
    check_images("densenet40-12", classes, channels, size, MIN_SIZE)
    parts: OrderedDict[str, nn.Module] = OrderedDict(conv=_dense_conv(channels, 24, 3))
    width = 24
    for number in (1, 2, 3):
        parts[f"block{number}"] = nn.Sequential(*(DenseLayer(width + 12 * i, 12) for i in range(6)))
        width += 72
        if number < 3:
            parts[f"transition{number}"] = nn.Sequential(
                nn.BatchNorm2d(width), nn.ReLU(), _dense_conv(width, width // 2, 1), nn.AvgPool2d(2)
            )
            width //= 2
    parts |= {"bn": nn.BatchNorm2d(width), "relu": nn.ReLU(), "mean": nn.AdaptiveAvgPool2d(1)}
    parts |= {"flatten": nn.Flatten(), "head": nn.Linear(width, classes)}
    return nn.Sequential(parts)
