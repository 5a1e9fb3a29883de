"""What several processes train in the tests, and the pool that runs it.

In a module of its own because the processes import it by name.
"""

import atexit
import os
import tempfile
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from typing import Any
from unittest import mock

import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch import Tensor, nn
from torch.distributed.algorithms.ddp_comm_hooks.default_hooks import allreduce_hook
from torch.distributed.fsdp import FullyShardedDataParallel, fully_shard
from torch.nn.parallel import DistributedDataParallel

import steppe
from steppe.core import data_parallel
from steppe.testing.process_pool import ProcessPool


class _Kept(ProcessPool):
    """Starts its processes anew if a test has killed them."""

    def run(self, work: Callable[..., Any], *arguments: Any) -> list[Any]:
        if not all(process.is_alive() for process in self.processes):
            self.close(kill=True)
        return super().run(work, *arguments)


# two processes over gloo, started by the first test that needs them and kept until the session ends
POOL = _Kept(timeout=120)
atexit.register(POOL.close)


def together(count: int, work: Callable[..., Any], *arguments: Any) -> list[Any]:
    """Return what ``work(rank, *arguments)`` returns on each process; raise what one of them raises."""
    if count == 2:
        return POOL.run(_traced, work, *arguments)
    with tempfile.TemporaryDirectory() as folder:
        mp.spawn(_in_a_new_process, (count, folder, work, arguments), nprocs=count)
        return [torch.load(f"{folder}/{rank}", weights_only=False) for rank in range(count)]


def _in_a_new_process(rank: int, count: int, folder: str, work: Callable[..., Any], arguments: Any) -> None:
    os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo")
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/rendezvous", rank=rank, world_size=count)
    torch.save(work(rank, *arguments), f"{folder}/{rank}")
    dist.barrier()  # a process that ends while another still sends aborts that one
    dist.destroy_process_group()


def _traced(rank: int, work: Callable[..., Any], *arguments: Any) -> Any:
    """Do the work, print the traceback of what it raises, and put the environment back."""
    with mock.patch.dict(os.environ):
        try:
            return work(rank, *arguments)
        except Exception:
            traceback.print_exc()
            raise


# -- networks, data and training ---------------------------------------------------------------------------------


def smooth_net() -> nn.Sequential:
    """Return a network without BatchNorm and dropout; one layer's units are not along its first dimension."""
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(2, 4, 3), nn.Tanh(), nn.ConvTranspose2d(4, 3, 2), nn.Tanh(), nn.Flatten(), nn.Linear(75, 5)
    )


def norm_net() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(2, 4, 3), nn.BatchNorm2d(4), nn.Tanh(), nn.Flatten(), nn.Linear(64, 5))


def distributed(net: nn.Module, kind: str) -> nn.Module:
    if kind == "fsdp":
        return fully_shard(net, mesh=dist.device_mesh.init_device_mesh("cpu", (dist.get_world_size(),)))
    if kind == "compiled inside":
        return DistributedDataParallel(torch.compile(net, backend="eager"))
    options = {"bucket view": {"gradient_as_bucket_view": True}, "find unused": {"find_unused_parameters": True}}
    model = DistributedDataParallel(net, **options.get(kind, {}))
    return torch.compile(model, backend="eager") if kind == "compiled outside" else model


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
    """Return copies of weights and buffers, unsharded."""
    tensors = [*net.parameters(), *net.buffers()]
    return [(t.full_tensor() if hasattr(t, "full_tensor") else t).detach().clone() for t in tensors]


def run(spec: str, model: nn.Module, net: nn.Module, rows: slice, rho: float | None = None, **options: Any) -> Any:
    step = steppe.methods.parse(spec).bind(model, sgd(net, rho), **options)
    for k in range(5):
        step.predict(batch(k)[0][:2])  # a forward pass without a backward one must change nothing
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
def counted() -> Iterator[list[str]]:
    """Yield a list to which the names of collective operations are added as they are sent."""
    sent: list[str] = []

    def counting(name: str, operation: Callable[..., Any]) -> Callable[..., Any]:
        def send(*a: Any, **k: Any) -> Any:
            sent.append(name)
            return operation(*a, **k)

        return send

    operations = {name: counting(name, getattr(dist, name)) for name in ("all_reduce", "broadcast")}
    with mock.patch.multiple(dist, **operations):
        yield sent


