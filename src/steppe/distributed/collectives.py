"""The processes that train one run together: who they are, what they tell each other, how they share a model.

Started by ``torchrun``, every process runs the same code on its own part of each batch. One of them, the lead,
writes, prints and decides what a clock decides. A process alone is a team of one, to which everything here is
free.
"""

from __future__ import annotations

import contextlib
import re
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any, TypeVar, cast

import torch
import torch.distributed as dist
from torch import nn

from steppe.errors import InputError, RunError

T = TypeVar("T")

_GONE = r"gloo|nccl|connection|socket|TCPStore|clients joined"


class ProcessLost(RunError):  # noqa: N818 - as in `Failed`, it says what happened
    """Another process of the team is gone, so nothing can go on here."""


@dataclass(frozen=True)
class World:
    """``size`` processes that train together, this one being number ``rank`` of them.

    Every method but `rows` must be called by all of them, in the same order.
    """

    rank: int = 0
    size: int = 1

    @property
    def is_main_process(self) -> bool:
        """Whether this process is the one that writes and prints."""
        return self.rank == 0

    def rows(self, count: int) -> slice:
        """Return this process's part of ``count`` rows; parts differ by one row at most."""
        return slice(self.rank * count // self.size, (self.rank + 1) * count // self.size)

    def all_reduce_sum(self, *values: float) -> list[float]:
        """Return each value summed over all processes."""
        if self.size == 1:
            return list(values)
        total = torch.tensor(values, dtype=torch.float64)
        dist.all_reduce(total)
        return cast(list[float], total.tolist())

    def broadcast(self, value: float) -> float:
        """Return the lead's value."""
        if self.size == 1:
            return value
        held = torch.tensor([value], dtype=torch.float64)
        dist.broadcast(held, 0)
        return float(held)

    def all_gather_object(self, value: T) -> list[T]:
        """Return the values of all processes, by rank."""
        if self.size == 1:
            return [value]
        held: list[Any] = [None] * self.size
        dist.all_gather_object(held, value)
        return held

    def on_every_process(self, do: Callable[[], T]) -> T:
        """Let every process do its part; an InputError or RunError of one is raised on all of them."""
        if self.size == 1:
            return do()
        value, error = _tried(do)
        first = next((e for e in self.all_gather_object(error) if e is not None), None)
        if first is not None:
            raise first
        return cast(T, value)

    def on_main_process(self, do: Callable[[], T]) -> T:
        """Let the lead do something, and return its result, or raise its InputError or RunError, on all."""
        if self.size == 1:
            return do()
        held: list[Any] = list(_tried(do)) if self.is_main_process else [None, None]
        dist.broadcast_object_list(held, 0)
        if held[1] is not None:
            raise held[1]
        return cast(T, held[0])

    def main_process_first(self, do: Callable[[], T]) -> T:
        """Let the lead do something and then the others, for work whose result the lead leaves in a cache."""
        held: list[T] = []
        self.on_every_process(lambda: held.append(do()) if self.is_main_process else None)
        self.on_every_process(lambda: None if self.is_main_process else held.append(do()))
        return held[0]

    @contextlib.contextmanager
    def held_by_main_process(self, hold: Callable[[], AbstractContextManager[Any]]) -> Iterator[None]:
        """Let the lead hold something for all, a lock say; its InputError or RunError is raised on all."""
        with contextlib.ExitStack() as stack:
            self.on_main_process(lambda: stack.enter_context(hold()) and None)
            yield

    def share_buffers(self, net: nn.Module) -> None:
        """Give all processes the lead's running statistics; DDP does so in each step, FSDP2 never."""
        if self.size > 1:
            for buffer in net.buffers():
                dist.broadcast(buffer.detach(), 0)


def current_world() -> World:
    """Return the team that this process is in."""
    if dist.is_available() and dist.is_initialized():
        return World(dist.get_rank(), dist.get_world_size())
    return World()


@contextlib.contextmanager
def connected() -> Iterator[None]:
    """Turn what the communication libraries say when a process is gone into `Lost`."""
    try:
        yield
    except RuntimeError as error:
        if isinstance(error, RunError) or not re.search(_GONE, str(error), re.I):
            raise
        reason = str(error).splitlines()[0].split(". ")[0].split("] ", 1)[-1]
        raise ProcessLost(
            f"another process of this job is gone ({reason}); start the same command again, "
            "or let torchrun do it with --max-restarts"
        ) from error


def _tried(do: Callable[[], T]) -> tuple[T | None, InputError | RunError | None]:
    try:
        return do(), None
    except ProcessLost:
        raise
    except (InputError, RunError) as error:
        return None, error
