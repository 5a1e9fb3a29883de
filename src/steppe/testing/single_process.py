"""Checks in one process and full precision: limits, restored weights, statistics, random numbers, resuming."""

import re
from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass, replace
from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from steppe.core.state import rng
from steppe.testing import fixtures, probes
from steppe.testing.context import CheckContext, check
from steppe.testing.fixtures import BaseOptimizer, Make, Tensors
from steppe.testing.oracles.harness import DECAY, LR, MOMENTUM, Reference
from steppe.testing.result import CheckFailed, NotApplicable
from steppe.testing.subjects import Session, Subject, SubjectOptions

STEPS = 7  # enough to include what happens every few steps
WHOLE = 12  # a training with its last quarter, in which some methods begin


@check(
    "reduces",
    "A comparison with the baseline measures more than the method: something differs even when it is off.",
)
def reduces(subject: Subject, context: CheckContext) -> None:
    """At its limit (rho = 0, say) it is plain training bitwise: weights, buffers, optimizer and random state."""
    limited = subject.at_limit()
    # a third party's second pass of BatchNorm and dropout is the subject of other checks
    make: Make = fixtures.small if subject.ours else fixtures.smooth
    for base in (fixtures.NESTEROV, fixtures.ADAM):
        session = limited.start(make, context.options(base=base))
        torch.manual_seed(7)
        session.train(range(5))
        wrong = fixtures.difference(
            _all_state(session.net, session.optimizer), _plain_training(make, base, context.device)
        )
        if wrong:
            name = base.kind.__name__
            raise CheckFailed(f"at its limit, after 5 steps with {name}: {wrong} from plain training")


def _plain_training(make: Make, base: BaseOptimizer, device: str) -> Tensors:
    net = make().to(device)
    optimizer = base.make(net.parameters())
    torch.manual_seed(7)
    for k in range(5):
        x, y = fixtures.data(k, device=device)
        optimizer.zero_grad()
        F.cross_entropy(net(x), y).backward()  # type: ignore[no-untyped-call]
        optimizer.step()
    return _all_state(net, optimizer)


def _all_state(net: nn.Module, optimizer: torch.optim.Optimizer) -> Tensors:
    return {**fixtures.training_state(net, optimizer), "the random stream": _random_stream(net)}


def _random_stream(net: nn.Module) -> Tensor:
    """Return the state of the global generators that a pass of the network draws from."""
    return torch.cat(rng.capture(next(net.parameters()).device))


@check(
    "reference",
    "The method computes something else than its equation, or in lower precision than the weights have.",
)
def reference(subject: Subject, context: CheckContext) -> None:
    """Two steps in float64 equal the equation, written again by hand, to 1e-9."""
    restated, settings = subject.reference()
    base = BaseOptimizer(torch.optim.SGD, {"lr": LR, "momentum": MOMENTUM, "weight_decay": DECAY})
    options = context.options(base=base, seed=11)
    session = subject.start(lambda: fixtures.small(dtype=torch.float64, dropout=0.0), options)
    with torch.device(context.device):
        by_hand = Reference(settings, session.net)
    if subject.ours:
        by_hand.noise.set_state(session.noise())
        if by_hand.host_noise is not by_hand.noise:
            by_hand.host_noise.set_state(session.noise("masks"))
    for k in range(2):
        session.step(fixtures.batch(k, dtype=torch.float64))
        # what the equation makes is on the device too
        with torch.device(context.device):
            restated(by_hand, *fixtures.data(k, dtype=torch.float64, device=context.device))
    for key, p in session.net.named_parameters():
        error = (p - by_hand.w[key]).abs().max().item()
        if not error <= 1e-9:
            raise CheckFailed(f"after 2 steps in float64, {key} is {error:.1e} from its equation (tolerance 1e-9)")


