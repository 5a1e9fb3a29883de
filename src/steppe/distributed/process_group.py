"""Joining a job of several processes, and leaving it."""

from __future__ import annotations

import contextlib
import datetime
import gc
import os
import time
import uuid
from collections.abc import Iterator

import torch
import torch.distributed as dist
from torch._C._distributed_c10d import PrefixStore, Store
from torch.distributed.rendezvous import rendezvous

from steppe.distributed import collectives

_PATIENCE = datetime.timedelta(hours=2)  # the lead may be decoding a large folder while the others wait
_MEETING = datetime.timedelta(minutes=10)  # torchrun may be gone, and with it the place to meet
_FAREWELL = datetime.timedelta(seconds=10)


@contextlib.contextmanager
def process_group() -> Iterator[None]:
    """Join the processes that the environment names (RANK, WORLD_SIZE, LOCAL_RANK), and leave them together.

    On processors they talk through gloo, on GPUs also through nccl, each with the GPU of its LOCAL_RANK. Left in
    order, all wait for the others for some seconds, so that none ends before the lead has spoken.

    Raises `team.Lost` if they cannot reach each other within ten minutes.
    """
    backend = "gloo"
    if torch.cuda.is_available():
        torch.cuda.set_device(int(os.environ.get("LOCAL_RANK", "0")) % torch.cuda.device_count())
        backend = "cpu:gloo,cuda:nccl"
    with collectives.connected():
        store, rank, size = next(rendezvous("env://", timeout=_MEETING))
        store = PrefixStore(_name_of_this_start(store, rank, size), store)
        dist.init_process_group(backend, store=store, rank=rank, world_size=size, timeout=_PATIENCE)
        store.set_timeout(_PATIENCE)
    yield
    # torchrun may stop this process while it waits for one that is gone
    with contextlib.suppress(RuntimeError, KeyboardInterrupt):
        with contextlib.suppress(RuntimeError):
            work = dist.all_reduce(torch.zeros(1), async_op=True)
            if work is not None:
                work.wait(_FAREWELL)
        # a sharded network is full of cycles that hold the group, whose threads must not outlive it into the exit
        gc.collect()
        dist.destroy_process_group()


def _name_of_this_start(store: Store, rank: int, size: int) -> str:
    """Return a name that the processes of this start have in common, and those of no earlier start.

    torchrun keeps one store through all restarts, so that a process would find the addresses of those that died
    (pytorch/pytorch issues 135712 and 167288). Nor is its count of restarts the same on all machines. So the lead
    makes a name up, and tells it to every process that asks, each under a name of its own, until all have it.
    """
    own = uuid.uuid4().hex
    if rank:
        store.set(f"asks/{rank}", own)
        name: str = store.get(f"answer/{own}").decode()
        store.set(f"{name}/has/{rank}", "")
        return name
    missing, last = set(range(1, size)), time.monotonic() + _MEETING.total_seconds()
    while missing:
        if time.monotonic() > last:
            # in torch's words, for one that never came: this one came, and went
            raise dist.DistStoreError(f"{size - len(missing)}/{size} clients joined")
        missing -= {r for r in missing if store.check([f"{own}/has/{r}"])}
        for r in missing:
            if store.check([f"asks/{r}"]):
                store.set(f"answer/{store.get(f'asks/{r}').decode()}", own)
        time.sleep(0.005)
    return own
