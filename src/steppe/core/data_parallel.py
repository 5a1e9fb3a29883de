"""The processes that train one model together: how their gradients are averaged and non-finite values found.

A gradient belongs to its process until all need it. Replicas (DDP) therefore run every pass without communication
and average once, when the optimizer uses the gradient: exactly, by sample counts, with the flags of non-finite
values in the same message. Shards (FSDP2) have to communicate in every pass.
"""

import math
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from steppe.core.numerics import vector
from steppe.core.numerics.vector import Vec
from steppe.core.state.snapshot import copy_into
from steppe.errors import InputError

SyncMode = str | int | None
Params = Sequence[nn.Parameter]
_COMPLETE = 10  # means after which all parameters are expected to have a gradient
_HEADS = 64  # of messages that are kept: layers that are left out at random give very many
NO_LOCAL_GRADIENT = (
    "FSDP2 only exposes the gradient averaged over all processes, so a per-process perturbation "
    "(sync='local', m) is impossible"
)


class SingleProcess:
    """A process on its own; also what the others have in common."""

    rank = 0
    size = 1
    group: Any = None
    checks_every_pass = True  # whether a non-finite value stops the step in the pass that meets it
    noise_id = 0  # processes of equal numbers draw equal noise

    def __init__(self, checks_every_pass: bool = True):
        self.checks_every_pass = checks_every_pass

    def begin(self, weight: float, parts: int) -> None:
        """Start a step on ``parts`` micro-batches of this weight in all."""

    def most_parts(self, parts: int) -> int:
        """Return into how many micro-batches a batch is cut that would have ``parts`` on this process alone."""
        return parts

    def should_skip_update(self, bad: Tensor, more: bool) -> bool:
        """Return True if a non-finite value was seen and the optimizer must not step.

        With ``more`` passes to come in the step it may step: the last update's check undoes it.
        """
        return not self.checks_every_pass and not more and bool(bad)

    def no_sync(self) -> AbstractContextManager[Any]:
        """Return the context that a pass runs in."""
        return nullcontext()

    def reshard(self) -> None:
        """Drop gathered copies, so that the next pass reads the optimizer's parameters."""

    def share_of_mean(self, rt: Any) -> Tensor | None:
        """Return this process's weight over the mean of all, if a pass that begins now averages its gradient."""
        return None

    def any_bad(self, bad: Tensor) -> Tensor:
        """Return whether any process was bad."""
        return bad

    def loss_weight(self) -> float:
        """Return what this process's loss is multiplied by for the mean over samples."""
        return 1.0

    def any_non_finite(self, check: Tensor) -> bool:
        """Return whether a number is not finite on any process that must agree."""
        return not math.isfinite(check)

    def group_mean(self, params: Params, grads: Vec, weight: float, bad: Tensor) -> tuple[Vec, Tensor]:
        """Return the mean over the processes that share a perturbation."""
        return grads, bad

    def mean(self, params: Params, grads: Vec, weight: float, bad: Tensor) -> tuple[Vec, Tensor]:
        """Return the mean over all processes, and whether any was bad."""
        return grads, bad

    def gather(self, *tensors: Tensor) -> tuple[Tensor, ...]:
        """Return each tensor (B, ...) with the rows of all processes, in the order of their ranks."""
        return tensors if self.size == 1 else gather_rows(tensors, self.size, self.group)

    def processes_per_part(self, parts: int) -> list[int]:
        """Return how many processes do each part of the work, in turn by rank; raises InputError if none does."""
        raise InputError(f"this method gives {parts} parts of its work to different processes; start it under DDP")

    def share_buffers(self, net: nn.Module) -> None:
        """Give all processes the same running statistics."""


