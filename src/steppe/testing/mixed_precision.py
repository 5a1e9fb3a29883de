"""Invariants of half precision: bf16 and fp16 follow fp32, the loss scale is felt by nobody, overflow skips."""

from __future__ import annotations

import torch

from steppe.testing import fixtures, probes
from steppe.testing.context import CheckContext
from steppe.testing.result import CheckFailed
from steppe.testing.single_process import Busiest, busiest
from steppe.testing.subjects import Session, Subject, SubjectOptions

CLOSE = 0.1  # of the distance that the weights travel


def bf16(subject: Subject, lab: CheckContext) -> None:
    """Make three steps under bf16 autocast and in fp32."""
    _follows(subject, lab, "bf16", 1.0)


def fp16(subject: Subject, lab: CheckContext) -> None:
    """Make three steps under fp16 autocast with two loss scales; neither path nor perturbation may tell them."""
    high, low = (_follows(subject, lab, "fp16", 2.0**power) for power in (16, 4))
    for a, b in zip(high, low, strict=True):
        if abs(a - b) > 0.02 * max(a, b):
            raise CheckFailed(f"a perturbation of length {b:.2g} at loss scale 2**4 is {a:.2g} at 2**16")


def _follows(subject: Subject, lab: CheckContext, precision: str, scale: float) -> list[float]:
    """Compare a trajectory with that of fp32, and return the lengths of its perturbations."""
    exact, _ = _path(subject, lab, "fp32", 1.0)
    half, moves = _path(subject, lab, precision, scale)
    travelled, off = (
        fixtures.length(exact, fixtures.weights(subject.build(fixtures.smooth))),
        fixtures.length(exact, half),
    )
    if not off <= CLOSE * travelled:
        at = f" at loss scale {scale:g}" if precision == "fp16" else ""
        raise CheckFailed(
            f"after 3 steps the weights are {off / travelled:.2g} of their way from those of fp32{at}"
        )
    return moves


def _path(
    subject: Subject, lab: CheckContext, precision: str, scale: float
) -> tuple[dict[str, torch.Tensor], list[float]]:
    session = subject.start(fixtures.smooth, SubjectOptions(precision=precision, scale=scale, device=lab.device))
    moves = []
    torch.manual_seed(7)
    for k in range(3):
        with probes.watching(session.net, session.optimizer) as seen:
            if session.step(fixtures.batch(k)):
                raise CheckFailed(f"step {k + 1} in {precision} was skipped, without an overflow to skip for")
        moves += seen.moves
    return {k: v.cpu() for k, v in fixtures.weights(session.net).items()}, moves


def overflow(subject: Subject, lab: CheckContext) -> None:
    """Let the loss overflow in every pass: the step must not have happened, and the scale backs off once."""
    busy = busiest(subject)
    for precision in ("fp32", "fp16") if subject.ours else ("fp16",):
        for kind in ("nan", "inf"):
            for at in range(1, busy.passes + 1):
                _overflows(subject, lab, precision, kind, busy, at)


def _overflows(subject: Subject, lab: CheckContext, precision: str, kind: str, busy: Busiest, at: int) -> None:
    setup = SubjectOptions(base=fixtures.ADAM, precision=precision, scale=2.0**8, device=lab.device)
    session = subject.start(lambda: fixtures.small().append(probes.Trap(kind)), setup)
    trap = probes.trap_in(session.net)
    where = f"in pass {at} ({precision})"
    for k in range(busy.step):
        session.step(fixtures.batch(k))
    before, scale = _kept(session, subject.ours), session.scale()
    trap.at = trap.calls + at
    skipped = session.step(fixtures.batch(busy.step))
    wrong = fixtures.difference(_kept(session, subject.ours), before)
    if wrong:
        raise CheckFailed(f"after a loss that is {kind} {where}, {wrong} from before the step")
    if subject.ours and not skipped:
        raise CheckFailed(f"a loss that is {kind} {where} is not reported: out.skipped is False")
    if precision == "fp16" and session.scale() != scale / 2:
        raise CheckFailed(
            f"a loss that is {kind} {where} takes the loss scale from {scale:g} to {session.scale():g}"
        )
    if session.step(fixtures.batch(busy.step + 1)):
        raise CheckFailed(f"the step after a loss that is {kind} {where} is skipped too")
    after = fixtures.weights(session.net)
    if not all(bool(v.isfinite().all()) for v in after.values()):
        raise CheckFailed(f"the step after a loss that is {kind} {where} ends in weights that are not finite")
    if not fixtures.difference(after, {k: before[k] for k in after}):
        raise CheckFailed(f"the step after a loss that is {kind} {where} does nothing")


def _kept(session: Session, all_of_it: bool) -> dict[str, torch.Tensor]:
    """Return what must survive; of an optimizer with GradScaler its running statistics need not."""
    kept = {**fixtures.weights(session.net), **fixtures.memory(session.optimizer)}
    return {**kept, **fixtures.buffers(session.net)} if all_of_it else kept
