"""How much memory work takes at most: of a GPU as it counts, of a processor by following every tensor."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves


def peak_bytes(make: Callable[[], Callable[[], object]]) -> int:
    """Return the most bytes that tensors take while a step runs that is not the first.

    ``make`` builds what the step needs, weights and state among it, which counts too, and returns the step.
    """
    if torch.cuda.is_available():
        before = torch.cuda.memory_allocated()
        step = make()
        step()
        torch.cuda.reset_peak_memory_stats()
        step()
        return int(torch.cuda.max_memory_allocated() - before)
    with _Living() as living:
        step = make()
        step()
        living.most = living.now
        step()
        most: int = living.most
    return most


class _Living(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Counts the bytes of all memory that came out of an operation and is still held by somebody."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.now = self.most = 0
        self.known: set[int] = set()

    def __torch_dispatch__(
        self, func: Any, types: Sequence[type], args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        found = func(*args, **(kwargs or {}))
        for leaf in tree_leaves(found):
            if isinstance(leaf, Tensor):
                self._see(leaf.untyped_storage())
        return found

    def _see(self, storage: torch.UntypedStorage) -> None:
        place = storage._cdata
        if place in self.known:
            return
        size = storage.nbytes()
        self.known.add(place)
        self.now += size
        self.most = max(self.most, self.now)
        weakref.finalize(storage, self._gone, place, size)

    def _gone(self, place: int, size: int) -> None:
        self.known.discard(place)
        self.now -= size
