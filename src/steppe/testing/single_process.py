"""Invariants of one process in full precision: reductions, restored weights, statistics, streams, resume."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass, replace
from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from steppe.testing import fixtures, probes
from steppe.testing.context import CheckContext
from steppe.testing.fixtures import BaseOptimizer, Make
from steppe.testing.oracles.harness import DECAY, LR, MOMENTUM, Reference
from steppe.testing.result import CheckFailed, NotApplicable
from steppe.testing.subjects import OurSession, Session, Subject, SubjectOptions

STEPS = 7  # enough to meet what happens every few steps


def reduces(subject: Subject, lab: CheckContext) -> None:
    """Compare with the loop that everybody writes, at the limit, bit for bit."""
    limited = subject.at_limit()
    # what BatchNorm and dropout see in a second pass are checks of their own
    make: Make = fixtures.small if subject.ours else fixtures.smooth
    for base in (fixtures.NESTEROV, fixtures.ADAM):
        session = limited.start(make, SubjectOptions(base=base))
        torch.manual_seed(7)
        for k in range(5):
            session.step(fixtures.batch(k))
        wrong = fixtures.difference(_traces(session.net, session.optimizer), _handwritten(make, base))
        if wrong:
            raise CheckFailed(f"at its limit, after 5 steps with {_called(base)}: {wrong} from plain training")


def _handwritten(make: Make, base: BaseOptimizer) -> dict[str, Tensor]:
    net = make()
    optimizer = base.make(net.parameters())
    torch.manual_seed(7)
    for k in range(5):
        x, y = fixtures.data(k)
        optimizer.zero_grad()
        F.cross_entropy(net(x), y).backward()  # type: ignore[no-untyped-call]
        optimizer.step()
    return _traces(net, optimizer)


def _called(base: BaseOptimizer) -> str:
    return getattr(base.kind, "__name__", "its optimizer")


def _traces(net: nn.Module, optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    everything = {**fixtures.weights(net), **fixtures.buffers(net), **fixtures.memory(optimizer)}
    return {**everything, "the random stream": torch.get_rng_state()}


def reference(subject: Subject, lab: CheckContext) -> None:
    """Make two steps in float64 beside the restatement."""
    restated, given = subject.reference()
    base = BaseOptimizer(torch.optim.SGD, {"lr": LR, "momentum": MOMENTUM, "weight_decay": DECAY})
    session = subject.start(
        lambda: fixtures.small(dtype=torch.float64, dropout=0.0), SubjectOptions(base=base, seed=11)
    )
    by_hand = Reference(given, session.net)
    if isinstance(session, OurSession):
        by_hand.noise.set_state(session.noise())
    for k in range(2):
        session.step(fixtures.batch(k, dtype=torch.float64))
        restated(by_hand, *fixtures.data(k, dtype=torch.float64))
    for key, p in session.net.named_parameters():
        off = (p - by_hand.w[key]).abs().max().item()
        if not off <= 1e-9:
            raise CheckFailed(f"after 2 steps in float64, {key} is {off:.1e} from its equation (tolerance 1e-9)")


def passes(subject: Subject, lab: CheckContext) -> None:
    """Count every layer's passes by hooks, step by step; compare with what is declared and what was counted."""
    session = subject.start(fixtures.small, SubjectOptions())
    # what a method finds out about the network once is not a step's cost
    session.step(fixtures.batch(0))
    seen = (0.0, 0.0, 0)
    for k in range(1, STEPS):
        before = _counted(session)
        with probes.counting(session.networks(), session.optimizer, 12) as calls:
            session.step(fixtures.batch(k))
        layers = (_over_peers(calls.forward), _over_peers(calls.backward), {"": float(calls.updates)})
        most = [round(max(made.values()), 6) for made in layers]
        seen = (max(seen[0], most[0]), max(seen[1], most[1]), max(seen[2], int(most[2])))
        for name, made, now, then in zip(_KINDS, layers, _counted(session), before, strict=True):
            least, largest = min(made.values()), max(made.values())
            if isinstance(session, OurSession) and not least - 1e-6 <= now - then <= largest + 1e-6:
                raise CheckFailed(
                    f"counts {now - then:g} {name} in a step while layers see {least:g} to {largest:g}"
                )
    if subject.cost is None:
        raise NotApplicable(f"declares no cost; counted {_text(seen)} per step")
    if any(abs(a - b) > 1e-6 for a, b in zip(subject.cost, seen, strict=True)):
        raise CheckFailed(f"declares {_text(subject.cost)} per step and makes {_text(seen)}")


