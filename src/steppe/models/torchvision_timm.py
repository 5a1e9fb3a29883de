"""Networks of torchvision and timm by name, with fresh weights; nothing else needs either package."""

import importlib
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from steppe.errors import InputError, unknown
from steppe.models.keras_layers import check_images

# with auxiliary classifiers the training output would be a tuple; without init_weights they warn
_TORCHVISION_SETTINGS: Mapping[str, Mapping[str, bool]] = {
    "googlenet": {"aux_logits": False, "init_weights": True},
    "inception_v3": {"aux_logits": False, "init_weights": True},
}

_USUAL_SIZES = (16, 24, 32, 48, 64, 75, 96, 128, 160, 192, 224, 240, 256, 299, 384, 448, 512)


def _package(name: str, model: str) -> Any:
    try:
        return importlib.import_module(name)
    # torchvision built for another torch raises RuntimeError while it registers its operators.
    except (ImportError, RuntimeError) as error:
        reason = (str(error) or type(error).__name__).splitlines()[0]
        raise InputError(
            f"model {model!r} needs {name}, which cannot be imported ({reason}); run pip install 'steppe[vision]'"
        ) from error


def _logits(net: nn.Module, channels: int, size: int) -> Any:
    try:
        return net(torch.zeros(1, channels, size, size))
    except (RuntimeError, AssertionError, ValueError):
        return None


def _try_forward(net: nn.Module, model: str, classes: int, channels: int, size: int) -> None:
    """Pass one blank image through ``net``, so that an impossible size is refused before training."""
    net.eval()
    with torch.no_grad():
        logits = _logits(net, channels, size)
        if logits is None:
            other = next((s for s in _USUAL_SIZES if _logits(net, channels, s) is not None), None)
            remedy = f"set data.size to {other}" if other else "choose another model"
            raise InputError(f"{model} cannot take images of {size}x{size}; {remedy}")
    net.train()
    if not isinstance(logits, Tensor) or logits.shape != (1, classes):
        raise InputError(f"{model} does not give one output per class; choose an image classifier")


def replace_input_layer(net: nn.Module, channels: int) -> None:
    """Replace the first ``nn.Conv2d`` of ``net``, in place, by one of ``channels`` inputs.

    The new convolution has PyTorch's initialisation and the other settings of the old one.

    Raises InputError if the network has no convolution, or its first one has groups.
    """
    name, old = next(((n, m) for n, m in net.named_modules() if isinstance(m, nn.Conv2d)), ("", None))
    if old is None:
        raise InputError(f"the network has no convolution to give {channels} inputs; use images of 3 channels")
    if old.groups != 1:
        raise InputError(f"the first convolution {name} has groups; use images of 3 channels")
    settings: Any = {k: getattr(old, k) for k in ("kernel_size", "stride", "padding", "dilation", "padding_mode")}
    new = nn.Conv2d(channels, old.out_channels, bias=old.bias is not None, **settings)
    parent, _, child = name.rpartition(".")
    setattr(net.get_submodule(parent), child, new)


def from_torchvision(name: str, *, classes: int, channels: int, size: int) -> nn.Module:
    """Build the torchvision classifier ``name``, in training mode; nothing is downloaded.

    It maps images (B, channels, size, size) to logits (B, classes). For 1 channel the first convolution is
    replaced by one of 1 input. GoogLeNet and Inception v3 are built without their auxiliary classifiers.

    Raises InputError if torchvision cannot be imported, has no such classifier, or it cannot take these images.
    """
    model = f"torchvision/{name}"
    check_images(model, classes, channels, size, 1)
    models = _package("torchvision.models", model)
    available = models.list_models(module=models)
    if name not in available:
        raise unknown("model", model, [f"torchvision/{n}" for n in available])
    net: nn.Module = models.get_model(
        name, weights=None, num_classes=classes, **_TORCHVISION_SETTINGS.get(name, {})
    )
    if channels != 3:
        replace_input_layer(net, channels)
    _try_forward(net, model, classes, channels, size)
    return net


def from_timm(name: str, *, classes: int, channels: int, size: int) -> nn.Module:
    """Build the timm model ``name``, in training mode, with fresh weights; nothing is downloaded.

    It maps images (B, channels, size, size) to logits (B, classes). ``name:pretrained`` starts from the weights
    that timm publishes, downloaded once into its own cache, with a fresh classifier.

    Raises InputError if timm cannot be imported, has no such model, it cannot take these images, or its weights
    cannot be loaded.
    """
    model = f"timm/{name}"
    check_images(model, classes, channels, size, 1)
    timm = _package("timm", model)
    available = timm.list_models()
    name, colon, start = name.partition(":")
    if colon and start != "pretrained":
        raise InputError(f"model {model!r} starts from {start!r}; write timm/{name} or timm/{name}:pretrained")
    # A name outside the list may be an address, and timm would fetch weights from it.
    if name not in available:
        raise unknown("model", model, [f"timm/{n}" for n in available])
    try:
        net: nn.Module = timm.create_model(name, pretrained=bool(colon), num_classes=classes, in_chans=channels)
    except (OSError, RuntimeError) as error:
        if not colon:
            raise
        reason = (str(error) or type(error).__name__).splitlines()[0]
        raise InputError(
            f"the weights of {model!r} cannot be loaded ({reason}); for fresh ones write timm/{name}"
        ) from error
    _try_forward(net, model, classes, channels, size)
    return net
