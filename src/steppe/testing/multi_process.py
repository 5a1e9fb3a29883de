"""Invariants of two processes: replicas (DDP) and shards (FSDP2) against one process with the whole batch."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.nn.parallel import DistributedDataParallel

from steppe.testing import fixtures, probes
from steppe.testing.context import CheckContext
from steppe.testing.result import CheckFailed, NotApplicable
from steppe.testing.single_process import busiest
from steppe.testing.subjects import OurSession, Session, Subject, SubjectOptions

STEPS, CLOSE = 5, 1e-6
EVEN, UNEVEN, WHOLE = (6, 6), (8, 4), (12,)


@dataclass(frozen=True)
class DistributedJob:
    """Training in which process r takes ``cut[r]`` samples of each batch.

    ``kind`` is 'one', 'ddp' or 'fsdp2'. The process ``bad`` meets NaN in its ``at``-th pass of all.
    """

    kind: str = "one"
    cut: tuple[int, ...] = WHOLE
    sync: str | None = None
    m: int | None = None
    norm: bool = False
    bad: int | None = None
    at: int = 0
    steps: int = STEPS


def train(rank: int, subject: Subject, job: DistributedJob) -> dict[str, Any]:
    """Do one process's part of a job, and return its weights after each step, which were skipped, its noise."""
    setup = SubjectOptions(wrap=_wrap(job.kind), sync=job.sync, m=job.m, base=fixtures.SGD)
    make = fixtures.small if job.norm else fixtures.smooth
    session = subject.start(lambda: make().append(probes.Trap()), setup)
    probes.trap_in(session.net).at = job.at if job.bad == rank else 0
    torch.manual_seed(rank)
    paths, skipped = [], []
    before = _noise(session)
    for k in range(job.steps):
        skipped.append(session.step(fixtures.cut(fixtures.batch(k), job.cut)[rank]))
        paths.append({name: _full(p) for name, p in session.net.named_parameters()})
    if job.kind != "one":
        dist.barrier()
    noisy = not torch.equal(before, _noise(session))
    remembers = isinstance(session, OurSession) and session.remembers()
    return {"paths": paths, "skipped": skipped, "noisy": noisy, "remembers": remembers}


def _wrap(kind: str) -> Callable[[nn.Module], nn.Module]:
    def replicate(net: nn.Module) -> nn.Module:
        return DistributedDataParallel(net)

    def shard(net: nn.Module) -> nn.Module:
        mesh = init_device_mesh("cpu", (dist.get_world_size(),))
        inner = next(m for name, m in net.named_modules() if name.split(".")[-1] == "1" and not list(m.children()))
        fully_shard(inner, mesh=mesh)
        fully_shard(net, mesh=mesh)
        return net

    return {"one": lambda net: net, "ddp": replicate, "fsdp2": shard}[kind]


def _full(p: Any) -> Tensor:
    whole: Tensor = p.full_tensor() if hasattr(p, "full_tensor") else p
    return whole.detach().clone()


def _noise(session: Session) -> Tensor:
    return session.noise() if isinstance(session, OurSession) else torch.zeros(())


def _agree(answers: list[dict[str, Any]]) -> None:
    """Raise Failed unless both processes have the same finite weights after every step."""
    for k, (a, b) in enumerate(zip(answers[0]["paths"], answers[1]["paths"], strict=True), 1):
        wrong = fixtures.difference(a, b)
        if wrong:
            raise CheckFailed(f"after step {k} the two processes hold different weights: {wrong}")
        if not all(bool(v.isfinite().all()) for v in a.values()):
            raise CheckFailed(f"after step {k} the weights are not finite")


def _equals(answers: list[dict[str, Any]], one: dict[str, Any], what: str) -> None:
    off = fixtures.distance(answers[0]["paths"][-1], one["paths"][-1])
    if not off <= CLOSE:
        raise CheckFailed(f"after {STEPS} steps, {what}, the weights are {off:.1e} from those of one process")


def ddp_local(subject: Subject, lab: CheckContext) -> str | None:
    """Perturb per replica: replicas stay one, and equal one process that perturbs per half batch."""
    _agree(lab.pool.run(train, subject, DistributedJob("ddp", EVEN, sync="local", norm=True)))
    answers = lab.pool.run(train, subject, DistributedJob("ddp", EVEN, sync="local"))
    _agree(answers)
    if not subject.ours:
        return "replicas agree; there is no m-sharpness in one process to compare with"
    if answers[0]["remembers"]:
        return "replicas agree; each remembers its own, so no single process does the same"
    if answers[0]["noisy"]:
        return "replicas agree; each draws its own noise, so no single process does the same"
    if subject.cost is None or subject.cost[2] != 1:
        return "replicas agree; m-sharpness in one process is defined for one update per step"
    _equals(answers, train(0, subject, DistributedJob(m=EVEN[0])), "perturbed per replica")
    return None


def ddp_global(subject: Subject, lab: CheckContext) -> None:
    """Perturb by the whole batch's gradient: equal to one process."""
    _whole(subject, lab, "ddp", "global")


def fsdp2(subject: Subject, lab: CheckContext) -> None:
    """Shard everything: equal to one process."""
    if subject.whole:
        raise NotApplicable(subject.whole)
    _whole(subject, lab, "fsdp2", None)


def _whole(subject: Subject, lab: CheckContext, kind: str, sync: str | None) -> None:
    one = train(0, subject, DistributedJob())
    # DDP itself averages over processes, not samples, so only a bound method promises uneven parts
    for cut in (EVEN, UNEVEN) if subject.ours else (EVEN,):
        answers = lab.pool.run(train, subject, DistributedJob(kind, cut, sync=sync))
        _agree(answers)
        if subject.local:
            raise NotApplicable(f"the processes agree, but are not one process: {subject.local}")
        _equals(answers, one, f"{cut[0]} and {cut[1]} samples per process")


def non_finite(subject: Subject, lab: CheckContext) -> None:
    """Let one process alone meet NaN, in every pass: both skip that step and go on together."""
    if not subject.ours:
        raise NotApplicable("an optimizer alone promises nothing for values that are not finite; see overflow")
    busy = busiest(subject, EVEN[1])
    steps = busy.step + 2
    for kind in ("ddp",) if subject.whole else ("ddp", "fsdp2"):
        for at in range(1, busy.passes + 1):
            answers = lab.pool.run(
                train, subject, DistributedJob(kind, EVEN, bad=1, at=busy.before + at, steps=steps)
            )
            where = f"NaN on one of two processes in pass {at} ({kind})"
            for rank, answer in enumerate(answers):
                if answer["skipped"] != [k == busy.step for k in range(steps)]:
                    told = [k + 1 for k, s in enumerate(answer["skipped"]) if s] or "nothing"
                    raise CheckFailed(f"{where} of step {busy.step + 1}: process {rank} reports as skipped {told}")
            _agree(answers)
            wrong = fixtures.difference(*answers[0]["paths"][busy.step - 1 : busy.step + 1])
            if wrong:
                raise CheckFailed(f"{where}: {wrong} from before the step")
