"""What is checked: a method of ours or a user's, or a third party's optimizer, behind one small interface."""

from __future__ import annotations

import dataclasses
import io
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.amp.grad_scaler import GradScaler

from steppe.core.batch import Batch
from steppe.core.method import Method
from steppe.core.schedules import Schedule
from steppe.methods import METHODS, label
from steppe.testing import fixtures
from steppe.testing.fixtures import BaseOptimizer, Make
from steppe.testing.oracles import REFERENCES
from steppe.testing.oracles.harness import ReferenceStep
from steppe.testing.result import NotApplicable

SubjectLoss = Callable[[Tensor, Tensor], Tensor]


def _as_it_is(net: nn.Module) -> nn.Module:
    return net


@dataclass(frozen=True)
class SubjectOptions:
    """How a subject is put to work; ``wrap`` makes the model (compiled, DDP, sharded) of the network."""

    base: BaseOptimizer = fixtures.SGD
    loss: SubjectLoss = F.cross_entropy
    precision: str = "fp32"
    scale: float = 2.0**16
    clip: float | None = None
    m: int | None = None
    sync: str | None = None
    seed: int = 0
    wrap: Callable[[nn.Module], nn.Module] = field(default=_as_it_is)
    device: str = "cpu"


class Session(ABC):
    """A subject at work on one network: ``optimizer`` is the one that makes the updates."""

    def __init__(self, net: nn.Module, setup: SubjectOptions):
        self.net, self.setup = net.to(setup.device), setup
        self.model = setup.wrap(self.net)
        self.optimizer: torch.optim.Optimizer = self._ready()
        self.net.train()

    @abstractmethod
    def _ready(self) -> torch.optim.Optimizer:
        """Get ready for steps, and return what makes the updates."""

    @abstractmethod
    def _step(self, parts: list[Batch]) -> bool: ...

    def networks(self) -> list[nn.Module]:
        """Return the network, and what may hold copies of it that also run."""
        return [self.net]

    @abstractmethod
    def scale(self) -> float:
        """Return the present loss scale."""

    @abstractmethod
    def method_state(self) -> dict[str, Any]:
        """Return what is to be saved beside the network."""

    @abstractmethod
    def load_method_state(self, content: dict[str, Any]) -> None:
        """Go on from such a state."""

    def step(self, *parts: Batch) -> bool:
        """Make one step on a batch, given in one or more parts; return whether it was skipped."""
        return self._step([part.to(torch.device(self.setup.device)) for part in parts])

    def save(self) -> bytes:
        """Return all that a checkpoint holds, as bytes."""
        stream = io.BytesIO()
        content = {"net": self.net.state_dict(), "own": self.method_state(), "random": torch.get_rng_state()}
        torch.save(content, stream)
        return stream.getvalue()

    def load(self, content: bytes) -> None:
        """Go on from a checkpoint."""
        read = torch.load(io.BytesIO(content), weights_only=False)
        self.net.load_state_dict(read["net"])
        self.load_method_state(read["own"])
        torch.set_rng_state(read["random"])


class Subject(ABC):
    """What the checks look at. ``ours`` if it promises all that a bound method promises."""

    name: str
    ours: bool
    cost: tuple[float, float, int] | None = None
    local: str = ""
    whole: str = ""
    mixes: str = ""

    def build(self, make: Make) -> nn.Module:
        """Return what it trains, of networks from ``make``."""
        return make()

    @abstractmethod
    def start(self, make: Make, setup: SubjectOptions) -> Session:
        """Put it to work on a network from ``make``."""

    @abstractmethod
    def at_limit(self) -> Subject:
        """Return it at settings where it is plain training; raises NotApplicable if it has none."""

    @abstractmethod
    def reference(self) -> tuple[ReferenceStep, Mapping[str, Any]]:
        """Return its float64 restatement and the settings that go in; raises NotApplicable without."""

    def fresh(self) -> Subject:
        """Return the same subject made anew, as another process would."""
        return self


