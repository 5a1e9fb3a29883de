"""Joining and leaving the process group of a torchrun job."""

import contextlib
import datetime
import gc
import os
import platform
import time
import uuid
from collections.abc import Iterator, Sequence
from typing import Any

import torch
import torch.distributed as dist
from torch._C._distributed_c10d import PrefixStore, Store
from torch.distributed.rendezvous import rendezvous

from steppe.distributed import collectives
from steppe.errors import InputError

_COLLECTIVE = datetime.timedelta(hours=2)  # the main process may decode a large folder while the others wait
_RENDEZVOUS = datetime.timedelta(minutes=10)  # torchrun, which hosts the store, may be gone
_LEAVE = datetime.timedelta(seconds=10)
_ON_GPUS = "cpu:gloo,cuda:nccl"


@contextlib.contextmanager
def process_group() -> Iterator[None]:
    """Join the process group that the environment names (RANK, WORLD_SIZE, LOCAL_RANK), and leave it together.

    The backend is gloo on CPUs and gloo with NCCL on GPUs, where each process uses the GPU of its LOCAL_RANK. On
    leaving, the processes wait some seconds for each other, so that none ends before the main process has printed.

    Raises `ProcessLost` if they cannot reach each other within ten minutes, InputError if two
    of them would use one GPU.
    """
    gpu, backend = None, "gloo"
    if torch.cuda.is_available():
        gpu, backend = int(os.environ.get("LOCAL_RANK", "0")) % torch.cuda.device_count(), _ON_GPUS
        torch.cuda.set_device(gpu)
    with collectives.connected():
        store, rank, size = next(rendezvous("env://", timeout=_RENDEZVOUS))
        store = PrefixStore(_prefix_of_this_start(store, rank, size), store)
        dist.init_process_group(backend, store=store, rank=rank, world_size=size, timeout=_COLLECTIVE)
        store.set_timeout(_COLLECTIVE)
        if gpu is not None:
            # NCCL starts with the first message between GPUs, and this one is between processors
            places: list[Any] = [None] * size
            dist.all_gather_object(places, (platform.node(), str(torch.cuda.get_device_properties(gpu).uuid)))
            _require_own_gpus(places, platform.node())
    yield
    # torchrun may stop this process while it waits for one that is gone
    with contextlib.suppress(RuntimeError, KeyboardInterrupt):
        with contextlib.suppress(RuntimeError):
            work = dist.all_reduce(torch.zeros(1), async_op=True)
            if work is not None:
                work.wait(_LEAVE)
        # a sharded network has reference cycles that hold the group, whose threads must end before the exit
        gc.collect()
        dist.destroy_process_group()


def _require_own_gpus(places: Sequence[tuple[str, str]], machine: str) -> None:
    """Raise InputError if two ranks use one GPU; ``places`` has the machine and the GPU of each rank."""
    if len(set(places)) == len(places):
        return
    crowded = machine if _doubles(places, machine) else next(m for m, _ in places if _doubles(places, m))
    ranks, gpus = (sum(m == crowded for m, _ in group) for group in (places, set(places)))
    raise InputError(
        f"torchrun starts {ranks} ranks on {crowded}, which has {gpus} GPU{'s' if gpus > 1 else ''} for them; "
        f"give --nproc-per-node {gpus}, or set CUDA_VISIBLE_DEVICES= to train on the processor"
    )


def _doubles(places: Sequence[tuple[str, str]], machine: str) -> bool:
    gpus = [gpu for m, gpu in places if m == machine]
    return len(set(gpus)) < len(gpus)


def _prefix_of_this_start(store: Store, rank: int, size: int) -> str:
    """Return a prefix of keys that the processes of this start share, and those of no earlier start.

    torchrun keeps one store through all restarts, so that a process would read the addresses of dead ones
    (pytorch/pytorch issues 135712 and 167288), and its count of restarts differs between machines. So rank 0
    invents the prefix and answers each process that requests it, under that process's own key.
    """
    own = uuid.uuid4().hex
    if rank:
        store.set(f"asks/{rank}", own)
        prefix: str = store.get(f"answer/{own}").decode()
        store.set(f"{prefix}/has/{rank}", "")
        return prefix
    missing, deadline = set(range(1, size)), time.monotonic() + _RENDEZVOUS.total_seconds()
    while missing:
        if time.monotonic() > deadline:
            # torch's own message for a process that never came; this one came and went
            raise dist.DistStoreError(f"{size - len(missing)}/{size} clients joined")
        missing -= {r for r in missing if store.check([f"{own}/has/{r}"])}
        for r in missing:
            if store.check([f"asks/{r}"]):
                store.set(f"answer/{store.get(f'asks/{r}').decode()}", own)
        time.sleep(0.005)
    return own
