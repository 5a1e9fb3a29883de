"""What a method may do: take a gradient, look elsewhere, apply an update. What makes it right lives here, once.

Rules kept by this file, so that no method can break them: weights come back by copy into the same storage;
running statistics and random streams advance in the clean pass only; noise comes from the step's own
generators; gradients are averaged over micro-batches and processes exactly, and never carry a loss scale;
passes are counted; a non-finite value anywhere stops the step on every process before it reaches the weights.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from operator import is_
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call

from steppe.core import param_groups, rng
from steppe.core.batch import Batch, join_logits
from steppe.core.ground import BindOptions, GradientTransform, Ground, LossFunction, Objective, Passes
from steppe.core.numerics import vector
from steppe.core.numerics.vector import ScaledVector, Vec
from steppe.core.parallel import SingleProcess
from steppe.core.step_state import NonFinite, StepOutput
from steppe.errors import InputError

__all__ = ["BindOptions", "GradientTransform", "LossFunction", "Objective", "Passes", "Runtime", "StepOutput"]


class Runtime(Ground):
    """Everything one bound method works with: the verbs, and what they stand on (`steppe.core.ground.Ground`)."""

    def grad(
        self, objective: Objective, batch: Batch, *, work: float = 1.0, where: Sequence[bool] | None = None
    ) -> tuple[StepOutput, Vec]:
        """Return the output and the mean gradient of ``objective`` over ``batch`` at the current weights.

        The batch goes through in micro-batches if the step has them; the result is their exact mean. Under
        DDP it is this process's mean, see `shared` and `apply`. The gradients are the caller's own. ``work``
        is the pass's cost in whole passes, for objectives that run part of the network more than once.
        ``where`` restricts the gradient to some parameters, which saves the others' part of the backward pass
        wherever that is possible (not in compiled or sharded models); it is counted as whole all the same.

        Raises `NonFinite` if the loss or a gradient is not finite, where that can be known at once.
        """
        if not self.untracked:
            self._clean_streams = rng.capture(self.device)
        if self.step_state.first is None or self.left is not None:
            self.clear()
        parts = self.parts(batch)
        whole, share = self.weight(batch), self.parallel.share()
        losses, logits = [], []
        for part in parts:
            weight = self.setup.weigh(part) / whole
            with self.parallel.no_sync(), nullcontext() if where is None else self._only(where):
                with self.precision.autocast():
                    out = objective(part)
                factor = weight * share
                loss = out.loss if factor == 1 else out.loss * factor
                self.precision.scaled(loss).backward()  # type: ignore[no-untyped-call]
            losses.append(out.loss.detach() if weight == 1 else out.loss.detach() * weight)
            # logits that are a view of a weight would change with it at the next update
            logits.append(out.logits.detach().clone() if out.logits._is_view() else out.logits.detach())
        # they stay where they are until the next pass: an update with them need not put them there again
        self.left = [p.grad for p in self.params]
        grads = self.precision.unscaled(self.left)
        if where is not None:
            grads = vector.only(grads, where)
        grads = vector.Measured(grads, self.kind)
        self.count(forward=work * len(batch), backward=work * len(batch))
        mean = losses[0] if len(parts) == 1 else torch.stack(losses).sum()
        joined = StepOutput(mean, join_logits(logits))
        self.step_state.first = self.step_state.first or joined
        self._judge(vector.finite_check(grads, mean.to(self.device)))
        return joined, grads

    def grads(
        self,
        objective: Objective,
        here: Batch,
        there: Batch,
        offset: Vec | ScaledVector,
        *,
        masks: int | None = None,
    ) -> tuple[StepOutput, Vec, Vec]:
        """Return output and gradient at the weights, and the gradient at ``w + offset``; on a GPU side by side.

        The weights stay where they are: the second pass runs on tensors of its own, on a second stream, and
        leaves no trace (see `aside`). It is what `grad` and `at` give one after another.

        Raises InputError for a model that is compiled, or shared by processes, and for micro-batches.
        """
        if (
            not self.callable_in_parts
            or type(self.parallel) is not SingleProcess
            or len(self.parts(here)) + len(self.parts(there)) > 2
        ):
            raise InputError("streams need a model that is neither compiled nor shared, and whole batches")
        if not self.untracked:
            self._clean_streams = rng.capture(self.device)
        self.clear()
        moved = {id(p): p.detach().clone() for p in self.params}
        way, by, times = _apart(offset)
        vector.move([t for t, o in zip(moved.values(), way, strict=True) if o is not None], by, times)
        side = _Side(self.device)
        with self.precision.autocast():
            clean = objective(here)
        side.follow()
        with side.running(), self._masks(masks), self._elsewhere(moved), self.precision.autocast():
            noisy = objective(there)
        self.precision.scaled(clean.loss).backward()  # type: ignore[no-untyped-call]
        with side.running():
            self.precision.scaled(noisy.loss).backward()  # type: ignore[no-untyped-call]
        side.join()
        found = [self.precision.unscaled([t.grad for t in ts]) for ts in (self.params, moved.values())]
        self.clear()
        self.count(forward=len(here) + len(there), backward=len(here) + len(there))
        out = StepOutput(clean.loss.detach(), clean.logits.detach())
        self.step_state.first = self.step_state.first or out
        losses = [t.detach().to(self.device) for t in (clean.loss, noisy.loss)]
        self._judge(vector.finite_check(found[0], losses[0]) + vector.finite_check(found[1], losses[1]))
        return out, found[0], found[1]

    @contextmanager
    def _elsewhere(self, moved: Mapping[int, Tensor]) -> Iterator[None]:
        """Let the model run on these tensors in place of the parameters of the same identity."""
        tensors = {
            name: moved[id(p)].requires_grad_()
            for name, p in self.net.named_parameters(remove_duplicate=False)
            if id(p) in moved
        }
        buffers = {name: b.detach().clone() for name, b in self.net.named_buffers()}
        model, self.model = self.model, _Elsewhere(self.net, {**buffers, **tensors})
        try:
            yield
        finally:
            self.model = model

    def shared(self, grads: Vec) -> Vec:
        """Return the mean of ``grads`` over the processes that share a perturbation (``sync``).

        One process, or ``sync='local'``, sends nothing and returns them as they are.
        """
        course = self.step_state
        if course.group is not None:
            return grads
        means, course.bad = self.parallel.group_mean(self.params, grads, course.weight, course.bad)
        return means

    def all_reduce_mean(self, values: Vec) -> Vec:
        """Return the mean over all processes whatever ``sync`` is: for what the method remembers.

        Raises InputError while groups of a batch have perturbations of their own: each would remember its own.
        """
        course = self.step_state
        if course.group is not None:
            raise InputError("m needs a method that remembers no gradients, and this one does; leave m out")
        means, course.bad = self.parallel.mean(self.params, values, course.weight, course.bad)
        return means

    @contextmanager
    def aside(self, masks: int | None = None) -> Iterator[None]:
        """Look without leaving a trace: buffers and random streams return to what they were.

        Dropout masks are those of the last clean pass, or fresh ones from the seed ``masks``
        (see `draw_masks`).
        """
        saved = self.buffers.keep()
        try:
            with self._masks(masks):
                yield
        finally:
            saved.restore()
            saved.close()

    @contextmanager
    def _masks(self, masks: int | None) -> Iterator[None]:
        """Draw the dropout masks of the last clean pass, or those of a seed; then go on where the streams were."""
        now, outer = rng.capture(self.device), self.untracked
        self.untracked = True
        try:
            if masks is None:
                rng.restore(self._clean_streams, self.device)
            else:
                torch.manual_seed(masks)
            yield
        finally:
            self.untracked = outer
            rng.restore(now, self.device)

    @contextmanager
    def at(self, offset: Vec | ScaledVector, *, masks: int | None = None, clean: bool = False) -> Iterator[None]:
        """Be at ``w + offset``; on leaving, also by an exception, the weights return bit for bit.

        The look leaves no trace (see `aside`), unless it is ``clean``: the only pass of its step, whose
        running statistics and random draws count. Restored by copy into the same storage: adding and
        subtracting drifts, and rebinding ``.data`` breaks everything that holds the storage.
        """
        way, by, times = _apart(offset)
        whole = len(by) == len(way)
        moved = self.params if whole else [p for p, o in zip(self.params, way, strict=True) if o is not None]
        with nullcontext() if clean else self.aside(masks), torch.no_grad():
            saved = self.weight_copies.make(moved)
            try:
                self.parallel.reshard()
                vector.move(moved, by, times, self.kind if whole else None)
                with torch.enable_grad():
                    yield
            finally:
                self.parallel.reshard()
                saved.restore()
                self.weight_copies.release(saved)

    def apply(
        self,
        grads: Vec,
        *,
        times: int = 1,
        more: bool = False,
        weight: float | None = None,
        beside: Vec | None = None,
    ) -> None:
        """Update: average over processes, transform, clip once, and let the optimizer make its step.

        ``times`` makes that many steps from the same gradient. ``more`` if the method goes on to further
        passes in this step: ``grads`` stay as they are, and the update is taken back if one of those passes
        is not finite. ``weight`` is what this process's gradient counts in the mean, its samples by default.
        ``beside`` is averaged too, and added to the weights times the learning rate of their group, past the
        optimizer and its moments, as decoupled weight decay is.

        Raises `NonFinite` if any process met a non-finite value in this step.
        """
        course = self.step_state
        if course.group is not None:
            course.group.collect(grads, beside, one=times == 1 and not more)
            return
        counts = course.weight if weight is None else weight
        grads, course.bad = self.parallel.mean(self.params, grads, counts, course.bad)
        if self.parallel.should_skip_update(course.bad, more):
            raise NonFinite(course.output)
        if beside is not None:
            beside, _ = self.parallel.mean(self.params, beside, counts, course.bad)
        given = grads
        for transform in self.setup.transforms:
            grads = transform(grads, self)
        if self.setup.clip is not None:
            grads = (
                vector.map_groups(self._clipped, grads, self.member)
                if self.setup.clip_each
                else self._clipped(grads)
            )
        if more:
            course.will_go_on(self.params, self.optimizer, self.undo_copies)
        self.parallel.reshard()
        for left in reversed(range(times)):
            # some optimizers write into what they are given
            fresh = vector.clone(grads) if left or (more and grads is given) else grads
            if self.left is None or not all(map(is_, fresh, self.left)):
                for p, g in zip(self.params, fresh, strict=True):
                    p.grad = g
                self.left = None
            self.optimizer.step()
            self.passes.updates += 1
        if beside is not None:
            self._shift(beside)
        self.clear()

    def _clipped(self, grads: Vec) -> Vec:
        assert self.setup.clip is not None
        return vector.scale(grads, (self.setup.clip / (vector.norm(grads) + 1e-6)).clamp(max=1.0))

    def _shift(self, direction: Vec) -> None:
        lr = param_groups.per_group(self.optimizer, self.params, "lr", 0.0)
        with torch.no_grad():
            for p, d in zip(self.params, vector.scale(direction, lr), strict=True):
                if d is not None:
                    p.add_(d)

    def outputs(self, batch: Batch) -> list[Tensor]:
        """Return the logits of each micro-batch at the current weights, without a graph.

        Raises `NonFinite` as `grad` does.
        """
        with torch.no_grad(), self.precision.autocast():
            found = [self.forward(part.x) for part in self.parts(batch)]
        self.count(forward=len(batch))
        self._judge(vector.finite_check([*found]).to(self.device))
        return found

    @contextmanager
    def _only(self, where: Sequence[bool]) -> Iterator[None]:
        """Compute no gradient for the other parameters, where switching them off has no price."""
        off = [p for p, w in zip(self.params, where, strict=True) if not w] if self.callable_in_parts else []
        for p in off:
            p.requires_grad_(False)
        try:
            yield
        finally:
            for p in off:
                p.requires_grad_(True)

    def _judge(self, witness: Tensor) -> None:
        """Stop a step that is not finite, here and now where one process may decide, else when it updates."""
        if not self.parallel.decides:
            self.step_state.bad = self.step_state.bad | ~vector.all_finite(witness)
        elif self.parallel.fails(witness):
            raise NonFinite(self.step_state.output)


def _apart(offset: Vec | ScaledVector) -> tuple[Vec, list[Tensor], Tensor | list[Tensor] | None]:
    """Return an offset's direction, the tensors of it that are there, and the factors of these."""
    if not isinstance(offset, ScaledVector):
        return offset, vector.present(offset), None
    way, times = offset.direction, offset.times
    return way, vector.present(way), vector.present(times) if isinstance(times, list) else times


class _Elsewhere(nn.Module):
    """A network that runs on other tensors than its own."""

    def __init__(self, net: nn.Module, tensors: dict[str, Tensor]):
        super().__init__()
        self.held = (net, tensors)  # in a tuple, so that it is no submodule

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        net, tensors = self.held
        return functional_call(net, tensors, args, kwargs)


class _Side:
    """A second stream of a GPU beside the present one; nothing on a processor."""

    def __init__(self, device: torch.device):
        self.device = device
        self.stream: Any = torch.cuda.Stream(device) if device.type == "cuda" else None  # type: ignore[no-untyped-call]

    def running(self) -> AbstractContextManager[Any]:
        """Return the context in which work goes to the second stream."""
        return nullcontext() if self.stream is None else torch.cuda.stream(self.stream)

    def follow(self) -> None:
        """Let it wait for what has been written on the present stream."""
        if self.stream is not None:
            self.stream.wait_stream(torch.cuda.current_stream(self.device))

    def join(self) -> None:
        """Let the present stream wait for it."""
        if self.stream is not None:
            torch.cuda.current_stream(self.device).wait_stream(self.stream)
