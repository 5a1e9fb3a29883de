"""What a method may do: take a gradient, look elsewhere, apply an update. What makes it right lives here, once.

Rules kept by this file, so that no method can break them: weights come back by copy into the same storage;
running statistics and random streams advance in the clean pass only; noise comes from the step's own
generators; gradients are averaged over micro-batches and processes exactly, and never carry a loss scale;
passes are counted; a non-finite value anywhere stops the step on every process before it reaches the weights.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeVar

import torch
from torch import Tensor, nn

from steppe import streams, vec
from steppe.batch import Batch, join_logits
from steppe.calling import call, logits_of, loss_of, unwrap
from steppe.errors import InputError
from steppe.precision import Precision, widened
from steppe.ranks import Shards, Sync, ranks_of
from steppe.schedule import Now, Value, value_at
from steppe.undo import Undo
from steppe.vec import Vec

if TYPE_CHECKING:
    from torch.amp.grad_scaler import GradScaler
    from torch.optim import Optimizer

T = TypeVar("T")
Loss = Callable[[Tensor, Tensor], Tensor]
Transform = Callable[[Vec, "Runtime"], Vec]


@dataclass
class Out:
    """What a step gives back: mean ``loss`` () and ``logits`` (B, classes) of this process's clean pass.

    ``skipped`` is True if a non-finite loss or gradient, on any process, undid the step. For micro-batches
    whose logits differ in shape ``logits`` is a list, and it is empty for a model that returns only its loss.
    """

    loss: Tensor
    logits: Any
    skipped: bool = False


Objective = Callable[[Batch], Out]


@dataclass
class Passes:
    """Counted work: forward and backward passes in units of the step's batch, and optimizer updates."""

    forward: float = 0.0
    backward: float = 0.0
    updates: int = 0
    steps: int = 0

    def per_step(self) -> tuple[float, float, float]:
        """Return (forward, backward, updates) per step."""
        n = max(self.steps, 1)
        return self.forward / n, self.backward / n, self.updates / n


class NonFinite(ArithmeticError):  # noqa: N818 - it is a signal from a pass to the step, never shown to a user
    """A loss or a gradient is not finite, here or on another process; carries the clean pass's output."""

    def __init__(self, out: Out):
        super().__init__("non-finite loss or gradient")
        self.out = out


@dataclass(frozen=True)
class Setup:
    """How a method is bound; see `steppe.method.Method.bind`."""

    loss: Loss | str
    transforms: Sequence[Transform] = ()
    clip: float | None = None
    precision: str = "fp32"
    scaler: GradScaler | None = None
    microbatch: int | None = None
    sync: Sync = None
    weigh: Callable[[Batch], float] = len
    steps: int | None = None
    seed: int = 0


