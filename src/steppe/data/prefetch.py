"""Prefetching: worker processes make the training batches ahead of time, with the same bits in the same order."""

import contextlib
import multiprocessing
import os
import threading
from collections.abc import Iterator

import torch
from torch import Tensor
from torch.utils.data import DataLoader, IterableDataset, get_worker_info

from steppe.core.batch import Batch
from steppe.data.loader import Loader
from steppe.data.samples import SampleLoader
from steppe.distributed.forkserver import forkserver_context
from steppe.errors import RunError

_PREFETCH = 4  # batches that each worker has ready
_DIED = "DataLoader worker (pid"
# in messages of torch and of the system, which has no semaphores without shared memory
_SHARED_MEMORY = ("shared memory", "(shm)", "Bus error", "No space left on device", "Function not implemented")


class PrefetchLoader:
    """Yields the batches of `Loader.epoch`, bit for bit, made by ``workers`` processes during training.

    Each worker makes every ``workers``-th batch. All workers map images that are mapped from a file, so a data
    set may be larger than memory. With a GPU, batches are in pinned memory.
    """

    def __init__(self, loader: Loader | SampleLoader, workers: int):
        self.workers = workers
        with self._shared_memory():
            self.number = torch.zeros((), dtype=torch.long).share_memory_()  # type: ignore[no-untyped-call]
        self.batches: DataLoader[Batch] = DataLoader(
            _WorkerBatches(loader, self.number),
            batch_size=None,
            num_workers=workers,
            prefetch_factor=_PREFETCH,
            persistent_workers=True,
            worker_init_fn=_end_with_parent,
            pin_memory=torch.cuda.is_available(),
            multiprocessing_context=forkserver_context(workers),
            generator=torch.Generator(),  # otherwise it draws from the global generator, which dropout uses
        )

    def epoch(self, number: int) -> Iterator[Batch]:
        """Yield the batches of one epoch; raises RunError if a worker has died or has no shared memory."""
        self.number.fill_(number)
        try:
            with self._shared_memory():
                yield from self.batches
        except (EOFError, OSError, RuntimeError) as error:
            # an error in making a batch is raised as it is
            if isinstance(error, RunError) or (isinstance(error, RuntimeError) and _DIED not in str(error)):
                raise
            message = next(iter(str(error).splitlines()), type(error).__name__)
            raise RunError(
                f"a process that makes batches died ({message}); start the same command again"
            ) from error

    @contextlib.contextmanager
    def _shared_memory(self) -> Iterator[None]:
        try:
            yield
        except (OSError, RuntimeError) as error:
            message = next(iter(str(error).splitlines()), "")
            if not any(text in str(error) for text in _SHARED_MEMORY):
                raise
            raise RunError(
                f"/dev/shm is too small for the batches of {self.workers} workers ({message[:120]}); start the "
                "container with more (docker run --shm-size=2g), or give --workers 0"
            ) from error


def _end_with_parent(worker: int) -> None:
    """End this worker with the training process, however that ends.

    torch looks at the number of the parent process, which here is the server, and that waits for its workers.
    """
    parent = multiprocessing.parent_process()
    assert parent is not None

    def watch() -> None:
        parent.join()
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


class _WorkerBatches(IterableDataset[Batch]):
    """The batches that one worker makes."""

    def __init__(self, loader: Loader | SampleLoader, number: Tensor):
        self.loader, self.number = loader, number

    def __iter__(self) -> Iterator[Batch]:
        worker = get_worker_info()
        assert worker is not None
        return self.loader.epoch(int(self.number), worker.id, worker.num_workers)
