"""What a user passes, as a configuration of texts, and the objects that these texts stand for."""

from __future__ import annotations

import dataclasses
import inspect
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import nn
from torch.utils.data import DataLoader

from steppe.config import Data, Optim, from_dict, user_code
from steppe.core.method import Method
from steppe.data.dataset import Source
from steppe.data.sources.formats.user_data import user_source
from steppe.errors import InputError

Objects = dict[tuple[str, str], Any]
# usual rates: the command line's default is that of one paper's networks
_RATES = {"adam": 1e-3, "adamw": 1e-3, "muon+adamw": 1e-3, "sgd": 0.01}
_RATES |= {"schedulefree-adamw": 2.5e-3, "schedulefree-sgd": 1.0}
_DIRECTIONS = {"lower": "lower", "higher": "higher", "min": "lower", "max": "higher"}


@dataclasses.dataclass
class Arguments:
    """Names for the objects of one call; ``objects`` are registered while it runs."""

    objects: Objects = dataclasses.field(default_factory=dict)

    def name(self, kind: str, value: Any, name: str = "") -> str:
        """Return the text that stands for an object; a text stands for itself."""
        if isinstance(value, str):
            for part in value.split("+"):
                if reference := user_code.reference_in(part):
                    self._import(kind, reference)
            return value
        name = name or user_code.reference_of(value)
        taken = self.objects.setdefault((kind, name), value)
        if taken is not value:
            number = 2
            while self.objects.setdefault((kind, f"{name}{number}"), value) is not value:
                number += 1
            name = f"{name}{number}"
        return name

    def _import(self, kind: str, reference: str) -> None:
        from steppe import data, methods

        prefix = reference.partition(":")[0]
        built_in = {entry.partition(":")[0] for entry in data.names()} if kind == "dataset" else methods.METHODS
        if prefix not in built_in and not prefix.startswith("torch."):
            self.objects[kind, reference] = user_code.load(reference)

    def models(self, new_model: Any) -> tuple[str, ...]:
        """Return the names of one or several networks."""
        if isinstance(new_model, Mapping):
            return tuple(self.name("model", value, str(name)) for name, value in new_model.items())
        several = new_model if isinstance(new_model, list | tuple) else [new_model]
        for value in several:
            if isinstance(value, nn.Module) or not (isinstance(value, str) or callable(value)):
                raise InputError(
                    f"new_model is {type(value).__name__}; give a function that makes the network, as lambda: "
                    "copy.deepcopy(net), so that every run starts from its own"
                )
        return tuple(self.name("model", value) for value in several)

    def dataset(self, data: Any, name: str, task: str, collate: Callable[[Sequence[Any]], Any] | None) -> str:
        """Return the name of the data; what is in memory is read once for all runs."""
        if isinstance(data, str) or ((inspect.isroutine(data) or inspect.isclass(data)) and collate is None):
            return self.name("dataset", data, name)
        source: Source = user_source(data, task, collate)
        return self.name("dataset", source, name or "data")

    def methods(self, methods: Any) -> tuple[Any, ...]:
        """Return methods as texts, or as they are; classes and objects of the user's get a name."""
        if isinstance(methods, str | Method) or inspect.isclass(methods):
            methods = [methods]
        return tuple(map(self._method, methods))

    def _method(self, method: Any) -> Any:
        from steppe.methods import METHODS

        listed = {getattr(entry, "func", entry) for entry in METHODS.values()}
        if isinstance(method, str):
            for one in method.split("+"):
                if reference := user_code.reference_in(one):
                    self._import("method", reference)
        elif inspect.isclass(method):
            return self.name("method", method)
        elif isinstance(method, Method):
            for part in _parts(method):
                if type(part) not in listed and not type(part).__module__.startswith("steppe."):
                    self.name("method", type(part))
        return method

    def metric(self, metric: Any) -> str:
        """Return the text of a metric: a name, a torchmetrics object, a function, or a pair with its direction."""
        direction = ""
        if isinstance(metric, tuple) and len(metric) == 2:
            metric, direction = metric
            if direction not in _DIRECTIONS:
                raise InputError(f"metric has the direction {direction!r}; give 'lower' or 'higher'")
            direction = f":{_DIRECTIONS[direction]}"
        return "" if metric is None else self.name("metric", metric) + direction

    def optimizer(self, optimizer: Any) -> str:
        """Return the name of an optimizer."""
        if isinstance(optimizer, torch.optim.Optimizer):
            raise InputError(
                f"optimizer is a {type(optimizer).__name__} of one network's parameters; give its class, or a "
                "function of the parameters, such as functools.partial(torch.optim.AdamW, lr=0.001)"
            )
        return self.name("optimizer", optimizer)


