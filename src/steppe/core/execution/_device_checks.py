"""Steps that the host does not wait for: non-finite values skip the update on the device that met them."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import chain
from typing import Any

import torch
from torch import Tensor

from steppe.core.numerics import vector
from steppe.core.numerics.vector import Measured, Vec
from steppe.core.optimizers.joint import groups_of, states_of

_BLOCK = 64
_NO_KIND = ("params", "lr", "initial_lr", "capturable")  # settings that create no state
_CHECKED = frozenset((torch.float16, torch.float32, torch.float64))


class DeviceChecks:
    """The flag of a step, 1 if it met a value that is not finite, and what an optimizer does with it.

    Numbers and gradients are collected, and checked together in one launch where they are needed. An optimizer
    that supports ``found_inf`` (``fused=True``) skips its update by itself, as for `torch.amp.GradScaler`.
    """

    def __init__(self, device: torch.device):
        self._one = torch.ones((), device=device)
        self.recording = False  # whether the step becomes a graph, which sets its flag itself
        self._flags: list[Tensor] = []
        self._numbers: list[Tensor] = []
        self._grads: Measured | None = None
        self._updates: set[Any] = set()  # the kinds of updates whose state exists
        self._on_host = False  # whether an optimizer keeps numbers on the host

    def new_flag(self) -> Tensor:
        """Return 0 in storage of its own, which is allocated for many steps at once."""
        if self.recording:
            return torch.zeros((), device=self._one.device)
        if not self._flags:
            self._flags = list(torch.zeros(_BLOCK, device=self._one.device).unbind())
        return self._flags.pop()

    @property
    def pending(self) -> bool:
        """Whether something collected was not checked."""
        return self._grads is not None or bool(self._numbers)

    def clear(self) -> None:
        """Forget what was not checked."""
        self._numbers, self._grads = [], None

    def add(self, *numbers: Tensor) -> None:
        """Have numbers checked."""
        numbers = tuple(n if n.dtype in _CHECKED else n.float() for n in numbers)
        self._numbers += [n.to(self._one.device) for n in numbers]

    def add_grads(self, grads: Measured) -> None:
        """Have a gradient checked: by its norm, if the method measures it before anything else is done with it."""
        self._grads = grads

    def settle(self, flag: Tensor) -> None:
        """Check a gradient that is not measured, whose tensors may be released or changed after this."""
        if self._grads is not None and (number := self._grads.measured()) is not None:
            self._numbers.append(number)
            self._grads = None
        elif self._grads is not None:
            self.flush(flag)

    def flush(self, flag: Tensor) -> None:
        """Set a flag to 1 if anything collected is not finite."""
        grads, self._grads = self._grads, None
        if grads is not None:
            number = grads.measured()
            tensors = [number] if number is not None else vector.present(grads)
            simple = _CHECKED.issuperset(t.dtype for t in tensors)
            self._numbers += tensors if simple else [vector.norm(grads)]
        numbers, self._numbers = self._numbers, []
        if numbers:
            with torch.no_grad():
                # multiplies them by 1, which changes no bit
                torch._amp_foreach_non_finite_check_and_unscale_(numbers, flag, self._one)

    def must_read(self, optimizers: Sequence[torch.optim.Optimizer], grads: Vec) -> bool:
        """Return whether the host has to know if an update of an optimizer and those that it wraps takes place.

        It creates state that a skipped update must not leave behind, or counts on the host, as Adam does
        without ``fused`` or ``capturable``.
        """
        return self._on_host or self._kind(optimizers, grads) not in self._updates

    def update(
        self,
        optimizer: torch.optim.Optimizer,
        optimizers: Sequence[torch.optim.Optimizer],
        grads: Vec,
        flag: Tensor | None,
        *,
        first: bool,
    ) -> None:
        """Let the optimizer make its step; with a flag, only if that is 0; ``optimizers`` as for `must_read`.

        It is the ``first`` of its kind if `must_read` returned so.
        """
        if first:
            before = _host_numbers(optimizers)
            optimizer.step()
            after = _host_numbers(optimizers)
            device = self._one.device.type
            entries = chain.from_iterable(state.values() for state in states_of(optimizers))
            values = chain.from_iterable(entry.values() for entry in entries)
            moved = any(isinstance(v, Tensor) and v.device.type != device for v in values)
            # numbers that appeared are the initial ones of a new state
            changed = any(after.get(k) != v for k, v in before.items())
            self._on_host = self._on_host or moved or changed
            self._updates.add(self._kind(optimizers, grads))
            return
        if flag is None:
            optimizer.step()
            return
        own: Any = optimizer
        own.grad_scale, own.found_inf = None, flag
        try:
            optimizer.step()
        finally:
            del own.grad_scale, own.found_inf

    def _kind(self, optimizers: Sequence[torch.optim.Optimizer], grads: Vec) -> Any:
        settings = (
            bool(v)
            for group in groups_of(optimizers)
            for k, v in group.items()
            if k not in _NO_KIND and isinstance(v, bool | int | float)
        )
        entries = sum(len(entry) for state in states_of(optimizers) for entry in state.values())
        return (entries, tuple(settings), tuple(g is None for g in grads))


def skips_by_itself(optimizers: Sequence[torch.optim.Optimizer]) -> bool:
    """Return whether an optimizer takes ``found_inf``; one that wraps others does not."""
    optimizer, groups = optimizers[0], optimizers[0].param_groups
    return (
        len(optimizers) == 1
        and bool(getattr(optimizer, "_step_supports_amp_scaling", False))
        and all(g.get("fused") for g in groups)
    )


def _host_numbers(optimizers: Sequence[torch.optim.Optimizer]) -> dict[Any, Any]:
    """Return the numbers that optimizers keep in their groups and their state other than in tensors."""
    states = states_of(optimizers)
    entries: list[tuple[Any, Any]] = list(enumerate(groups_of(optimizers)))
    entries += [((number, id(key)), entry) for number, state in enumerate(states) for key, entry in state.items()]
    return {
        (key, name): value
        for key, values in entries
        for name, value in values.items()
        if isinstance(value, int | float | bool)
    }
