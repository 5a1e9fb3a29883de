"""Network, data loader, optimizer and loss of a run, made from its configuration."""

import math
from collections import Counter
from collections.abc import Iterator
from dataclasses import fields
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from steppe import hardware, models
from steppe.config import Run
from steppe.core.method import Method
from steppe.core.numerics.vector import sharded
from steppe.core.runtime import LossFunction
from steppe.core.step_state import BindOptions
from steppe.data.dataset import DataSet
from steppe.data.loader import Loader
from steppe.data.normalize import Normalizer
from steppe.data.transforms.auto_augment import compositions
from steppe.distributed import collectives
from steppe.training.checkpoint.save_and_resume import derive

_WHITENING = 5000  # images from which layers that learn before training do so
_LARGE = 0.05  # a part with at least this share of the network's parameters is sharded on its own


def make_model(run: Run, images: DataSet) -> nn.Module:
    """Return the run's freshly initialised network; draws from the global generator.

    Layers that learn from images before training are given some of the training images, normalised.
    """
    net = models.build(run.model, classes=len(images.classes), channels=images.channels, size=images.size)
    if models.learns(net):
        rows = torch.arange(0, len(images.train), math.ceil(len(images.train) / _WHITENING))
        models.learn(net, Normalizer.of(run.data.normalize, images.train)(images.train.at(rows)))
    return net


def make_loader(run: Run, images: DataSet, method: Method | None = None) -> Loader:
    """Return this process's training batches, with as many views of each image as the method takes.

    Raises InputError if a batch is too large or too small, or there are too few views.
    """
    world = collectives.current_world()
    return Loader(
        images.train,
        classes=len(images.classes),
        batch=run.batch,
        augment=run.data.augment,
        normalize=Normalizer.of(run.data.normalize, images.train, run.data.noise),
        seed=derive(run.seed, "data"),
        rank=world.rank,
        size=world.size,
        views=compositions(run.data.views, 1 if method is None else method.views),
        crops=method.views - 1 if method is not None and method.needs_views and not run.data.views else 0,
        # processes that prepare batches leave the device to the one that trains
        device="cpu" if run.workers else hardware.device(),
    )


def make_network(run: Run, method: Method, images: DataSet, device: torch.device | None = None) -> nn.Module:
    """Return the network in its precision, before it is wrapped for several processes.

    It is on ``device``, by default the one that trains.
    """
    torch.manual_seed(derive(run.seed, "init"))
    net = method.build(lambda: make_model(run, images)).to(device or hardware.device())
    if run.precision == "fp64":
        net = net.double()
    # FSDP2 refuses weights in channels_last
    if run.parallel == "ddp":
        net = net.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    net.train()
    return net


def make_optimizer(run: Run, net: nn.Module) -> torch.optim.Optimizer:
    """Return the run's optimizer over the network's parameters, which may be sharded."""
    o, params = run.optim, list(net.parameters())
    if o.name == "sgd":
        # PyTorch has no fused SGD for DTensor
        fused = not any(sharded(p) for p in params)
        return torch.optim.SGD(
            params, o.lr, momentum=o.momentum, weight_decay=o.weight_decay, nesterov=o.nesterov, fused=fused
        )
    cls = torch.optim.Adam if o.name == "adam" else torch.optim.AdamW
    return cls(params, o.lr, eps=o.eps, weight_decay=o.weight_decay, fused=True)


def bind_options(run: Run) -> dict[str, Any]:
    """Return the options of `Method.bind` that a run's configuration has, under the same names."""
    names = [f.name for f in fields(BindOptions)]
    return {name: getattr(part, name) for part in (run, run.optim) for name in names if hasattr(part, name)}


def make_loss(run: Run) -> LossFunction:
    """Return the training loss: cross-entropy, with label smoothing if it is set."""
    smoothing = run.optim.label_smoothing
    return partial(F.cross_entropy, label_smoothing=smoothing) if smoothing else F.cross_entropy


def wrap_parallel(net: nn.Module, parallel: str) -> nn.Module:
    """Return ``net`` wrapped for the world's processes: a replica each (ddp), or a shard each (fsdp)."""
    if collectives.current_world().size == 1:
        return net
    if parallel == "ddp":
        device = next(net.parameters()).device
        return DistributedDataParallel(net, device_ids=[device] if device.type == "cuda" else None)
    from torch.distributed.fsdp import fully_shard

    for part in _large_parts(net):
        fully_shard(part)
    fully_shard(net)
    return net


def _large_parts(net: nn.Module) -> list[nn.Module]:
    """Return the parts that are large enough to be gathered on their own and share no parameters."""

    def children(module: nn.Module) -> Iterator[nn.Module]:
        for child in module.children():
            if isinstance(child, nn.ModuleList | nn.ModuleDict):
                yield from children(child)
            else:
                yield child

    parts = list(children(net))
    users = Counter(id(p) for part in parts for p in part.parameters())
    users.update(id(p) for p in net.parameters(recurse=False))
    least = _LARGE * sum(p.numel() for p in net.parameters())
    return [
        part
        for part in parts
        if all(users[id(p)] == 1 for p in part.parameters()) and sum(p.numel() for p in part.parameters()) >= least
    ]
