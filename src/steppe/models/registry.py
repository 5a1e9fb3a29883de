"""Networks by name: those of the SADT, RWP and OKDPH papers, and any of torchvision or timm."""

from collections.abc import Callable

from torch import nn

from steppe.errors import InputError, unknown
from steppe.models.cifar10_fast import cifar10_fast
from steppe.models.inception_resnet_sadt import inception_resnet_sadt
from steppe.models.okdph import (
    densenet40_12,
    resnet32,
    resnet32_okdph,
    resnet110,
    resnet110_okdph,
    vgg16_okdph,
    wrn20_8_okdph,
)
from steppe.models.resnet_cifar import resnet18, resnet_thin
from steppe.models.simple_cnn import simple_cnn, simple_cnn_3fc
from steppe.models.torchvision_timm import from_timm, from_torchvision
from steppe.models.vgg_cifar import vgg16_bn
from steppe.models.vgg_sadt import vgg16_sadt
from steppe.models.vit_cifar import vit_cifar
from steppe.models.wide_resnet import wrn_16_8, wrn_16_8_rwp, wrn_28_10, wrn_28_10_rwp

MODELS: dict[str, Callable[[int, int, int], nn.Module]] = {
    "simple-cnn": simple_cnn,
    "simple-cnn-3fc": simple_cnn_3fc,
    "vgg16-sadt": vgg16_sadt,
    "inception-resnet-sadt": inception_resnet_sadt,
    "cifar10-fast": cifar10_fast,
    "resnet18": resnet18,
    "resnet-thin": resnet_thin,
    "vgg16-bn": vgg16_bn,
    "wrn-16-8": wrn_16_8,
    "wrn-28-10": wrn_28_10,
    "wrn-16-8-rwp": wrn_16_8_rwp,
    "wrn-28-10-rwp": wrn_28_10_rwp,
    "vit-cifar": vit_cifar,
    "resnet32": resnet32,
    "resnet110": resnet110,
    "resnet32-okdph": resnet32_okdph,
    "resnet110-okdph": resnet110_okdph,
    "vgg16-okdph": vgg16_okdph,
    "densenet40-12": densenet40_12,
    "wrn20-8-okdph": wrn20_8_okdph,
}


def build(name: str, *, classes: int, **inputs: int) -> nn.Module:
    """Build the network ``name`` with fresh weights, drawn from torch's global generator, in training mode.

    Args:
        name: One of ``names()``, or ``torchvision/NAME`` or ``timm/NAME`` for a network of those packages.
        classes: Number of classes, 2 or more; of a network of other inputs than images the number of outputs.
        inputs: What `steppe.data.DataSet.inputs` has of the inputs. For images ``channels``, 1 or 3, and ``size``,
            height and width in pixels.

    Returns:
        A module that maps (B, channels, size, size) to logits (B, classes).

    Raises:
        InputError: The name is unknown, its package is missing, or the network cannot take these inputs: they
            are not images, ``size`` is below its module's MIN_SIZE, ``channels`` is not 1 or 3, or ``classes`` is
            below 2.
    """
    package, _, rest = name.partition("/")
    if name not in MODELS and package not in ("torchvision", "timm"):
        raise unknown("model", name, MODELS, hint="or torchvision/NAME, timm/NAME")
    if not {"channels", "size"} <= inputs.keys():
        raise InputError(f"network {name} takes images, which the data are not; choose another with --models")
    channels, size = inputs["channels"], inputs["size"]
    if name in MODELS:
        return MODELS[name](classes, channels, size)
    if package == "torchvision":
        return from_torchvision(rest, classes=classes, channels=channels, size=size)
    return from_timm(rest, classes=classes, channels=channels, size=size)


def names() -> list[str]:
    """Return the names of the networks that come with the library, sorted."""
    return sorted(MODELS)
