"""The Inception-ResNet variant of the SADT paper."""

from collections import OrderedDict

import torch
from torch import Tensor, nn

from steppe.models.keras_layers import check_images, conv, dense, norm2d

MIN_SIZE = 10

WIDTHS = (32, 64, 64)


class InceptionResidual(nn.Module):
    """Three parallel branches; the middle one, of ``width`` filters, has a convolution on its shortcut.

    It maps (B, inputs, H, W) to (B, width + 2 * (width // 32), H, W).
    """

    def __init__(self, inputs: int, width: int) -> None:
        super().__init__()
        thin = width // 32
        self.left = nn.Sequential(conv(inputs, thin, same=True), norm2d(thin), nn.ELU())
        self.middle = nn.Sequential(
            *(conv(inputs, width, same=True), norm2d(width), nn.ELU()),
            *(conv(width, width, same=True), norm2d(width)),
        )
        self.shortcut = nn.Sequential(conv(inputs, width, same=True), nn.ELU(), norm2d(width), nn.ELU())
        self.right = nn.Sequential(conv(inputs, thin, same=True), norm2d(thin), nn.ELU())
        self.elu = nn.ELU()

    def forward(self, x: Tensor) -> Tensor:
        """Return the outputs of the three branches, concatenated along the channels."""
        return torch.cat([self.left(x), self.elu(self.shortcut(x) + self.middle(x)), self.right(x)], dim=1)


def inception_resnet_sadt(classes: int, channels: int, size: int) -> nn.Sequential:
    """Build the Inception-ResNet variant: a convolution, three modules of three branches, three dense layers.

    The parts are one flat ``nn.Sequential``: a 3x3 convolution of 32 filters without padding or activation;
    modules of width 32, 64 and 64 (34, 68 and 68 channels), each followed by 2x2 max-pooling and dropout 0.2; a
    dense layer of 128 units with ELU and dropout 0.2 on both sides, one of ``classes`` units with ReLU, and the
    classifier.

    For 3x32x32 images and 10 classes it has 306,338 values as Keras counts them, moving means and variances
    included. The count settles what the text leaves open: the second convolution of the middle branch is
    3x3 too (1x1 would give 232,610), and padding is used inside the modules only (612 inputs to ``fc1``).
    Convolutions start He-normal (truncated at two deviations), dense layers Glorot-uniform, biases at 0.

    Differs: outputs are logits, the original ends in a softmax. The original seeds every convolution with
    32, so that the two thin branches of a module start identical; here every layer has its own draws. Feature
    maps are flattened channel first (the original: channel last), which permutes the inputs of ``fc1``.

    Source: An-Nur Islam Fahim and Boutellier, SADT, NeurIPS 2022 HITY workshop, section 4.1; the authors'
    notebook where the text is silent.
    """
    check_images("inception-resnet-sadt", classes, channels, size, MIN_SIZE)
    parts: OrderedDict[str, nn.Module] = OrderedDict(stem=conv(channels, 32, same=False))
    inputs, side = 32, size - 2
    for i, width in enumerate(WIDTHS, 1):
        parts[f"module{i}"] = InceptionResidual(inputs, width)
        parts |= {f"pool{i}": nn.MaxPool2d(2), f"drop{i}": nn.Dropout(0.2)}
        inputs, side = width + 2 * (width // 32), side // 2
    parts |= {"flatten": nn.Flatten(), "drop4": nn.Dropout(0.2), "fc1": dense(inputs * side * side, 128)}
    parts |= {"elu": nn.ELU(), "drop5": nn.Dropout(0.2), "fc2": dense(128, classes), "relu": nn.ReLU()}
    parts["head"] = dense(classes, classes)
    return nn.Sequential(parts)
