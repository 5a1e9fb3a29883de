"""inf and NaN in every pass, in images, weights and checkpoints, on one process of two: skipped, or said."""

import json
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path

import torch
from faults.broken import says
from faults.outcome import Case, Where
from faults.runs import TINY, quietly
from torch import nn

from steppe import methods, models
from steppe.core.batch import Batch
from steppe.testing import fixtures, multi_process, probes
from steppe.testing.context import CheckContext
from steppe.testing.resolve import subjects_of
from steppe.testing.result import CheckFailed, NotApplicable
from steppe.testing.subjects import OurSession, Subject, SubjectOptions
from steppe.training.checkpoint import file

TITLE = "inf and NaN in images, weights and gradients, in every pass, on one process of two"
FULL, SHORT, FEW = 40, 8, 4
PLANTED = says("unguarded")
STEPS = 4
PATIENCE = 900.0  # seconds for two processes, on a machine that does much else
FIRST = ("sadt-v1", "sam", "plain", "rwp", "okdph", "looksam", "saf", "dml", "gsam", "pcl")


def cases(count: int, where: Where) -> Iterator[Case]:
    """Take ``count`` methods, those whose steps differ most first."""
    named = [*FIRST, *(name for name in methods.METHODS if name not in FIRST)][:count]
    for name in named:
        yield from _steps(name)
    yield from _runs(where)
    with CheckContext(timeout=PATIENCE) as lab:
        for name in named if where.plant is None else ():
            yield _of_two(name, lab)


def _steps(name: str) -> Iterator[Case]:
    """Let each pass of each of a few steps give inf or NaN; then images; then gradients."""
    (subject,) = subjects_of([name])
    calls = _passes(subject)
    for kind in ("nan", "inf"):
        for step, passes in enumerate(calls):
            for at in range(1, passes + 1):
                yield _sprung(subject, kind, step, sum(calls[:step]) + at)
        yield _poisoned(subject, kind)
        yield _gradient(subject, kind)


def _started(subject: Subject) -> OurSession:
    session = subject.start(lambda: fixtures.small().append(probes.Trap()), SubjectOptions(base=fixtures.ADAM))
    assert isinstance(session, OurSession)
    return session


def _passes(subject: Subject) -> list[int]:
    session = _started(subject)
    trap, counts = probes.trap_in(session.net), [0]
    for k in range(STEPS):
        session.step(fixtures.batch(k))
        counts.append(trap.calls)
    return [b - a for a, b in pairwise(counts)]


def _sprung(subject: Subject, kind: str, step: int, at: int) -> Case:
    name = f"{subject.name}: {kind} in pass {at} (step {step + 1})"
    session = _started(subject)
    trap = probes.trap_in(session.net)
    trap.kind, trap.at = kind, at
    return _judged(name, session, step, lambda k: fixtures.batch(k))


def _poisoned(subject: Subject, kind: str) -> Case:
    def spoiled(k: int) -> Batch:
        batch = fixtures.batch(k)
        if k == 1:
            batch.x[3, 0, 2, 2] = float(kind)
        return batch

    return _judged(f"{subject.name}: {kind} in one pixel", _started(subject), 1, spoiled)


def _gradient(subject: Subject, kind: str) -> Case:
    """Let one element of one gradient be infinite while loss and outputs are fine."""
    session = _started(subject)
    p = next(p for p in session.net.parameters() if p.requires_grad)
    state = {"on": False}

    def spoil(g: torch.Tensor) -> torch.Tensor:
        if not state["on"]:
            return g
        bad = g.clone()
        bad.view(-1)[0] = float(kind)
        return bad

    p.register_hook(spoil)

    def batch(k: int) -> Batch:
        state["on"] = k == 1
        return fixtures.batch(k)

    return _judged(f"{subject.name}: {kind} in a gradient", session, 1, batch)


def _judged(name: str, session: OurSession, bad: int, batch: object) -> Case:
    """Step on: the one bad step is said to be skipped and leaves the weights, and all others move finite ones."""
    for k in range(STEPS):
        before = fixtures.weights(session.net)
        torch.manual_seed(k)
        skipped = session.step(batch(k))  # type: ignore[operator]
        after = fixtures.weights(session.net)
        if not all(bool(v.isfinite().all()) for v in after.values()):
            return Case(name, "lost", f"the weights are not finite after step {k + 1}")
        moved = fixtures.difference(before, after)
        if k == bad and (not skipped or moved):
            return Case(name, "lost", f"not skipped: {moved or 'silent'}")
        if k != bad and skipped:
            return Case(name, "lost", f"step {k + 1} was skipped, which was sound")
    return Case(name, "held")


class _Sick(nn.Module):
    """A network whose weights, or whose outputs in evaluation, are not numbers."""

    def __init__(self, inner: nn.Module, how: str):
        super().__init__()
        self.inner, self.how = inner, how
        if how == "weights":
            with torch.no_grad():
                next(inner.parameters()).view(-1)[0] = float("nan")

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        z: torch.Tensor = self.inner(x)
        if (self.how == "training" and self.training) or (self.how == "validation" and not self.training):
            return z + float("inf")
        return z


def _runs(where: Where) -> Iterator[Case]:
    """Train what cannot be trained: the run ends as failed, with a message, with code 1."""
    inner = models.MODELS["simple-cnn"]
    for how in ("weights", "training", "validation"):
        models.MODELS["sick"] = lambda *sizes, how=how: _Sick(inner(*sizes), how)
        out = where.scratch / how
        arguments = ("train", "--model", "sick", "--method", "sam", "--epochs", "12", *TINY, "--out", str(out))
        yield _failed(f"train: {how} not finite", quietly(*arguments), out)
        del models.MODELS["sick"]
    yield from _diverged(where)


def _diverged(where: Where) -> Iterator[Case]:
    ways = (("--method", "sam:rho=1e30"), ("--optim.name", "sgd", "--optim.lr", "3e38"))
    for number, options in enumerate(ways):
        out = where.scratch / f"diverged-{number}"
        arguments = ("train", "--epochs", "12", *TINY, *options, "--out", str(out))
        code = quietly(*arguments)
        yield _failed(f"train: {' '.join(options)}", code, out)
        for path in out.glob("runs/*/*.safetensors"):
            tensors = file.read(path).tensors.values()
            sound = all(bool(t.isfinite().all()) for t in tensors)
            yield Case(f"{path.name} of a run that diverged", "held" if sound else "lost")


def _failed(name: str, code: int, out: Path) -> Case:
    (folder,) = (out / "runs").iterdir()
    result = json.loads((folder / "result.json").read_text())
    if code != 1 or result["status"] != "failed":
        return Case(name, "lost", f"exit code {code}, status {result['status']}")
    fine = "not finite" in (result["message"] or "") and result["test"] is None
    return Case(name, "held" if fine else "lost", "" if fine else f"message {result['message']!r}")


def _of_two(name: str, lab: CheckContext) -> Case:
    (subject,) = subjects_of([name])
    try:
        multi_process.non_finite.run(subject, lab)
    except NotApplicable:
        pass
    except CheckFailed as failed:
        return Case(f"{name}: NaN on one of two processes", "lost", str(failed)[:200])
    return Case(f"{name}: NaN on one of two processes", "held")
