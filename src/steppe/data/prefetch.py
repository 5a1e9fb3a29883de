"""Training batches made ahead of time by processes of their own, the same ones in the same order."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor
from torch.utils.data import DataLoader, IterableDataset, get_worker_info

from steppe.core.batch import Batch
from steppe.data.loader import Loader
from steppe.distributed.forkserver import forkserver_context
from steppe.errors import RunError

_AHEAD = 4  # batches that each process has ready


class PrefetchLoader:
    """What `Loader.epoch` yields, bit for bit, made by ``workers`` processes while training goes on.

    Each process makes every ``workers``-th batch. Images mapped from a file are mapped by all of them, so that a
    data set may be larger than memory. On a machine with a GPU batches arrive in pinned memory.
    """

    def __init__(self, loader: Loader, workers: int):
        self.number = torch.zeros((), dtype=torch.long).share_memory_()  # type: ignore[no-untyped-call]
        self.batches: DataLoader[Batch] = DataLoader(
            _Immediate(loader, self.number),
            batch_size=None,
            num_workers=workers,
            prefetch_factor=_AHEAD,
            persistent_workers=True,
            pin_memory=torch.cuda.is_available(),
            multiprocessing_context=forkserver_context(workers),
            generator=torch.Generator(),  # else it draws from the global stream, which is dropout's
        )

    def epoch(self, number: int) -> Iterator[Batch]:
        """Yield the batches of one epoch; raises RunError if one of the processes is gone."""
        self.number.fill_(number)
        try:
            yield from self.batches
        except (EOFError, OSError, RuntimeError) as error:
            # what a batch cannot be made from comes as the error that it is
            if isinstance(error, RuntimeError) and "DataLoader worker (pid" not in str(error):
                raise
            said = next(iter(str(error).splitlines()), type(error).__name__)
            raise RunError(
                f"a process that makes batches is gone ({said}); start the same command again"
            ) from error


class _Immediate(IterableDataset[Batch]):
    """The batches that one process makes."""

    def __init__(self, loader: Loader, number: Tensor):
        self.loader, self.number = loader, number

    def __iter__(self) -> Iterator[Batch]:
        here = get_worker_info()
        assert here is not None
        return self.loader.epoch(int(self.number), here.id, here.num_workers)


def prepared(loader: Loader, workers: int) -> Loader | PrefetchLoader:
    """Return where the batches of an epoch come from: this process, or so many others."""
    return PrefetchLoader(loader, workers) if workers else loader
