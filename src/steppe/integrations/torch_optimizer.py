"""A method behind the interface of older SAM optimizers: ``first_step`` and ``second_step``, or ``step(closure)``.

    optimizer = SAM(model.parameters(), torch.optim.SGD, rho=0.05, lr=0.1, momentum=0.9)

For code that is not to be changed otherwise. The user runs the passes, so the promises of a bound method that need
to run them itself are not kept: each pass draws dropout masks of its own, micro-batches are not replayed, and
processes average as DDP does, in every pass. What is kept: weights come back bit for bit in their storage, running
statistics count a batch once if the network is given, a gradient that is not finite changes nothing.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any
from unittest import mock

import torch
from torch import Tensor, nn
from torch.amp.grad_scaler import GradScaler

from steppe.core import rng
from steppe.core.batch import Batch
from steppe.core.method import Method, overrides
from steppe.core.numerics import vector
from steppe.core.numerics.vector import ScaledVector, Vec
from steppe.core.runtime import BindOptions, Objective, Runtime, StepOutput
from steppe.core.snapshot import BufferSnapshot
from steppe.core.step_state import NonFinite
from steppe.errors import InputError
from steppe.integrations import ready
from steppe.methods.sharpness import asam, sam

_SCALED = (
    "gradients in step(closure) are multiplied by a GradScaler's scale, which step cannot know; call first_step "
    "and second_step after scaler.unscale_, or use method.bind(..., precision='fp16')"
)


class MethodOptimizer(torch.optim.Optimizer):
    """A method and an optimizer of yours behind one optimizer's interface.

    ``param_groups`` and ``state`` are your optimizer's own, for schedulers and checkpoints. ``skipped`` tells
    whether the last step met a gradient that is not finite and changed nothing.

    Args:
        method: A method of one update per step that remembers nothing.
        base_optimizer: Your optimizer.
        model: The network; without it running statistics count every pass.
        seed: Seed of the method's noise.

    Raises:
        InputError: The method remembers something between steps, which this interface could not save, or runs
            passes or a loss of its own.
    """

    def __init__(
        self,
        method: Method | str,
        base_optimizer: torch.optim.Optimizer,
        model: nn.Module | None = None,
        seed: int = 0,
    ):
        params = [p for group in base_optimizer.param_groups for p in group["params"]]
        net = model if model is not None else nn.ParameterList(params)
        method = ready(method)
        self._state = method.init(net)
        if overrides(method, "objective"):
            raise _unable()
        if self._state.state_dict():
            raise InputError(f"{method!r} remembers something between steps; use method.bind(model, optimizer)")
        self.method, self.base_optimizer, self.skipped = method, base_optimizer, False
        self._runtime = _Given(
            net, base_optimizer, BindOptions(_no_loss, transforms=[method.transform], seed=seed)
        )
        self._runtime.objective = _no_objective
        self._running: _Running | None = None
        self.defaults = base_optimizer.defaults
        self._forget_hooks()

    def _forget_hooks(self) -> None:
        # what torch.optim.Optimizer.__init__ would make; state and groups are the other optimizer's
        self._optimizer_step_pre_hooks: Any = {}
        self._optimizer_step_post_hooks: Any = {}
        self._patch_step_function()

    @property
    def param_groups(self) -> list[dict[str, Any]]:  # type: ignore[override]
        """The base optimizer's groups."""
        return self.base_optimizer.param_groups

    @property
    def state(self) -> Any:  # type: ignore[override]
        """The base optimizer's state."""
        return self.base_optimizer.state

    def state_dict(self) -> dict[str, Any]:
        """Return the base optimizer's state, which is all there is."""
        return self.base_optimizer.state_dict()

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Give it back."""
        self.base_optimizer.load_state_dict(state_dict)

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Add a group to the base optimizer."""
        self.base_optimizer.add_param_group(param_group)

    def zero_grad(self, set_to_none: bool = True) -> None:
        """Clear the gradients."""
        self.base_optimizer.zero_grad(set_to_none)

    def first_step(self, zero_grad: bool = True) -> None:
        """Take the gradients of the first pass, and go where the second one is to be made.

        Gradients are cleared whatever ``zero_grad`` says: they are the method's now.

        Raises InputError for a method whose first pass is not at the weights.
        """
        if self._running is not None:
            self._running.abandon()
        self._running = _Running(self._runtime, self.method, self._state, given=True)
        self._running.go_on()
        self._running.expect_pass()

    def second_step(self, zero_grad: bool = True) -> None:
        """Take the gradients of the second pass, return to the weights and update them.

        Raises InputError without a first_step, and for a method that wants more passes.
        """
        running, self._running = self._running, None
        if running is None:
            raise InputError("second_step without first_step; call first_step after the first backward pass")
        if running.over:
            # one pass was enough (rho = 0, say): the second one is to leave no trace
            running.forget_pass()
        else:
            running.go_on()
        if not running.over:
            running.abandon()
            raise InputError(f"{self.method!r} makes more than two passes; use step(closure)")
        self.skipped = running.skipped
        self._opt_called = True  # for schedulers, which look whether an update came before them

    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """Make a step; ``closure`` clears gradients, runs forward and backward pass, and returns the loss.

        Returns the loss of the first pass.

        Raises InputError without a closure, and if the closure scales its loss with a GradScaler.
        """
        if closure is None:
            raise InputError(
                f"{self.method!r} needs its passes: give step a closure, or call first_step and second_step"
            )
        losses: list[Any] = []

        def run() -> None:
            with torch.enable_grad(), mock.patch.object(GradScaler, "scale", _refuse):
                losses.append(closure())

        running = _Running(self._runtime, self.method, self._state, given=False)
        try:
            running.go_on()
            while not running.over:
                run()
                running.go_on()
        except BaseException:
            running.abandon()
            raise
        self.skipped = running.skipped
        return losses[0]


