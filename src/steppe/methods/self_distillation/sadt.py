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
Differs  the paper leaves open, and we take from the notebook: KL's first argument is a constant and its
         gradient is taken at w_t (the paper's figure 1 says w_up); the optimizer's state is shared by both
         updates; dropout masks are drawn afresh (masks = 'replay' repeats those of the first pass); the
         variant-3 ascent of 1e-3. Running statistics come from the first pass, as in the notebook.
         For variant 2 the paper names the pair [f(x; w_t), f(x; w)], which may mean either order; we keep that
         of its general formula, direction = 'aux-pre' is the other.
         preset = 'notebook' takes further:  noise on weights of two or more dimensions only (paper: every
         layer);  KL(f(x; w_t) || f(x; w)) in variants 2 and 3 (paper: the other way round in variant 3);  in
         variant 2 sigma 0.1 (paper: 1e-4), the softmax layer's bias multiplied by N(0, 0.1^2) and noise on the
         tensor that the notebook's layer index hits (paper: last dense layer and last convolution): tensor:7, a
         bias, in the Simple CNN; tensor:53, a running variance, so none, in VGG; in Inception-ResNet 49 of Keras's
         list, which is by depth, a beta that is tensor:47 in ours.
Start    sigma 1e-4, the initial learning rate (paper, section 3.1)
"""

from dataclasses import dataclass
from functools import partial
from typing import ClassVar

import torch
from torch import Tensor, nn
from torch.func import functional_call

from steppe.core.method import Batch, Method, Runtime, StepOutput, require
from steppe.core.numerics import vector
from steppe.core.numerics.complex_params import leaf, like_leaf
from steppe.core.numerics.filters import SCOPES, in_scope, last_of
from steppe.core.numerics.losses import kl_divergence
from steppe.core.numerics.vector import Vec
from steppe.models.multi.shared_trunk import flops_share, split_sequential

_PAPER = {
    1: {"sigma": 1e-4, "scope": "all", "direction": "pre-aux"},
    2: {"sigma": 1e-4, "scope": "last-conv last-dense", "direction": "pre-aux"},
    3: {"sigma": 1e-4, "scope": "all", "direction": "pre-aux"},
}
_NOTEBOOK = {
    1: {"sigma": 1e-4, "scope": "kernels", "direction": "pre-aux"},
    2: {"sigma": 0.1, "scope": "last-bias* tensor:7", "direction": "aux-pre"},
    3: {"sigma": 1e-4, "scope": "kernels", "direction": "aux-pre"},
}
_PRESETS = {"paper": _PAPER, "notebook": _NOTEBOOK}


@dataclass(frozen=True)
class SADT(Method):
    """Distil the network into itself through teachers near its updated weights.

    ``sigma``, ``scope`` and ``direction`` are by default those of the preset. ``scope`` names the parameters that
    get noise, one scope per teacher; a scope that ends in * multiplies the weights by N(0, sigma^2) instead of
    adding it. ``direction`` is 'pre-aux' for KL(f(x; w) || f(x; w_t)) or 'aux-pre' for the reverse.
    """

    controls: ClassVar[tuple[str, ...]] = ("repeat-step", "two-step")
    single: ClassVar = "its teacher is one network's outputs at perturbed weights"
    limit: ClassVar = {"weight": 0.0, "updates": 1}

    variant: int = 1
    sigma: float | None = None
    preset: str = "paper"
    scope: str | None = None
    direction: str | None = None
    ascent: float = 1e-3
    weight: float = 1.0
    updates: int = 2
    masks: str = "fresh"

    def check(self) -> None:
        """Fill in the preset; refuse impossible values."""
        require(self, "variant", self.variant in (1, 2, 3), "1, 2 or 3")
        require(self, "preset", self.preset in _PRESETS, "'paper' or 'notebook'")
        for name, value in _PRESETS[self.preset][self.variant].items():
            if getattr(self, name) is None:
                object.__setattr__(self, name, value)
        require(self, "sigma", self.sigma is not None and self.sigma >= 0, "a number of at least 0")
        require(self, "direction", self.direction in ("pre-aux", "aux-pre"), "'pre-aux' or 'aux-pre'")
        require(self, "ascent", self.ascent >= 0, "a number of at least 0 (0.001)")
        require(self, "weight", self.weight >= 0, "a number of at least 0")
        require(self, "updates", self.updates in (1, 2), "1 or 2")
        require(self, "masks", self.masks in ("fresh", "replay"), "'fresh' or 'replay'")
        scopes = [s.removesuffix("*") for s in self._scopes()]
        valid = [(s.startswith("tensor:") and s[7:].isdigit()) or s in SCOPES[:-1] for s in scopes]
        require(self, "scope", bool(valid) and all(valid), "one or more of " + ", ".join(SCOPES))
        passes = 1 + len(scopes)
        object.__setattr__(self, "cost", (passes, passes, self.updates))

    def step(self, batch: Batch, state: nn.Module, rt: Runtime) -> StepOutput:
        """Gradient u, update, gradient a of the teachers' divergences, update with both."""
        out, up = rt.grad(batch)
        if self.weight == 0:
            rt.apply(up, times=self.updates)
            return out
        if self.updates == 2:
            rt.apply(up, more=True)
        teachers = self._teachers(up, rt)
        mask_seed = rt.draw_mask_seed() if self.masks == "fresh" else None
        aux = self._distil(teachers, batch.with_extra(clean=out.logits), mask_seed, rt)
        rt.apply(vector.add(up, aux, by=self.weight))
        return out

    def _scopes(self) -> list[str]:
        return (self.scope or "").split()

    def _teachers(self, up: Vec, rt: Runtime) -> list[Vec]:
        """Return each teacher's offset from the present weights."""
        offsets = []
        for name in self._scopes():
            scope = name.removesuffix("*")
            where = rt.once(("scope", scope), partial(in_scope, rt.net, rt.params, scope))
            noise = vector.scale(vector.gaussian(rt.params, rt.rng, where), self.sigma or 0.0)
            if name.endswith("*"):
                pairs = zip(noise, rt.params, strict=True)
                noise = [None if n is None else p.detach() * (n - 1) for n, p in pairs]
            offsets.append(noise)
        if self.variant == 3:
            common = rt.shared(up)
            offsets = [vector.scale(vector.add(common, noise), self.ascent) for noise in offsets]
        return offsets

    def _distil(self, teachers: list[Vec], batch: Batch, mask_seed: int | None, rt: Runtime) -> Vec:
        """Return the sum of the teachers' gradients; layers below all of the noise run once for all teachers."""
        conv = last_of(rt.net, nn.Conv1d, nn.Conv2d, nn.Conv3d)
        parts = rt.once("sadt parts", lambda: conv and rt.callable_in_parts and split_sequential(rt.net, conv))
        sample = next(batch.split(2)).x
        if len(teachers) > 1 and parts and _within(teachers, parts[1], rt):
            above = rt.once(("sadt share", sample.shape[1:]), lambda: flops_share(rt.net, parts[1], sample))
            objective = partial(self._through_branches, teachers, *parts, rt)
            with rt.preserve_state(mask_seed):
                return rt.grad(batch, objective, work=1 + (len(teachers) - 1) * above)[1]
        total: Vec = [None] * len(rt.params)
        for offset in teachers:
            with rt.at(offset, mask_seed=mask_seed):
                total = vector.add(total, rt.grad(batch, partial(self._match, rt))[1])
        return total

    def _match(self, rt: Runtime, batch: Batch) -> StepOutput:
        return self._divergence(rt.forward(batch.x), batch)

    def _divergence(self, logits: Tensor, batch: Batch) -> StepOutput:
        clean = batch.extra["clean"]
        pair = (clean, logits) if self.direction == "pre-aux" else (logits, clean)
        return StepOutput(kl_divergence(*pair), logits)

    def _through_branches(
        self, teachers: list[Vec], below: nn.Module, above: nn.Module, rt: Runtime, batch: Batch
    ) -> StepOutput:
        """Run the trunk once and each teacher's top on its output; all tops have the same dropout masks."""
        names = {id(p): name for name, p in above.named_parameters()}
        trunk = below(batch.x)

        def top(offset: Vec) -> StepOutput:
            pairs = zip(rt.params, offset, strict=True)
            moved = {names[id(leaf(p))]: leaf(p) + like_leaf(o, p) for p, o in pairs if o is not None}
            return self._divergence(functional_call(above, moved, (trunk,)), batch)

        outs = []
        for offset in teachers[:-1]:
            with rt.rng_restored():
                outs.append(top(offset))
        outs.append(top(teachers[-1]))
        return StepOutput(torch.stack([o.loss for o in outs]).sum(), outs[-1].logits)


def _within(teachers: list[Vec], part: nn.Module, rt: Runtime) -> bool:
    inside = {id(p) for p in part.parameters()}
    return all(o is None or id(leaf(p)) in inside for t in teachers for p, o in zip(rt.params, t, strict=True))
