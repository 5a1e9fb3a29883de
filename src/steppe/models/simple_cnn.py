"""The smallest network of the SADT paper, in the forms of its notebook and of its text."""

from collections import OrderedDict

from torch import nn

from steppe.models.keras_layers import check_images, conv, dense, norm1d, norm2d

MIN_SIZE = 18


def simple_cnn(classes: int, channels: int, size: int) -> nn.Sequential:
    """Build the Simple CNN: three convolutions and four dense layers.

    The parts are one flat ``nn.Sequential``: three times a 3x3 convolution of 64 filters without padding, ReLU,
    2x2 max-pooling (not after the third) and BatchNorm; then dropout 0.3, dense layers of 512 and 64 units, each
    with ReLU and BatchNorm, one of 10 units with ReLU, and the classifier. Training needs batches of at least 2
    for its BatchNorm.

    For 3x32x32 images and 10 classes it has 637,112 values as Keras counts them, moving means and variances
    included, of which 635,576 are trained. The paper says three dense layers; the count holds only with the
    four of the notebook (512, 64, 10, classes). The layer of 10 units keeps its width for any ``classes``.
    Convolutions start He-normal (truncated at two deviations), dense layers Glorot-uniform, biases at 0.

    Differs: outputs are logits, the original ends in a softmax. Feature maps are flattened channel first
    (the original: channel last), which permutes the inputs of ``fc1`` and nothing else.

    Source: An-Nur Islam Fahim and Boutellier, SADT, NeurIPS 2022 HITY workshop, section 4.1; the authors'
    notebook where the text is silent.
    """
    check_images("simple-cnn", classes, channels, size, MIN_SIZE)
    side = ((size - 2) // 2 - 2) // 2 - 2
    parts: OrderedDict[str, nn.Module] = OrderedDict()
    for i in (1, 2, 3):
        parts |= {f"conv{i}": conv(channels if i == 1 else 64, 64, same=False), f"relu{i}": nn.ReLU()}
        parts |= {f"pool{i}": nn.MaxPool2d(2)} if i < 3 else {}
        parts[f"bn{i}"] = norm2d(64)
    parts |= {"flatten": nn.Flatten(), "drop": nn.Dropout(0.3)}
    parts |= {"fc1": dense(64 * side * side, 512), "relu4": nn.ReLU(), "bn4": norm1d(512)}
    parts |= {"fc2": dense(512, 64), "relu5": nn.ReLU(), "bn5": norm1d(64)}
    parts |= {"fc3": dense(64, 10), "relu6": nn.ReLU(), "head": dense(10, classes)}
    return nn.Sequential(parts)


def simple_cnn_3fc(classes: int, channels: int, size: int) -> nn.Sequential:
    """Build the Simple CNN of the paper's text: three dense layers (512, 64, classes).

    As `simple_cnn`, without the layer of 10 units and its ReLU before the classifier, and with convolutions and
    dense layers starting as PyTorch initialises them (uniform within 1 / sqrt(fan-in), biases too). It learns
    faster under a small budget: the 10 units are a bottleneck.

    Source: the same, section 4.1 ("3 conv and 3 dense layers").
    """
    check_images("simple-cnn-3fc", classes, channels, size, MIN_SIZE)
    layers = OrderedDict(simple_cnn(classes, channels, size).named_children())
    del layers["fc3"], layers["relu6"]
    layers["head"] = nn.Linear(64, classes)
    for layer in layers.values():
        if isinstance(layer, nn.Conv2d | nn.Linear):
            layer.reset_parameters()
    return nn.Sequential(layers)
