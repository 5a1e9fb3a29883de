"""The schedules against PyTorch's and Hugging Face's, and the options of the optimizer."""

import math

import pytest
import torch
from torch.optim import lr_scheduler

from steppe import InputError
from steppe.config import Optim, Run
from steppe.training.optimizers import learning_rate

T, LR = 40, 0.3


def rates(make, steps: int = T) -> list[float]:
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], LR, momentum=0.9)
    scheduler, values = make(optimizer), []
    for t in range(steps):
        values.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        if t < steps - 1:
            scheduler.step()
    return values


def ours(steps: int = T, **options) -> list[float]:
    return [Optim(lr=LR, **options).lr_at(t / steps) for t in range(steps)]


def test_schedules_are_those_of_pytorch():
    linear = rates(lambda o: lr_scheduler.LinearLR(o, 1.0, 0.1, T))
    assert ours(schedule="linear", min_lr=0.1 * LR) == pytest.approx(linear, rel=1e-9)
    restarts = rates(lambda o: lr_scheduler.CosineAnnealingWarmRestarts(o, T // 4, eta_min=0.01))
    assert ours(schedule="cosine-restarts", cycles=4, min_lr=0.01) == pytest.approx(restarts, rel=1e-9)
    wsd = rates(lambda o: lr_scheduler.SequentialLR(
        o,
        [
            lr_scheduler.LinearLR(o, 0.1, 1.0, T // 10),
            lr_scheduler.ConstantLR(o, 1.0),
            lr_scheduler.LinearLR(o, 1.0, 0.0, T // 4),
        ],
        [T // 10, T - T // 4],
    ))  # fmt: skip
    options = {"warmup": 0.1, "warmup_lr": 0.1 * LR, "decay_share": 0.25}
    assert ours(schedule="wsd", **options) == pytest.approx(wsd, rel=1e-9)
    part = [max(0.0, (t / T - 0.75) / 0.25) for t in range(T)]
    root = [LR * (1 - math.sqrt(s)) for s in part]
    assert ours(schedule="wsd-sqrt", decay_share=0.25) == pytest.approx(root, rel=1e-9)


def test_one_cycle_is_that_of_pytorch():
    values = rates(lambda o: lr_scheduler.OneCycleLR(o, LR, total_steps=T, cycle_momentum=False))
    peak, end = 0.3 * T - 1, T - 1  # PyTorch reaches the peak one step before its share
    shares = [0.3 * t / peak if t < peak else 0.3 + 0.7 * (t - peak) / (end - peak) for t in range(T)]
    optim = Optim(lr=LR, schedule="one-cycle")
    assert [optim.lr_at(s) for s in shares] == pytest.approx(values, rel=1e-9)


def test_linear_after_a_warm_up_is_that_of_hugging_face():
    hf = [LR * (t / 8 if t < 8 else (T - t) / (T - 8)) for t in range(T)]  # get_linear_schedule_with_warmup(8, 40)
    assert ours(schedule="linear", warmup=0.2) == pytest.approx(hf, rel=1e-9)


@pytest.mark.parametrize("schedule", ["cosine", "constant", "step", "linear", "wsd", "wsd-sqrt", "one-cycle"])
def test_every_schedule_is_finite_between_its_rates_and_ends_at_share_one(schedule):
    optim = Optim(lr=LR, schedule=schedule, min_lr=0.01, warmup=0.1)
    values = [optim.lr_at(s / 100) for s in range(120)]
    assert all(0 <= v <= LR * (1 + 1e-12) for v in values)
    if schedule not in ("constant", "step"):
        assert values[100] == pytest.approx(0.01) and values[119] == pytest.approx(0.01)


def test_a_scheduler_by_module_path_gives_its_rate_at_each_step():
    def of(cls: str, *settings: str):
        return Run(optim=Optim(lr=LR, schedule=f"torch.optim.lr_scheduler:{cls}", schedule_settings=settings))

    for cls, settings, make in (
        ("PolynomialLR", ("power=2", "total_iters=steps"), lambda o: lr_scheduler.PolynomialLR(o, T, 2)),
        ("CosineAnnealingLR", (), lambda o: lr_scheduler.CosineAnnealingLR(o, T)),
        ("OneCycleLR", (f"max_lr={LR}",), lambda o: lr_scheduler.OneCycleLR(o, LR, total_steps=T)),
        ("ExponentialLR", ("gamma=0.9",), lambda o: lr_scheduler.ExponentialLR(o, 0.9)),
    ):
        at = learning_rate(of(cls, *settings), T)
        assert [at(t / T) for t in range(T)] == rates(make)
    for run, message in (
        (of("ReduceLROnPlateau"), "no scheduler of steps alone"),
        (of("StepLR"), "refuses its settings"),
        (of("NoSuchLR"), "give an importable module:Class"),
        (Run(match="gradients", optim=of("StepLR").optim), "which counts steps, and match is 'gradients'"),
    ):
        with pytest.raises(InputError, match=message):
            learning_rate(run, T)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"name": "adan"}, "optim.name is 'adan'; choose one of adam,"),
        ({"name": "muon"}, "write muon.adamw"),
        ({"name": "adamw+muon"}, "write muon.adamw"),
        ({"name": "adam+adamw+sgd"}, "join two different"),
        ({"name": "muon+adamw", "settings": {"betas": (0.9, 0.95)}}, "write muon.betas or adamw.betas"),
        ({"settings": ("betas",)}, "write KEY=VALUE"),
        ({"settings": ("a=1", "a=2")}, "sets a twice"),
        ({"name": "schedulefree-sgd"}, "add --optim.schedule constant"),
        ({"schedule": "wds"}, "optim.schedule is 'wds'; choose one of"),
        ({"schedule": "wsd", "warmup": 0.5, "decay_share": 0.6}, "more than the whole budget"),
        ({"schedule_settings": ("gamma=1",)}, "which takes none"),
        ({"layer_decay": 0.0}, "optim.layer_decay is 0.0"),
        ({"lr_factors": ("norm",)}, "optim.lr_factors has 'norm'; write KEY=VALUE"),
        ({"lr_factors": {"norm": -1}}, "optim.lr_factors of norm is -1; give a number above 0"),
        ({"lr_factors": {"norm": "much"}}, "optim.lr_factors has norm=much; give a number above 0"),
        ({"decay_share": 0.0}, "optim.decay_share is 0.0"),
    ],
)
def test_impossible_options_are_refused(options, message):
    with pytest.raises(InputError, match=message):
        Optim(**options)


def test_new_options_at_their_default_leave_a_run_its_name():
    run = Run(optim=Optim(decay="all", layer_decay=1.0, settings=(), lr_factors=()))
    assert run.digest() == Run().digest() and "decay" not in run.as_dict()["optim"]
    names = {
        Run(optim=Optim(**o)).digest() for o in ({}, {"decay": "matrices"}, {"settings": {"betas": (0.9, 0.95)}})
    }
    assert len(names) == 3
    assert Optim(name=torch.optim.NAdam).name == "torch.optim.nadam:NAdam"
    spelled = Optim(settings=("eps=1e-7", "betas=[0.9, 0.95]"))
    assert spelled == Optim(settings={"betas": [0.9, 0.95], "eps": 1e-7})
