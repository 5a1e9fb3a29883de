"""A running average of a network's weights, with running statistics of its own."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, cast

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from steppe.core.data_parallel import reshard
from steppe.core.model_call import call_model
from steppe.core.multi_network import inputs_for
from steppe.core.numerics import vector
from steppe.core.numerics.complex_params import real_view
from steppe.core.numerics.vector import Vec
from steppe.core.schedules import ScheduleValue, value_at
from steppe.core.state.param_state import TensorCopies
from steppe.core.state.snapshot import Buffers, Elsewhere, SnapshotPool, copy_into
from steppe.core.user_loss import calls_model, own_loss

if TYPE_CHECKING:
    from steppe.core.batch import Batch
    from steppe.core.runtime import Runtime


_COMPARED = 10  # training passes, where to compare what they change takes long


class WeightAverage(TensorCopies):
    """The average of a network's weights, and the buffers that belong to it.

    A mean of the running statistics of other weights does not fit the mean of these weights. Buffers that a
    training pass changes are therefore the average's own: training passes at the average change them (`measure`,
    `training_pass`). The others are copied from the network.

    ``count`` is the number of networks in it. It is not a network itself: to be evaluated, its tensors are copied
    into the network for a while (`swapped_in`), so that it also works where a network cannot be copied, in shards.
    A parameter that is added or exchanged between two steps enters with its own value. With ``device`` its tensors
    are kept there, on the host say, and copied to the network's device where they are used. Weights in half
    precision have a mean in float32: it would not move by a thousandth of their difference.
    """

    def __init__(self, net: nn.Module, device: torch.device | None = None):
        super().__init__(_tensors(net), device)
        self.count = 0
        self.statistics = TensorCopies(_buffers(net))  # as the last training pass at the average left them
        self._own: list[bool] = []  # which of them a training pass changes; empty if that is unknown
        self._modes: list[bool] = []  # which modules with buffers were in training mode when it became known
        self._snapshots = SnapshotPool()
        self.comparing, self.on_device = True, False  # to compare buffers on a GPU is to wait for it
        self._passes = 0

    def dtype_of(self, t: Tensor) -> torch.dtype:
        """Return float32 for half precision."""
        return torch.float32 if t.dtype in (torch.bfloat16, torch.float16) else t.dtype

    def warm_up(self, decay: float) -> float:
        """Return the next network's weight, 1 - d with d = min(decay, (1 + count) / (10 + count))."""
        return 1 - min(decay, (1 + self.count) / (10 + self.count))

    def debiased(self, decay: float) -> float:
        """Return the next network's weight in a mean from zero that is divided by 1 - d^t: the first counts 1."""
        return (1 - decay) / (1 - decay ** (self.count + 1))

    def measure_if_due(self, rt: Runtime, batch: Batch, weight: Callable[[], float]) -> None:
        """Measure statistics after each hundredth of the average is replaced, at most once a step.

        BatchNorm's window of ten passes is then short for the average.
        """
        if rt.decide(lambda: self.count % max(1, round(0.01 / weight())) == 0):
            self.measure(rt, batch, rt.number(weight))

    def measure(self, rt: Runtime, batch: Batch, weight: float | Tensor) -> None:
        """Make a training pass on ``batch`` at ``(1 - weight) average + weight net``, for its statistics only.

        None is made on a network in evaluation mode, or without buffers that it would change.

        Raises `NonFinite` if outputs are not finite, where that can be known at once.
        """
        if not (self._changes(rt.net) and rt.net.training):
            return
        with rt.rng_restored(), self.training_pass(rt.net, weight), torch.no_grad(), rt.precision.autocast():
            parts, loss = rt.micro_batches(batch), rt.options.loss
            outputs = [
                own_loss(loss, rt.net, inputs_for(rt.net, p), p.y)
                if calls_model(loss)
                else call_model(rt.net, inputs_for(rt.net, p))
                for p in parts
            ]
            numbers: Vec = [real_view(t) for t in tree_leaves(outputs) if isinstance(t, Tensor) and _has_mean(t)]
            rt.check_finite(vector.finite_check(numbers))
            rt.parallel.share_buffers(rt.net)
        rt.count(forward=len(batch))

    def update(self, net: nn.Module, weight: float | Tensor) -> None:
        """Move the weights to ``(1 - weight) average + weight net``, and take the last pass's statistics."""
        buffers = _buffers(net)
        copies, present = self.match(_tensors(net)), list(_parameters(net).values())
        with torch.no_grad():
            if self.device is not None:
                present = [p.to(self.device) for p in present]
            weights = list(zip(copies, present, strict=False))
            if numbers := [(a, p.to(a.dtype)) for a, p in weights if _has_mean(a)]:
                vector.approach([a for a, _ in numbers], [p for _, p in numbers], weight)
            copy_into(*_columns([(a, p) for a, p in weights if not _has_mean(a)]))
            statistics = self.statistics.match(buffers)
            own = self._own if len(self._own) == len(buffers) else [False] * len(buffers)
            changed = zip(statistics, buffers.values(), own, strict=True)
            copy_into(*_columns([(s, b) for s, b, mine in changed if not mine]))
            copy_into(copies[len(present) :], statistics)
        self.count += 1

    @contextmanager
    def swapped_in(self, net: nn.Module) -> Iterator[None]:
        """Give the network the average's tensors, in evaluation mode; on leaving it is bit for bit what it was."""
        training = [module for module in net.modules() if module.training]
        with self._exchanged(net, self.match(_tensors(net))):
            try:
                for module in training:
                    module.training = False
                yield
            finally:
                for module in training:
                    module.training = True

    @contextmanager
    def training_pass(self, net: nn.Module, weight: float | Tensor = 0.0) -> Iterator[None]:
        """Give the network ``(1 - weight) average + weight net``, for passes that change `statistics` only."""
        buffers, params = _buffers(net), list(_parameters(net).values())
        self._changes(net)
        weights, statistics = self.match(_tensors(net))[: len(params)], self.statistics.match(buffers)
        if vector.nonzero(weight):
            weights = self._next(weights, params, weight)
        with self._exchanged(net, [*weights, *statistics]):
            yield
            after = list(_buffers(net).values())
            own = self._own if len(self._own) == len(after) else [False] * len(after)
            self._passes += 1
            if self.comparing and (not self.on_device or self._passes <= _COMPARED):
                # a layer that a pass leaves out at random is in another
                self._own = [o or _differ(a, b) for o, a, b in zip(own, after, statistics, strict=True)]
            with _no_inference_mode():
                copy_into(statistics, after)

    def _next(self, means: Sequence[Tensor], params: Sequence[Tensor], weight: float | Tensor) -> list[Tensor]:
        """Return the average that the network would give."""
        pairs = [(a.to(p.device), p.to(a.dtype)) for a, p in zip(means, params, strict=True)]
        return [a.lerp(p, vector.like(weight, a)) if _has_mean(a) else p for a, p in pairs]

    def _changes(self, net: nn.Module) -> bool:
        """Return whether a training pass changes buffers; unknown again after layers are frozen or released."""
        modes = [module.training for module in net.modules() if module._buffers]
        if self._modes and modes != self._modes:
            self._own = []
        self._modes, count = modes, len(_buffers(net))
        return any(self._own) if len(self._own) == count else count > 0

    @contextmanager
    def _exchanged(self, net: nn.Module, values: Sequence[Tensor]) -> Iterator[None]:
        """Give the network these parameters and buffers, in this order, for a while."""

        def leave() -> None:
            # autocast caches what it has cast, and would go on with the other weights
            torch.clear_autocast_cache()
            reshard(net)

        def change() -> None:
            copy_into(list(_tensors(net).values()), values)
            torch.clear_autocast_cache()

        reshard(net)
        params, buffers = list(_parameters(net).values()), Buffers(net)
        elsewhere = Elsewhere(params, change, buffers=buffers, leave=leave, pool=self._snapshots)
        with _no_inference_mode():
            elsewhere.__enter__()
        try:
            with torch.no_grad():
                yield
        finally:
            with _no_inference_mode():
                elsewhere.__exit__()

    def get_extra_state(self) -> Tensor:
        """Return the count, and which buffers are the average's own, as a tensor for checkpoints."""
        return torch.tensor([self.count, *self._own])

    def set_extra_state(self, state: Tensor) -> None:
        """Load the count and which buffers are the average's own."""
        self.count, *own = map(int, state.reshape(-1).tolist())
        self._own = list(map(bool, own))