def rows_of(rank: int, sizes: tuple[int, ...]) -> slice:
    start = sum(sizes[:rank])
    return slice(start, start + sizes[rank])


# -- what the processes do -------------------------------------------------------------------------------------


def replicas(rank: int, sizes: tuple[int, ...], cases: list[tuple[str, dict[str, Any]]]) -> list[list[Tensor]]:
    trained = []
    for spec, options in cases:
        net = smooth_net()
        rho = options.pop("group_rho", None)
        model = distributed(net, options.pop("wrapped", "ddp"))
        run(spec, model, net, rows_of(rank, sizes), rho, **options)
        trained.append(values(net))
    return trained


def shards(rank: int, sizes: tuple[int, ...], cases: list[tuple[str, dict[str, Any]]]) -> list[list[Tensor]]:
    """Train each case under FSDP2, with a layer that is sharded on its own."""
    trained = []
    for spec, options in cases:
        net = smooth_net()
        distributed(net[5], "fsdp")
        distributed(net, "fsdp")
        run(spec, net, net, rows_of(rank, sizes), options.pop("group_rho", None), **options)
        trained.append(values(net))
    return trained


def messages(rank: int) -> dict[str, list[str]]:
    """Return what one step of each case sends."""
    sent_by = {}
    for name, options in {
        "plain": {}, "sam": {}, "sam global": {"sync": "global"}, "sadt-v1": {}, "repeat-step": {},
    }.items():  # fmt: skip
        net = smooth_net()
        step = steppe.make(name.split()[0]).bind(distributed(net, "ddp"), sgd(net), **options)
        step(*batch(0))
        with counted() as sent:
            step(*batch(rank))
        sent_by[name] = list(sent)
    return sent_by


def overlapped(rank: int, spec: str, sizes: tuple[int, ...], options: dict[str, Any]) -> list[dict[str, Any]]:
    """Train with averages in the backward pass of the last pass, and after it; count what the last step sends.

    The host waits for nothing, as with a GPU. At last one process alone meets a value that is not finite.
    """
    results = []
    wrapped, options = options.pop("wrapped", "ddp"), dict(options)
    for overlap in (True, False):
        net = norm_net()
        optimizer = torch.optim.SGD(net.parameters(), 0.1, momentum=0.9, fused=True)
        step = steppe.parse(spec).bind(distributed(net, wrapped), optimizer, **options)
        step.runtime.on_device = True
        never = mock.patch.object(step.runtime.parallel, "share_of_mean", return_value=None)
        with mock.patch.object(data_parallel, "_COMPLETE", 2), nullcontext() if overlap else never:
            for k in range(6):
                x, y = batch(k)
                with mock.patch.object(dist, "all_reduce", wraps=dist.all_reduce) as send:
                    step(x[rows_of(rank, sizes)], y[rows_of(rank, sizes)])
            sizes_sent = [call.args[0].numel() for call in send.call_args_list]
            good = values(net)
            x, y = batch(7)
            x = x[rows_of(rank, sizes)] * (float("nan") if rank else 1.0)
            skipped = step(x, y[rows_of(rank, sizes)]).skipped
            undone = all(map(torch.equal, values(net), good))
        results.append({"values": good, "sent": sizes_sent, "skipped": skipped, "undone": undone})
    return results


class Spoiled:
    """A loss that is infinite at its n-th call on one rank."""

    def __init__(self, rank: int, at_rank: int, at_call: int):
        self.armed, self.at_call, self.calls = rank == at_rank, at_call, 0

    def __call__(self, z: Tensor, y: Tensor) -> Tensor:
        self.calls += 1
        loss = nn.functional.cross_entropy(z, y)
        return loss * float("inf") if self.armed and self.calls == self.at_call else loss