def _parts(method: Method) -> Iterable[Method]:
    yield method
    for f in dataclasses.fields(method):
        if isinstance(value := getattr(method, f.name), Method):
            yield from _parts(value)


def optim_of(arguments: Arguments, optimizer: Any, lr: float | None, optim: Any) -> Optim:
    """Return the options of the optimizer, by default AdamW; its rate by default that of its name or its class."""
    values = {} if optim is None else dataclasses.asdict(optim) if isinstance(optim, Optim) else dict(optim)
    values |= {} if optimizer is None else {"name": arguments.optimizer(optimizer)}
    name = values.setdefault("name", "adamw")
    if isinstance(rate := _RATES.get(name) or _rate_of(optimizer), float):
        values.setdefault("lr", rate)
    values |= {} if lr is None else {"lr": lr}
    result: Optim = from_dict(Optim, values)
    return result


def _rate_of(optimizer: Any) -> Any:
    rate = inspect.signature(optimizer).parameters.get("lr") if inspect.isclass(optimizer) else None
    return rate and rate.default


def data_of(options: Any, built_in: bool) -> Data:
    """Return the options of the data; samples of the user's are not augmented unless that is requested."""
    if isinstance(options, Data):
        return options
    values = {} if built_in else {"augment": ()}
    result: Data = from_dict(Data, {**values, **(options or {})})
    return result


def batch_of(data: Any, batch: int | None) -> dict[str, int]:
    """Return the samples of a batch as given, or those of the training data's loader."""
    train = data.get("train") if isinstance(data, Mapping) else data
    train = train[0] if isinstance(train, tuple | list) and train else train
    own = train.batch_size if isinstance(train, DataLoader) else None
    size = own if batch is None else batch
    return {} if size is None else {"batch": size}


def seeds_of(seeds: int | Iterable[int]) -> tuple[int, ...]:
    """Return the seeds: as many as a number says, or those listed."""
    if isinstance(seeds, int):
        if seeds < 1:
            raise InputError(f"seeds is {seeds}; give at least 1, or a list of seeds")
        return tuple(range(seeds))
    return tuple(int(seed) for seed in seeds)


def budget_of(budget: Any, epochs: int | None) -> dict[str, Any]:
    """Return the fields of a budget: a number of epochs, or a text such as '30 epochs' or '60 seconds'."""
    if budget is None:
        return {} if epochs is None else {"epochs": epochs}
    if epochs is not None:
        raise InputError(f"budget is {budget!r} and epochs {epochs}; give one of them")
    if isinstance(budget, int) and not isinstance(budget, bool):
        return {"epochs": budget}
    number, _, unit = str(budget).partition(" ")
    try:
        if unit in ("epoch", "epochs"):
            return {"epochs": int(number)}
        if unit in ("second", "seconds", "s"):
            return {"match": "seconds", "seconds": float(number)}
        if unit in ("epochs of gradients", "gradients"):
            return {"match": "gradients", "epochs": int(number)}
    except ValueError:
        pass
    raise InputError(
        f"budget is {budget!r}; give a number of epochs, '30 seconds', or '20 gradients' (as many gradients as "
        "plain training makes in 20 epochs)"
    )
