"""Sharpness-aware distilled teachers: match the network to itself after an update and a perturbation.

    w_up <- U(w, u),  u = grad L(w);   a = sum_t grad_{w_t} KL(f(x; w) || f(x; w_t));   w <- U(w_up, u + weight a)

    variant 1   one teacher    w_t = w_up + n                    n ~ N(0, sigma^2) on every layer
    variant 2   two teachers   w_t = w_up + n on one layer       the last convolution; the last dense layer
    variant 3   one teacher    w_t = w_up + ascent (u + n)       n ~ N(0, sigma^2)

Paper    An-Nur Islam Fahim and Boutellier, HITY workshop at NeurIPS 2022, section 3.1
Code     DeepUVaasa/SADT @ 6e28a62 (a TensorFlow notebook)
Cost     2 forward, 2 backward, 2 updates; variant 2: 3 forward, 3 backward, less the part below the last
         convolution, which its teachers share (2.1 on the Simple CNN), where the network is a Sequential
Limits   weight = 0 is RepeatStep; weight = 0 with updates = 1 is Plain
Outputs  classes, labels or numbers, of samples or positions
Differs  the paper leaves open, and we take from the notebook: KL's first argument is a constant and its
         gradient is taken at w_t (the paper's figure 1 says w_up); the optimizer's state is shared by both
         updates; dropout masks are drawn afresh (masks = 'replay' repeats those of the first pass); the
         variant-3 ascent of 1e-3. Running statistics come from the first pass, as in the notebook.
         For variant 2 the paper names the pair [f(x; w_t), f(x; w)], which may mean either order; we keep that
         of its general formula, direction = 'aux-pre' is the other.
         preset = 'notebook' takes further:  noise on weights of two or more dimensions only (paper: every
         layer);  KL(f(x; w_t) || f(x; w)) in variants 2 and 3 (paper: the other way round in variant 3);  in
         variant 2 sigma 0.1 (paper: 1e-4), the softmax layer's bias multiplied by N(0, 0.1^2), noise on the tensor
         that its layer index hits (paper: last dense layer and last convolution): tensor:7, a bias, in Simple CNN;
         tensor:53, a running variance, so none, in VGG; tensor:47 in Inception-ResNet, a beta, 49 of Keras's list,
         which is by depth.
Start    sigma 1e-4, the initial learning rate (paper, section 3.1)
"""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor, nn

from steppe.config import presets
from steppe.core.method import Batch, Cost, Method, Runtime, StepOutput, hyper
from steppe.core.method.numerics import Vec, filters, vector
from steppe.models.multi.shared_trunk import branch_logits, flops_share, is_within, split_sequential


@dataclass(frozen=True)
class SADT(Method):
    """Distil the network into itself through teachers near its updated weights.

    ``scope`` names the parameters that get noise, one scope per teacher; a scope that ends in * multiplies the
    weights by N(0, sigma^2) instead of adding it.
    """

    controls = ("repeat-step", "two-step")
    single = "its teacher is one network's outputs at perturbed weights"

    variant: int = hyper(1, "where the teachers are", choices=(1, 2, 3))
    sigma: float | None = hyper(None, "standard deviation of the noise; None: the preset's", minimum=0)
    preset: str = hyper("paper", "source of sigma, scope and direction", choices=presets.SADT, preset=True)
    scope: str | None = hyper(
        None,
        "parameters that get noise; None: the preset's",
        valid=filters.are_scopes,
        remedy="one or more of " + ", ".join(filters.SCOPES),
    )
    direction: str | None = hyper(
        None, "KL(f(x; w) || f(x; w_t)) or the reverse; None: the preset's", choices=("pre-aux", "aux-pre")
    )
    ascent: float = hyper(1e-3, "length of variant 3's ascent, in gradients", minimum=0)
    weight: float = hyper(1.0, "weight of the teachers' gradient", minimum=0, plain_at=0)
    updates: int = hyper(2, "updates of a step", choices=(1, 2), plain_only_at=1)
    masks: str = hyper("fresh", "dropout masks of the teachers' passes", choices=("fresh", "replay"))

    def preset_values(self) -> Mapping[str, object]:
        return presets.SADT[self.preset][self.variant]

    @property
    def scopes(self) -> list[str]:
        """The scope of each teacher's noise."""
        return str(self.resolved.scope).split()

    @property
    def cost(self) -> Cost:
        return Cost(1 + len(self.scopes), 1 + len(self.scopes), self.updates)

    def step(self, batch: Batch, state: object, rt: Runtime) -> StepOutput:
        """Gradient u, update, gradient a of the teachers' divergences, update with both."""
        out, u = rt.grad(batch)
        if self.weight == 0:
            rt.apply(u, times=self.updates)
            return out
        if self.updates == 2:
            rt.apply(u, more=True)
        teachers = self._teachers(u, rt)
        mask_seed = rt.draw_mask_seed() if self.masks == "fresh" else None
        a = self._distil(teachers, batch.with_extra(clean=out.logits), mask_seed, rt)
        rt.apply(vector.gather(u, a, by=self.weight))
        return out

    def _teachers(self, u: Vec, rt: Runtime) -> list[Vec]:
        """Return each teacher's offset from the present weights."""
        noise = partial(filters.scope_noise, rt.net, rt.params, self.resolved.sigma, rt.rng, rt.once)
        offsets = [noise(scope) for scope in self.scopes]
        if self.variant == 3:
            common = rt.shared(u)
            offsets = [vector.scale(vector.add(common, n), self.ascent) for n in offsets]
        return offsets

    def _distil(self, teachers: list[Vec], batch: Batch, mask_seed: int | None, rt: Runtime) -> Vec:
        """Return the sum of the teachers' gradients; layers below all of the noise run once for all teachers."""
        conv = partial(filters.last_of, rt.net, nn.Conv1d, nn.Conv2d, nn.Conv3d)
        several = len(teachers) > 1 and rt.callable_in_parts
        parts = several and rt.once("sadt parts", lambda: split_sequential(rt.net, conv()))
        if parts and is_within(teachers, rt.params, parts[1]):
            sample = next(batch.split(2)).x
            above = rt.once(("sadt share", sample.shape[1:]), lambda: flops_share(rt.net, parts[1], sample))
            objective = partial(self._through_branches, teachers, *parts, rt)
            with rt.preserve_state(mask_seed):
                return rt.grad(batch, objective, work=1 + (len(teachers) - 1) * above)[1]
        total: Vec = []
        for offset in teachers:
            with rt.at(offset, mask_seed=mask_seed):
                a = rt.grad(batch, partial(self._match, rt))[1]
            total = vector.gather(total, a, by=1.0) if total else a
        return total

    def _match(self, rt: Runtime, batch: Batch) -> StepOutput:
        return self._divergence(rt.forward(batch), batch, rt)

    def _through_branches(
        self, teachers: list[Vec], trunk: nn.Module, top: nn.Module, rt: Runtime, batch: Batch
    ) -> StepOutput:
        logits = branch_logits(trunk, top, rt.params, teachers, batch.x, rt.rng_restored)
        outs = [self._divergence(z, batch, rt) for z in logits]
        return StepOutput(torch.stack([o.loss for o in outs]).sum(), outs[-1].logits)

    def _divergence(self, logits: Tensor, batch: Batch, rt: Runtime) -> StepOutput:
        clean = batch.extra["clean"]
        pair = (clean, logits) if self.resolved.direction == "pre-aux" else (logits, clean)
        return StepOutput(rt.divergence(*pair, batch), logits)