@check("passes", "The stated cost is wrong, and so is every comparison at equal cost.")
def passes(subject: Subject, context: CheckContext) -> None:
    """The declared forward and backward passes and updates are those that hooks on every layer count."""
    session = subject.start(fixtures.small, context.options(steps=WHOLE))
    session.step(fixtures.batch(0))  # with what a method does once for a network
    most = [0.0, 0.0, 0.0]
    for k in range(1, WHOLE):
        before = session.passes()
        with probes.counting(session.networks(), session.optimizer, 12) as calls:
            session.step(fixtures.batch(k))
        layers = (_over_members(calls.forward), _over_members(calls.backward), {"": float(calls.updates)})
        counted = [b - a for a, b in zip(before, session.passes(), strict=True)]
        for i, kind in enumerate(("forward", "backward", "updates")):
            least, largest = min(layers[i].values()), max(layers[i].values())
            most[i] = max(most[i], round(largest, 6))
            if subject.ours and not least - 1e-6 <= counted[i] <= largest + 1e-6:
                raise CheckFailed(
                    f"counts {counted[i]:g} {kind} in a step while layers see {least:g} to {largest:g}"
                )
    total = (most[0], most[1], int(most[2]))
    if subject.cost is None:
        raise NotApplicable(f"declares no cost; counted {_text(total)} per step")
    if any(abs(a - b) > 1e-6 for a, b in zip(subject.cost, total, strict=True)):
        raise CheckFailed(f"declares {_text(subject.cost)} per step and makes {_text(total)}")


def _over_members(calls: Mapping[str, float]) -> dict[str, float]:
    """Return the passes of each layer; those of the same layer in several networks or branches are added."""
    total: dict[str, float] = defaultdict(float)
    for name, count in calls.items():
        total[re.sub(r"(^|\.)(networks|branches)\.\d+\.", r"\1\2.", name)] += count
    return total


def _text(cost: tuple[float, float, float]) -> str:
    return f"{cost[0]:g} forward, {cost[1]:g} backward, {cost[2]:g} updates"


@check("restored", "Weights drift, or lose the memory that optimizers, shards and CUDA graphs refer to.")
def restored(subject: Subject, context: CheckContext) -> None:
    """A step at learning rate 0 leaves every weight bitwise as it was, in its storage: tied, frozen and unused."""
    if subject.moves:
        raise NotApplicable(subject.moves)
    session = subject.start(fixtures.Awkward, context.options(base=fixtures.LR_ZERO))
    before = fixtures.weights(session.net)
    places = {k: p.data_ptr() for k, p in session.net.named_parameters()}
    session.train(range(3))
    wrong = fixtures.difference(fixtures.weights(session.net), before)
    if wrong:
        raise CheckFailed(f"after 3 steps at learning rate 0, {wrong}")
    moved = [k for k, p in session.net.named_parameters() if p.data_ptr() != places[k]]
    if moved:
        raise CheckFailed(
            f"{len(moved)} of {len(places)} weights lie in other memory after a step, {moved[0]} first"
        )


@dataclass(frozen=True)
class Busiest:
    """The ``step`` (from 0, not the first) with most ``passes``, and the passes ``before`` it."""

    step: int
    passes: int
    before: int


def busiest(subject: Subject, context: CheckContext, count: int = 12) -> Busiest:
    """Return which of a few steps on ``count`` samples has most passes, because some methods' steps differ."""
    session = subject.start(probes.trapped(), context.options())
    trap, calls = probes.trap_in(session.net), [0]
    for k in range(STEPS):
        session.step(fixtures.batch(k, count))
        calls.append(trap.calls)
    per_step = [b - a for a, b in pairwise(calls)]
    step = max(range(1, len(per_step)), key=lambda k: per_step[k])
    return Busiest(step, per_step[step], calls[step])


def before_trap(
    subject: Subject, busy: Busiest, kind: str, at: int, options: SubjectOptions
) -> tuple[Session, probes.Trap]:
    """Train up to the busiest step, with a trap in its pass number ``at``."""
    session = subject.start(probes.trapped(kind=kind), options)
    session.train(range(busy.step))
    trap = probes.trap_in(session.net)
    trap.at = trap.calls + at
    return session, trap


