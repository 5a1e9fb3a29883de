"""What is checked, behind one small interface: a steppe method, or a third party's optimizer."""

from __future__ import annotations

import dataclasses
import io
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.amp.grad_scaler import GradScaler

from steppe.core.batch import Batch
from steppe.core.method import Method
from steppe.core.schedules import Schedule
from steppe.core.state import rng
from steppe.methods import METHODS, label
from steppe.testing import fixtures
from steppe.testing.fixtures import BaseOptimizer, Make
from steppe.testing.oracles import REFERENCES
from steppe.testing.oracles.harness import ReferenceStep
from steppe.testing.result import NotApplicable


@dataclass(frozen=True)
class SubjectOptions:
    """How a subject trains; ``wrap`` makes the model (compiled, DDP, FSDP) of the network."""

    base: BaseOptimizer = fixtures.SGD
    precision: str = "fp32"
    scale: float = 2.0**16
    clip: float | None = None
    m: int | None = None
    sync: str | None = None
    seed: int = 0
    steps: int = 100  # of the whole training
    wrap: Callable[[nn.Module], nn.Module] = lambda net: net
    device: str = "cpu"


class Session(ABC):
    """The training of one network by a subject; ``optimizer`` is the one that makes the updates."""

    def __init__(self, net: nn.Module, options: SubjectOptions):
        self.net, self.options = net.to(options.device), options
        self.model = options.wrap(self.net)
        fp16 = options.precision == "fp16"
        self.scaler = GradScaler(options.device, init_scale=options.scale, enabled=fp16)
        self.optimizer: torch.optim.Optimizer = self._make_optimizer()
        self.net.train()

    @abstractmethod
    def _make_optimizer(self) -> torch.optim.Optimizer: ...

    @abstractmethod
    def _step(self, parts: list[Batch]) -> bool: ...

    @abstractmethod
    def stateful(self) -> dict[str, Any]:
        """Return the objects besides the network whose ``state_dict`` a checkpoint contains."""

    def networks(self) -> list[nn.Module]:
        """Return the network, and modules that may contain copies of it that also run."""
        return [self.net]

    def passes(self) -> tuple[float, float, int]:
        """Return the forward and backward passes and updates that the method itself has counted."""
        return (0.0, 0.0, 0)

    def has_state(self) -> bool:
        """Return whether the method keeps tensors between steps."""
        return False

    def noise(self, name: str = "noise") -> Tensor:
        """Return the state of a generator of the method's own: 'noise', or 'masks' for the choices of the host."""
        return torch.zeros(())

    def scale(self) -> float:
        """Return the present loss scale, 1 without one."""
        return float(self.scaler.get_scale())

    def step(self, *parts: Batch) -> bool:
        """Make one step on a batch, in one or more micro-batches; return whether it was skipped."""
        return self._step([part.to(torch.device(self.options.device)) for part in parts])

    def train(self, seeds: Iterable[int]) -> None:
        """Make a step on the batch of each seed."""
        for seed in seeds:
            self.step(fixtures.batch(seed))

    def save(self) -> bytes:
        """Return a checkpoint."""
        stream = io.BytesIO()
        states = {name: part.state_dict() for name, part in {"net": self.net, **self.stateful()}.items()}
        torch.save({"states": states, "random": rng.capture(torch.device(self.options.device))}, stream)
        return stream.getvalue()

    def load(self, checkpoint: bytes) -> None:
        """Load a checkpoint."""
        content = torch.load(io.BytesIO(checkpoint), weights_only=False)
        for name, part in {"net": self.net, **self.stateful()}.items():
            part.load_state_dict(content["states"][name])
        generators = rng.global_generators(torch.device(self.options.device))
        for generator, state in zip(generators, content["random"], strict=True):
            generator.set_state(state.cpu())