class DataParallel(SingleProcess):
    """Data parallel: every process has the whole model and its own part of the batch."""

    checks_every_pass = False

    def __init__(self, wrapper: DistributedDataParallel, sync: SyncMode):
        for name, used in (
            ("static_graph", wrapper.static_graph),  # its first backward pass must communicate
            ("mixed_precision", wrapper.mixed_precision is not None),
            ("a communication hook", bool(wrapper._comm_hooks)),
        ):
            if used:
                raise InputError(f"DDP has {name}, but a step averages the gradients itself; leave it out")
        self.wrapper = wrapper
        self._heads: dict[Any, Tensor] = {}  # by which gradients exist
        self._complete = 0  # means of gradients that all processes had for all parameters
        self._weight: tuple[float, Tensor] | None = None  # the last step's, on the device
        self.group = wrapper.process_group
        self.rank, self.size = dist.get_rank(self.group), dist.get_world_size(self.group)
        together = 1 if sync in (None, "local") else self.size if sync == "global" else sync
        if not isinstance(together, int) or together < 1 or self.size % together:
            raise InputError(
                f"sync is {sync!r} on {self.size} processes; give 'local', 'global' or a divisor of {self.size}"
            )
        self.noise_id = self.rank // together
        self.sync_group = self._group_of(together)

    def _group_of(self, together: int) -> Any:
        if together == self.size:
            return self.group
        if together == 1:
            return None
        members = dist.get_process_group_ranks(self.group)
        # every process takes part in making every group, in the same order
        groups = [dist.new_group(members[i : i + together]) for i in range(0, self.size, together)]
        return groups[self.noise_id]

    def no_sync(self) -> AbstractContextManager[Any]:
        """Switch off DDP's own all-reduce, which would average gradients in the middle of a method."""
        context: AbstractContextManager[Any] = self.wrapper.no_sync()
        return context

    def share_of_mean(self, rt: Any) -> Tensor | None:
        """Return weight / mean weight for a pass whose gradient DDP's own reducer may average.

        It may where the host must not wait, the wrapper has the optimizer's parameters and no others, and each of
        them had a gradient in some steps before. DDP itself then averages while the backward pass goes on.
        """
        wrapper, step = self.wrapper, rt.step_state
        ready = self._complete >= _COMPLETE or (wrapper.find_unused_parameters and self._complete)
        if not (rt.on_device and ready and step.group is None and rt.model is wrapper):
            return None
        if not rt.once("reducer", lambda: self._reduces(rt.params)):
            return None
        if self._weight is None or self._weight[0] != step.weight:  # to send it to a GPU is to wait for it
            self._weight = step.weight, torch.full((), step.weight, device=rt.device)
        own = self._weight[1]
        total = own.clone()
        dist.all_reduce(total, group=self.group)
        return own * self.size / total

    def _reduces(self, params: Params) -> bool:
        """Return whether DDP's reducer has these parameters and no others, in full precision."""
        data: Any = self.wrapper._get_ddp_logging_data()  # type: ignore[no-untyped-call]
        own = {id(p) for p in self.wrapper.module.parameters() if p.requires_grad}
        wide = all(p.dtype in (torch.float32, torch.float64) for p in params)
        size = sum(p.numel() * p.element_size() for p in params)
        same = own == set(map(id, params)) and data.get("num_parameter_tensors") == len(params)
        return wide and same and data.get("total_parameter_size_bytes") == size

    def any_bad(self, bad: Tensor) -> Tensor:
        flag = bad.clone()
        dist.all_reduce(flag, dist.ReduceOp.MAX, group=self.group)
        # running statistics are shared at the end of a step, not before the next pass
        self.wrapper.require_forward_param_sync = False
        return flag

    def should_skip_update(self, bad: Tensor, more: bool) -> bool:
        """Return the flag that came with the mean gradient."""
        return bool(bad)

    def any_non_finite(self, check: Tensor) -> bool:
        raise AssertionError("replicas learn of non-finite values when they average")

    def group_mean(self, params: Params, grads: Vec, weight: float, bad: Tensor) -> tuple[Vec, Tensor]:
        return (grads, bad) if self.sync_group is None else self._mean(params, grads, weight, bad, self.sync_group)

    def mean(self, params: Params, grads: Vec, weight: float, bad: Tensor) -> tuple[Vec, Tensor]:
        return self._mean(params, grads, weight, bad, self.group)

    def _mean(self, params: Params, grads: Vec, weight: float, bad: Tensor, group: Any) -> tuple[Vec, Tensor]:
        """Sum weighted gradients, weights, flags, and which gradients exist, in one message per precision."""
        device = params[0].device
        key = tuple(g is not None for g in grads)
        if key not in self._heads:  # to send it to a GPU is to wait for it
            if len(self._heads) >= _HEADS:
                self._heads.clear()
            self._heads[key] = torch.tensor([0.0, 0.0, *map(float, key)], device=device)
        head = self._heads[key].clone()
        head[:1].fill_(weight)
        head[1] = bad
        pieces: dict[torch.dtype, list[Tensor]] = {torch.float32: [head]}
        for p, g in zip(params, grads, strict=True):
            wide = torch.float64 if p.dtype == torch.float64 else torch.float32
            value = torch.zeros_like(p, dtype=wide) if g is None else g.to(wide) * weight
            pieces.setdefault(wide, []).append(value.reshape(-1))
        sums = {}
        for dtype, values in pieces.items():
            flat = torch.cat(values)
            dist.all_reduce(flat, group=group)
            sums[dtype] = list(torch.split(flat, [len(v) for v in values]))
        head = sums[torch.float32].pop(0)
        total, any_bad = head[0], (head[1] > 0).to(bad.dtype)
        # a gradient that this process has exists; to learn of the others is to wait for a GPU
        own = all(g is not None for g in grads)
        learning = self._complete < _COMPLETE
        present = head[2:].tolist() if learning or not own else [1.0] * len(grads)
        if learning and all(count == self.size for count in present):
            self._complete += 1
        means: Vec = []
        for p, count in zip(params, present, strict=True):
            value = sums[torch.float64 if p.dtype == torch.float64 else torch.float32].pop(0)
            # an optimizer may walk weights and gradients in memory order, so they have the same
            means.append(torch.empty_like(p).copy_((value / total).view(p.shape)) if count else None)
        return means, any_bad

    def processes_per_part(self, parts: int) -> list[int]:
        if self.size < parts:
            raise InputError(f"{parts} parts of the work and {self.size} process; start at least {parts}")
        return [len(range(part, self.size, parts)) for part in range(parts)]

    def share_buffers(self, net: nn.Module) -> None:
        """Take the first process's running statistics, as DDP does before each forward pass."""
        if not self.wrapper.broadcast_buffers:
            return
        first = dist.get_global_rank(self.group, 0) if self.group is not None else 0
        broadcast_buffers(net, first, self.group)


