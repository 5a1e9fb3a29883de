"""The world of processes that train one run together, and the collectives between them.

Started by ``torchrun``, every process runs the same code on its own part of each batch. The main process, rank 0,
writes, prints and decides whatever depends on a clock. A single process is a world of size 1, where every
collective returns at once.
"""

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

_LOST = r"gloo|nccl|connection|socket|TCPStore|clients joined"


class ProcessLost(RunError):  # noqa: N818 - named like TrainingFailed, after what happened
    """Another process of the world has ended, so this one cannot continue."""


@dataclass(frozen=True)
class World:
    """``size`` processes that train together; this one has rank ``rank``.

    Every method but `rows` is a collective: all processes call it, in the same order.
    """

    rank: int = 0
    size: int = 1

    @property
    def is_main_process(self) -> bool:
        """Whether this process writes and prints."""
        return self.rank == 0

    def rows(self, count: int) -> slice:
        """Return this process's part of ``count`` rows; parts differ by one row at most."""
        return slice(self.rank * count // self.size, (self.rank + 1) * count // self.size)

    def all_reduce_sum(self, *values: float) -> list[float]:
        """Return each value summed over all ranks."""
        if self.size == 1:
            return list(values)
        total = torch.tensor(values, dtype=torch.float64)
        dist.all_reduce(total)
        return cast(list[float], total.tolist())

    def broadcast(self, value: float) -> float:
        """Return rank 0's value."""
        return self.all_reduce_sum(value if self.is_main_process else 0.0)[0]

    def all_gather_object(self, value: T) -> list[T]:
        """Return the values of all ranks, in order of rank."""
        if self.size == 1:
            return [value]
        values: list[Any] = [None] * self.size
        dist.all_gather_object(values, value)
        return values

    def on_every_process(self, fn: Callable[[], T]) -> T:
        """Run `fn` on every rank; an InputError or RunError of one rank is raised on all of them."""
        if self.size == 1:
            return fn()
        value, error = _result_or_error(fn)
        first = next((e for e in self.all_gather_object(error) if e is not None), None)
        if first is not None:
            raise first
        return cast(T, value)

    def on_main_process(self, fn: Callable[[], T]) -> T:
        """Run `fn` on rank 0 and broadcast its result, or its InputError/RunError, to all ranks."""
        if self.size == 1:
            return fn()
        outcome: list[Any] = list(_result_or_error(fn)) if self.is_main_process else [None, None]
        dist.broadcast_object_list(outcome, 0)
        if outcome[1] is not None:
            raise outcome[1]
        return cast(T, outcome[0])

    def main_process_first(self, fn: Callable[[], T]) -> T:
        """Run `fn` on rank 0, then on all others, which find the result of rank 0 in a cache."""
        results: list[T] = []
        self.on_every_process(lambda: results.append(fn()) if self.is_main_process else None)
        self.on_every_process(lambda: None if self.is_main_process else results.append(fn()))
        return results[0]

    @contextlib.contextmanager
    def held_by_main_process(self, make: Callable[[], AbstractContextManager[Any]]) -> Iterator[None]:
        """Hold a context, such as a lock, on rank 0; an InputError or RunError on entry is raised on all ranks."""
        with contextlib.ExitStack() as stack:
            self.on_main_process(lambda: stack.enter_context(make()) and None)
            yield

    def share_buffers(self, net: nn.Module) -> None:
        """Broadcast rank 0's buffers, such as BatchNorm's statistics; DDP does so in each step, FSDP2 never."""
        if self.size > 1:
            for buffer in net.buffers():
                dist.broadcast(buffer.detach(), 0)


def current_world() -> World:
    """Return the world of the process group, or of this process alone if there is no group."""
    if dist.is_available() and dist.is_initialized():
        return World(dist.get_rank(), dist.get_world_size())
    return World()


@contextlib.contextmanager
def connected() -> Iterator[None]:
    """Raise `ProcessLost` for the errors by which gloo, NCCL and the store report that a process has ended."""
    try:
        yield
    except RuntimeError as error:
        if isinstance(error, RunError) or not re.search(_LOST, str(error), re.I):
            raise
        reason = str(error).splitlines()[0].split(". ")[0].split("] ", 1)[-1]
        raise ProcessLost(
            f"another process of this job is gone ({reason}); start the same command again, "
            "or let torchrun do it with --max-restarts"
        ) from error


def _result_or_error(fn: Callable[[], T]) -> tuple[T | None, InputError | RunError | None]:
    try:
        return fn(), None
    except ProcessLost:
        raise
    except (InputError, RunError) as error:
        return None, error
