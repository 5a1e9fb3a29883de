"""Methods broken on purpose, each in one point, and the sound one from which they differ.

In a module of its own because the processes of the distributed checks import it by name.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
import torch.distributed as dist
from torch import nn

from steppe import Batch, Method, Runtime, StepOutput
from steppe.core.batch import MicroBatches
from steppe.core.method import plain_step
from steppe.core.numerics import vector
from steppe.core.numerics.perturbations import sam_perturbation
from steppe.core.numerics.vector import Vec
from steppe.testing import oracles


@dataclass(frozen=True)
class Sound(Method):
    """SAM in pieces, so that a mutant can replace one."""

    limit: ClassVar = {"rho": 0.0}
    cost: ClassVar = (2, 2, 1)
    reference = staticmethod(oracles.sam)

    rho: float = 0.05

    def step(self, batch: Batch, state: nn.Module, rt: Runtime) -> StepOutput:
        if self.rho == 0:
            return self.reduced(batch, rt)
        out, g = self.first(batch, rt)
        with self.perturbed(self.offset(g, rt), rt):
            g = self.second(batch, g, rt)
        self.last(g, rt)
        return out

    def reduced(self, batch: Batch, rt: Runtime) -> StepOutput:
        return plain_step(batch, rt)

    def first(self, batch: Batch, rt: Runtime) -> tuple[StepOutput, Vec]:
        return rt.grad(batch)

    def offset(self, g: Vec, rt: Runtime) -> Vec:
        return sam_perturbation(rt.shared(g), self.rho)

    def perturbed(self, offset: Vec, rt: Runtime) -> Any:
        return rt.at(offset)

    def second(self, batch: Batch, g: Vec, rt: Runtime) -> Vec:
        return rt.grad(batch)[1]

    def last(self, g: Vec, rt: Runtime) -> None:
        rt.apply(g)


def moved(params: list[nn.Parameter], offset: Vec) -> list[tuple[nn.Parameter, torch.Tensor]]:
    return [(p, o) for p, o in zip(params, offset, strict=True) if o is not None]


class MixesInsteadOfReturning(Sound):
    def reduced(self, batch, rt):
        out, g = rt.grad(batch)
        rt.apply(vector.add(vector.scale(g, 0.9), g, by=0.1))
        return out


class DrawsAtItsLimit(Sound):
    def reduced(self, batch, rt):
        torch.rand(1)
        return plain_step(batch, rt)


class ShortOfItsRadius(Sound):
    def offset(self, g, rt):
        return sam_perturbation(rt.shared(g), 0.999 * self.rho)


class ClaimsOnePass(Sound):
    cost: ClassVar = (1, 1, 1)


class ClaimsTwoUpdates(Sound):
    cost: ClassVar = (2, 2, 2)


class TakesAThirdPass(Sound):
    def second(self, batch, g, rt):
        with rt.preserve_state():
            rt.grad(batch)
        return super().second(batch, g, rt)


class TakesAPassThatNobodyCounts(Sound):
    cost: ClassVar = (3, 3, 1)

    def second(self, batch, g, rt):
        with rt.preserve_state():
            rt.loss(rt.forward(batch.x), batch.y).backward()
        return super().second(batch, g, rt)


class RebindsStorage(Sound):
    @contextmanager
    def perturbed(self, offset: Vec, rt: Runtime) -> Iterator[None]:
        with rt.preserve_state():
            old = [(p, p.data) for p, _ in moved(rt.params, offset)]
            try:
                for p, o in moved(rt.params, offset):
                    p.data = p.data + o
                yield
            finally:
                for p, before in old:
                    p.data = before.clone()


class AddsAndSubtracts(Sound):
    @contextmanager
    def perturbed(self, offset: Vec, rt: Runtime) -> Iterator[None]:
        with rt.preserve_state(), torch.no_grad():
            for p, o in moved(rt.params, offset):
                p.add_(o)
            try:
                with torch.enable_grad():
                    yield
            finally:
                for p, o in moved(rt.params, offset):
                    p.sub_(o)


class StaysThereOnAnException(Sound):
    @contextmanager
    def perturbed(self, offset: Vec, rt: Runtime) -> Iterator[None]:
        with rt.preserve_state():
            saved = vector.clone(list(rt.params))
            with torch.no_grad():
                for p, o in moved(rt.params, offset):
                    p.add_(o)
            yield
            with torch.no_grad():
                for p, before in zip(rt.params, saved, strict=True):
                    p.copy_(before)


class CountsTheSecondPass(Sound):
    @contextmanager
    def perturbed(self, offset: Vec, rt: Runtime) -> Iterator[None]:
        stream = torch.get_rng_state()
        with rt.at(offset, clean=True):
            yield
        torch.set_rng_state(stream)


class CountsOnlyTheSecondPass(Sound):
    def first(self, batch, rt):
        with rt.preserve_state():
            return rt.grad(batch)

    def perturbed(self, offset, rt):
        return rt.at(offset, clean=True)


class DrawsFromTheGlobalStream(Sound):
    def offset(self, g, rt):
        return [
            None if o is None else o + 1e-4 * torch.randn(o.shape)
            for o in sam_perturbation(rt.shared(g), self.rho)
        ]


class SeesTheLastMicroBatch(Sound):
    def first(self, batch, rt):
        return rt.grad(batch.parts()[-1])


class GoesBackThroughTheMicroBatches(Sound):
    def second(self, batch, g, rt):
        parts = batch.parts()
        return rt.grad(MicroBatches(parts[::-1]) if len(parts) > 1 else batch)[1]


class DividesByAScaleThatIsNotThere(Sound):
    def last(self, g, rt):
        rt.apply(vector.scale(g, 2.0**-8) if rt.precision.name == "bf16" else g)


class FeelsTheLossScale(Sound):
    def offset(self, g, rt):
        scale = rt.precision.scaled(torch.ones(()))
        return vector.scale(sam_perturbation(rt.shared(g), self.rho), 1 + 1e-5 * (scale - 1))


class GivesScaledGradients(Sound):
    def last(self, g, rt):
        rt.apply(vector.scale(g, rt.precision.scaled(torch.ones(()))))


class UpdatesInSpiteOfOverflow(Sound):
    def second(self, batch, g, rt):
        try:
            return super().second(batch, g, rt)
        except ArithmeticError:
            return g


class BacksOffTwice(Sound):
    def second(self, batch, g, rt):
        try:
            return super().second(batch, g, rt)
        except ArithmeticError:
            rt.precision.record(skipped=True)
            raise


def clipped(g: Vec, rt: Runtime) -> Vec:
    most = rt.options.clip
    return g if most is None else vector.scale(g, (most / (vector.norm(g) + 1e-6)).clamp(max=1.0))


class ClipsEveryPass(Sound):
    def offset(self, g, rt):
        return vector.scale(clipped(rt.shared(g), rt), self.rho)


class ClipsNothing(Sound):
    def last(self, g, rt):
        for p, value in zip(rt.params, g, strict=True):
            p.grad = value
        rt.optimizer.step()


class ClipsToTwice(Sound):
    def last(self, g, rt):
        rt.apply(vector.scale(g, 0.5) if rt.options.clip else g)


class RemembersInAnAttribute(Sound):
    def offset(self, g, rt):
        mean = vector.add(vector.scale(g, 0.1), getattr(self, "past", vector.scale(g, 0.0)), by=0.9)
        object.__setattr__(self, "past", mean)
        return sam_perturbation(rt.shared(mean), self.rho)


class StepsAlone(ClipsNothing):
    """The same mistake, as several processes see it."""


class PerturbsTogetherWhenLocal(Sound):
    def offset(self, g, rt):
        if dist.is_initialized():
            for t in g:
                dist.all_reduce(t)
        return super().offset(g, rt)


class PerturbsAloneWhenGlobal(Sound):
    def offset(self, g, rt):
        return sam_perturbation(g, self.rho)


class PerturbsOnTheFirstRankOnly(Sound):
    def offset(self, g, rt):
        alone = dist.is_initialized() and dist.get_rank() > 0
        return vector.scale(super().offset(g, rt), 0.0 if alone else 1.0)


class MeasuresItsOwnShard(Sound):
    def offset(self, g, rt):
        local = [t.to_local() if hasattr(t, "to_local") else t for t in rt.shared(g)]
        return vector.scale(rt.shared(g), self.rho / float(vector.norm(local)))


class SwallowsNaN(Sound):
    def objective(self, batch, state, rt):
        logits = torch.nan_to_num(rt.forward(batch.x))
        return StepOutput(rt.loss(logits, batch.y), logits)


class DecidesAlone(Sound):
    def step(self, batch, state, rt):
        out, g = rt.grad(batch)
        if not bool(vector.all_finite(vector.finite_check(g))):
            return out
        rt.apply(g)
        return out


class ChangesTheModuleEachStep(Sound):
    def first(self, batch, rt):
        rt.net.get_submodule("2").eps = 1e-5 * (1 + rt.passes.steps % 7)
        return super().first(batch, rt)


class TellsACompiledModel(Sound):
    def offset(self, g, rt):
        return sam_perturbation(g, self.rho * (1.0 if rt.model is rt.net else 2.0))


# the check that must catch each, and part of its message
MUTANTS: dict[type[Sound], tuple[str, str]] = {
    MixesInsteadOfReturning: ("reduces", "differs by"),
    DrawsAtItsLimit: ("reduces", "from plain training"),
    ShortOfItsRadius: ("reference", "from its equation"),
    ClaimsOnePass: ("passes", "declares 1 forward"),
    ClaimsTwoUpdates: ("passes", "2 updates"),
    TakesAThirdPass: ("passes", "makes 3 forward"),
    TakesAPassThatNobodyCounts: ("passes", "counts 2 forward"),
    RebindsStorage: ("restored", "other memory"),
    AddsAndSubtracts: ("restored", "differs by"),
    StaysThereOnAnException: ("exception", "in pass 2 (forward)"),
    CountsTheSecondPass: ("batch-norm", "is 2 after one step"),
    CountsOnlyTheSecondPass: ("batch-norm", "from those of the clean pass"),
    DrawsFromTheGlobalStream: ("random-stream", "differs from that after plain training"),
    SeesTheLastMicroBatch: ("accumulation", "from the whole batch"),
    GoesBackThroughTheMicroBatches: ("masks", "other masks than pass 1"),
    DividesByAScaleThatIsNotThere: ("bf16", "of their way"),
    FeelsTheLossScale: ("fp16", "at loss scale 2**4"),
    GivesScaledGradients: ("fp16", "without an overflow"),
    UpdatesInSpiteOfOverflow: ("overflow", "in pass 2"),
    BacksOffTwice: ("overflow", "loss scale from 256 to 64"),
    ClipsEveryPass: ("clip-once", "clipped too"),
    ClipsNothing: ("clip-once", "from the clipped one"),
    ClipsToTwice: ("clip-once", "from the clipped one"),
    RemembersInAnAttribute: ("resume", "from the undisturbed run"),
    StepsAlone: ("ddp-local", "different weights"),
    PerturbsTogetherWhenLocal: ("ddp-local", "perturbed per replica"),
    PerturbsAloneWhenGlobal: ("ddp-global", "from those of one process"),
    PerturbsOnTheFirstRankOnly: ("ddp-global", "from those of one process"),
    MeasuresItsOwnShard: ("fsdp2", "the weights are"),
    SwallowsNaN: ("one-rank", "reports as skipped nothing"),
    DecidesAlone: ("one-rank", "wait for each other"),
    ChangesTheModuleEachStep: ("compile", "more times in steps 3 to 5"),
    TellsACompiledModel: ("compile", "from the eager one's"),
}
