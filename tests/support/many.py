"""Run a function on several processes of this machine that train together over gloo.

In a module of its own because each process imports it by name.
"""

from __future__ import annotations

import os
import pickle
import socket
import traceback
from collections.abc import Callable
from contextlib import contextmanager
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch import Tensor, nn
from torch.distributed.fsdp import fully_shard
from torch.nn.parallel import DistributedDataParallel

import steppe

PATIENCE = 120


def together(count: int, work: Callable[..., Any], *arguments: Any) -> list[Any]:
    """Return what ``work(rank, *arguments)`` returned on each process; raise what one of them raised."""
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        port = s.getsockname()[1]
    context = mp.get_context("spawn")
    queue = context.Queue()
    started = [
        context.Process(target=_enter, args=(rank, count, port, queue, work, arguments), daemon=True)
        for rank in range(count)
    ]
    for process in started:
        process.start()
    try:
        arrived = dict(queue.get(timeout=PATIENCE) for _ in started)
        answers = {rank: pickle.loads(content) for rank, content in arrived.items()}
    finally:
        for process in started:
            process.join(10)
            process.kill()
    errors = [a for a in answers.values() if isinstance(a, str) and a.startswith("Traceback")]
    assert not errors, errors[0]
    return [answers[rank] for rank in range(count)]


def _enter(rank: int, count: int, port: int, queue: Any, work: Callable[..., Any], arguments: Any) -> None:
    os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port))
    torch.set_num_threads(1)
    dist.init_process_group("gloo", rank=rank, world_size=count, timeout=timedelta(seconds=60))
    try:
        queue.put((rank, pickle.dumps(work(rank, *arguments))))  # torch would share memory that dies with us
        dist.barrier()  # one that leaves early makes the others' shutdown abort
        dist.destroy_process_group()
    except Exception:
        queue.put((rank, pickle.dumps(traceback.format_exc())))


# -- what the tests train --------------------------------------------------------------------------------------


def smooth_net() -> nn.Sequential:
    """No BatchNorm and no dropout, and a layer whose units are not along its first dimension."""
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(2, 4, 3), nn.Tanh(), nn.ConvTranspose2d(4, 3, 2), nn.Tanh(), nn.Flatten(), nn.Linear(75, 5)
    )


def batch(k: int, count: int = 12) -> tuple[Tensor, Tensor]:
    g = torch.Generator().manual_seed(k)
    return torch.randn(count, 2, 6, 6, generator=g), torch.randint(0, 5, (count,), generator=g)


def sgd(net: nn.Module, rho: float | None = None) -> torch.optim.Optimizer:
    params = list(net.parameters())
    groups: list[dict[str, Any]] = [{"params": params[:2]}, {"params": params[2:]}]
    if rho is not None:
        groups[0]["rho"] = rho
    return torch.optim.SGD(groups, 0.1, momentum=0.9, weight_decay=1e-2)


def values(net: nn.Module) -> list[Tensor]:
    """Return weights and buffers, whole."""
    found = [*net.parameters(), *net.buffers()]
    return [(t.full_tensor() if hasattr(t, "full_tensor") else t).detach().clone() for t in found]


def run(spec: str, model: nn.Module, net: nn.Module, rows: slice, rho: float | None = None, **options: Any) -> Any:
    step = steppe.methods.parse(spec).bind(model, sgd(net, rho), **options)
    for k in range(5):
        step.predict(batch(k)[0][:2])  # a pass without a backward one in between must change nothing
        x, y = batch(k)
        assert not step(x[rows], y[rows]).skipped
    return step


def alone(spec: str, rho: float | None = None, **options: Any) -> list[Tensor]:
    net = smooth_net()
    run(spec, net, net, slice(None), rho, **options)
    return values(net)


def farthest(a: list[Tensor], b: list[Tensor]) -> float:
    return max(float((s - t).detach().abs().max()) for s, t in zip(a, b, strict=True))


@contextmanager
def counted() -> Any:
    """Count collective messages."""
    sent: list[str] = []
    originals = {name: getattr(dist, name) for name in ("all_reduce", "broadcast")}

    def counting(name: str) -> Any:
        def send(*a: Any, **k: Any) -> Any:
            sent.append(name)
            return originals[name](*a, **k)

        return send

    for name in originals:
        setattr(dist, name, counting(name))
    try:
        yield sent
    finally:
        for name, original in originals.items():
            setattr(dist, name, original)


def rows_of(rank: int, sizes: tuple[int, ...]) -> slice:
    start = sum(sizes[:rank])
    return slice(start, start + sizes[rank])


