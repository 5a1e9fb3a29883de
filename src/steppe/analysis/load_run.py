"""A finished run as it can be looked at: its network as deployed, its images, where it started."""

from __future__ import annotations

import typing
from dataclasses import dataclass, fields, is_dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn

from steppe import methods, records
from steppe.config import Run
from steppe.core.batch import Batch
from steppe.core.method import Method, overrides
from steppe.data.dataset import DataSet, Images
from steppe.data.loader import evaluation_batches
from steppe.data.normalize import Normalizer
from steppe.diagnostics.loss_surface import LossSurface
from steppe.errors import InputError
from steppe.training import run as engine
from steppe.training.checkpoint import sharded
from steppe.training.checkpoint.file import Checkpoint, fill
from steppe.training.evaluation import BATCH, to_model_format
from steppe.training.factories import make_model, make_network
from steppe.training.monitor import DEPLOYED, networks

Which = Literal["last", "best"]


@dataclass(frozen=True)
class TrainedRun:
    """A run's network with its weights in place.

    Attributes:
        folder, run: Where it is, and its configuration.
        images: Its data, split as it was trained.
        model: What the method deploys, an average of weights if that is what it deploys.
        epoch: The epoch the weights are of.
        start: The initial weights by name, of the network as it was initialised from the run's seed.
    """

    folder: Path
    run: Run
    images: DataSet
    model: nn.Module
    epoch: int
    start: dict[str, Tensor]

    def surface(self, images: Images) -> LossSurface:
        """Return the cross-entropy surface over these images, normalised as in training and not augmented."""
        return LossSurface(self.model, self.batches(images))

    def batches(self, images: Images) -> list[Batch]:
        """Return these images as the network takes them."""
        like = next(self.model.parameters())
        return [
            to_model_format(batch, like)
            for batch in evaluation_batches(images, BATCH, _normalizer(self.run, self.images))
        ]


def read_run(folder: Path) -> Run:
    """Return a run's configuration from its folder; raises InputError for none, or a setting that is unknown."""
    path = folder / engine.CONFIG
    if not path.exists():
        raise InputError(f"{folder} has no {engine.CONFIG}; give the folder of a run, or of a comparison")
    content = records.read_json(path, "give the folder of a run")
    content.pop("resolved", None)
    try:
        made: Run = _made(Run, content, path)
    except InputError:
        raise
    except (TypeError, ValueError, AttributeError) as error:
        raise InputError(f"{path} is damaged ({error}); give the folder of a run") from None
    return made


def load(folder: Path, which: Which = "last", images: DataSet | None = None) -> TrainedRun:
    """Return a run with its last weights, or those of its best validation epoch.

    ``images`` saves loading the run's data again.

    Raises InputError if the folder is no run's, has no checkpoint yet, or one that does not fit.
    """
    run = read_run(folder)
    data = engine.load_data(run) if images is None else images
    method, net = _built(run, data)
    begun = {k: v.detach().clone() for k, v in net.state_dict().items()}
    state = method.init(net)
    saved = sharded.read(_weights_file(folder, which))
    if overrides(method, "build"):
        # one of several networks, or of branches, which may share parts: it is put together anew
        first = _alone(method, net, state, run, data).state_dict()
        _fill(net, state, saved, folder)
        alone = _alone(method, net, state, run, data)
        return TrainedRun(folder, run, data, alone, int(saved.data["epoch"]), first)
    _fill(net, state, saved, folder)
    few = next(evaluation_batches(data.val, 2, _normalizer(run, data)))
    model, prefix = deployed(method, net, state, to_model_format(few, next(net.parameters())).x)
    start = {k.removeprefix(prefix): v for k, v in begun.items() if k.startswith(prefix)}
    return TrainedRun(folder, run, data, model, int(saved.data["epoch"]), start)


def networks_of(folder: Path, which: Which, data: DataSet) -> dict[str, dict[str, Tensor]]:
    """Return the weights and buffers of each of a run's several networks or branches, by name; none if it has one.

    Raises what `load` raises.
    """
    run = read_run(folder)
    method, net = _built(run, data)
    state = method.init(net)
    _fill(net, state, sharded.read(_weights_file(folder, which)), folder)
    with torch.random.fork_rng():
        found = networks(method, net, state, lambda: make_model(run, data))
    like = next(net.parameters())
    return {name: one.to(like).state_dict() for name, one in found.items() if name != DEPLOYED}


def _built(run: Run, data: DataSet) -> tuple[Method, nn.Module]:
    method = methods.parse(run.method)
    with torch.random.fork_rng():
        return method, make_network(run, method, data)