def spoiled(rank: int, kind: str, cases: list[tuple[str, int, dict[str, Any]]]) -> list[dict[str, Any]]:
    """Take two good steps, one in which only the second process has a bad value, and one more."""
    results = []
    for spec, at_call, options in cases:
        net = norm_net()
        model, optimizer = distributed(net, kind), sgd(net)
        if options.get("precision") == "fp16":
            options = {**options, "scaler": torch.amp.GradScaler("cpu", init_scale=64.0)}
        step = steppe.methods.parse(spec).bind(model, optimizer, loss=Spoiled(rank, 1, at_call), **options)
        skipped = []
        for k in range(4):
            before = values(net)
            skipped.append(step(*batch(10 * k + rank, 6)).skipped)
            if skipped[-1]:
                unchanged = all(torch.equal(a, b) for a, b in zip(before, values(net), strict=True))
        scale = step.scaler.get_scale() if step.scaler else None
        results.append({"skipped": skipped, "held": unchanged, "scale": scale, "values": values(net)})
    return results


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
    """Train while one process uses a layer that the other does not."""
    net = Sometimes()
    optimizer = torch.optim.SGD(net.parameters(), 0.1, momentum=0.9)
    step = steppe.SAM().bind(distributed(net, "ddp"), optimizer)
    sign = 1.0 if rank == 0 else -1.0
    for _ in range(3):
        step(sign * torch.ones(4, 3), torch.tensor([0, 1, 0, 0]))
    return {"values": values(net), "never": net.never.weight in optimizer.state, "same": values(Sometimes())}


def labelled(part: steppe.Batch) -> float:
    return float((part.y != -100).sum())


def partly_labelled(k: int) -> tuple[Tensor, Tensor]:
    x, y = batch(k)
    y[:k] = -100
    return x, y


def weighed(rank: int) -> dict[str, Any]:
    """Train on batches that weigh something else in each step."""
    net = smooth_net()
    step = steppe.SAM().bind(distributed(net, "ddp"), sgd(net), weigh=labelled, sync="global")
    for k in range(4):
        x, y = partly_labelled(k)
        step(x[rows_of(rank, (8, 4))], y[rows_of(rank, (8, 4))])
    return {"values": values(net), "messages": len(step.runtime.parallel._heads)}


def statistics(rank: int) -> list[Tensor]:
    net = norm_net()
    step = steppe.SAM().bind(distributed(net, "ddp"), sgd(net))
    for k in range(3):
        step(*batch(10 * k + rank, 6))
    return values(net)


def statistics_of_mean(rank: int) -> list[Tensor]:
    """Return the buffers of the mean that PCL deploys."""
    method = steppe.PCL(branches=2)
    net = method.build(lambda: nn.Sequential(norm_net()[:3], nn.BatchNorm2d(4), nn.Flatten(), nn.Linear(64, 5)))
    step = method.bind(distributed(net, "ddp"), sgd(net), steps=3)
    for k in range(3):
        step(*batch(10 * k + rank, 6))
    with step.deployed_weights():
        return [b.clone() for b in net.buffers()]


def refusals(rank: int) -> list[str]:
    """Return the errors of settings that a sharded or replicated model cannot have."""
    messages = []

    def expect_error(act: Callable[[], Any]) -> None:
        try:
            act()
            messages.append("nothing")
        except steppe.InputError as error:
            messages.append(str(error))

    net = smooth_net()
    distributed(net, "fsdp")
    expect_error(lambda: steppe.SAM().bind(net, sgd(net), sync="local"))
    expect_error(lambda: steppe.SAM().bind(net, sgd(net), m=4))
    step = steppe.SAM().bind(net, sgd(net))
    expect_error(lambda: step([batch(0, 6)] * (rank + 1)))
    copy = smooth_net()
    expect_error(lambda: steppe.SAM().bind(distributed(copy, "ddp"), sgd(copy), sync=3))
    expect_error(lambda: steppe.SAM().bind(distributed(copy, "ddp"), sgd(copy), sync="all"))
    return messages


def unsupported(rank: int) -> dict[str, str]:
    """Return the errors of models that are shared in a way that a method cannot use."""

    def flattened(net: nn.Module) -> nn.Module:
        return FullyShardedDataParallel(net, use_orig_params=True, device_id=torch.device("cpu"))

    def hooked(net: nn.Module) -> nn.Module:
        model = DistributedDataParallel(net)
        model.register_comm_hook(None, allreduce_hook)
        return model

    kinds: dict[str, Callable[[nn.Module], nn.Module]] = {
        "FSDP1": flattened,
        "FSDP1 inside": lambda net: nn.Sequential(flattened(net)),
        "DDP inside": lambda net: nn.Sequential(DistributedDataParallel(net)),
        "static graph": lambda net: DistributedDataParallel(net, static_graph=True),
        "hook": hooked,
    }
    errors = {}
    for name, wrap in kinds.items():
        model = wrap(smooth_net())
        for method in (steppe.Plain(), steppe.SAM()):
            try:
                method.bind(model, torch.optim.SGD(model.parameters(), 0.1))
            except steppe.InputError as error:
                errors[name] = str(error)
            else:
                errors.pop(name, None)
    return errors