class WindowAverage(WeightAverage):
    """The mean of the last ``size`` networks that were stored, of which it keeps copies."""

    content = "k + 1 vectors of weights"

    def __init__(self, net: nn.Module, size: int, device: torch.device | None = None):
        super().__init__(net, device)
        self.past = nn.ModuleList(TensorCopies(_parameters(net), device) for _ in range(size))

    def decide_place(self, rt: Runtime) -> None:
        """Have a step that becomes a graph be one of all with the present place of the next network."""
        if rt.recorder is not None:
            size = len(self.past)
            questions = [lambda k=k: self.count == k for k in range(size)]
            questions += [lambda k=k: self.count % size == k for k in range(size)]
            any(map(rt.decide, questions))

    def _next(self, means: Sequence[Tensor], params: Sequence[Tensor], weight: float | Tensor) -> list[Tensor]:
        if self.count < len(self.past):
            return super()._next(means, params, 1 / (self.count + 1))
        oldest = list(self.past[self.count % len(self.past)].buffers())
        trios = [
            (a.to(p.device), p.to(a.dtype), o.to(p.device, a.dtype))
            for a, p, o in zip(means, params, oldest, strict=True)
        ]
        return [a + (p - o) / len(self.past) if _has_mean(a) else p for a, p, o in trios]

    def store(self, net: nn.Module) -> None:
        """Put a network in the place of the oldest one."""
        params = _parameters(net)
        past = [cast(TensorCopies, one).match(params) for one in self.past]
        copy_into(past[self.count % len(past)], list(params.values()))
        self.update(net, 1.0)
        networks = past[: self.count]
        means = self.match(_tensors(net))[: len(params)]
        rows = [
            (mean, [one.to(mean.dtype) for one in each])
            for mean, *each in zip(means, *networks, strict=True)
            if _has_mean(mean)
        ]
        total = [each[0] for _, each in rows]
        for k in range(1, len(networks)):
            total = list(torch._foreach_add(total, [each[k] for _, each in rows]))
        copy_into([mean for mean, _ in rows], torch._foreach_div(total, float(len(networks))))


