"""What a method may do: take a gradient, look elsewhere, apply an update. What makes it right lives here, once.

Rules kept by this file, so that no method can break them: weights come back by copy into the same storage;
running statistics and random streams advance in the clean pass only; noise comes from the step's own
generators; gradients are averaged over micro-batches exactly; passes are counted; a non-finite value stops
the step before it reaches the weights.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, TypeVar

import torch
from torch import Tensor, nn

from steppe import vec
from steppe.batch import Batch
from steppe.vec import Vec

if TYPE_CHECKING:
    from torch.optim import Optimizer

T = TypeVar("T")
Loss = Callable[[Tensor, Tensor], Tensor]
Transform = Callable[[Vec, "Runtime"], Vec]


@dataclass
class Out:
    """What a step gives back: mean ``loss`` () and ``logits`` (B, classes) of the clean pass.

    ``skipped`` is True if a non-finite loss or gradient stopped the step before its update.
    """

    loss: Tensor
    logits: Tensor
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


class NonFinite(ArithmeticError):  # noqa: N818 - it is a signal from grad to the step, never shown to a user
    """A loss or a gradient is not finite; carries the pass's output."""

    def __init__(self, out: Out):
        super().__init__("non-finite loss or gradient")
        self.out = out


@dataclass
class Runtime:
    """Everything one bound method works with; see `steppe.method.Method.bind` for the arguments."""

    net: nn.Module
    optimizer: Optimizer
    loss_function: Loss
    transforms: Sequence[Transform] = ()
    clip: float | None = None
    autocast: Callable[[], AbstractContextManager[Any]] = nullcontext
    microbatch: int | None = None
    seed: int = 0
    passes: Passes = field(default_factory=Passes)

    def __post_init__(self) -> None:
        self.params = _trainable(self.optimizer)
        held = {id(p): m for m in self.net.modules() for p in m.parameters(recurse=False)}
        self.owners = [held.get(id(p), self.net) for p in self.params]
        self.objective: Objective = _unset
        self.rng = self._generator("noise")
        self._mask_rng = self._generator("masks")
        self._batch_size = 0
        self._aside = False
        self._clean_streams = self._streams()
        self._memo: dict[Hashable, Any] = {}

    # -- verbs -------------------------------------------------------------------------------------------

    def grad(self, objective: Objective, batch: Batch, *, work: float = 1.0) -> tuple[Out, Vec]:
        """Return the output and the mean gradient of ``objective`` over ``batch`` at the current weights.

        The batch goes through in micro-batches if the step has them; the result is their exact mean. The
        gradients are the caller's own. ``work`` is the pass's cost in whole passes, for objectives that run
        part of the network more than once.

        Raises `NonFinite` if the loss or a gradient is not finite.
        """
        if not self._aside:
            self._clean_streams = self._streams()
        self._clear()
        parts = [batch] if self.microbatch is None else list(batch.split(self.microbatch))
        losses, logits = [], []
        for part in parts:
            weight = len(part) / len(batch)
            with self.autocast():
                out = objective(part)
            (out.loss if len(parts) == 1 else out.loss * weight).backward()  # type: ignore[no-untyped-call]
            losses.append(out.loss.detach() * weight)
            # logits that are a view of a weight would change with it at the next update
            logits.append(out.logits.detach().clone() if out.logits._is_view() else out.logits.detach())
        grads: Vec = [p.grad for p in self.params]
        self._clear()
        self.count(forward=work * len(batch), backward=work * len(batch))
        mean = losses[0] if len(parts) == 1 else torch.stack(losses).sum()
        whole = Out(mean, logits[0] if len(parts) == 1 else torch.cat(logits))
        if not bool(torch.isfinite(mean + vec.norm(grads).to(mean.device))):
            raise NonFinite(whole)
        return whole, grads

    @contextmanager
    def aside(self, masks: int | None = None) -> Iterator[None]:
        """Look without leaving a trace: buffers and random streams return to what they were.

        Dropout masks are those of the last clean pass, or fresh ones from the seed ``masks``
        (see `draw_masks`).
        """
        buffers = [(b, b.detach().clone()) for b in self.net.buffers()]
        streams, outer = self._streams(), self._aside
        self._aside = True
        try:
            if masks is None:
                self._set_streams(self._clean_streams)
            else:
                torch.manual_seed(masks)
            yield
        finally:
            self._aside = outer
            self._set_streams(streams)
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
                for p, o in moved:
                    p.add_(o)
                with torch.enable_grad():
                    yield
            finally:
                for (p, _), before in zip(moved, saved, strict=True):
                    p.copy_(before)

    def apply(self, grads: Vec, *, keep: bool = False) -> None:
        """Make one optimizer update from ``grads``: transforms, then clipping, then the optimizer.

        ``keep`` if the method reads these gradients again: some optimizers write into what they are given.
        """
        given = grads
        for transform in self.transforms:
            grads = transform(grads, self)
        if self.clip is not None:
            grads = vec.scale(grads, (self.clip / (vec.norm(grads) + 1e-6)).clamp(max=1.0))
        if keep and grads is given:
            grads = vec.clone(grads)
        for p, g in zip(self.params, grads, strict=True):
            p.grad = g
        self.optimizer.step()
        self._clear()
        self.passes.updates += 1

    def loss(self, logits: Tensor, y: Tensor) -> Tensor:
        """Return the user's loss, in at least float32 whatever the precision of the pass."""
        return self.loss_function(logits.float() if logits.dtype in _HALF else logits, y)

    # -- support -----------------------------------------------------------------------------------------

    def draw_masks(self) -> int:
        """Return a seed for fresh dropout masks, from the step's own generator."""
        return int(torch.randint(2**62, (), generator=self._mask_rng, device=self._mask_rng.device))

    @contextmanager
    def rewound(self) -> Iterator[None]:
        """Return the random streams to this point on leaving, so that what follows sees the same masks."""
        streams = self._streams()
        try:
            yield
        finally:
            self._set_streams(streams)

    def once(self, key: Hashable, make: Callable[[], T]) -> T:
        """Return what ``make`` gave the first time: for facts about the network that do not change."""
        if key not in self._memo:
            self._memo[key] = make()
        value: T = self._memo[key]
        return value

    def count(self, *, forward: float = 0.0, backward: float = 0.0) -> None:
        """Count samples that went through; kept in units of the step's batch."""
        unit = self._batch_size or 1
        self.passes.forward += forward / unit
        self.passes.backward += backward / unit

    def begin(self, batch: Batch) -> None:
        """Start a step on this batch: the unit that passes are counted in."""
        self._batch_size = len(batch)
        self.passes.steps += 1

    def generators(self) -> dict[str, torch.Generator]:
        """Return the generators that resume needs, by name."""
        return {"noise": self.rng, "masks": self._mask_rng}

    def _generator(self, purpose: str) -> torch.Generator:
        device = self.params[0].device
        # hash() is salted per process, so the purposes are numbered by their letters
        offset = int.from_bytes(purpose.encode()[:4], "big")
        return torch.Generator(device=device).manual_seed((self.seed * 0x9E3779B1 + offset) % 2**63)

    def _streams(self) -> list[Tensor]:
        device = self.params[0].device
        states = [torch.get_rng_state()]
        if device.type == "cuda":
            states.append(torch.cuda.get_rng_state(device))
        return states

    def _set_streams(self, states: list[Tensor]) -> None:
        torch.set_rng_state(states[0])
        if len(states) > 1:
            torch.cuda.set_rng_state(states[1], self.params[0].device)

    def _clear(self) -> None:
        for p in self.params:
            p.grad = None


_HALF = (torch.float16, torch.bfloat16)


def _trainable(optimizer: Optimizer) -> list[nn.Parameter]:
    """Return the optimizer's trainable parameters, each once, in its order."""
    seen: dict[int, nn.Parameter] = {}
    for group in optimizer.param_groups:
        for p in group["params"]:
            if p.requires_grad:
                seen.setdefault(id(p), p)
    if not seen:
        raise ValueError("the optimizer holds no trainable parameter; give it model.parameters()")
    return list(seen.values())


def _unset(batch: Batch) -> Out:
    raise RuntimeError("no objective yet: call the bound step, not the runtime")