def accumulated(rank: int, kind: str) -> list[Tensor]:
    """Train on micro-batches of unequal sizes, other ones on each process."""
    net = smooth_net()
    step = steppe.SAM(rho=0.3).bind(distributed(net, kind), sgd(net), sync="global")
    sizes = (1, 4, 2) if rank == 0 else (3, 1, 1)
    for k in range(5):
        x, y = (t[rows_of(rank, (7, 5))] for t in batch(k))
        step(list(zip(x.split(sizes), y.split(sizes), strict=True)))
    return values(net)


def halved(rank: int, alpha: float) -> dict[str, Any]:
    """Take one step of RWP by halves; return the update, and the gradient at the weights of the first pass."""
    net = smooth_net()
    weights: list[list[Tensor]] = []

    def loss(z: Tensor, y: Tensor) -> Tensor:
        weights.append([p.detach().clone() for p in net.parameters()])
        return nn.functional.cross_entropy(z, y)

    optimizer = torch.optim.SGD(net.parameters(), 1.0)
    method = steppe.RWP(alpha=alpha, gamma=0.1, halves=True)
    step = method.bind(distributed(net, "ddp"), optimizer, loss=loss)
    x, y = batch(rank, 4 + rank)
    before = values(net)
    step(x, y)
    copy = smooth_net()
    with torch.no_grad():
        for p, value in zip(copy.parameters(), weights[0], strict=True):
            p.copy_(value)
    gradient = torch.autograd.grad(nn.functional.cross_entropy(copy(x), y), list(copy.parameters()))
    moved = [a - b for a, b in zip(before, values(net), strict=True)]
    return {"values": values(net), "moved": moved, "gradient": list(gradient)}


def saf_store(rank: int) -> dict[str, int]:
    """Train SAF on a data set that is shuffled over the processes anew in each epoch; check what it stores."""
    net = smooth_net()
    x, y = batch(0, 30)
    step = steppe.SAF(past=2, start=1).bind(distributed(net, "ddp"), sgd(net))
    wrong = count = 0
    for epoch in range(4):
        order = torch.randperm(30, generator=torch.Generator().manual_seed(epoch))
        logits: dict[int, Tensor] = {}
        for start in range(0, 30, 10):
            rows = order[start : start + 10]
            with torch.no_grad():
                logits |= {int(i): z for i, z in zip(rows, net(x[rows]), strict=True)}
            mine = rows[rows_of(rank, (6, 4))]
            assert not step(steppe.Batch(x[mine], y[mine], mine)).skipped
        store = step.state
        for i, z in logits.items():
            stored = store.get_buffer("values")[i, epoch % 2]
            wrong += int(not torch.allclose(stored, z, atol=1e-5))
            wrong += int(store.get_buffer("visits")[i] != epoch + 1)
            count += 1
    return {"wrong": wrong, "seen": count}


def asynchronous(rank: int) -> dict[str, Any]:
    """Take two steps of AsyncSAM by halves; see `_second_step`."""
    return _second_step(rank, steppe.AsyncSAM(rho=0.3, halves=True))


def sampa_by_halves(rank: int) -> dict[str, Any]:
    """Take two steps of SAMPa by halves; see `_second_step`."""
    return _second_step(rank, steppe.SAMPa(rho=0.2, lam=0.3, halves=True))


def _second_step(rank: int, method: steppe.Method) -> dict[str, Any]:
    """Take two steps; return what the second one moved, where its gradient was taken, and both gradients."""
    net = smooth_net()
    gradients, weights = list[list[Tensor]](), list[list[Tensor]]()
    step = method.bind(distributed(net, "ddp"), torch.optim.SGD(net.parameters(), 1.0))
    grad = step.runtime.grad

    def recorded(*args: Any, **options: Any) -> Any:
        out, g = grad(*args, **options)
        gradients.append([t.clone() for t in g])
        weights.append(values(net))
        return out, g

    step.runtime.grad = recorded  # type: ignore[method-assign]
    x, y = batch(rank, 4 + rank)
    step(x, y)
    before = values(net)
    step(x, y)
    moved = [a - b for a, b in zip(before, values(net), strict=True)]
    offset = [b - a for a, b in zip(before, weights[1], strict=True)]
    return {"values": values(net), "moved": moved, "offset": offset, "gradients": gradients}
