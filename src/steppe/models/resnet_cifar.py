"""ResNet-18 for small images, and a narrow one for trials on a CPU."""

from collections import OrderedDict

from torch import Tensor, nn

from steppe.models.keras_layers import check_images

MIN_SIZE = 8


class Residual(nn.Module):
    """Two 3x3 convolutions with BatchNorm after each, plus a shortcut; ReLU after the sum.

    It maps (B, inputs, H, W) to (B, width, H / stride, W / stride). The shortcut is the identity, or a 1x1
    convolution with BatchNorm where the shape changes.
    """

    def __init__(self, inputs: int, width: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, width, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.conv2 = nn.Conv2d(width, width, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(width)
        self.shortcut = nn.Sequential()
        if stride != 1 or inputs != width:
            self.shortcut = nn.Sequential(nn.Conv2d(inputs, width, 1, stride, bias=False), nn.BatchNorm2d(width))
        self.relu = nn.ReLU()

    def forward(self, x: Tensor) -> Tensor:
        """Return ReLU of the sum of convolutions and shortcut."""
        inner = self.bn2(self.conv2(self.relu(self.bn1(self.conv1(x)))))
        joined: Tensor = self.relu(inner + self.shortcut(x))
        return joined


def _resnet(name: str, classes: int, channels: int, size: int, width: int) -> nn.Sequential:
    check_images(name, classes, channels, size, MIN_SIZE)
    parts: OrderedDict[str, nn.Module] = OrderedDict(
        conv=nn.Conv2d(channels, width, 3, 1, 1, bias=False), bn=nn.BatchNorm2d(width), relu=nn.ReLU()
    )
    inputs = width
    for group in range(4):
        outputs = width * 2**group
        for unit in range(2):
            stride = 2 if group and not unit else 1
            parts[f"unit{group + 1}_{unit + 1}"] = Residual(inputs, outputs, stride)
            inputs = outputs
    parts |= {"mean": nn.AdaptiveAvgPool2d(1), "flatten": nn.Flatten(), "head": nn.Linear(inputs, classes)}
    return nn.Sequential(parts)


def resnet18(classes: int, channels: int, size: int) -> nn.Sequential:
    """Build ResNet-18 for small images: a 3x3 convolution of 64 filters, eight residual units, the classifier.

    The parts are one flat ``nn.Sequential``: the convolution with BatchNorm and ReLU, without pooling; two units
    each of 64, 128, 256 and 512 filters, the first of the last three groups with stride 2; the mean over
    positions; the classifier.

    For 3x32x32 images it has 11,173,962 parameters with 10 classes. The initialisation is PyTorch's, which for 100
    classes gives weights of norm 80.2; the RWP paper states 80.19.

    Source: He et al., CVPR 2016, arXiv:1512.03385, section 4.2, with the stem for CIFAR that the RWP paper
    (arXiv:2211.13489v1, figure 3 and section 4.1) and most others use.
    """
    return _resnet("resnet18", classes, channels, size, 64)


def resnet_thin(classes: int, channels: int, size: int) -> nn.Sequential:
    """Build `resnet18` with a quarter of its filters (16, 32, 64, 128): 701,466 parameters for 10 classes.

    Source: none; for trials where the full width is too slow.
    """
    return _resnet("resnet-thin", classes, channels, size, 16)
