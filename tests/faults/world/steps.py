"""Batches, targets, losses and optimizers in many forms, for the steps of `faults.world.whole`."""

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence, pack_sequence, pad_packed_sequence

CLASSES, WIDTH, LENGTH = 4, 6, 5
STEPS = 3
TOLERANCE = 1e-10
Rows = Sequence[int]
FORMS = (
    "tensor", "tuple", "tuple with a flag", "mapping", "mapping with a number", "nested", "dataclass", "list",
    "packed",
)  # fmt: skip


@dataclass
class Pair:
    """Two inputs in a dataclass."""

    a: Tensor
    b: Tensor
    scale: float = 0.5


class Net(nn.Module):
    """Takes inputs of any of the forms; ``norm`` adds BatchNorm."""

    def __init__(self, seed: int, norm: bool = False):
        super().__init__()
        torch.manual_seed(seed)
        # a bias before BatchNorm has no gradient but rounding errors, which some optimizers make large
        self.first, self.second = (nn.Linear(WIDTH, 8, bias=not norm) for _ in range(2))
        self.norm = nn.BatchNorm1d(8) if norm else nn.Identity()
        self.head = nn.Linear(8, CLASSES)
        self.double()

    def forward(self, x: Any = None, *, a: Any = None, b: Any = None, scale: float = 0.5) -> Tensor:
        if isinstance(x, dict):
            a, b = x["a"], x["inner"][0]
        elif isinstance(x, Pair):
            a, b, scale = x.a, x.b, x.scale
        elif isinstance(x, tuple) and not isinstance(x, PackedSequence):
            a, b = x[:2]
        elif x is not None:
            a, b = x, None
        if isinstance(a, PackedSequence):
            values, lengths = pad_packed_sequence(a, batch_first=True)
            a = values.sum(1) / lengths[:, None]
        elif isinstance(a, list):
            a = torch.stack([one.mean(0) for one in a])
        z = self.first(a) + (scale * self.second(b) if b is not None else 0)
        logits: Tensor = self.head(torch.tanh(self.norm(z)))
        return logits


class Samples:
    """Samples of which any rows may be had in the chosen form."""

    def __init__(self, r: random.Random, count: int, form: str, target: str):
        g = torch.Generator().manual_seed(r.randrange(2**31))
        self.form, self.target = form, target
        shape = (count, LENGTH, WIDTH) if target == "dense" else (count, WIDTH)
        self.a, self.b = (torch.randn(shape, generator=g, dtype=torch.float64) for _ in range(2))
        self.ragged = [
            torch.randn(r.randrange(1, 5), WIDTH, generator=g, dtype=torch.float64) for _ in range(count)
        ]
        self.y = torch.randint(0, CLASSES, shape[:-1], generator=g)
        self.soft = torch.rand(count, CLASSES, generator=g, dtype=torch.float64).softmax(1)
        self.weights = torch.rand(count, generator=g, dtype=torch.float64) + 0.5

    def batch(self, rows: Rows) -> tuple[Any, Any]:
        i = torch.tensor(rows)
        a, b, y = self.a[i], self.b[i], self.y[i]
        ragged = [self.ragged[k] for k in rows]
        x: Any = {
            "tensor": lambda: a,
            "tuple": lambda: (a, b),
            "tuple with a flag": lambda: (a, b, None),
            "mapping": lambda: {"a": a, "b": b},
            "mapping with a number": lambda: {"a": a, "b": b, "scale": 0.25},
            "nested": lambda: {"x": {"a": a, "inner": (b, "text")}},
            "dataclass": lambda: Pair(a, b, 0.75),
            "list": lambda: ragged,
            "packed": lambda: pack_sequence(ragged, enforce_sorted=False),
        }[self.form]()
        target: Any = {
            "classes": lambda: y,
            "dense": lambda: y,
            "probabilities": lambda: self.soft[i],
            "tuple": lambda: (y, self.weights[i]),
            "mapping": lambda: {"y": y, "weights": self.weights[i]},
            "list": lambda: [{"label": int(v)} for v in y],
        }[self.target]()
        return x, target


class Counting(nn.Module):
    """A loss with a parameter and with a buffer that does not change its value."""

    def __init__(self) -> None:
        super().__init__()
        self.sharpness = nn.Parameter(torch.tensor(0.3, dtype=torch.float64))
        self.register_buffer("calls", torch.zeros((), dtype=torch.long))

    def forward(self, z: Tensor, y: Any) -> Tensor:
        self.calls += 1
        return labelled(z * self.sharpness.exp(), y)