class Subject(ABC):
    """What is checked; ``ours`` if it promises all that a bound method promises."""

    name: str
    ours: bool
    cost: tuple[float, float, int] | None = None
    local: str = ""
    whole: str = ""
    mixes: str = ""
    moves: str = ""

    def build(self, make: Make) -> nn.Module:
        """Return the module that it trains, of networks from ``make``."""
        return make()

    @abstractmethod
    def start(self, make: Make, options: SubjectOptions) -> Session:
        """Start training a network from ``make``."""

    @abstractmethod
    def at_limit(self) -> Subject:
        """Return it at settings where it is plain training; raises NotApplicable if it has none."""

    @abstractmethod
    def reference(self) -> tuple[ReferenceStep, Mapping[str, Any]]:
        """Return its step in float64 and the settings; raises NotApplicable without one."""

    def fresh(self) -> Subject:
        """Return a new subject of the same settings, as another process would make it."""
        return self


class OurMethod(Subject):
    """A `steppe.Method`, built in or a user's own."""

    ours = True

    def __init__(self, method: Method, name: str | None = None):
        self.method = method
        self.name = name or label(method)
        self.fields = vars(method.resolved)
        self.scheduled = any(isinstance(v, Schedule) for v in self.fields.values())
        self.cost = None if self.scheduled else method.cost
        if any(limit and limit.items() <= self.fields.items() for limit in (method.limit, *method.limits)):
            self.cost = (1, 1, 1)
        self.local, self.whole = method.local, method.whole
        self.mixes, self.moves = method.mixes, method.moves

    def build(self, make: Make) -> nn.Module:
        """Let the method build, of networks that differ if it trains several."""
        return self.method.build(fixtures.varied(make))

    def start(self, make: Make, options: SubjectOptions) -> Session:
        return OurSession(self.method, self.build(make), options)

    def at_limit(self) -> Subject:
        if self.method.limit is None:
            raise NotApplicable("declares no settings at which it is plain training")
        return OurMethod(dataclasses.replace(self.method, **dict(self.method.limit)), self.name)

    def reference(self) -> tuple[ReferenceStep, Mapping[str, Any]]:
        """Return the class's own ``reference``, or for a built-in method the one in `oracles`."""
        if self.scheduled:
            raise NotApplicable("restated for constant settings, and these follow a schedule")
        own = getattr(type(self.method), "reference", None)
        if own is not None:
            return own, self.fields
        candidates = [r for r in REFERENCES.values() if r.name == label(self.method)]
        for restated in candidates:
            like = METHODS[restated.name](**dict(restated.settings)).resolved
            if all(v == getattr(like, k) for k, v in self.fields.items() if k not in restated.free):
                return restated.step, self.fields
        if candidates:
            raise NotApplicable("not restated at these settings")
        raise NotApplicable("no float64 restatement; give the class a static method reference(r, x, y)")

    def fresh(self) -> Subject:
        return OurMethod(dataclasses.replace(self.method), self.name)


class OurSession(Session):
    """A bound method."""

    def __init__(self, method: Method, net: nn.Module, options: SubjectOptions):
        self.method = method
        super().__init__(net, options)

    def _make_optimizer(self) -> torch.optim.Optimizer:
        options = self.options
        optimizer = options.base.make(self.model.parameters())
        self.bound = self.method.bind(
            self.model,
            optimizer,
            loss=F.cross_entropy,
            precision=options.precision,
            scaler=self.scaler if self.scaler.is_enabled() else None,
            clip=options.clip,
            m=options.m,
            sync=options.sync,
            steps=self.options.steps,
            seed=options.seed,
        )
        return optimizer

    def _step(self, parts: list[Batch]) -> bool:
        return self.bound(list(parts) if len(parts) > 1 else parts[0]).skipped

    def networks(self) -> list[nn.Module]:
        return [self.net, self.bound.state]

    def passes(self) -> tuple[float, float, int]:
        return self.bound.passes.forward, self.bound.passes.backward, self.bound.passes.updates

    def has_state(self) -> bool:
        return bool(self.bound.state.state_dict())

    def noise(self, name: str = "noise") -> Tensor:
        state: Tensor = self.bound.state_dict()["generators"][name]
        return state

    def stateful(self) -> dict[str, Any]:
        return {"optimizer": self.optimizer, "step": self.bound}
