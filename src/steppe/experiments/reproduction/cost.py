"""The computation of a run of a recipe, from the multiply-adds of its network."""

import functools

import torch

from steppe import models
from steppe.config import Run
from steppe.models.multi.shared_trunk import count_flops

IMAGES = {"cifar10": 50_000, "cifar100": 50_000, "folder": 1_281_167}  # training images, by kind of data
_OUTPUTS = {"cifar100": 100}

# multiply-adds per image of networks from other packages, at 224 x 224 pixels
_MACS = {
    "torchvision/resnet18": 1.82e9,
    "torchvision/resnet50": 4.09e9,
    "torchvision/vgg16_bn": 15.5e9,
    "timm/resnet50": 4.09e9,
    "timm/resnet101": 7.80e9,
    "timm/resnet152": 11.5e9,
    "timm/vit_small_patch32_224": 1.15e9,
    "timm/deit_small_patch16_224:pretrained": 4.60e9,
}


@functools.cache
def multiply_adds(model: str, classes: int = 10) -> float:
    """Return a network's multiply-adds for an image, of 32 x 32 pixels or those of another package's network."""
    if model in _MACS:
        return _MACS[model]
    with torch.device("meta"):
        net = models.build(model, classes=classes, channels=3, size=32)
        return count_flops(net, torch.zeros(1, 3, 32, 32))[0] / 2


def operations(run: Run, data: str) -> float:
    """Return the estimated floating-point operations of a run on a kind of data.

    They are 6 x multiply-adds x images x epochs x backward passes per image: 2 for each multiply-add, in a forward
    and a backward pass of twice its cost.
    """
    method = run.method
    backward = method.cost[1] if method.cost else 1
    batches = getattr(method, "batches", 1)  # a step of RWP takes two batches and passes each image once
    images = IMAGES[data] * (run.data.legacy_share or 1)
    if run.data.train is not None:
        images = run.data.train * (images if run.data.train < 1 else 1)
    macs = multiply_adds(run.model, _OUTPUTS.get(data, 10))
    return 6 * macs * images * run.epochs * float(backward) / float(batches)
