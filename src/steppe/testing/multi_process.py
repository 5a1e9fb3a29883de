"""Checks with two processes: replicas (DDP) and shards (FSDP2) against one process with the whole batch."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.nn.parallel import DistributedDataParallel

from steppe.testing import fixtures, probes
from steppe.testing.context import CheckContext, check, exact_results
from steppe.testing.result import CheckFailed, NotApplicable
from steppe.testing.single_process import busiest
from steppe.testing.subjects import Subject, SubjectOptions

STEPS, TOLERANCE = 5, 1e-6
EVEN, UNEVEN, WHOLE = (6, 6), (8, 4), (12,)


@dataclass(frozen=True)
class DistributedJob:
    """Training in which process r gets ``sizes[r]`` samples of each batch.

    ``kind`` is 'one', 'ddp' or 'fsdp2'. The loss of process ``bad`` is NaN in its ``at``-th pass of all. All of
    them train on the ``device``.
    """

    kind: str = "one"
    sizes: tuple[int, ...] = WHOLE
    sync: str | None = None
    m: int | None = None
    batch_norm: bool = False
    bad: int | None = None
    at: int = 0
    steps: int = STEPS
    device: str = "cpu"


def train(rank: int, subject: Subject, job: DistributedJob) -> dict[str, Any]:
    """Do one process's part of a job; return its weights after each step, and which steps were skipped."""
    with exact_results(job.device):
        return _train(rank, subject, job)


def _train(rank: int, subject: Subject, job: DistributedJob) -> dict[str, Any]:
    wrap = _wrap(job.kind, job.device)
    options = SubjectOptions(wrap=wrap, sync=job.sync, m=job.m, base=fixtures.SGD, device=job.device)
    session = subject.start(probes.trapped(fixtures.small if job.batch_norm else fixtures.smooth), options)
    probes.trap_in(session.net).at = job.at if job.bad == rank else 0
    torch.manual_seed(rank)
    path, skipped = [], []
    noise = session.noise()
    for k in range(job.steps):
        skipped.append(session.step(fixtures.split(fixtures.batch(k), job.sizes)[rank]))
        path.append({name: _full(p) for name, p in session.net.named_parameters()})
    if job.kind != "one":
        dist.barrier()
    noisy = not torch.equal(noise, session.noise())
    return {"path": path, "skipped": skipped, "noisy": noisy, "has state": session.has_state()}


def _wrap(kind: str, device: str) -> Callable[[nn.Module], nn.Module]:
    def replicate(net: nn.Module) -> nn.Module:
        return DistributedDataParallel(net)

    def shard(net: nn.Module) -> nn.Module:
        mesh = init_device_mesh(device, (dist.get_world_size(),))
        inner = next(m for name, m in net.named_modules() if name.split(".")[-1] == "1" and not list(m.children()))
        fully_shard(inner, mesh=mesh)
        fully_shard(net, mesh=mesh)
        return net

    return {"one": lambda net: net, "ddp": replicate, "fsdp2": shard}[kind]


def _full(p: Any) -> Tensor:
    whole: Tensor = p.full_tensor() if hasattr(p, "full_tensor") else p
    return whole.detach().cpu().clone()


def _check_equal(results: list[dict[str, Any]]) -> None:
    """Raise CheckFailed unless both processes have the same finite weights after every step."""
    for k, (a, b) in enumerate(zip(results[0]["path"], results[1]["path"], strict=True), 1):
        wrong = fixtures.difference(a, b)
        if wrong:
            raise CheckFailed(f"after step {k} the two processes hold different weights: {wrong}")
        if not all(bool(v.isfinite().all()) for v in a.values()):
            raise CheckFailed(f"after step {k} the weights are not finite")


def _compare_with_one(results: list[dict[str, Any]], one: dict[str, Any], what: str) -> None:
    error = fixtures.distance(results[0]["path"][-1], one["path"][-1])
    if not error <= TOLERANCE:
        raise CheckFailed(f"after {STEPS} steps, {what}, the weights are {error:.1e} from those of one process")


