"""Wide residual networks: those of the literature and those of the RWP authors' code."""

from collections import OrderedDict

from torch import Tensor, nn

from steppe.models.keras_layers import check_images

MIN_SIZE = 8


class WideUnit(nn.Module):
    """BatchNorm, ReLU and a 3x3 convolution, twice, plus a shortcut.

    It maps (B, inputs, H, W) to (B, width, H / stride, W / stride). The shortcut is the identity; where the number
    of channels changes it is a 1x1 convolution of the input after the first BatchNorm and ReLU.
    """

    def __init__(self, inputs: int, width: int, stride: int) -> None:
        super().__init__()
        self.bn1 = nn.BatchNorm2d(inputs)
        self.conv1 = nn.Conv2d(inputs, width, 3, stride, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(width)
        self.conv2 = nn.Conv2d(width, width, 3, 1, 1, bias=False)
        self.shortcut = nn.Conv2d(inputs, width, 1, stride, bias=False) if inputs != width else None
        self.relu = nn.ReLU()

    def forward(self, x: Tensor) -> Tensor:
        """Return the sum of convolutions and shortcut."""
        active = self.relu(self.bn1(x))
        inner: Tensor = self.conv2(self.relu(self.bn2(self.conv1(active))))
        return inner + (x if self.shortcut is None else self.shortcut(active))


def _wrn(name: str, classes: int, channels: int, size: int, units: int, factor: int) -> nn.Sequential:
    """Build three groups of ``units`` units; names that end in 'rwp' have the RWP code's initialisation."""
    check_images(name, classes, channels, size, MIN_SIZE)
    parts: OrderedDict[str, nn.Module] = OrderedDict(conv=nn.Conv2d(channels, 16, 3, 1, 1, bias=False))
    inputs = 16
    for group, width in enumerate((16 * factor, 32 * factor, 64 * factor)):
        for unit in range(units):
            stride = 2 if group and not unit else 1
            parts[f"unit{group + 1}_{unit + 1}"] = WideUnit(inputs, width, stride)
            inputs = width
    parts |= {"bn": nn.BatchNorm2d(inputs), "relu": nn.ReLU()}
    parts |= {"mean": nn.AdaptiveAvgPool2d(1), "flatten": nn.Flatten(), "head": nn.Linear(inputs, classes)}
    net, rwp = nn.Sequential(parts), name.endswith("rwp")
    for module in net.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, mode="fan_in" if rwp else "fan_out", nonlinearity="relu")
    for tensor in ("head.weight", "head.bias") if rwp else ("head.bias",):
        nn.init.zeros_(net.get_parameter(tensor))
    return net


def wrn_16_8(classes: int, channels: int, size: int) -> nn.Sequential:
    """Build WRN-16-8: three groups of two units, of 128, 256 and 512 filters.

    Parts and start are those of `wrn_28_10`. It has 10,961,370 parameters for 3 channels and 10 classes
    (paper, table 5: 11.0 million).
    """
    return _wrn("wrn-16-8", classes, channels, size, 2, 8)


def wrn_28_10(classes: int, channels: int, size: int) -> nn.Sequential:
    """Build WRN-28-10: three groups of four units, of 160, 320 and 640 filters.

    The parts are one flat ``nn.Sequential``: a 3x3 convolution of 16 filters; the units, the first of the second
    and third group with stride 2; BatchNorm, ReLU, the mean over positions, the classifier. There is no dropout.

    It has 36,479,194 parameters for 3 channels and 10 classes (paper, table 5: 36.5 million). Convolutions
    start normal with variance 2 / fan-out, the classifier's bias at 0, the rest as PyTorch does.

    Source: Zagoruyko and Komodakis, BMVC 2016, arXiv:1605.07146, section 2 and the authors' code.
    """
    return _wrn("wrn-28-10", classes, channels, size, 4, 10)


def wrn_16_8_rwp(classes: int, channels: int, size: int) -> nn.Sequential:
    """Build WRN-16-8 with one more unit in each group (three), as the RWP authors' code does.

    The start is that of `wrn_28_10_rwp`. It has 17,158,106 parameters for 3 channels and 10 classes.
    """
    return _wrn("wrn-16-8-rwp", classes, channels, size, 3, 8)


def wrn_28_10_rwp(classes: int, channels: int, size: int) -> nn.Sequential:
    """Build WRN-28-10 with one more unit in each group (five), as the RWP authors' code does.

    The parts are those of `wrn_28_10`. Convolutions start normal with variance 2 / fan-in, the classifier at 0, so
    that the first outputs are 0. It has 46,160,474 parameters for 3 channels and 10 classes.

    Source: nblt/RWP @ 6553ded, models/wide_resnet.py, which shares its form with davda54/sam.
    """
    return _wrn("wrn-28-10-rwp", classes, channels, size, 5, 10)
