"""Checks in half precision: bf16 and fp16 follow fp32, the loss scale has no effect, overflow skips the step."""

import torch

from steppe.testing import fixtures, probes
from steppe.testing.context import CheckContext, check
from steppe.testing.fixtures import Tensors
from steppe.testing.result import CheckFailed
from steppe.testing.single_process import before_trap, busiest
from steppe.testing.subjects import Session, Subject

TOLERANCE = 0.1  # of the distance from the initial weights


@check("bf16", "The method cannot be used in mixed precision.")
def bf16(subject: Subject, context: CheckContext) -> None:
    """Three bf16 steps end within 10 % of their distance from fp32's weights."""
    _compare_with_fp32(subject, context, "bf16", 1.0)


@check("fp16", "The loss scale, which changes during training, changes the method.")
def fp16(subject: Subject, context: CheckContext) -> None:
    """Three fp16 steps end within 10 % of their distance from fp32's; the loss scale changes no perturbation."""
    high, low = (_compare_with_fp32(subject, context, "fp16", 2.0**power) for power in (16, 4))
    for a, b in zip(high, low, strict=True):
        if abs(a - b) > 0.02 * max(a, b):
            raise CheckFailed(f"a perturbation of length {b:.2g} at loss scale 2**4 is {a:.2g} at 2**16")


def _compare_with_fp32(subject: Subject, context: CheckContext, precision: str, scale: float) -> list[float]:
    """Compare the weights after three steps; return the lengths of the perturbations."""
    exact, _ = _three_steps(subject, context, "fp32", 1.0)
    half, perturbations = _three_steps(subject, context, precision, scale)
    travelled = fixtures.length(exact, fixtures.weights(subject.build(fixtures.smooth)))
    error = fixtures.length(exact, half)
    if not error <= TOLERANCE * travelled:
        at = f" at loss scale {scale:g}" if precision == "fp16" else ""
        raise CheckFailed(
            f"after 3 steps the weights are {error / travelled:.2g} of their way from those of fp32{at}"
        )
    return perturbations


def _three_steps(
    subject: Subject, context: CheckContext, precision: str, scale: float
) -> tuple[Tensors, list[float]]:
    options = context.options(precision=precision, scale=scale)
    session = subject.start(fixtures.smooth, options)
    perturbations = []
    torch.manual_seed(7)
    for k in range(3):
        with probes.recording(session.net, session.optimizer) as record:
            if session.step(fixtures.batch(k)):
                raise CheckFailed(f"step {k + 1} in {precision} was skipped, without an overflow")
        perturbations += record.perturbations
    return {k: v.cpu() for k, v in fixtures.weights(session.net).items()}, perturbations


@check(
    "overflow",
    "One overflow, which is normal while the loss scale adapts, ends an fp16 run with non-finite weights.",
)
def overflow(subject: Subject, context: CheckContext) -> None:
    """After inf or NaN in any pass only the loss scale has changed, halved once; the next step works."""

    def state(session: Session) -> Tensors:
        tensors = {**fixtures.weights(session.net), **fixtures.optimizer_state(session.optimizer)}
        # torch's GradScaler does not restore running statistics
        return {**tensors, **fixtures.buffers(session.net)} if subject.ours else tensors

    busy = busiest(subject, context)
    cases = [(p, kind) for p in (("fp32", "fp16") if subject.ours else ("fp16",)) for kind in ("nan", "inf")]
    for precision, kind in cases:
        options = context.options(base=fixtures.ADAM, precision=precision, scale=2.0**8)
        for at in range(1, busy.passes + 1):
            session, _ = before_trap(subject, busy, kind, at, options)
            loss = f"a loss that is {kind} in pass {at} ({precision})"
            before, weights, scale = state(session), fixtures.weights(session.net), session.scale()
            skipped = session.step(fixtures.batch(busy.step))
            wrong = fixtures.difference(state(session), before)
            if wrong:
                raise CheckFailed(f"after {loss}, {wrong} from before the step")
            if subject.ours and not skipped:
                raise CheckFailed(f"{loss} is not reported: out.skipped is False")
            if precision == "fp16" and session.scale() != scale / 2:
                raise CheckFailed(f"{loss} takes the loss scale from {scale:g} to {session.scale():g}")
            if session.step(fixtures.batch(busy.step + 1)):
                raise CheckFailed(f"the step after {loss} is skipped too")
            after = fixtures.weights(session.net)
            if not all(bool(v.isfinite().all()) for v in after.values()):
                raise CheckFailed(f"the step after {loss} ends in weights that are not finite")
            if not fixtures.difference(after, weights):
                raise CheckFailed(f"the step after {loss} does nothing")