class Sharded(SingleProcess):
    """FSDP2: every process has a shard of each parameter, and backward computes shards of the mean gradient."""

    def __init__(self, net: nn.Module, params: list[nn.Parameter], sync: SyncMode):
        if sync not in (None, "global"):
            raise InputError(
                f"sync is {sync!r} on a sharded model; {NO_LOCAL_GRADIENT}: leave sync out, or use DDP"
            )
        from torch.distributed.fsdp import FSDPModule

        sharded: Any = next(p for p in params if vector.sharded(p))
        self.rank, self.size = dist.get_rank(), dist.get_world_size()
        if sharded.device_mesh.size() != self.size:
            raise InputError(
                f"the model is sharded over {sharded.device_mesh.size()} of {self.size} processes; "
                "shard it over all (a mesh with a replicate dimension is fine)"
            )
        self.device = sharded.device
        self.modules = [m for m in net.modules() if isinstance(m, FSDPModule)]
        self._loss_weight = 1.0

    def begin(self, weight: float, parts: int) -> None:
        """Exchange weights; raises InputError on all processes if one has another number of micro-batches."""
        every = torch.zeros(self.size, 2, device=self.device)
        every[self.rank] = torch.tensor([weight, float(parts)])
        dist.all_reduce(every)
        weights, counts = every.cpu().unbind(1)
        if len(set(counts.tolist())) > 1:
            raise InputError(
                f"the processes were given {[int(c) for c in counts]} micro-batches; a sharded model needs "
                "equally many on each"
            )
        self._loss_weight = weight * self.size / float(weights.sum())

    def most_parts(self, parts: int) -> int:
        most = torch.tensor(float(parts), device=self.device)
        dist.all_reduce(most, dist.ReduceOp.MAX)
        return int(most)

    def loss_weight(self) -> float:
        """Return what makes FSDP2's mean over processes the mean over samples."""
        return self._loss_weight

    def reshard(self) -> None:
        """Drop gathered copies: FSDP2 keeps the root's after a forward pass without a backward one."""
        for module in self.modules:
            module.reshard()

    def share_buffers(self, net: nn.Module) -> None:
        """Take the first process's running statistics, as replicas do."""
        broadcast_buffers(net, 0, None)

    def any_non_finite(self, check: Tensor) -> bool:
        flag = (~vector.all_finite(check)).float().reshape(1).to(self.device)
        dist.all_reduce(flag, dist.ReduceOp.MAX)
        return bool(flag)