_KINDS = ("forward", "backward", "updates")


def _over_peers(made: Mapping[str, float]) -> dict[str, float]:
    """Return the passes of each layer; those of the same layer in peers of one model count together."""
    total: dict[str, float] = defaultdict(float)
    for name, count in made.items():
        total[re.sub(r"(^|\.)(networks|branches)\.\d+\.", r"\1\2.", name)] += count
    return total


def _counted(session: Session) -> tuple[float, float, int]:
    if not isinstance(session, OurSession):
        return (0.0, 0.0, 0)
    made = session.bound.passes
    return made.forward, made.backward, made.updates


def _text(cost: tuple[float, float, float]) -> str:
    return f"{cost[0]:g} forward, {cost[1]:g} backward, {cost[2]:g} updates"


def restored(subject: Subject, lab: CheckContext) -> None:
    """Make steps at learning rate zero: every weight must be what and where it was."""
    session = subject.start(fixtures.Awkward, SubjectOptions(base=fixtures.STILL))
    before = fixtures.weights(session.net)
    places = {k: p.data_ptr() for k, p in session.net.named_parameters()}
    for k in range(3):
        session.step(fixtures.batch(k))
    wrong = fixtures.difference(fixtures.weights(session.net), before)
    if wrong:
        raise CheckFailed(f"after 3 steps at learning rate 0, {wrong}")
    moved = [k for k, p in session.net.named_parameters() if p.data_ptr() != places[k]]
    if moved:
        raise CheckFailed(
            f"{len(moved)} of {len(places)} weights lie in other memory after a step, {moved[0]} first"
        )


def exception(subject: Subject, lab: CheckContext) -> None:
    """Raise in every pass, forward and backward; what was before the step must be there again."""
    busy = busiest(subject)
    for kind in ("forward", "backward"):
        for at in range(1, busy.passes + 1):
            session = subject.start(
                lambda: fixtures.small().append(probes.Trap()), SubjectOptions(base=fixtures.ADAM)
            )
            for k in range(busy.step):
                session.step(fixtures.batch(k))
            before = _kept(session, subject.ours)
            trap = probes.trap_in(session.net)
            trap.kind, trap.at = kind, trap.calls + at
            try:
                session.step(fixtures.batch(busy.step))
            except probes.Trapped:
                pass
            else:
                if trap.sprung:
                    raise CheckFailed(f"an exception in pass {at} ({kind}) was swallowed")
                continue  # a pass without a backward one
            wrong = fixtures.difference(_kept(session, subject.ours), before)
            if wrong:
                raise CheckFailed(f"after an exception in pass {at} ({kind}), {wrong} from before the step")
            session.step(fixtures.batch(busy.step + 1))
            if not fixtures.difference(fixtures.weights(session.net), _weights(before, session)):
                raise CheckFailed(f"after an exception in pass {at} ({kind}), the next step does nothing")


@dataclass(frozen=True)
class Busiest:
    """The ``step`` (from 0, not the first) of most ``passes``, with ``before`` passes in the steps before it."""

    step: int
    passes: int
    before: int


def busiest(subject: Subject, count: int = 12) -> Busiest:
    """Return which of a few steps on ``count`` samples has most passes: some methods' steps differ."""
    session = subject.start(lambda: fixtures.small().append(probes.Trap()), SubjectOptions())
    trap, counts = probes.trap_in(session.net), [0]
    for k in range(STEPS):
        session.step(fixtures.batch(k, count))
        counts.append(trap.calls)
    made = [b - a for a, b in pairwise(counts)]
    step = max(range(1, len(made)), key=lambda k: made[k])
    return Busiest(step, made[step], counts[step])


def _kept(session: Session, all_of_it: bool) -> dict[str, Tensor]:
    """Return what must survive; a plain loop, too, loses its running statistics to an exception."""
    kept = fixtures.weights(session.net)
    return {**kept, **fixtures.buffers(session.net), **fixtures.memory(session.optimizer)} if all_of_it else kept


