"""Online distillation with parameter hybridisation: students learn from a mixture of their weights, and fuse.

    w_h = sum_m r_m w_m,   t = (sum_m z_m + z_h) / (N + 1) without gradient
    w_m <- U(w_m, grad_m [omega L(w_m) + beta T^2 KL(softmax(t / T) || softmax(z_m / T)) + (1 - omega) L(w_h)])
    every ``every`` steps or epochs:   w_m <- gamma w_h + (1 - gamma) w_m

Each student, and last the hybrid, sees its own view of the images if the loader gives views.

Paper    Zhang et al., CVPR 2023, arXiv:2303.14666, equations 1 and 2; supplement, tables 6 and 7 (``preset``)
Code     tianlizhang/OKDPH @ a562089
Cost     3 forward, 3 backward, 1 update (one of each of ``networks``, one of the hybrid)
Limits   networks = 1 is Plain; omega = 1, beta = 0, gamma = 0 is Plain for each student
Outputs  classes, labels or numbers, of samples or positions
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
            Give each and the hybrid a view (extra["view 2"], ...): without, fusion makes the students one network,
            plain training at three times the cost. Runs without data.views crop the augmented image for others.
Start    omega 0.8, beta 0.8, gamma 0.5, T 4 (code), every '5b' (table 6); preset 'cifar100-vgg16' and others
"""

import copy
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import cast

from torch import Tensor, nn

from steppe.config import presets
from steppe.core.method import (
    Batch,
    Cost,
    OnlineDistillation,
    Runtime,
    StepOutput,
    due,
    hyper,
    is_moment,
    require,
    unknown,
)
from steppe.core.method.numerics import losses
from steppe.models.multi.hybrid import Gradient, HybridEnsemble, HybridWeights, mixing_shares
from steppe.models.multi.inputs import fresh_networks