def _normalizer(run: Run, data: DataSet) -> Normalizer:
    return Normalizer.of(run.data.normalize, data.train, run.data.noise)


def _alone(method: Method, net: nn.Module, state: nn.Module, run: Run, data: DataSet) -> nn.Module:
    with torch.random.fork_rng():
        plain = method.deployed_model(net, state, lambda: make_model(run, data))
    return plain.to(next(net.parameters())).eval()


def deployed(method: Method, net: nn.Module, state: nn.Module, x: Tensor) -> tuple[nn.Module, str]:
    """Return the network that a method deploys, with the weights it has then, and its name's prefix in ``net``.

    A method may deploy one peer of several, or put an average in the network's place for the while of a
    prediction. The network is the outermost module that is given ``x`` and returns the prediction; where there is
    none, as in an ensemble, all is wrapped.
    """
    net.eval()
    entered: list[dict[str, Tensor] | None] = []
    found: list[tuple[int, nn.Module, dict[str, Tensor], Any]] = []

    def enter(module: nn.Module, given: Any) -> None:
        asked = bool(given) and given[0] is x
        entered.append({k: v.detach().clone() for k, v in module.state_dict().items()} if asked else None)

    def leave(module: nn.Module, given: Any, output: Any) -> None:
        weights = entered.pop()
        if weights is not None:
            found.append((len(entered), module, weights, output))

    hooks = [
        h for m in net.modules() for h in (m.register_forward_pre_hook(enter), m.register_forward_hook(leave))
    ]
    try:
        with torch.no_grad():
            predicted = method.predict(net, state, x)
    finally:
        for hook in hooks:
            hook.remove()
    names = {id(m): n for n, m in net.named_modules()}
    for _, module, weights, output in sorted(found, key=lambda f: f[0]):
        if isinstance(output, Tensor) and torch.equal(output, predicted):
            module.load_state_dict(weights)
            name = names[id(module)]
            return module.eval(), f"{name}." if name else ""
    return _Deployed(method, net, state).eval(), ""


class _Deployed(nn.Module):
    """What a method deploys where that is not one network."""

    def __init__(self, method: Method, net: nn.Module, state: nn.Module):
        super().__init__()
        self.method, self.net, self.state = method, net, state

    def forward(self, x: Tensor) -> Tensor:
        return self.method.predict(self.net, self.state, x)


def _weights_file(folder: Path, which: Which) -> Path:
    if which == "last":
        path = folder / engine.CHECKPOINT
        if not path.exists():
            raise InputError(f"{folder} has no checkpoint; train the run first")
        return path
    found = sorted(folder.glob("best-*.safetensors"), key=lambda path: (len(path.name), path.name))
    if not found:
        raise InputError(f"{folder} has no weights of a best epoch; train the run first")
    return found[-1]


def _fill(net: nn.Module, state: nn.Module, saved: Checkpoint, folder: Path) -> None:
    weights, remembered = saved.part("net"), saved.part("state")
    for name, target in net.state_dict().items():
        if name not in weights:
            raise InputError(f"the checkpoint in {folder} has no {name}; it is of another version or network")
        fill(target, weights[name])
    # what is remembered may have grown, so the state itself takes it in
    state.load_state_dict({name: remembered[name] for name in state.state_dict() if name in remembered})


def _made(cls: type, content: dict[str, Any], path: Path) -> Any:
    hints = typing.get_type_hints(cls)
    known = {f.name for f in fields(cls)}
    for key in content:
        if key not in known:
            raise InputError(f"{path} has the setting {key!r}, which this version does not know; update steppe")

    def value(key: str, given: Any) -> Any:
        if is_dataclass(hints[key]):
            return _made(typing.cast(type, hints[key]), given, path)
        if not _is(hints[key], given):
            raise TypeError(f"{key} is {given!r:.40}")
        return tuple(given) if isinstance(given, list) else given

    return cls(**{k: value(k, v) for k, v in content.items()})


def _is(hint: Any, given: Any) -> bool:
    """Return whether a value of JSON is one of this type."""
    inner = typing.get_args(hint)
    if typing.get_origin(hint) is tuple:
        return isinstance(given, list) and all(_is(inner[0], one) for one in given)
    if typing.get_origin(hint) is Literal:
        return given in inner
    if inner:
        return any(_is(one, given) for one in inner)
    # JSON knows one kind of number
    kinds = (int, float) if hint is float else hint
    return isinstance(given, kinds) and (hint is bool or not isinstance(given, bool))