def _weights(kept: dict[str, Tensor], session: Session) -> dict[str, Tensor]:
    return {k: kept[k] for k, _ in session.net.named_parameters()}


def batch_norm(subject: Subject, lab: CheckContext) -> None:
    """Compare running statistics with those of plain training after one step, and count over three."""
    if subject.mixes:
        raise NotApplicable(subject.mixes)
    plain = subject.build(fixtures.small)
    torch.manual_seed(7)
    plain(fixtures.data(0)[0])
    expected = fixtures.buffers(plain)
    session = subject.start(fixtures.small, SubjectOptions())
    torch.manual_seed(7)
    with probes.norms(session.net) as calls:
        session.step(fixtures.batch(0))
    ours = fixtures.buffers(session.net)
    for key, value in ours.items():
        if "num_batches" in key and int(value) == len(calls) > 1 and sum(n for n, _ in calls) == 12:
            raise NotApplicable(f"sees the batch in {len(calls)} parts, and counts each as micro-batches count")
        if "num_batches" in key and int(value) != 1:
            raise CheckFailed(f"{key} is {int(value)} after one step")
    if fixtures.difference(ours, expected):
        # a method without a clean pass takes the statistics of its first one
        clean = any(fixtures.distance(call, {k: expected[k] for k in call}) < 1e-6 for _, call in calls)
        wanted = {k: v for k, v in expected.items() if "running" in k} if clean else calls[0][1]
        wrong = fixtures.distance(wanted, {k: ours[k] for k in wanted})
        if wrong > 1e-6:
            raise CheckFailed(f"running statistics are {wrong:.1e} from those of the clean pass")
    session.step(fixtures.batch(1))
    session.step(fixtures.batch(2))
    count = next(int(v) for k, v in fixtures.buffers(session.net).items() if "num_batches" in k)
    if count != 3:
        raise CheckFailed(f"num_batches_tracked is {count} after 3 steps")


def random_stream(subject: Subject, lab: CheckContext) -> None:
    """Make two steps; the global stream must stand where two plain forward passes leave it."""
    ends = []
    for who in (subject, None):
        session = who.start(fixtures.small, SubjectOptions()) if who else None
        net = subject.build(fixtures.small)
        torch.manual_seed(7)
        for k in range(2):
            if session:
                session.step(fixtures.batch(k))
            else:
                net(fixtures.data(k)[0])
        ends.append(torch.get_rng_state())
    if not torch.equal(*ends):
        raise CheckFailed("the global random stream stands elsewhere than after plain training")


def accumulation(subject: Subject, lab: CheckContext) -> None:
    """Give a batch whole and in parts, in float64, without BatchNorm and dropout."""
    sizes = [(4, 4, 4), (5, 5, 2)] if subject.ours else [(4, 4, 4)]
    ends = []
    for size in [(12,), *sizes]:
        session = subject.start(lambda: fixtures.smooth(dtype=torch.float64), SubjectOptions())
        for k in range(3):
            session.step(*fixtures.cut(fixtures.batch(k, dtype=torch.float64), size))
        ends.append((size, fixtures.weights(session.net)))
    for size, end in ends[1:]:
        off = fixtures.distance(ends[0][1], end)
        if off > 1e-9 and subject.local:
            raise NotApplicable(f"parts of a batch are not the whole: {subject.local}")
        if off > 1e-9:
            raise CheckFailed(f"after 3 steps, micro-batches of {size} end {off:.1e} from the whole batch")


def masks(subject: Subject, lab: CheckContext) -> None:
    """Look at the dropout masks of each micro-batch in each pass: replayed as in a whole batch, or fresh."""
    whole = _masks(subject, 1)
    if len(whole) == 1:
        raise NotApplicable("makes one pass")
    parts = _masks(subject, 3)
    if len(parts) != len(whole):
        raise CheckFailed(f"makes {len(parts)} passes over 3 micro-batches and {len(whole)} over the whole batch")
    replays = [torch.equal(whole[0][0], later[0]) for later in whole[1:]]
    for number, (replay, later) in enumerate(zip(replays, parts[1:], strict=True), 2):
        same = [torch.equal(a, b) for a, b in zip(parts[0], later, strict=True)]
        if replay and not all(same):
            raise CheckFailed(
                f"pass {number} gives {same.count(False)} of 3 micro-batches other masks than pass 1"
            )
        if not replay and any(torch.equal(a, b) for a in parts[0] for b in later):
            raise CheckFailed(f"pass {number} draws fresh masks and repeats some of pass 1 with micro-batches")
    for each in parts:
        if any(torch.equal(a, b) for a, b in pairwise(each)):
            raise CheckFailed("several micro-batches of one pass get the same masks")