class Runtime:
    """Everything one bound method works with.

    ``net`` is the user's network below wrappers, for its structure; passes go through `forward` and
    `supervised`. ``params`` are the optimizer's trainable parameters, each once, ``owners`` the modules that
    hold them; ``rng`` draws the method's noise. ``divisible`` tells whether parts of ``net`` may be called on
    their own, which a compiled or sharded model forbids.
    """

    def __init__(self, model: nn.Module, optimizer: Optimizer, setup: Setup):
        self.model, self.optimizer, self.setup = model, optimizer, setup
        self.net, wrapper = unwrap(model)
        self.params = _trainable(optimizer)
        self.device = self.params[0].device
        self.precision = Precision(setup.precision, self.params[0], setup.scaler)
        self.ranks = ranks_of(self.net, wrapper, self.params, setup.sync)
        self.ranks.settle()
        self.owners = _owners(self.net, self.params)
        self.divisible = model in (self.net, wrapper) and not isinstance(self.ranks, Shards)
        self.rng = streams.generator(setup.seed, "noise", self.ranks.noise, self.device)
        self._mask_rng = streams.generator(setup.seed, "masks", self.ranks.rank, self.device)
        self.passes = Passes()
        self.objective: Objective = _unset
        self._size, self._weight = 0, 0.0
        self._first: Out | None = None
        self._bad = self._good = torch.zeros((), dtype=torch.bool, device=self.device)
        self._undo: Undo | None = None
        self._buffers: list[Tensor] = []
        self._group: _Group | None = None
        self._aside = False
        self._clean_streams = streams.capture(self.device)
        self._memo: dict[Hashable, Any] = {}

    # -- verbs -------------------------------------------------------------------------------------------

    def grad(self, objective: Objective, batch: Batch, *, work: float = 1.0) -> tuple[Out, Vec]:
        """Return the output and the mean gradient of ``objective`` over ``batch`` at the current weights.

        The batch goes through in micro-batches if the step has them; the result is their exact mean. Under
        DDP it is this process's mean, see `shared` and `apply`. The gradients are the caller's own. ``work``
        is the pass's cost in whole passes, for objectives that run part of the network more than once.

        Raises `NonFinite` if the loss or a gradient is not finite, where that can be known at once.
        """
        if not self._aside:
            self._clean_streams = streams.capture(self.device)
        self._clear()
        parts = self._parts(batch)
        whole, share = sum(map(self.setup.weigh, parts)), self.ranks.share()
        losses, logits = [], []
        for part in parts:
            weight = self.setup.weigh(part) / whole
            with self.ranks.passing():
                with self.precision.autocast():
                    out = objective(part)
                factor = weight * share
                loss = out.loss if factor == 1 else out.loss * factor
                self.precision.scaled(loss).backward()  # type: ignore[no-untyped-call]
            losses.append(out.loss.detach() * weight)
            # logits that are a view of a weight would change with it at the next update
            logits.append(out.logits.detach().clone() if out.logits._is_view() else out.logits.detach())
        grads = self.precision.unscaled([p.grad for p in self.params])
        self._clear()
        self.count(forward=work * len(batch), backward=work * len(batch))
        mean = losses[0] if len(parts) == 1 else torch.stack(losses).sum()
        joined = Out(mean, join_logits(logits))
        self._first = self._first or joined
        self._judge(~(vec.finite(grads) & torch.isfinite(mean).to(self.device)))
        return joined, grads

    def shared(self, grads: Vec) -> Vec:
        """Return the mean of ``grads`` over the processes that share a perturbation (``sync``).

        One process, or ``sync='local'``, sends nothing and returns them as they are.
        """
        if self._group is not None:
            return grads
        means, self._bad = self.ranks.nearby_mean(self.params, grads, self._weight, self._bad)
        return means

    @contextmanager
    def aside(self, masks: int | None = None) -> Iterator[None]:
        """Look without leaving a trace: buffers and random streams return to what they were.

        Dropout masks are those of the last clean pass, or fresh ones from the seed ``masks``
        (see `draw_masks`).
        """
        buffers = [(b, b.detach().clone()) for b in self.net.buffers()]
        now, outer = streams.capture(self.device), self._aside
        self._aside = True
        try:
            if masks is None:
                streams.restore(self._clean_streams, self.device)
            else:
                torch.manual_seed(masks)
            yield
        finally:
            self._aside = outer
            streams.restore(now, self.device)
            with torch.no_grad():
                for buffer, saved in buffers:
                    buffer.copy_(saved)

    @contextmanager
    def at(self, offset: Vec, *, masks: int | None = None, clean: bool = False) -> Iterator[None]:
        """Be at ``w + offset``; on leaving, also by an exception, the weights return bit for bit.

        The look leaves no trace (see `aside`), unless it is ``clean``: the only pass of its step, whose
        running statistics and random draws count. Restored by copy into the same storage: adding and
        subtracting drifts, and rebinding ``.data`` breaks everything that holds the storage.
        """
        moved = [(p, o) for p, o in zip(self.params, offset, strict=True) if o is not None]
        with nullcontext() if clean else self.aside(masks), torch.no_grad():
            saved = [p.detach().clone() for p, _ in moved]
            try:
                self.ranks.settle()
                for p, o in moved:
                    p.add_(o)
                with torch.enable_grad():
                    yield
            finally:
                self.ranks.settle()
                for (p, _), before in zip(moved, saved, strict=True):
                    p.copy_(before)

    def apply(self, grads: Vec, *, times: int = 1, more: bool = False) -> None:
        """Update: average over processes, transform, clip once, and let the optimizer make its step.

        ``times`` makes that many steps from the same gradient. ``more`` if the method goes on to further
        passes in this step: ``grads`` stay as they are, and the update is taken back if one of those passes
        is not finite.

        Raises `NonFinite` if any process met a non-finite value in this step.
        """
        if self._group is not None:
            self._group.collect(grads, one=times == 1 and not more)
            return
        grads, bad = self.ranks.mean(self.params, grads, self._weight, self._bad)
        if not self.ranks.decides and bool(bad):
            raise NonFinite(self._output())
        given = grads
        for transform in self.setup.transforms:
            grads = transform(grads, self)
        if self.setup.clip is not None:
            grads = vec.scale(grads, (self.setup.clip / (vec.norm(grads) + 1e-6)).clamp(max=1.0))
        if more and self._undo is None:
            self._undo = Undo(self.params, self.optimizer)
        self.ranks.settle()
        for left in reversed(range(times)):
            # some optimizers write into what they are given
            fresh = vec.clone(grads) if left or (more and grads is given) else grads
            for p, g in zip(self.params, fresh, strict=True):
                p.grad = g
            self.optimizer.step()
            self.passes.updates += 1
        self._clear()

    def forward(self, x: Any) -> Tensor:
        """Return the model's logits on a batch's inputs, with their graph."""
        return logits_of(call(self.model, x))

    def supervised(self, batch: Batch) -> Out:
        """Return the user's loss on a batch, with its graph."""
        if self.setup.loss == "model":
            return Out(*loss_of(call(self.model, batch.x, batch.y)))
        if batch.y is None:
            raise InputError(
                "the batch has no targets; give y, a mapping with 'labels', or loss='model' "
                "if the model returns its own loss"
            )
        logits = self.forward(batch.x)
        return Out(self.loss(logits, batch.y), logits)

    def loss(self, logits: Tensor, y: Tensor) -> Tensor:
        """Return the user's loss, in at least float32 whatever the precision of the pass."""
        assert callable(self.setup.loss)
        return self.setup.loss(widened(logits), y)

    def setting(self, name: str, value: Value) -> float | list[float]:
        """Return a hyper-parameter's value in this step: one number, or one per parameter.

        It may follow a schedule, and an optimizer's parameter group may have its own under the same name.
        """
        common = value_at(value, self.now)
        if not any(name in group for group in self.optimizer.param_groups):
            return common
        own = {
            id(p): group[name] for group in self.optimizer.param_groups if name in group for p in group["params"]
        }
        values = [own.get(id(p), common) for p in self.params]
        return values[0] if len(set(values)) == 1 else values

    @property
    def now(self) -> Now:
        """Where training is."""
        lr = float(self.optimizer.param_groups[0]["lr"])
        return Now(max(self.passes.steps - 1, 0), self.setup.steps, lr)

    # -- support -----------------------------------------------------------------------------------------

    def draw_masks(self) -> int:
        """Return a seed for fresh dropout masks, from the step's own generator."""
        return int(torch.randint(2**62, (), generator=self._mask_rng, device=self._mask_rng.device))

    @contextmanager
    def rewound(self) -> Iterator[None]:
        """Return the random streams to this point on leaving, so that what follows sees the same masks."""
        states = streams.capture(self.device)
        try:
            yield
        finally:
            streams.restore(states, self.device)

    def once(self, key: Hashable, make: Callable[[], T]) -> T:
        """Return what ``make`` gave the first time: for facts about the network that do not change."""
        if key not in self._memo:
            self._memo[key] = make()
        value: T = self._memo[key]
        return value

    def count(self, *, forward: float = 0.0, backward: float = 0.0) -> None:
        """Count samples that went through; kept in units of the step's batch."""
        unit = self._size or 1
        self.passes.forward += forward / unit
        self.passes.backward += backward / unit

    def generators(self) -> dict[str, torch.Generator]:
        """Return the generators that resume needs, by name."""
        return {"noise": self.rng, "masks": self._mask_rng}

    # -- the course of a step, for `steppe.step.Step` ----------------------------------------------------

    def begin(self, batch: Batch) -> None:
        """Start a step on this batch: the unit that passes are counted in."""
        self._size, self._weight = len(batch), float(sum(map(self.setup.weigh, self._parts(batch))))
        self._first, self._undo, self._group, self._bad = None, None, None, self._good
        self._buffers = [b.detach().clone() for b in self.net.buffers()]
        self.ranks.begin(self._weight, len(self._parts(batch)))
        self.ranks.settle()
        present = _trainable(self.optimizer)
        if len(present) != len(self.params) or any(a is not b for a, b in zip(present, self.params, strict=True)):
            self.params, self.owners, self._memo = present, _owners(self.net, present), {}
        self.passes.steps += 1

    def in_groups(self, groups: Sequence[Batch], step: Callable[[Batch], Out]) -> Out:
        """Take a step on each group up to its update, and make one update from their mean gradient.

        Raises InputError if the method makes more than one update per step.
        """
        collected = self._group = _Group([None] * len(self.params))
        outs = []
        try:
            for group in groups:
                collected.share = float(sum(map(self.setup.weigh, self._parts(group)))) / self._weight
                collected.open = True
                out = step(group)
                outs.append(Out(out.loss * collected.share, out.logits))
        finally:
            self._group = None
        self.apply(collected.total)
        return Out(torch.stack([o.loss for o in outs]).sum(), join_logits([o.logits for o in outs]))

    def end(self, skipped: bool) -> None:
        """End a step: undo it if it is skipped, tell the loss scale, agree on running statistics."""
        if skipped:
            self.abandon()
        self._undo = None
        self.precision.record(finite=not skipped)
        self.ranks.share_buffers(self.net)

    def abandon(self) -> None:
        """Return weights, optimizer and running statistics to what they were when the step began."""
        if self._undo is not None:
            self._undo.back()
        self._undo = None
        self._clear()
        with torch.no_grad():
            for buffer, before in zip(self.net.buffers(), self._buffers, strict=True):
                buffer.copy_(before)

    def _parts(self, batch: Batch) -> list[Batch]:
        size = self.setup.microbatch
        parts = batch.parts()
        return parts if size is None else [piece for part in parts for piece in part.split(size)]

    def _judge(self, bad: Tensor) -> None:
        """Stop a step that is not finite, here and now where one process may decide, else when it updates."""
        self._bad = self._bad | bad
        if self.ranks.decides and self.ranks.any(bad):
            raise NonFinite(self._output())

    def _output(self) -> Out:
        assert self._first is not None
        return self._first

    def _clear(self) -> None:
        for p in self.params:
            p.grad = None


@dataclass
class _Group:
    """The sum of the groups' gradients, of one step without its update."""

    total: Vec
    share: float = 1.0
    open: bool = True

    def collect(self, grads: Vec, one: bool) -> None:
        if not (one and self.open):
            raise InputError("m needs a method with one update per step, and this one makes more; leave m out")
        self.total, self.open = vec.add(self.total, vec.scale(grads, self.share)), False


def _trainable(optimizer: Optimizer) -> list[nn.Parameter]:
    """Return the optimizer's trainable parameters, each once, in its order."""
    seen: dict[int, nn.Parameter] = {}
    for group in optimizer.param_groups:
        for p in group["params"]:
            if p.requires_grad:
                seen.setdefault(id(p), p)
    if not seen:
        raise InputError("the optimizer holds no trainable parameter; give it model.parameters()")
    return list(seen.values())


def _owners(net: nn.Module, params: Sequence[nn.Parameter]) -> list[nn.Module]:
    held = {id(p): m for m in net.modules() for p in m.parameters(recurse=False)}
    return [held.get(id(p), net) for p in params]


def _unset(batch: Batch) -> Out:
    raise RuntimeError("no objective yet: call the bound step, not the runtime")