class OurMethod(Subject):
    """A `steppe.Method`, built in or a user's own."""

    ours = True

    def __init__(self, method: Method, name: str | None = None):
        self.method = method
        self.name = name or label(method)
        self.cost, self.local = self._cost(), method.local
        self.whole, self.mixes = method.whole, method.mixes

    def build(self, make: Make) -> nn.Module:
        """Let the method build, of networks that differ if it wants several."""
        return self.method.build(fixtures.apart(make))

    def start(self, make: Make, setup: SubjectOptions) -> Session:
        """Bind the method."""
        return OurSession(self.method, self.build(make), setup)

    def at_limit(self) -> Subject:
        """Return the method at its ``limit``."""
        if self.method.limit is None:
            raise NotApplicable("declares no settings at which it is plain training")
        limited = dataclasses.replace(self.method, **dict(self.method.limit))
        return OurMethod(limited, self.name)

    def reference(self) -> tuple[ReferenceStep, Mapping[str, Any]]:
        """Return the class's own ``reference``, or the one in `references` for a built-in method."""
        given = {f.name: getattr(self.method, f.name) for f in dataclasses.fields(self.method)}
        if any(isinstance(v, Schedule) for v in given.values()):
            raise NotApplicable("restated for constant settings, and these follow a schedule")
        own = getattr(type(self.method), "reference", None)
        if own is not None:
            return own, given
        known = [r for r in REFERENCES.values() if r.name == label(self.method)]
        for restated in known:
            made = METHODS[restated.name](**dict(restated.settings))
            if all(v == getattr(made, k) for k, v in given.items() if k not in restated.free):
                return restated.step, given
        if known:
            raise NotApplicable("not restated at these settings")
        raise NotApplicable("no float64 restatement; give the class a static method reference(r, x, y)")

    def fresh(self) -> Subject:
        """Make the method anew from its fields, which are all that it may remember itself."""
        return OurMethod(dataclasses.replace(self.method), self.name)

    def _cost(self) -> tuple[float, float, int] | None:
        values = {f.name: getattr(self.method, f.name) for f in dataclasses.fields(self.method)}
        limit = self.method.limit
        if limit and all(values[k] == v for k, v in limit.items()):
            return (1, 1, 1)
        return None if any(isinstance(v, Schedule) for v in values.values()) else self.method.cost


class OurSession(Session):
    """A bound method."""

    def __init__(self, method: Method, net: nn.Module, setup: SubjectOptions):
        self.method = method
        super().__init__(net, setup)

    def _ready(self) -> torch.optim.Optimizer:
        setup = self.setup
        optimizer = setup.base.make(self.model.parameters())
        fp16 = setup.precision == "fp16"
        self.bound = self.method.bind(
            self.model,
            optimizer,
            loss=setup.loss,
            precision=setup.precision,
            scaler=GradScaler(setup.device, init_scale=setup.scale) if fp16 else None,
            clip=setup.clip,
            m=setup.m,
            sync=setup.sync,
            steps=100,
            seed=setup.seed,
        )
        return optimizer

    def _step(self, parts: list[Batch]) -> bool:
        out = self.bound(list(parts) if len(parts) > 1 else parts[0])
        return out.skipped

    def networks(self) -> list[nn.Module]:
        """Return the network and the method's own state."""
        return [self.net, self.bound.state]

    def scale(self) -> float:
        """Return the scaler's scale, 1 without one."""
        return 1.0 if self.bound.scaler is None else float(self.bound.scaler.get_scale())

    def remembers(self) -> bool:
        """Return whether the method keeps anything between steps."""
        return bool(self.bound.state.state_dict())

    def noise(self) -> Tensor:
        """Return where the method's own noise stands."""
        state: Tensor = self.bound.state_dict()["generators"]["noise"]
        return state

    def method_state(self) -> dict[str, Any]:
        """Return the optimizer's state and the step's."""
        return {"optimizer": self.optimizer.state_dict(), "step": self.bound.state_dict()}

    def load_method_state(self, content: dict[str, Any]) -> None:
        """Give both back."""
        self.optimizer.load_state_dict(content["optimizer"])
        self.bound.load_state_dict(content["step"])
