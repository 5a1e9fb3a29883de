"""Network, data loader, optimizer and loss of a run, made from its configuration."""

import inspect
import itertools
import math
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import fields
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.nn.parallel import DistributedDataParallel
from torch.nn.parameter import is_lazy

from steppe import hardware, models
from steppe.config import Optim, Run, user_code
from steppe.core.batch import Batch
from steppe.core.method import Method
from steppe.core.optimizers.joint import joined, switch
from steppe.core.step_state import BindOptions
from steppe.core.user_loss import calls_model
from steppe.data.dataset import DataSet, Images, Samples
from steppe.data.loader import Loader, evaluation_batches
from steppe.data.normalize import Normalizer
from steppe.data.samples import SampleLoader, sample_batches
from steppe.data.transforms.auto_augment import compositions
from steppe.distributed import collectives
from steppe.errors import InputError
from steppe.tasks import objective
from steppe.tasks.objective import Objective
from steppe.training.checkpoint import sharded
from steppe.training.checkpoint.file import fill
from steppe.training.checkpoint.save_and_resume import CHECKPOINT, derive
from steppe.training.optimizers import is_installed_code, keep_own_rates, optimizer_of, placeholder_of

EVALUATED = 500  # images of an evaluated batch
_WHITENING = 5000  # images from which layers that learn before training do so
_LARGE = 0.05  # a part with at least this share of the network's parameters is sharded on its own


def make_model(run: Run, images: DataSet, number: int = 0) -> nn.Module:
    """Return the run's freshly initialised network; draws from the global generator.

    Of networks ``a+b`` that a method trains together, the first is an a, the second a b, the third an a.

    Layers that learn from images before training are given some of the training images, normalised. A network of
    the user's is made by a function of the seed: that of the run, and for each further network, by ``number``, one
    derived from it. A function without a seed is called with the global generator seeded. With ``run.init`` the
    weights are those of another run, where they fit.

    Raises InputError if that run has no checkpoint, or no weights of it fit.
    """
    names = model_names(run)
    name = names[number % len(names)]
    net = _user_model(run, name, number) if is_user_code(name) else _built_in_model(name, run, images)
    if run.init:
        _start_from(net, Path(run.init))
    return net


def _built_in_model(name: str, run: Run, images: DataSet) -> nn.Module:
    net = models.build(name, classes=images.outputs, task=run.task or images.task, **images.inputs)
    if models.learns(net):
        train = images.train
        assert isinstance(train, Images)
        rows = torch.arange(0, len(train), math.ceil(len(train) / _WHITENING))
        models.learn(net, Normalizer.of(run.data.normalize, train)(train.at(rows)))
    return net


def _start_from(net: nn.Module, folder: Path) -> None:
    """Copy the last weights of the run in ``folder`` to the tensors of equal name and shape."""
    if not (folder / CHECKPOINT).exists():
        raise InputError(f"init is {str(folder)!r}, which has no {CHECKPOINT}; give the folder of a finished run")
    weights = sharded.read(folder / CHECKPOINT).part("net")
    fitting = {k: t for k, t in net.state_dict().items() if k in weights and weights[k].shape == t.shape}
    if not any(t.ndim > 1 for t in fitting.values()):  # a bias of a head fits many networks
        raise InputError(
            f"init is {str(folder)!r}, whose network has no weights that fit; give a run of this model"
        )
    for name, target in fitting.items():
        fill(target, weights[name])


def is_user_model(run: Run) -> bool:
    """Return whether a network of the run is made by code of the user's."""
    return any(map(is_user_code, model_names(run)))


def model_names(run: Run) -> list[str]:
    """Return the names of a run's networks: several, joined by +, for methods that train different ones."""
    return [run.model] if user_code.is_registered("model", run.model) else run.model.split("+")


def is_user_code(name: str) -> bool:
    """Return whether a network is made by code of the user's."""
    return user_code.is_registered("model", name) or user_code.reference_in(name) is not None


def _user_model(run: Run, name: str, number: int) -> nn.Module:
    new_model = user_code.get("model", name)
    seed = run.seed if not number else derive(run.seed, f"network {number}") % 2**31
    try:
        argument = takes_seed(new_model)
        net = new_model(seed=seed) if argument == "seed" else new_model(seed) if argument else new_model()
    except InputError:
        raise
    except Exception as error:
        message = next(iter(str(error).splitlines()), "")[:200]
        raise InputError(f"model {name} cannot be made: {type(error).__name__}: {message}") from error
    if not isinstance(net, nn.Module):
        raise InputError(f"model {name} returned {type(net).__name__}; return a torch.nn.Module")
    if any(map(is_lazy, (*net.parameters(), *net.buffers()))):
        raise InputError(
            f"model {name} has lazy tensors without a shape; call it on a sample before you return it"
        )
    return net


def takes_seed(new_model: Any) -> str:
    """Return the name of the argument that takes the seed: 'seed', or the only one without a default; or ''."""
    try:
        parameters = list(inspect.signature(new_model).parameters.values())
    except (TypeError, ValueError):
        return ""
    if any(p.name == "seed" for p in parameters):
        return "seed"
    kinds = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
    required = [p for p in parameters if p.default is p.empty and p.kind in kinds]
    return required[0].name if len(required) == 1 else ""


