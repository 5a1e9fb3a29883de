"""Networks by name: those of the papers, of tables and text, and any of torchvision or timm."""

import re
from collections.abc import Callable, Mapping

from torch import nn

from steppe.errors import InputError, unknown
from steppe.models.cifar10_fast import cifar10_fast
from steppe.models.gpt import gpt
from steppe.models.mlp import DEPTH, WIDTH, mlp
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
from steppe.models.sadt.inception_resnet import inception_resnet_sadt
from steppe.models.sadt.vgg import vgg16_sadt
from steppe.models.simple_cnn import simple_cnn, simple_cnn_3fc
from steppe.models.torchvision_timm import from_timm, from_torchvision
from steppe.models.unet import unet_small
from steppe.models.vgg_cifar import vgg16_bn
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


# networks of other inputs or outputs, by the form of their names
FAMILIES = ("mlp", "gpt-tiny", "gpt-1m", "unet-small")
_GPT_SIZES = {"gpt-tiny": (64, 2), "gpt-1m": (128, 5)}
_SIZED = re.compile(r"(mlp|gpt)-([1-9]\d{0,4})x([1-9]\d{0,2})")


def build(name: str, *, classes: int, task: str = "", **inputs: int) -> nn.Module:
    """Build the network ``name`` with fresh weights, drawn from torch's global generator, in training mode.

    Args:
        name: One of ``names()``, ``mlp-WxD`` or ``gpt-WxD`` with width and depth, or ``torchvision/NAME`` or
            ``timm/NAME`` for a network of those packages.
        classes: Number of outputs: the classes, the targets of a regression, or the tokens of the vocabulary.
        task: The task, if it is to be checked that the network's outputs are of its form.
        inputs: What `steppe.data.DataSet.inputs` has of the inputs. For images ``channels``, 1 or 3, and ``size``,
            height and width in pixels; ``features`` of a table; ``vocabulary`` and ``length`` of a text.

    Returns:
        A module that maps images (B, channels, size, size) to (B, classes), `unet_small` images of any size to
        (B, classes, H, W); features (B, features) to (B, classes); tokens (B, T) to (B, T, vocabulary).

    Raises:
        InputError: The name is unknown, its package is missing, or the network cannot take these inputs: they
            are of another kind, ``size`` is below its module's MIN_SIZE, or ``channels`` is not 1 or 3. Also if
            its outputs are not those of the task.
    """
    package, _, rest = name.partition("/")
    family, width, depth = _family(name)
    if name not in MODELS and family is None and package not in ("torchvision", "timm"):
        raise unknown("model", name, names(), hint="or mlp-WxD, gpt-WxD, torchvision/NAME, timm/NAME")
    kind = _check_fits(name, family, task, inputs)
    if family == "mlp":
        features = inputs["features"] if kind == "a table" else inputs["channels"] * inputs["size"] ** 2
        return mlp(classes, features, width, depth)
    if family == "gpt":
        if classes != inputs["vocabulary"]:
            raise InputError(
                f"network {name} predicts the next of {inputs['vocabulary']} tokens, and the data have {classes} "
                "classes; give a network of your own"
            )
        return gpt(classes, inputs["length"], width, depth)
    if family == "unet-small":
        return unet_small(classes, inputs["channels"])
    channels, size = inputs["channels"], inputs["size"]
    if name in MODELS:
        return MODELS[name](classes, channels, size)
    if package == "torchvision":
        return from_torchvision(rest, classes=classes, channels=channels, size=size)
    return from_timm(rest, classes=classes, channels=channels, size=size)


_KINDS = {"size": "images", "channels": "images that are not square", "features": "a table", "vocabulary": "text"}
_TAKES: dict[str | None, tuple[str, ...]] = {
    "mlp": ("a table", "images"),
    "gpt": ("text",),
    "unet-small": ("images", "images that are not square"),
    None: ("images",),
}
_INSTEAD = {"images": "simple-cnn", "a table": "mlp", "text": "gpt-tiny"}


def _check_fits(name: str, family: str | None, task: str, inputs: Mapping[str, int]) -> str:
    """Return the kind of inputs; raises InputError if the network takes others, or has outputs of another task."""
    kind = next((kind for key, kind in _KINDS.items() if key in inputs), "")
    if kind not in _TAKES[family]:
        data = kind or "neither images, a table of floats nor text"
        raise InputError(
            f"network {name} takes {' or '.join(_TAKES[family][:2])}, and the data are {data}; choose "
            f"{_INSTEAD.get(kind, 'a network of your own')}"
        )
    dense, is_dense = task == "segmentation", family == "unet-small"
    if task and dense != is_dense:
        outputs = "one output for each pixel" if is_dense else "one output for each image"
        remedy = "unet-small, or a network of your own" if dense else _INSTEAD["images"]
        raise InputError(f"network {name} has {outputs}, and the task is {task}; choose {remedy}")
    return kind


def _family(name: str) -> tuple[str | None, int, int]:
    """Return the family of a network's name, None if it is of none, with its width and depth."""
    if name in _GPT_SIZES:
        return "gpt", *_GPT_SIZES[name]
    if sized := _SIZED.fullmatch(name):
        return sized[1], int(sized[2]), int(sized[3])
    return {"mlp": ("mlp", WIDTH, DEPTH), "unet-small": ("unet-small", 0, 0)}.get(name, (None, 0, 0))


def names() -> list[str]:
    """Return the names of the networks that come with the library, sorted."""
    return sorted([*MODELS, *FAMILIES])