# -- what the processes do -------------------------------------------------------------------------------------


def replicas(rank: int, sizes: tuple[int, ...], cases: list[tuple[str, dict[str, Any]]]) -> list[list[Tensor]]:
    """Train each case under DDP."""
    found = []
    for spec, options in cases:
        net = smooth_net()
        rho = options.pop("group_rho", None)
        model: nn.Module = DistributedDataParallel(net)
        wrapped = options.pop("wrapped", None)
        if wrapped == "compiled outside":
            model = torch.compile(model, backend="eager")
        elif wrapped == "compiled inside":
            model = DistributedDataParallel(torch.compile(net, backend="eager"))
        run(spec, model, net, rows_of(rank, sizes), rho, **options)
        found.append(values(net))
    return found


def shards(rank: int, sizes: tuple[int, ...], cases: list[tuple[str, dict[str, Any]]]) -> list[list[Tensor]]:
    """Train each case under FSDP2, with a layer that is sharded on its own."""
    mesh = dist.device_mesh.init_device_mesh("cpu", (len(sizes),))
    found = []
    for spec, options in cases:
        net = smooth_net()
        fully_shard(net[5], mesh=mesh)
        fully_shard(net, mesh=mesh)
        run(spec, net, net, rows_of(rank, sizes), options.pop("group_rho", None), **options)
        found.append(values(net))
    return found


def messages(rank: int) -> dict[str, list[str]]:
    """Return what one step of each case sends."""
    found = {}
    for name, options in {
        "plain": {}, "sam": {}, "sam global": {"sync": "global"}, "sadt-v1": {}, "repeat-step": {},
    }.items():  # fmt: skip
        net = smooth_net()
        step = steppe.make(name.split()[0]).bind(DistributedDataParallel(net), sgd(net), **options)
        step(*batch(0))
        with counted() as sent:
            step(*batch(rank))
        found[name] = list(sent)
    return found


class Spoiled:
    """A loss that is not finite at its n-th call on one rank."""

    def __init__(self, rank: int, at_rank: int, at_call: int):
        self.armed, self.at_call, self.calls = rank == at_rank, at_call, 0

    def __call__(self, z: Tensor, y: Tensor) -> Tensor:
        self.calls += 1
        loss = nn.functional.cross_entropy(z, y)
        return loss * float("inf") if self.armed and self.calls == self.at_call else loss


def spoiled(rank: int, kind: str, cases: list[tuple[str, int, dict[str, Any]]]) -> list[dict[str, Any]]:
    """Take two good steps, one in which only the second process has a bad value, and one more."""
    found = []
    for spec, at_call, options in cases:
        torch.manual_seed(0)
        net = nn.Sequential(nn.Conv2d(2, 4, 3), nn.BatchNorm2d(4), nn.Tanh(), nn.Flatten(), nn.Linear(64, 5))
        if kind == "ddp":
            model: nn.Module = DistributedDataParallel(net)
        else:
            model = fully_shard(net, mesh=dist.device_mesh.init_device_mesh("cpu", (2,)))
        optimizer = sgd(net)
        loss = Spoiled(rank, 1, at_call)
        if options.get("precision") == "fp16":
            options = {**options, "scaler": torch.amp.GradScaler("cpu", init_scale=64.0)}
        step = steppe.methods.parse(spec).bind(model, optimizer, loss=loss, **options)
        skipped = []
        for k in range(4):
            x, y = batch(10 * k + rank, 6)
            before = values(net)
            skipped.append(step(x, y).skipped)
            if skipped[-1]:
                held = all(torch.equal(a, b) for a, b in zip(before, values(net), strict=True))
        scale = step.scaler.get_scale() if step.scaler else None
        moments = len(optimizer.state)
        found.append({"skipped": skipped, "held": held, "scale": scale, "moments": moments, "values": values(net)})
    return found