@dataclass(frozen=True)
class OKDPH(OnlineDistillation[HybridWeights]):
    """Train ``networks`` students and fuse them into their hybrid by ``gamma`` every ``every``.

    ``every`` is '5b' (every fifth step; counted within each epoch, if its length is known) or '1e' (after each
    epoch; bind with epoch=len(loader)).
    """

    module = HybridEnsemble
    members = "networks"
    whole = "its hybrid is mixed from whole networks"
    mixes = "fusion moves the students' running statistics"

    networks: int = hyper(2, "students", minimum=1, plain_at=1)
    omega: float | None = hyper(None, "weight of the labels; None: the preset's", minimum=0, maximum=1)
    beta: float | None = hyper(None, "weight of the distillation; None: the preset's", minimum=0)
    gamma: float | None = hyper(None, "the hybrid's share in fusion; None: the preset's", minimum=0, maximum=1)
    every: str | None = hyper(
        None,
        "how often students are fused; None: the preset's",
        valid=is_moment,
        remedy="'5b', '1e' or the like",
    )
    T: float = hyper(4.0, "temperature", above=0)
    mixing: str = hyper("mean", "the students' shares in the hybrid", choices=("mean", "dirichlet"))
    gradient: str = hyper("chain", "the hybrid's gradient in the students", choices=("chain", "full", "none"))
    fuse: str = hyper("after", "fuse students from after or before the update", choices=("after", "before"))
    deploy: str = hyper("student", "what is deployed", choices=("student", "hybrid"))
    same_start: bool | None = hyper(None, "students start equal; None: with a preset only")
    preset: str = hyper("", "a row of the supplement's tables 6 and 7; for -3 give networks=3", preset=True)

    def check(self) -> None:
        if self.preset not in presets.OKDPH:
            raise unknown("preset of okdph", self.preset, filter(None, presets.OKDPH))
        students = presets.students(self.preset)
        require(
            self, "networks", self.networks in (1, students or self.networks), f"{students}, as {self.preset} has"
        )
        unsupervised = self.resolved.omega == 0 and self.gradient == "none" and self.networks > 1
        require(
            self, "omega", not unsupervised, "above 0: with gradient 'none' nothing else learns from the labels"
        )

    def preset_values(self) -> Mapping[str, object]:
        return presets.OKDPH[self.preset]

    @property
    def on_host(self) -> str:
        return "" if self.mixing == "mean" else "it draws the students' shares in the hybrid"

    @property
    def deployed(self) -> str:
        return "hybrid" if self.deploy == "hybrid" else "network 1"

    @property
    def cost(self) -> Cost:
        hybrid = self.gradient != "none" and self.resolved.omega != 1
        return Cost(self.networks + 1, self.networks + hybrid, 1)

    @property
    def moves(self) -> str:
        apart = self.networks > 1 and self.resolved.gamma and not self.resolved.same_start
        return "fusion moves students that start apart towards each other" if apart else ""

    @property
    def views(self) -> int:
        """One for each student, and the last for the hybrid."""
        return self.networks + 1 if self.networks > 1 else 1

    @property
    def needs_views(self) -> bool:
        return self.networks > 1

    def build_members(self, new_model: Callable[[], nn.Module]) -> nn.Module:
        """Return students with the same or fresh initial weights."""
        if self.resolved.same_start:
            first = new_model()
            networks = [first, *(copy.deepcopy(first) for _ in range(self.networks - 1))]
        else:
            networks = fresh_networks(new_model, self.networks)
        # with omega = 1 no gradient comes from the hybrid
        return HybridEnsemble(networks, "none" if self.resolved.omega == 1 else cast(Gradient, self.gradient))

    def before(self, batch: Batch, state: HybridWeights, rt: Runtime) -> None:
        """With fuse = 'before' make the hybrid as the code does, before the step's first pass; store it if due."""
        if self.networks == 1:
            return
        due = rt.decide(
            lambda: self.due(rt.now.step, rt.options.epoch)
        )  # an unknown epoch is refused before the first update
        if self.fuse == "before":
            net, r = cast(HybridEnsemble, rt.net), self.shares(rt)
            net.mix_statistics(r)
            state.weights = net.hybrid_weights(r) if due and self.resolved.gamma > 0 else None

    def objective(self, batch: Batch, state: HybridWeights, rt: Runtime) -> StepOutput:
        """The students' losses and their divergences from the common target, and the hybrid's loss once."""
        omega, beta = self.resolved.omega, self.resolved.beta
        out = self.peers(batch, rt, mix=self.shares(rt))
        hybrid_pass = len(batch) / self.networks  # the hybrid is one more network
        learns = omega < 1 and self.gradient != "none"
        rt.count(forward=hybrid_pass, backward=hybrid_pass if learns else 0.0)
        terms = [omega * rt.loss(z, batch.y) for z in out.logits]
        if beta:
            t = losses.mean_of([*out.logits, out.ensemble]).detach()
            terms += [beta * self.distillation_loss(t, z, batch, rt) for z in out.logits]
        if omega < 1:
            terms.append((1 - omega) * rt.loss(out.ensemble, batch.y))
        return StepOutput(losses.total(terms), out.logits[0])

    def finish(self, batch: Batch, state: HybridWeights, rt: Runtime) -> None:
        """Fuse the students, if it is due."""
        if self.resolved.gamma and rt.decide(lambda: self.due(rt.now.step, rt.options.epoch)):
            cast(HybridEnsemble, rt.net).fuse(self.resolved.gamma, self.shares(rt), state.weights)
            state.weights = None

    def shares(self, rt: Runtime) -> Tensor:
        """Return this step's r (N,): a function of seed and step, so that all passes have the same."""
        step = 0 if self.mixing == "mean" else rt.now.step
        return mixing_shares(self.networks, self.mixing, rt.options.seed, step)

    def due(self, step: int, epoch: int | None) -> bool:
        """Return whether fusion follows this step (from 0)."""
        return due(str(self.resolved.every), step, epoch)
