"""A multilayer perceptron for tables; images are flattened."""

from collections import OrderedDict

from torch import nn

WIDTH, DEPTH = 128, 2


def mlp(outputs: int, features: int, width: int = WIDTH, depth: int = DEPTH) -> nn.Sequential:
    """Build a multilayer perceptron: ``depth`` hidden layers of ``width`` units with ReLU, and a linear head.

    It maps (B, ...) with ``features`` values per sample to (B, outputs). ``mlp`` has two hidden layers of 128
    units, ``mlp-WxD`` D layers of W. There is no normalisation and no dropout. With width W and depth D it has
    (features + 1) W + (D - 1) (W + 1) W + (W + 1) outputs parameters.

    Weights of hidden layers start normal with variance 2 / fan-in (He et al., ICCV 2015, arXiv:1502.01852), those
    of the head with variance 1 / fan-in (LeCun et al., "Efficient BackProp", 1998), biases at 0.
    """
    parts: OrderedDict[str, nn.Module] = OrderedDict(flatten=nn.Flatten())
    for i in range(1, depth + 1):
        parts[f"fc{i}"] = _linear(features if i == 1 else width, width, 2)
        parts[f"relu{i}"] = nn.ReLU()
    parts["head"] = _linear(width, outputs, 1)
    return nn.Sequential(parts)


def _linear(inputs: int, outputs: int, gain: float) -> nn.Linear:
    layer = nn.Linear(inputs, outputs)
    nn.init.normal_(layer.weight, std=(gain / inputs) ** 0.5)
    nn.init.zeros_(layer.bias)
    return layer