def make_loader(run: Run, images: DataSet, method: Method | None = None) -> Loader | SampleLoader:
    """Return this process's training batches, with as many views of each image as the method takes.

    Raises InputError if a batch is too large or too small, or there are too few views.
    """
    world = collectives.current_world()
    shared: dict[str, Any] = {
        "batch": run.batch,
        "seed": derive(run.seed, "data"),
        "rank": world.rank,
        "size": world.size,
    }
    if not isinstance(images.train, Images):
        return SampleLoader(images.train, **shared)
    return Loader(
        images.train,
        classes=len(images.classes),
        augment=run.data.augment,
        normalize=Normalizer.of(run.data.normalize, images.train, run.data.noise),
        views=compositions(run.data.views, 1 if method is None else method.views),
        crops=method.views - 1 if method is not None and method.needs_views and not run.data.views else 0,
        # processes that prepare batches leave the device to the one that trains
        device="cpu" if run.workers else data_device(),
        **shared,
    )


def data_device() -> torch.device:
    """Return the device on which batches of images are made."""
    return hardware.device()


def evaluated_batches(run: Run, images: DataSet, samples: Samples) -> Iterator[Batch]:
    """Yield samples in order as the network takes them: images normalised, nothing augmented."""
    if not isinstance(samples, Images):
        return sample_batches(samples, run.batch)
    assert isinstance(images.train, Images)
    normalize = Normalizer.of(run.data.normalize, images.train, run.data.noise)
    return evaluation_batches(samples, EVALUATED, normalize, data_device())


def make_objective(run: Run, images: DataSet) -> Objective:
    """Return the loss, the metric and the weights of a run on its data; raises InputError if they do not fit."""
    goal = objective.make(
        run.task or images.task,
        run.loss,
        run.metric,
        outputs=images.outputs,
        unit=images.unit,
        y=images.train.y,
        smoothing=run.optim.label_smoothing,
    )
    if run.data.tta and calls_model(goal.loss):
        raise InputError(
            f"data.tta is {run.data.tta!r} and the loss is the network's own, which has one view; leave it out"
        )
    return goal


def make_network(run: Run, method: Method, images: DataSet, device: torch.device | None = None) -> nn.Module:
    """Return the network in its precision, before it is wrapped for several processes.

    It is on ``device``, by default the one that trains.
    """
    hardware.seed_all(derive(run.seed, "init"))
    number = itertools.count()
    net = method.build(lambda: make_model(run, images, next(number))).to(device or hardware.device())
    if run.precision == "fp64":
        net = net.double()
    # FSDP2 refuses weights in channels_last; networks of the user's may use view, which refuses such activations
    if run.parallel == "ddp" and not is_user_model(run):
        net = net.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    net.train()
    return net


def make_optimizer(run: Run, net: nn.Module, *, trains: bool = True) -> torch.optim.Optimizer:
    """Return the run's optimizer over the network's parameters, which may be sharded.

    Without ``trains``, to read a checkpoint, code of the user is not needed: the optimizer makes no steps then.
    """
    name = run.optim.name
    if not trains and not is_installed_code(name):
        return placeholder_of(run.optim, net)
    if user_code.is_registered("optimizer", name) and not inspect.isclass(user_code.get("optimizer", name)):
        return _user_optimizer(run, net)
    return optimizer_of(run.optim, net)


def _user_optimizer(run: Run, net: nn.Module) -> torch.optim.Optimizer:
    """Return the optimizer, or several, that the user's code makes from the parameters or from the model.

    ``optim.lr`` is its learning rate, unless a ``functools.partial`` or the function itself sets one.

    Raises InputError if it cannot be made, or if ``optim.lr`` is given and it has a learning rate of its own.
    """
    new_optimizer, name = user_code.get("optimizer", run.optim.name), run.optim.name
    params = [p for p in net.parameters() if p.requires_grad]
    arguments: Mapping[str, Any] = {}
    with suppress(TypeError, ValueError):
        arguments = inspect.signature(new_optimizer).parameters
    takes_any = run.optim.lr != Optim.lr and any(p.kind is p.VAR_KEYWORD for p in arguments.values())
    takes_lr = ("lr" in arguments or takes_any) and "lr" not in getattr(new_optimizer, "keywords", {})
    lr = {"lr": run.optim.lr} if takes_lr else {}
    by_model = not inspect.isclass(new_optimizer) and next(iter(arguments), "") not in ("params", "parameters")
    choices = [net, params] if by_model and not isinstance(new_optimizer, partial) else [params, net]
    try:
        try:
            optimizer = joined(new_optimizer(choices[0], **lr))
        except (TypeError, AttributeError):  # its argument's name does not say what it takes
            optimizer = joined(new_optimizer(choices[1], **lr))
    except InputError:
        raise
    except Exception as error:
        message = next(iter(str(error).splitlines()), "")[:200]
        raise InputError(f"optimizer {name} cannot be made: {type(error).__name__}: {message}") from error
    rates = [float(group["lr"]) for group in optimizer.param_groups if group.get("lr") is not None]
    if run.optim.lr not in [Optim.lr, *rates]:  # it would change nothing: neither a rate nor a tuned one
        own = (
            f"its own learning rate, {', '.join(f'{rate:g}' for rate in dict.fromkeys(rates))}"
            if rates
            else "none"
        )
        raise InputError(
            f"optim.lr is {run.optim.lr:g} and optimizer {name} has {own}; leave optim.lr out, or let the "
            "optimizer take an argument lr"
        )
    keep_own_rates(optimizer, run.optim.lr)
    switch(optimizer, "train")
    return optimizer


def bind_options(run: Run) -> dict[str, Any]:
    """Return the options of `Method.bind` that a run's configuration has, under the same names."""
    names = [f.name for f in fields(BindOptions) if f.name != "loss"]  # a text in a configuration
    return {name: getattr(part, name) for part in (run, run.optim) for name in names if hasattr(part, name)}


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