@check("ddp-local", "Replicas diverge, or the perturbation is not each process's own.")
def ddp_local(subject: Subject, context: CheckContext) -> str | None:
    """With DDP and perturbations per process, two processes equal one that perturbs per half batch, to 1e-6."""
    job = DistributedJob("ddp", EVEN, sync="local", device=context.pool_device)
    _check_equal(context.pool.run(train, subject, replace(job, batch_norm=True)))
    results = context.pool.run(train, subject, job)
    _check_equal(results)
    if not subject.ours:
        return "replicas agree; there is no m-sharpness in one process to compare with"
    if results[0]["has state"]:
        return "replicas agree; each has its own state, so no single process does the same"
    if results[0]["noisy"]:
        return "replicas agree; each draws its own noise, so no single process does the same"
    if subject.cost is None or subject.cost[2] != 1:
        return "replicas agree; m-sharpness in one process is defined for one update per step"
    _compare_with_one(
        results, train(0, subject, DistributedJob(m=EVEN[0], device=job.device)), "perturbed per replica"
    )
    return None


@check("ddp-global", "The result depends on the number of processes.")
def ddp_global(subject: Subject, context: CheckContext) -> None:
    """With DDP and a common perturbation, two processes equal one process with the whole batch, to 1e-6."""
    _compare_whole_batch(subject, context, "ddp", "global")


@check("fsdp2", "The method cannot train a sharded model, or trains it wrongly.")
def fsdp2(subject: Subject, context: CheckContext) -> None:
    """With fully_shard, two processes equal one process with the whole batch, to 1e-6."""
    if subject.whole:
        raise NotApplicable(subject.whole)
    _compare_whole_batch(subject, context, "fsdp2", None)


def _compare_whole_batch(subject: Subject, context: CheckContext, kind: str, sync: str | None) -> None:
    one = train(0, subject, DistributedJob(device=context.pool_device))
    # DDP itself averages over processes, not samples, so only a bound method promises uneven parts
    for sizes in (EVEN, UNEVEN) if subject.ours else (EVEN,):
        results = context.pool.run(
            train, subject, DistributedJob(kind, sizes, sync=sync, device=context.pool_device)
        )
        _check_equal(results)
        if subject.local:
            raise NotApplicable(f"the processes agree, but are not one process: {subject.local}")
        _compare_with_one(results, one, f"{sizes[0]} and {sizes[1]} samples per process")


@check("one-rank", "Processes wait for each other forever, or continue with different weights.")
def non_finite(subject: Subject, context: CheckContext) -> None:
    """If one process alone meets inf or NaN, in any pass, all skip that step and continue (DDP and FSDP2)."""
    if not subject.ours:
        raise NotApplicable("an optimizer alone promises nothing for values that are not finite; see overflow")
    busy = busiest(subject, context, EVEN[1])
    steps = busy.step + 2
    for kind in ("ddp",) if subject.whole else ("ddp", "fsdp2"):
        for at in range(1, busy.passes + 1):
            job = DistributedJob(kind, EVEN, bad=1, at=busy.before + at, steps=steps, batch_norm=True)
            job = replace(job, device=context.pool_device)
            results = context.pool.run(train, subject, job)
            where = f"NaN on one of two processes in pass {at} ({kind})"
            for rank, result in enumerate(results):
                if result["skipped"] != [k == busy.step for k in range(steps)]:
                    reported = [k + 1 for k, skip in enumerate(result["skipped"]) if skip] or "nothing"
                    raise CheckFailed(
                        f"{where} of step {busy.step + 1}: process {rank} reports as skipped {reported}"
                    )
            _check_equal(results)
            wrong = fixtures.difference(*results[0]["path"][busy.step - 1 : busy.step + 1])
            if wrong:
                raise CheckFailed(f"{where}: {wrong} from before the step")