@check(
    "exception",
    "After an out-of-memory error or Ctrl-C, training continues from, or saves, perturbed weights.",
)
def exception(subject: Subject, context: CheckContext) -> None:
    """An exception in any pass leaves the weights as they were before the step."""

    def state(session: Session) -> Tensors:
        weights = fixtures.weights(session.net)
        # a plain loop, too, changes running statistics before an exception
        return fixtures.training_state(session.net, session.optimizer) if subject.ours else weights

    busy = busiest(subject, context)
    for kind in ("forward", "backward"):
        for at in range(1, busy.passes + 1):
            session, trap = before_trap(subject, busy, kind, at, context.options(base=fixtures.ADAM))
            before, weights = state(session), fixtures.weights(session.net)
            try:
                session.step(fixtures.batch(busy.step))
            except probes.Trapped:
                pass
            else:
                if trap.sprung:
                    raise CheckFailed(f"an exception in pass {at} ({kind}) was swallowed")
                continue  # a pass without a backward one
            wrong = fixtures.difference(state(session), before)
            if wrong:
                raise CheckFailed(f"after an exception in pass {at} ({kind}), {wrong} from before the step")
            session.step(fixtures.batch(busy.step + 1))
            if not fixtures.difference(fixtures.weights(session.net), weights):
                raise CheckFailed(f"after an exception in pass {at} ({kind}), the next step does nothing")


@check("batch-norm", "Evaluation uses statistics of perturbed weights, in which every batch counts twice.")
def batch_norm(subject: Subject, context: CheckContext) -> None:
    """BatchNorm's running statistics are those of the clean pass, and each batch is counted once."""
    if subject.mixes:
        raise NotApplicable(subject.mixes)
    plain = subject.build(fixtures.small).to(context.device)
    torch.manual_seed(7)
    plain(fixtures.data(0, device=context.device)[0])
    expected = fixtures.buffers(plain)
    session = subject.start(fixtures.small, context.options())
    torch.manual_seed(7)
    with probes.batch_norm_calls(session.net) as calls:
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
        target = {k: v for k, v in expected.items() if "running" in k} if clean else calls[0][1]
        error = fixtures.distance(target, {k: ours[k] for k in target})
        if error > 1e-6:
            raise CheckFailed(f"running statistics are {error:.1e} from those of the clean pass")
    session.train([1, 2])
    count = next(int(v) for k, v in fixtures.buffers(session.net).items() if "num_batches" in k)
    if count != 3:
        raise CheckFailed(f"num_batches_tracked is {count} after 3 steps")


@check(
    "random-stream",
    "Runs with the same seed do not share dropout masks, data order or augmentation with the baseline.",
)
def random_stream(subject: Subject, context: CheckContext) -> None:
    """After a step the global random state is that of plain training."""
    session, net = subject.start(fixtures.small, context.options()), subject.build(fixtures.small)
    net.to(context.device)
    torch.manual_seed(7)
    session.train(range(2))
    end = _random_stream(net)
    torch.manual_seed(7)
    for k in range(2):
        net(fixtures.data(k, device=context.device)[0])
    if not torch.equal(end, _random_stream(net)):
        raise CheckFailed("the global RNG state differs from that after plain training")


@check("accumulation", "Gradient accumulation changes the method, so a batch must fit in memory.")
def accumulation(subject: Subject, context: CheckContext) -> None:
    """Micro-batches give the same update as the whole batch (float64, 1e-9)."""

    def end(sizes: tuple[int, ...]) -> Tensors:
        session = subject.start(lambda: fixtures.smooth(dtype=torch.float64), context.options())
        for k in range(3):
            session.step(*fixtures.split(fixtures.batch(k, dtype=torch.float64), sizes))
        return fixtures.weights(session.net)

    whole = end((12,))
    for sizes in [(4, 4, 4), (5, 5, 2)] if subject.ours else [(4, 4, 4)]:
        error = fixtures.distance(whole, end(sizes))
        if error > 1e-9 and subject.local:
            raise NotApplicable(f"parts of a batch are not the whole: {subject.local}")
        if error > 1e-9:
            raise CheckFailed(f"after 3 steps, micro-batches of {sizes} end {error:.1e} from the whole batch")


