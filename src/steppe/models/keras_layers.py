"""Layers with the initialisation and BatchNorm settings of Keras, and the check of arguments of all models."""

import math
from functools import partial

from torch import Tensor, nn

from steppe.errors import InputError

# standard deviation of a unit normal that is truncated at two standard deviations
_TRUNCATED_STD = 0.87962566103423978


def check_images(model: str, classes: int, channels: int, size: int, min_size: int) -> None:
    """Raise InputError if ``size`` is below ``min_size``, ``classes`` below 1, or ``channels`` not 1 or 3."""
    if classes < 1:
        raise InputError(f"{model} needs at least 1 output, there are {classes}; give images with targets")
    if channels not in (1, 3):
        raise InputError(
            f"{model} needs images of 1 or 3 channels, these have {channels}; convert them to grey or RGB"
        )
    if size < min_size:
        raise InputError(
            f"{model} needs images of at least {min_size}x{min_size}, these are {size}x{size}; "
            f"set data.size to {min_size} or more"
        )


def conv(inputs: int, outputs: int, *, same: bool) -> nn.Conv2d:
    """Return a 3x3 convolution with He-normal weights and zero biases."""
    layer = nn.Conv2d(inputs, outputs, 3, padding=1 if same else 0)
    assert layer.bias is not None
    he_normal_(layer.weight)
    nn.init.zeros_(layer.bias)
    return layer


def dense(inputs: int, outputs: int, *, he: bool = False) -> nn.Linear:
    """Return a fully connected layer with zero biases; He-normal weights if ``he``, else Glorot-uniform."""
    layer = nn.Linear(inputs, outputs)
    if he:
        he_normal_(layer.weight)
    else:
        nn.init.xavier_uniform_(layer.weight)
    nn.init.zeros_(layer.bias)
    return layer


def he_normal_(weight: Tensor) -> None:
    """Draw from a normal truncated at two of its deviations, so wide that the variance is 2 / fan-in."""
    std = math.sqrt(2 / weight[0].numel()) / _TRUNCATED_STD
    nn.init.trunc_normal_(weight, std=std, a=-2 * std, b=2 * std)


# Keras's moving averages keep 0.99 of their value
norm2d = partial(nn.BatchNorm2d, eps=1e-3, momentum=0.01)
norm1d = partial(nn.BatchNorm1d, eps=1e-3, momentum=0.01)
