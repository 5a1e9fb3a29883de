"""Online distillation with parameter hybridisation: students learn from a mixture of their weights, and fuse.

    w_h = sum_m r_m w_m,   t = (sum_m z_m + z_h) / (N + 1) without gradient
    w_m <- U(w_m, grad_m [omega L(w_m) + beta T^2 KL(softmax(t / T) || softmax(z_m / T)) + (1 - omega) L(w_h)])
    every ``every`` steps or epochs:   w_m <- gamma w_h + (1 - gamma) w_m

Each student, and last the hybrid, sees its own view of the images if the loader gives views.

Paper    Zhang et al., CVPR 2023, arXiv:2303.14666, equations 1 and 2; supplement, tables 6 and 7 (``preset``)
Code     tianlizhang/OKDPH @ a562089
Cost     3 forward, 3 backward, 1 update (one of each of ``networks``, one of the hybrid)
Limits   networks = 1 is Plain; omega = 1, beta = 0, gamma = 0 is Plain for each student
Differs  1. gradient = 'chain' follows the equation: r_m times the hybrid's gradient. The code writes the hybrid
            into a module of its own, so its loss trains no student: that is 'none', used for the paper's tables.
            'full' gives each student the whole gradient.
         2. fusion mixes the updated students; fuse = 'before' mixes those from before the update, as the code
            does, which at gamma = 1 throws the update away. The code also evaluates before it fuses.
            The hybrid's running statistics are its own, moved by each of its passes. With fuse = 'before' they
            are the mean of the students' before each pass moves them, as in the code.
         3. mixing = 'dirichlet' draws r once a step, equal on all processes; the code's version cannot run.
         4. fusion moves running statistics towards the hybrid's; counters and momentum stay (as in the code).
         5. deployed is the first student or, with deploy = 'hybrid', the hybrid; the code reports the best of all.
         6. t is the code's, the paper does not define it; T is the code's default.
         7. students start from different weights; same_start = True, as in the code, is the default of a preset.
            Give a view for each and one for the hybrid (extra["view 2"], ...): without, fusion makes the students
            one network, and the method is plain training at three times the cost. Runs without data.views crop
            the augmented image for each further view.
Start    omega 0.8, beta 0.8, gamma 0.5, T 4 (code), every '5b' (table 6); preset 'cifar100-vgg16' and others
"""

import copy
import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar, cast

import torch
from torch import Tensor, nn

from steppe.core.method import Batch, Runtime, StepOutput, require, with_weights
from steppe.core.model_call import call_model
from steppe.core.numerics.losses import distillation_loss, mean_of
from steppe.core.state import rng
from steppe.errors import InputError, unknown
from steppe.methods.online_distillation._base import OnlineDistillation
from steppe.methods.online_distillation._okdph_presets import PRESETS
from steppe.models.multi.ensemble import network_outputs
from steppe.models.multi.hybrid import Gradient, HybridEnsemble
from steppe.models.multi.inputs import fresh_networks, views_of

_DEFAULTS = {"omega": 0.8, "beta": 0.8, "gamma": 0.5, "every": "5b"}