def _masks(subject: Subject, count: int) -> list[list[Tensor]]:
    """Return the masks of one step, by pass and micro-batch, whatever order a pass takes them in."""
    session = subject.start(lambda: fixtures.smooth(dropout=0.5), SubjectOptions())
    for k in range(busiest(subject).step):
        session.step(fixtures.batch(k))
    torch.manual_seed(7)
    with probes.masks(session.net) as found:
        session.step(*fixtures.cut(fixtures.batch(9), [12 // count] * count))
    calls = [found[i : i + count] for i in range(0, len(found), count)]
    return [[_mask_of(x, later) for x, _ in calls[0]] for later in calls]


def _mask_of(x: Tensor, calls: list[tuple[Tensor, Tensor]]) -> Tensor:
    for given, mask in calls:
        if torch.equal(given, x):
            return mask
    raise NotApplicable("its passes see different samples")


def clip(subject: Subject, lab: CheckContext) -> None:
    """Compare perturbations and the optimizer's gradients with and without a clipping threshold."""
    free = _watched(subject, None)
    norm = _norm(free.given[0])
    for most in (0.5 * norm, 2 * norm):
        held = _watched(subject, most)
        for a, b in zip(free.moves, held.moves, strict=True):
            if abs(a - b) > 1e-5 * max(a, b):
                raise CheckFailed(
                    f"clipped at {most:.2g}, a perturbation of length {a:.2g} is {b:.2g}: clipped too"
                )
        factor = min(1.0, most / (norm + 1e-6))
        expected = {k: g * factor for k, g in free.given[0].items()}
        off = fixtures.distance(expected, held.given[0])
        if off > 1e-5 * norm:
            raise CheckFailed(f"clipped at {most:.2g}, the optimizer's gradient is {off:.1e} from the clipped one")
        largest = max(map(_norm, held.given))
        if largest > most * (1 + 1e-5):
            raise CheckFailed(f"clipped at {most:.2g}, an update was made with a gradient of norm {largest:.2g}")


def _watched(subject: Subject, most: float | None) -> probes.Seen:
    session = subject.start(fixtures.smooth, SubjectOptions(clip=most))
    with probes.watching(session.net, session.optimizer) as seen:
        session.step(fixtures.batch(0))
    return seen


def _norm(grads: dict[str, Tensor]) -> float:
    return float(torch.stack([g.double().square().sum() for g in grads.values()]).sum().sqrt())


def resume(subject: Subject, lab: CheckContext) -> None:
    """Save after three steps, go on with everything made anew, and end where the undisturbed run ends."""
    precisions = ["fp32", "fp16"] if subject.ours else ["fp32"]
    for precision in precisions:
        setup = SubjectOptions(base=fixtures.ADAM, precision=precision, scale=2.0**8)
        session = subject.start(fixtures.small, setup)
        torch.manual_seed(7)
        for k in range(3):
            session.step(fixtures.batch(k))
        saved = session.save()
        for k in range(3, 6):
            session.step(fixtures.batch(k))
        end = _traces(session.net, session.optimizer)
        other = subject.fresh().start(lambda: fixtures.small(99), replace(setup, seed=99, scale=4.0))
        other.load(saved)
        for k in range(3, 6):
            other.step(fixtures.batch(k))
        wrong = fixtures.difference(end, _traces(other.net, other.optimizer))
        if wrong:
            raise CheckFailed(
                f"saved after 3 steps of {precision} and resumed for 3: {wrong} from the undisturbed run"
            )
        if session.scale() != other.scale():
            raise CheckFailed(f"the loss scale is {other.scale():g} after resuming instead of {session.scale():g}")
