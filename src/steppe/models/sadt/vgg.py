"""The VGG16 variant of the SADT paper."""

from collections import OrderedDict

from torch import nn

from steppe.models.keras_layers import check_images, conv, dense, norm1d, norm2d

MIN_SIZE = 32

BLOCKS = ((32, 32), (64, 64), (128, 128, 128), (256, 256, 256), (256, 256, 256))


def vgg16_sadt(classes: int, channels: int, size: int) -> nn.Sequential:
    """Build the VGG16 variant with BatchNorm: thirteen convolutions and four dense layers.

    The parts are one flat ``nn.Sequential``: five blocks of 3x3 convolutions with padding, each followed by
    BatchNorm, ReLU and dropout 0.1, each block by 2x2 max-pooling; then the mean over positions, two dense layers
    of 512 units, each with BatchNorm, ReLU and dropout 0.3, one of ``classes`` units with ReLU, and the
    classifier. Training needs batches of at least 2 for its BatchNorm.

    For 3x32x32 images and 10 classes it has 4,092,184 values as Keras counts them, moving means and variances
    included; the ReLU layer of ``classes`` units before the classifier belongs to that count. Convolutions and
    the layers of 512 units start He-normal (truncated at two deviations), the last two Glorot-uniform, biases
    at 0.

    Differs: outputs are logits, the original ends in a softmax.

    Source: An-Nur Islam Fahim and Boutellier, SADT, NeurIPS 2022 HITY workshop, section 4.1; the authors'
    notebook where the text is silent.
    """
    check_images("vgg16-sadt", classes, channels, size, MIN_SIZE)
    parts: OrderedDict[str, nn.Module] = OrderedDict()
    width = channels
    for b, block in enumerate(BLOCKS, 1):
        for i, filters in enumerate(block, 1):
            parts |= {f"conv{b}_{i}": conv(width, filters, same=True), f"bn{b}_{i}": norm2d(filters)}
            parts |= {f"relu{b}_{i}": nn.ReLU(), f"drop{b}_{i}": nn.Dropout(0.1)}
            width = filters
        parts[f"pool{b}"] = nn.MaxPool2d(2)
    parts |= {"mean": nn.AdaptiveAvgPool2d(1), "flatten": nn.Flatten()}
    for i in (1, 2):
        parts |= {f"fc{i}": dense(width, 512, he=True), f"bn_fc{i}": norm1d(512)}
        parts |= {f"relu_fc{i}": nn.ReLU(), f"drop_fc{i}": nn.Dropout(0.3)}
        width = 512
    parts |= {"fc3": dense(width, classes), "relu_fc3": nn.ReLU(), "head": dense(classes, classes)}
    return nn.Sequential(parts)
