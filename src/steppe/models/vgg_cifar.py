"""VGG16 with BatchNorm for small images, in the form of the RWP authors' code."""

from collections import OrderedDict

from torch import nn

from steppe.models.keras_layers import check_images

MIN_SIZE = 32

BLOCKS = ((64, 64), (128, 128), (256, 256, 256), (512, 512, 512), (512, 512, 512))


def conv3x3(inputs: int, outputs: int) -> nn.Conv2d:
    """Return a 3x3 convolution with zero biases and normal weights of variance 2 / fan-out."""
    conv = nn.Conv2d(inputs, outputs, 3, padding=1)
    nn.init.kaiming_normal_(conv.weight, mode="fan_out", nonlinearity="relu")
    assert conv.bias is not None
    nn.init.zeros_(conv.bias)
    return conv


def vgg16_bn(classes: int, channels: int, size: int) -> nn.Sequential:
    """Build VGG16 with BatchNorm for small images: thirteen convolutions and three dense layers.

    The parts are one flat ``nn.Sequential``: five blocks of 3x3 convolutions with padding and biases, each
    followed by BatchNorm and ReLU, each block by 2x2 max-pooling; the mean over positions (a single one for 32x32
    images); twice dropout 0.5, a dense layer of 512 units and ReLU; the classifier.

    For 3x32x32 images it has 15,253,578 parameters with 10 classes. Convolutions start normal with variance
    2 / fan-out and zero biases, everything else as PyTorch does.

    Source: Simonyan and Zisserman, arXiv:1409.1556, configuration D, with the classifier and the start of the
    RWP authors' code (nblt/TWA @ 38200a9, models/vgg.py; that of nblt/RWP is not published).
    """
    check_images("vgg16-bn", classes, channels, size, MIN_SIZE)
    parts: OrderedDict[str, nn.Module] = OrderedDict()
    width = channels
    for b, block in enumerate(BLOCKS, 1):
        for i, filters in enumerate(block, 1):
            parts |= {f"conv{b}_{i}": conv3x3(width, filters), f"bn{b}_{i}": nn.BatchNorm2d(filters)}
            parts[f"relu{b}_{i}"] = nn.ReLU()
            width = filters
        parts[f"pool{b}"] = nn.MaxPool2d(2)
    parts |= {"mean": nn.AdaptiveAvgPool2d(1), "flatten": nn.Flatten()}
    for i in (1, 2):
        parts |= {f"drop{i}": nn.Dropout(0.5), f"fc{i}": nn.Linear(width, 512), f"relu_fc{i}": nn.ReLU()}
        width = 512
    parts["head"] = nn.Linear(width, classes)
    return nn.Sequential(parts)