@check("masks", "With gradient accumulation the passes of a step drop different units than without.")
def masks(subject: Subject, context: CheckContext) -> None:
    """Passes repeat dropout masks, or draw new ones, on micro-batches just as on whole batches."""
    whole = _masks(subject, context, 1)
    if len(whole) == 1:
        raise NotApplicable("makes one pass")
    parts = _masks(subject, context, 3)
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


def _masks(subject: Subject, context: CheckContext, count: int) -> list[list[Tensor]]:
    """Return the masks of one step, by pass and micro-batch, whatever order a pass takes them in."""
    session = subject.start(lambda: fixtures.smooth(dropout=0.5), context.options())
    session.train(range(busiest(subject, context).step))
    torch.manual_seed(7)
    with probes.masks(session.net) as calls:
        session.step(*fixtures.split(fixtures.batch(9), [12 // count] * count))
    by_pass = [calls[i : i + count] for i in range(0, len(calls), count)]
    return [[_mask_of(x, later) for x, _ in by_pass[0]] for later in by_pass]


def _mask_of(x: Tensor, calls: list[tuple[Tensor, Tensor]]) -> Tensor:
    for inputs, mask in calls:
        if torch.equal(inputs, x):
            return mask
    raise NotApplicable("its passes see different samples")


@check("clip-once", "Clipping changes the perturbation, or a longer gradient reaches the optimizer.")
def clip(subject: Subject, context: CheckContext) -> None:
    """A clipping threshold acts on the gradient that the optimizer gets, and on nothing before it."""

    def record(threshold: float | None) -> probes.StepRecord:
        session = subject.start(fixtures.smooth, context.options(clip=threshold))
        with probes.recording(session.net, session.optimizer) as step:
            session.step(fixtures.batch(0))
        return step

    free = record(None)
    norm = _norm(free.grads[0])
    for most in (0.5 * norm, 2 * norm):
        clipped = record(most)
        for a, b in zip(free.perturbations, clipped.perturbations, strict=True):
            if abs(a - b) > 1e-5 * max(a, b):
                raise CheckFailed(
                    f"clipped at {most:.2g}, a perturbation of length {a:.2g} is {b:.2g}: clipped too"
                )
        factor = min(1.0, most / (norm + 1e-6))
        error = fixtures.distance({k: g * factor for k, g in free.grads[0].items()}, clipped.grads[0])
        if error > 1e-5 * norm:
            raise CheckFailed(
                f"clipped at {most:.2g}, the optimizer's gradient is {error:.1e} from the clipped one"
            )
        largest = max(map(_norm, clipped.grads))
        if largest > most * (1 + 1e-5):
            raise CheckFailed(f"clipped at {most:.2g}, an update was made with a gradient of norm {largest:.2g}")


def _norm(grads: Tensors) -> float:
    return float(torch.stack([g.double().square().sum() for g in grads.values()]).sum().sqrt())


@check("resume", "An interrupted and resumed run differs from an uninterrupted one.")
def resume(subject: Subject, context: CheckContext) -> None:
    """Loaded from a checkpoint into new objects, training resumes bitwise."""
    for precision in ("fp32", "fp16") if subject.ours else ("fp32",):
        options = context.options(base=fixtures.ADAM, precision=precision, scale=2.0**8)
        session = subject.start(fixtures.small, options)
        torch.manual_seed(7)
        session.train(range(3))
        checkpoint = session.save()
        session.train(range(3, 6))
        end = _all_state(session.net, session.optimizer)
        other = subject.fresh().start(lambda: fixtures.small(99), replace(options, seed=99, scale=4.0))
        other.load(checkpoint)
        other.train(range(3, 6))
        wrong = fixtures.difference(end, _all_state(other.net, other.optimizer))
        if wrong:
            raise CheckFailed(
                f"saved after 3 steps of {precision} and resumed for 3: {wrong} from the undisturbed run"
            )
        if session.scale() != other.scale():
            raise CheckFailed(f"the loss scale is {other.scale():g} after resuming instead of {session.scale():g}")