@dataclass(frozen=True)
class OKDPH(OnlineDistillation):
    """Train ``networks`` students and fuse them into their hybrid by ``gamma`` every ``every``.

    ``every`` is '5b' (every fifth step; counted within each epoch, if its length is known) or '1e' (after each
    epoch; bind with epoch=len(loader)). ``omega``, ``beta``, ``gamma`` and ``every`` are by default the preset's.
    """

    limit: ClassVar = {"networks": 1}
    cost: ClassVar = (3, 3, 1)
    whole: ClassVar = "its hybrid is mixed from whole networks"
    mixes: ClassVar = "fusion moves the students' running statistics"
    module: ClassVar = HybridEnsemble
    members: ClassVar = "networks"

    networks: int = 2
    omega: float | None = None
    beta: float | None = None
    gamma: float | None = None
    every: str | None = None
    T: float = 4.0
    mixing: str = "mean"
    gradient: str = "chain"
    fuse: str = "after"
    deploy: str = "student"
    same_start: bool | None = None
    preset: str = ""

    def check(self) -> None:
        """Fill in the preset; refuse impossible values."""
        if self.preset and self.preset not in PRESETS:
            raise unknown("preset of okdph", self.preset, PRESETS)
        values = dict(zip(_DEFAULTS, PRESETS[self.preset], strict=True)) if self.preset else _DEFAULTS
        for name, value in values.items():
            if getattr(self, name) is None:
                object.__setattr__(self, name, value)
        if self.same_start is None:
            object.__setattr__(self, "same_start", bool(self.preset))
        if not self.same_start and self.gamma and self.networks > 1:
            object.__setattr__(self, "moves", "fusion moves students that start apart towards each other")
        super().check()
        for name in ("omega", "gamma"):
            require(self, name, 0 <= getattr(self, name) <= 1, "a number from 0 to 1")
        require(self, "beta", _of(self.beta) >= 0, "a number of at least 0 (0.8 is usual)")
        require(self, "every", bool(re.fullmatch(r"[1-9]\d*[be]", str(self.every))), "'5b', '1e' or the like")
        require(self, "T", self.T > 0, "a number above 0 (4 is usual)")
        require(self, "mixing", self.mixing in ("mean", "dirichlet"), "'mean' or 'dirichlet'")
        require(self, "gradient", self.gradient in ("none", "chain", "full"), "'chain', 'full' or 'none'")
        require(self, "fuse", self.fuse in ("after", "before"), "'after' or 'before' (the update)")
        require(self, "deploy", self.deploy in ("student", "hybrid"), "'student' or 'hybrid'")
        unsupervised = self.omega == 0 and self.gradient == "none" and self.networks > 1
        require(
            self, "omega", not unsupervised, "above 0: with gradient 'none' nothing else learns from the labels"
        )
        more = self.gradient != "none" and self.omega != 1
        object.__setattr__(self, "cost", (self.networks + 1, self.networks + more, 1))

    @property
    def views(self) -> int:
        """One for each student, and the last for the hybrid."""
        return self.networks + 1 if self.networks > 1 else 1

    @property
    def needs_views(self) -> bool:
        return self.networks > 1

    def build_members(self, new_model: Callable[[], nn.Module]) -> nn.Module:
        """Return students with the same or fresh initial weights."""
        if self.same_start:
            first = new_model()
            networks = [first, *(copy.deepcopy(first) for _ in range(self.networks - 1))]
        else:
            networks = fresh_networks(new_model, self.networks)
        # with omega = 1 no gradient comes from the hybrid
        return HybridEnsemble(networks, "none" if self.omega == 1 else cast(Gradient, self.gradient))

    def objective(self, batch: Batch, state: nn.Module, rt: Runtime) -> StepOutput:
        """The students' losses and their divergences from the common target, and the hybrid's loss once."""
        if self.networks == 1:
            return rt.supervised(batch)
        omega, beta = _of(self.omega), _of(self.beta)
        due = self.due(rt.now.step, rt.options.epoch)  # an unknown epoch is refused before the first update
        if self.fuse == "before" and not rt.untracked:
            self._store_hybrid(rt, due and _of(self.gamma) > 0)
        views = views_of(batch, self.networks + 1)
        inputs = views if isinstance(views, dict) else {"x": views}
        *students, hybrid = call_model(rt.model, {**inputs, "mix": self.shares(rt)})
        learns = omega < 1 and self.gradient != "none"
        hybrid_pass = len(batch) / self.networks  # the hybrid is one more network
        rt.count(forward=hybrid_pass, backward=hybrid_pass if learns else 0.0)
        losses = [omega * rt.loss(z, batch.y) for z in students]
        if beta:
            teacher = mean_of([*students, hybrid]).detach()
            losses += [beta * distillation_loss(teacher, z, self.T) for z in students]
        if omega < 1:
            losses.append((1 - omega) * rt.loss(hybrid, batch.y))
        return StepOutput(torch.stack(losses).sum(), students[0])

    def after(self, batch: Batch, out: StepOutput, state: nn.Module, rt: Runtime) -> None:
        super().after(batch, out, state, rt)
        if self.networks > 1 and self.gamma and self.due(rt.now.step, rt.options.epoch):
            assert isinstance(rt.net, HybridEnsemble)
            rt.net.fuse(self.gamma, self.shares(rt), rt.net.earlier)
            rt.net.earlier = None

    def _store_hybrid(self, rt: Runtime, due: bool) -> None:
        """Make the hybrid as the code does, before the step's first pass; store its weights if due."""
        assert isinstance(rt.net, HybridEnsemble)
        if rt.net.mixed_at == rt.now.step:
            return
        rt.net.mixed_at, rt.net.earlier = rt.now.step, None
        rt.net.mix_statistics(self.shares(rt))
        if due:
            weights = {name for name, _ in rt.net.networks[0].named_parameters(remove_duplicate=False)}
            hybrid = rt.net.hybrid(self.shares(rt))
            rt.net.earlier = {name: t.detach().clone() for name, t in hybrid.items() if name in weights}

    def shares(self, rt: Runtime) -> Tensor:
        """Return this step's r (N,), on the CPU: a function of seed and step, so that all passes have the same."""
        if self.mixing == "mean":
            return torch.full((self.networks,), 1 / self.networks, dtype=torch.float64)
        generator = rng.generator(rt.options.seed, "mixing", rt.now.step, torch.device("cpu"))
        weights = torch.empty(self.networks, dtype=torch.float64).exponential_(generator=generator)
        return weights / weights.sum()

    def due(self, step: int, epoch: int | None) -> bool:
        """Return whether fusion follows this step (from 0); raises InputError if it needs an epoch's length."""
        every = str(self.every)
        count = int(every[:-1])
        if every.endswith("b"):
            return (step % epoch if epoch else step) % count == 0
        if epoch is None:
            raise InputError(
                f"every is {every!r} and the length of an epoch is unknown; bind with epoch=len(loader), or give "
                "every in batches ('5b')"
            )
        return (step + 1) % epoch == 0 and step // epoch % count == 0

    def deployed_model(self, net: nn.Module, state: nn.Module, new_model: Callable[[], nn.Module]) -> nn.Module:
        plain = new_model()
        if not isinstance(net, HybridEnsemble):
            return with_weights(plain, net.state_dict())
        weights = net.hybrid() if self.deploy == "hybrid" else net.networks[0].state_dict()
        return with_weights(plain, {k: weights[k] for k in plain.state_dict()})

    def outputs(self, net: nn.Module, state: nn.Module, x: Any) -> dict[str, Tensor]:
        """Return the logits of each student, their mean, and the hybrid (of equal shares)."""
        logits = network_outputs(net, x, "hybrid")
        return logits | {"deployed": logits["hybrid"]} if self.deploy == "hybrid" and self.networks > 1 else logits


def _of(value: float | None) -> float:
    assert value is not None
    return value