class SlowWeights(TensorCopies):
    """A slow average to which a network's weights and running statistics are set from time to time."""

    def __init__(self, net: nn.Module):
        super().__init__(_means(net))

    def set_to_average(self, rt: Runtime, name: str, value: ScheduleValue) -> None:
        """Move the average to ``(1 - weight) average + weight net``, and set the network to it.

        The weight is the hyper-parameter ``name`` of this ``value``, which parameter groups may set; buffers have
        the method's own. Parameters that the optimizer does not train stay, and so do entries of buffers that
        equal their average: of two infinite ones there is no mean.
        """
        reshard(rt.net)
        tensors = _means(rt.net)
        slow, fast = self.match(tensors), [t.detach() for t in tensors.values()]
        place = {id(t): i for i, t in enumerate(tensors.values())}
        leaves = [place[id(p)] for p in rt.leaves if id(p) in place]
        weights = rt.setting(name, value)
        with torch.no_grad():
            if isinstance(weights, list):
                each = [(place[id(p)], w) for p, w in zip(rt.leaves, weights, strict=True) if id(p) in place]
                for i, weight in each:
                    vector.approach([slow[i]], [fast[i]], weight)
            elif leaves:
                vector.approach([slow[i] for i in leaves], [fast[i] for i in leaves], weights)
            buffers = [place[id(b)] for b in rt.net.buffers() if id(b) in place]
            common = rt.number(lambda: value_at(value, rt.now))
            for i in buffers:
                mixed = torch.lerp(slow[i], fast[i], vector.like(common, slow[i]))
                slow[i].copy_(torch.where(slow[i] == fast[i], slow[i], mixed))
        moved = {*leaves, *buffers}
        others = [i for i in range(len(slow)) if i not in moved]
        copy_into([slow[i] for i in others], [fast[i] for i in others])
        copy_into([fast[i] for i in moved], [slow[i] for i in moved])


@contextmanager
def _no_inference_mode() -> Iterator[None]:
    """Leave inference mode for a while: a tensor made in it could not be written to outside of it."""
    with torch.inference_mode(False), torch.no_grad():
        yield


def _has_mean(t: Tensor) -> bool:
    # a sparse one has no lerp
    return (t.is_floating_point() or t.is_complex()) and t.layout is torch.strided


def _differ(a: Tensor, b: Tensor) -> bool:
    """Return whether a pass changed a buffer; a sparse one cannot be compared, and counts as the network's."""
    return a.layout is torch.strided and not torch.equal(a, b)


def _parameters(net: nn.Module) -> dict[str, Tensor]:
    return dict(net.named_parameters())


def _buffers(net: nn.Module) -> dict[str, Tensor]:
    return dict(net.named_buffers())


def _tensors(net: nn.Module) -> dict[str, Tensor]:
    return _parameters(net) | _buffers(net)


def _means(net: nn.Module) -> dict[str, Tensor]:
    return {name: t for name, t in _tensors(net).items() if _has_mean(t)}


def _columns(pairs: Sequence[tuple[Tensor, Tensor]]) -> tuple[list[Tensor], list[Tensor]]:
    return [a for a, _ in pairs], [b for _, b in pairs]