class SAM(MethodOptimizer):
    """SAM with the arguments that older PyTorch code gives it; ``adaptive`` is ASAM of all parameters.

    Args:
        params: The network's parameters, or groups of them.
        base_optimizer: Class of the optimizer that makes the updates.
        rho: Radius.
        adaptive: Scale the ball by the size of each weight.
        model: The network; without it running statistics count every pass.
        settings: What the base optimizer takes: lr, momentum and so on.
    """

    def __init__(
        self,
        params: Any,
        base_optimizer: Callable[..., torch.optim.Optimizer],
        rho: float = 0.05,
        adaptive: bool = False,
        model: nn.Module | None = None,
        **settings: Any,
    ):
        method = asam.ASAM(rho=rho, scaling="all") if adaptive else sam.SAM(rho=rho)
        super().__init__(method, base_optimizer(params, **settings), model)


class _Given(Runtime):
    """A runtime whose passes are somebody else's: a gradient is what is there when it is asked for."""

    ask: Callable[[], None]
    away = 0

    def grad(
        self, objective: Objective, batch: Batch, *, work: float = 1.0, where: Sequence[bool] | None = None
    ) -> tuple[StepOutput, Vec]:
        """Return the gradients of the pass that was just made."""
        if objective is not self.objective:
            raise _unable()
        self.ask()
        grads: Vec = [p.grad for p in self.params]
        self.clear()
        self.count(forward=1, backward=1)
        out = StepOutput(torch.zeros(()), torch.zeros(0))
        self.step_state.first = self.step_state.first or out
        self._check_finite(vector.finite_check(grads))
        return out, grads

    def forward(self, x: Any) -> Tensor:
        """Refuse: the passes are somebody else's."""
        raise _unable()

    @contextmanager
    def at(
        self, offset: Vec | ScaledVector, *, mask_seed: int | None = None, clean: bool = False
    ) -> Iterator[None]:
        """Be elsewhere, and know it."""
        with super().at(offset, mask_seed=mask_seed, clean=clean):
            self.away += 1
            try:
                yield
            finally:
                self.away -= 1

    @contextmanager
    def preserve_state(self, mask_seed: int | None = None) -> Iterator[None]:
        """Return buffers and random streams to what they were; masks are drawn by whoever runs the pass."""
        saved = self.buffers.snapshot()
        now = rng.capture(self.device)
        try:
            yield
        finally:
            rng.restore(now, self.device)
            saved.restore()


class _Abandoned(BaseException):
    pass


class _Running:
    """A method's step that stops wherever it needs a pass, in a thread that never runs beside its owner."""

    def __init__(self, runtime: _Given, method: Method, state: nn.Module, given: bool):
        self.over, self.skipped = False, False
        self._runtime, self._method, self._state = runtime, method, state
        self._turn, self._done = threading.Semaphore(0), threading.Semaphore(0)
        self._error: BaseException | None = None
        self._end: BufferSnapshot | None = None
        self._given, self._abandoned = given, False
        runtime.ask = self._wait
        self._thread = threading.Thread(target=self._work, daemon=True)
        self._thread.start()

    def go_on(self) -> None:
        """Let it run to where it needs the next pass, or to its end; raises what it raises."""
        self._resume()
        if self._error is not None:
            raise self._error

    def abandon(self) -> None:
        """End it where it waits: the weights return."""
        if not self.over:
            self._abandoned = True
            self._resume()

    def _resume(self) -> None:
        self._turn.release()
        self._done.acquire()
        if self.over:
            # a thread that still lets go of its tensors when the interpreter ends aborts the process
            self._thread.join()

    def expect_pass(self) -> None:
        """Remember how it ended, if it has: a pass will be made that it does not need."""
        if self.over:
            self._end = self._runtime.buffers.snapshot()

    def forget_pass(self) -> None:
        """Take back what that pass left in gradients and running statistics."""
        assert self._end is not None
        self._runtime.clear()
        self._end.restore()

    def _wait(self) -> None:
        if self._given:
            # the first pass was made before the step began, and so at the weights
            if self._runtime.away:
                raise InputError(f"{self._method!r} begins with a pass elsewhere; use step(closure)")
            self._given = False
            return
        self._done.release()
        self._turn.acquire()
        if self._abandoned:
            raise _Abandoned

    def _work(self) -> None:
        self._turn.acquire()
        try:
            batch = Batch(torch.zeros(1, 1))
            self._runtime.begin(batch)
            self._method.step(batch, self._state, self._runtime)
        except NonFinite:
            self.skipped = True
            self._take_back()
        except _Abandoned:
            self._take_back()
        except BaseException as error:
            self._error = error
            self._take_back()
        finally:
            self._runtime.step_state.close()
            self.over = True
            self._done.release()

    def _take_back(self) -> None:
        self._runtime.step_state.restore()
        self._runtime.clear()


def _refuse(*_: Any, **__: Any) -> Any:
    raise InputError(_SCALED)


def _unable() -> InputError:
    return InputError("this method runs passes or a loss of its own; use method.bind(model, optimizer)")


def _no_loss(logits: Tensor, y: Tensor) -> Tensor:
    raise _unable()


def _no_objective(batch: Batch) -> StepOutput:
    raise _unable()