class Sometimes(nn.Module):
    """Uses one layer for positive inputs only, and one never."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.always, self.sometimes, self.never = nn.Linear(3, 2), nn.Linear(3, 2), nn.Linear(3, 2)

    def forward(self, x: Tensor) -> Tensor:
        z: Tensor = self.always(x)
        return z + self.sometimes(x) if float(x.sum()) > 0 else z


def unused(rank: int) -> dict[str, Any]:
    """One process uses a layer that the other does not."""
    net = Sometimes()
    optimizer = torch.optim.SGD(net.parameters(), 0.1, momentum=0.9)
    step = steppe.SAM().bind(DistributedDataParallel(net), optimizer)
    sign = 1.0 if rank == 0 else -1.0
    for _ in range(3):
        step(sign * torch.ones(4, 3), torch.tensor([0, 1, 0, 0]))
    return {"values": values(net), "never": net.never.weight in optimizer.state, "same": values(Sometimes())}


def statistics(rank: int) -> list[Tensor]:
    """Return running statistics after steps on different images."""
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(2, 4, 3), nn.BatchNorm2d(4), nn.Flatten(), nn.Linear(64, 5))
    step = steppe.SAM().bind(DistributedDataParallel(net), sgd(net))
    for k in range(3):
        step(*batch(10 * k + rank, 6))
    return values(net)


def refusals(rank: int) -> list[str]:
    """Return what is said to settings that a sharded or replicated model cannot have."""
    said = []

    def told(act: Callable[[], Any]) -> None:
        try:
            act()
            said.append("nothing")
        except steppe.InputError as error:
            said.append(str(error))

    net = smooth_net()
    fully_shard(net, mesh=dist.device_mesh.init_device_mesh("cpu", (2,)))
    told(lambda: steppe.SAM().bind(net, sgd(net), sync="local"))
    told(lambda: steppe.SAM().bind(net, sgd(net), m=4))
    step = steppe.SAM().bind(net, sgd(net))
    told(lambda: step([batch(0, 6)] * (rank + 1)))
    copy = smooth_net()
    told(lambda: steppe.SAM().bind(DistributedDataParallel(copy), sgd(copy), sync=3))
    told(lambda: steppe.SAM().bind(DistributedDataParallel(copy), sgd(copy), sync="all"))
    return said


def accumulated(rank: int, kind: str) -> list[Tensor]:
    """Train on micro-batches of unequal sizes, other ones on each process."""
    net = smooth_net()
    if kind == "ddp":
        model: nn.Module = DistributedDataParallel(net)
    else:
        model = fully_shard(net, mesh=dist.device_mesh.init_device_mesh("cpu", (2,)))
    step = steppe.SAM(rho=0.3).bind(model, sgd(net), sync="global")
    sizes = (1, 4, 2) if rank == 0 else (3, 1, 1)
    for k in range(5):
        x, y = (t[rows_of(rank, (7, 5))] for t in batch(k))
        step(list(zip(x.split(sizes), y.split(sizes), strict=True)))
    return values(net)


def halved(rank: int, alpha: float) -> dict[str, Any]:
    """Take one step of RWP by halves; return what moved, and this process's own gradient where it looked."""
    net = smooth_net()
    seen: list[list[Tensor]] = []

    def loss(z: Tensor, y: Tensor) -> Tensor:
        seen.append([p.detach().clone() for p in net.parameters()])
        return nn.functional.cross_entropy(z, y)

    optimizer = torch.optim.SGD(net.parameters(), 1.0)
    method = steppe.RWP(alpha=alpha, gamma=0.1, halves=True)
    step = method.bind(DistributedDataParallel(net), optimizer, loss=loss)
    x, y = batch(rank, 4 + rank)
    before = values(net)
    step(x, y)
    copy = smooth_net()
    with torch.no_grad():
        for p, there in zip(copy.parameters(), seen[0], strict=True):
            p.copy_(there)
    gradient = torch.autograd.grad(nn.functional.cross_entropy(copy(x), y), list(copy.parameters()))
    moved = [a - b for a, b in zip(before, values(net), strict=True)]
    return {"values": values(net), "moved": moved, "gradient": list(gradient)}


def saf_store(rank: int) -> dict[str, int]:
    """Train SAF on a data set that is shuffled over the processes anew in each epoch; check what it keeps."""
    net = smooth_net()
    x, y = batch(0, 30)
    step = steppe.SAF(past=2, start=1).bind(DistributedDataParallel(net), sgd(net))
    wrong = seen = 0
    for epoch in range(4):
        order = torch.randperm(30, generator=torch.Generator().manual_seed(epoch))
        said: dict[int, Tensor] = {}
        for start in range(0, 30, 10):
            rows = order[start : start + 10]
            with torch.no_grad():
                said |= {int(i): z for i, z in zip(rows, net(x[rows]), strict=True)}
            mine = rows[rows_of(rank, (6, 4))]
            assert not step(steppe.Batch(x[mine], y[mine], mine)).skipped
        store = step.state
        for i, z in said.items():
            kept = store.get_buffer("values")[i, epoch % 2]
            wrong += int(not torch.allclose(kept, z, atol=1e-5)) + int(store.get_buffer("visits")[i] != epoch + 1)
            seen += 1
    return {"wrong": wrong, "seen": seen}