def broadcast_buffers(net: nn.Module, first: int, group: Any) -> None:
    """Give every process of a group the running statistics of process ``first``, in a message per precision."""
    by_type: dict[torch.dtype, list[Tensor]] = {}
    for buffer in net.buffers():
        by_type.setdefault(buffer.dtype, []).append(buffer)
    for buffers in by_type.values():
        flat = torch.cat([b.detach().reshape(-1) for b in buffers])
        dist.broadcast(flat, first, group=group)
        values = torch.split(flat, [b.numel() for b in buffers])
        copy_into(buffers, [value.view(b.shape) for value, b in zip(values, buffers, strict=True)])


def reshard(net: nn.Module) -> None:
    """Drop the gathered copies of a sharded network, so that its parameters are what it reads next."""
    for module in net.modules():
        drop: Any = getattr(module, "reshard", None)
        if drop is not None:
            drop()


def gather_rows(tensors: Sequence[Tensor], size: int, group: Any) -> tuple[Tensor, ...]:
    """Return each tensor with the rows of all processes of a group."""
    device = tensors[-1].device
    counts = torch.zeros(size, dtype=torch.long, device=device)
    counts[dist.get_rank(group)] = len(tensors[0])
    dist.all_reduce(counts, group=group)
    lengths = counts.tolist()
    gathered = []
    for t in tensors:
        padded = t.new_zeros(max(lengths), *t.shape[1:], device=device)
        padded[: len(t)] = t.to(device)
        every = [torch.empty_like(padded) for _ in lengths]
        dist.all_gather(every, padded, group=group)
        gathered.append(torch.cat([rows[:n] for rows, n in zip(every, lengths, strict=True)]))
    return tuple(gathered)


# by the names of their classes, because most are not installed
_WRAPPERS = {
    "FullyShardedDataParallel": "use FSDP2, which is fully_shard (in Accelerate fsdp_version: 2)",
    "ShardedDataParallel": "use DDP or FSDP2",
    "DeepSpeedEngine": "use DDP or FSDP2",
    "DataParallel": "use DistributedDataParallel, one process for each GPU",
    "DistributedDataParallel": "wrap the whole model in torch's, and nothing in it",
}


def check_wrappers(net: nn.Module | None, params: Sequence[nn.Parameter]) -> None:
    """Raise InputError if the model is shared among devices in a way in which a gradient is not what it seems."""
    names = {
        base.__name__
        for m in (() if net is None else net.modules())
        if not _on_one_device(m)
        for base in type(m).__mro__
    }
    if any(getattr(p, "_fsdp_flattened", False) for p in params):
        names.add("FullyShardedDataParallel")
    for name in _WRAPPERS:
        if name in names:
            raise InputError(f"the model has a {name}, whose gradients a method cannot use; {_WRAPPERS[name]}")
    devices = sorted({str(p.device) for p in params})
    if len(devices) > 1:
        raise InputError(f"the parameters are on {', '.join(devices)}; put them on one device, or use FSDP2")
    if devices == ["meta"] and all(type(p) is nn.Parameter for p in params):  # subclasses may compute elsewhere
        raise InputError("the model is on the meta device and has no values; build it on another device")


def _on_one_device(module: nn.Module) -> bool:
    """Return whether this is torch's DataParallel on at most one device, where it only calls its module."""
    return isinstance(module, nn.DataParallel) and len(module.device_ids) < 2


def parallelism_of(
    net: nn.Module, wrapper: DistributedDataParallel | None, params: list[nn.Parameter], sync: SyncMode
) -> SingleProcess:
    """Return the parallelism of a model.

    Raises InputError for a ``sync`` that the model's parallelism cannot give, and what `check_wrappers` refuses.
    """
    check_wrappers(net, params)
    if any(vector.sharded(p) for p in params):
        return Sharded(net, params, sync)
    if wrapper is not None:
        return DataParallel(wrapper, sync)
    valid = sync in (None, "local", "global") or (isinstance(sync, int) and sync >= 1)
    if not valid or isinstance(sync, bool):
        raise InputError(f"sync is {sync!r}; give 'local', 'global' or how many processes share a perturbation")
    # to read a value from a GPU is to wait for it, so there one check is made per step
    return SingleProcess(checks_every_pass=params[0].device.type == "cpu")