def labelled(z: Tensor, y: Any, **options: Any) -> Tensor:
    """Return cross-entropy for targets of any form."""
    if isinstance(y, dict):
        y = y["y"], y["weights"]
    if isinstance(y, tuple):
        return (F.cross_entropy(z, y[0], reduction="none", **options) * y[1]).mean()
    if isinstance(y, list):
        y = torch.tensor([one["label"] for one in y])
    if y.dim() == 2 and not y.is_floating_point():
        z, y = z.flatten(0, 1), y.flatten()
    return F.cross_entropy(z, y, **options)


CLASS_WEIGHTS = torch.tensor([0.2, 3.0, 1.0, 7.0], dtype=torch.float64)


def _weight_of_classes(batch: Any) -> float:
    return float(CLASS_WEIGHTS[batch.y].sum())


def _labels(batch: Any) -> float:
    return float((batch.y != -100).sum())


def _pull(z: Tensor, y: Any) -> Tensor:
    """A loss between samples of a batch: no mean over them."""
    return labelled(z, y) + torch.cdist(z, z).mean()


@dataclass
class Situation:
    """Choices, and whether the step in parts is 'equal' to the whole or 'refused'; ``unclear`` is either."""

    samples: Samples
    loss: Any
    weigh: Any
    outcome: str
    unclear: bool
    name: str


def drawn(r: random.Random) -> Situation:
    form = r.choice(FORMS)
    targets = ["classes", "classes", "probabilities", "tuple", "mapping", "list"]
    target = r.choice([*targets, *(["dense"] * 3 if form not in ("list", "packed") else [])])
    count = r.choice((7, 8, 11, 12))
    samples = Samples(r, count, form, target)
    losses = ["mean", "mean", "smooth", "state", "sum", "pull"]
    if target in ("classes", "dense"):
        losses += ["class weights", "class weights weighed", "ignored", "ignored weighed"] * 2
    kind = r.choice(losses)
    outcome, weigh, loss = "equal", None, labelled
    if kind == "smooth":
        loss = partial(labelled, label_smoothing=0.2)
    elif kind == "state":
        loss = Counting()
    elif kind == "sum":
        loss, outcome = partial(labelled, reduction="sum"), "refused"
        if target in ("tuple", "mapping"):
            loss = _summed
    elif kind == "pull":
        loss, outcome = _pull, "refused"
        if target == "dense":
            loss, outcome = labelled, "equal"
    elif kind.startswith("class weights"):
        loss = partial(labelled, weight=CLASS_WEIGHTS)
        samples.y[: count // 2] = 3
        weigh, outcome = (_weight_of_classes, "equal") if kind.endswith("weighed") else (None, "refused")
    elif kind.startswith("ignored"):
        few = samples.y[: count // 2]
        few[torch.rand(few.shape, generator=torch.Generator().manual_seed(r.randrange(99))) < 0.7] = -100
        few.view(-1)[0], few.view(-1)[-1] = -100, 1
        weigh, outcome = (_labels, "equal") if kind.endswith("weighed") else (None, "refused")
    # two inputs and two targets may be two samples
    unclear = form.startswith(("tuple", "list")) and target in ("tuple", "list")
    return Situation(samples, loss, weigh, outcome, unclear, f"x {form}, y {target}, loss {kind}")


def _summed(z: Tensor, y: Any) -> Tensor:
    return labelled(z, y) * len(z)


class NoRate(torch.optim.Optimizer):
    """As Adafactor: the learning rate may be None, and is then the optimizer's own."""

    def __init__(self, params: Any, lr: float | None = None):
        super().__init__(params, {"lr": lr, "relative_step": True, "scale_parameter": True})

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:
        for group in self.param_groups:
            for p in group["params"]:
                if p.grad is not None:
                    p -= 0.05 * p.grad / (1 + p.grad.norm())


OPTIMIZERS: dict[str, Callable[[Any], torch.optim.Optimizer]] = {
    "SGD": lambda p: torch.optim.SGD(p, 0.1, momentum=0.9, weight_decay=0.01, nesterov=True),
    "Adam": lambda p: torch.optim.Adam(p, 0.01, amsgrad=True),
    "AdamW": lambda p: torch.optim.AdamW(p, 0.01, weight_decay=0.1),
    "AdamW fused": lambda p: torch.optim.AdamW(p, 0.01, fused=True),
    "Adadelta": lambda p: torch.optim.Adadelta(p, 1.0, rho=0.6),
    "Adadelta again": lambda p: torch.optim.Adadelta(p, 0.5),
    "Adafactor": lambda p: torch.optim.Adafactor(p, 0.01),
    "lr None": NoRate,
    "RMSprop": lambda p: torch.optim.RMSprop(p, 0.01, momentum=0.5, centered=True),
    "NAdam": lambda p: torch.optim.NAdam(p, 0.01),
    "Rprop": lambda p: torch.optim.Rprop(p, 0.01),
}
