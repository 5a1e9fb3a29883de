"""Binding: transforms, what a step accepts, and a user's own method with state."""

import copy
import math
import pickle
import re
import typing
from contextlib import contextmanager
from dataclasses import dataclass, fields
from functools import partial
from typing import ClassVar

import numpy as np
import pytest
import torch
from support.small import BARE, bound, close, same, sgd, small_batch, small_net
from torch import Tensor, nn

import steppe
from steppe.core.runtime import Runtime, StepOutput
from steppe.methods import METHODS


def test_transforms_of_bind_are_those_of_a_combination():
    nets = [small_net(), small_net()]
    steps = [
        steppe.SAM().bind(nets[0], sgd(nets[0]), transforms=[steppe.GC(), steppe.AGC()]),
        steppe.On(steppe.AGC(), steppe.On(steppe.SAM(), steppe.GC())).bind(nets[1], sgd(nets[1])),
    ]
    for step in steps:
        torch.manual_seed(3)
        step(*small_batch())
    assert same(nets[0], nets[1])


def test_an_optimizer_that_writes_into_gradients_does_not_change_the_second_update():
    """Nesterov momentum over several tensors at once adds the momentum into the gradient."""
    nets = [small_net(), small_net()]
    for net, foreach in zip(nets, (True, False), strict=True):
        optimizer = torch.optim.SGD(net.parameters(), 0.1, momentum=0.9, nesterov=True, foreach=foreach)
        step = steppe.RepeatStep().bind(net, optimizer)
        for k in range(3):
            torch.manual_seed(k)
            step(*small_batch(seed=k))
    assert close(nets[0], nets[1], rtol=1e-5, atol=1e-7)


def test_a_step_takes_pairs_batches_and_lists_alike():
    x, y = small_batch()
    forms = [(x, y), (steppe.Batch(x, y),), ((x, y),), ([(x, y)],), ([steppe.Batch(x, y)],)]
    outs = []
    for form in forms:
        net = small_net()
        torch.manual_seed(3)
        outs.append(steppe.SAM().bind(net, sgd(net))(*form).logits)
    assert all(torch.equal(outs[0], o) for o in outs)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"precision": "fp8"}, "precision is 'fp8'; choose one of fp32, bf16"),
        ({"clip": 0.0}, "clip is 0.0; give a number above 0"),
        ({"microbatch": 0}, "microbatch is 0"),
    ],
)
def test_impossible_arguments_are_refused(options, message):
    net = small_net()
    with pytest.raises(steppe.InputError, match=message):
        steppe.SAM().bind(net, sgd(net), **options)


@pytest.mark.parametrize(
    ("x", "message"),
    [
        ([], "list of micro-batches is empty"),
        ("x", "this is str"),
        ((torch.zeros(0, 2, 6, 6), torch.zeros(0)), "no samples"),
    ],
)
def test_an_argument_that_is_not_a_batch_is_refused(x, message):
    net = small_net()
    with pytest.raises(steppe.InputError, match=message):
        steppe.SAM().bind(net, sgd(net))(x)


@dataclass(frozen=True)
class Averaged(steppe.Method):
    """A user's own method: it keeps a running mean of the weights, and deploys that."""

    decay: float = 0.5

    def init(self, net: nn.Module) -> nn.Module:
        return copy.deepcopy(net).requires_grad_(False)

    def after(self, batch: steppe.Batch, out: StepOutput, state: nn.Module, rt: Runtime) -> None:
        for mean, p in zip(state.parameters(), rt.net.parameters(), strict=True):
            mean.lerp_(p.detach(), 1 - self.decay)

    def predict(self, net: nn.Module, state: nn.Module, x: Tensor) -> Tensor:
        state.eval()
        z: Tensor = state(x)
        return z


def test_a_user_s_method_has_state_deploys_and_combines():
    net, step = bound(steppe.On(steppe.SAM(), Averaged(decay=0.5)), small_net(dropout=0.0))
    mean = net[0].weight.detach().clone()
    for k in range(3):
        step(*small_batch(seed=k))
        mean = 0.5 * mean + 0.5 * net[0].weight.detach()
    state = step.state.get_submodule("base")
    assert torch.allclose(state[0].weight, mean)
    assert step.passes.per_step() == (2, 2, 1)
    x, _ = small_batch()
    assert torch.equal(step.predict(x), state(x))

    other_net = small_net(5, dropout=0.0)
    other = steppe.On(steppe.SAM(), Averaged(decay=0.5)).bind(other_net, sgd(other_net))
    other.load_state_dict(step.state_dict())
    assert torch.equal(other.predict(x), step.predict(x))
    with pytest.raises(steppe.InputError, match="this state belongs to On"):
        steppe.SAM().bind(net, sgd(net)).load_state_dict(step.state_dict())


def test_wrong_types_are_refused():
    net = small_net()
    scheduler = torch.optim.lr_scheduler.StepLR(sgd(net), 1)
    with pytest.raises(steppe.InputError, match="optimizer is of type StepLR; give a torch.optim.Optimizer"):
        steppe.SAM().bind(net, scheduler)
    with pytest.raises(steppe.InputError, match="model is of type function; give a torch.nn.Module"):
        steppe.SAM().bind(lambda x: x, sgd(net))
    with pytest.raises(steppe.InputError, match="Averaged: decay is 'half'; give a number"):
        Averaged(decay="half")


def test_text_is_parsed_and_a_name_is_made():
    assert steppe.parse("sam:rho=0.1") == steppe.make("sam", rho=0.1) == steppe.SAM(rho=0.1)
    with pytest.raises(steppe.InputError, match="unknown method 'sam:rho=0.1'; steppe.parse reads settings"):
        steppe.make("sam:rho=0.1")
    with pytest.raises(steppe.InputError, match=r"ascents is 0.1; give a whole number \(its default is 1\)"):
        steppe.SAM(0.05, 0.1)


def numbers() -> list[tuple[str, str, type]]:
    """Return every numeric setting of every method."""
    rows = []
    for name in METHODS:
        hints = typing.get_type_hints(type(steppe.make(name)))
        for f in fields(steppe.make(name)):
            kinds = typing.get_args(hints[f.name]) or (hints[f.name],)
            rows += [(name, f.name, k) for k in (int, float) if k in kinds and str not in kinds]
    return rows


OF_EITHER_SIGN = {("ae-sam", "lam1"), ("ae-sam", "lam2")}


@pytest.mark.parametrize(("name", "field", "kind"), numbers())
def test_every_number_of_every_method_is_finite_and_in_its_range(name: str, field: str, kind: type):
    assert len(numbers()) > 80
    limit = (steppe.make(name).limit or {}).get(field)
    for value in (math.nan, math.inf, -math.inf, -1, -0.5, True, 10**400):
        if value == limit or (kind is int and isinstance(value, float)):
            continue
        if (name, field) in OF_EITHER_SIGN and value in (-1, -0.5):
            continue
        with pytest.raises(steppe.InputError, match=f"{field} is "):
            steppe.make(name, **{field: value})


def test_equal_settings_are_equal_texts_and_load_each_other_s_state():
    pairs = [
        ("sam:rho=1", "sam:rho=1.0"),
        ("sam:rho=linear(0,1)", "sam:rho=linear(0.0,1.0)"),
        ("mesa:start=0", "mesa:start=0.0"),
    ]
    for a, b in pairs:
        assert repr(steppe.parse(a)) == repr(steppe.parse(b))
        steps = [bound(steppe.parse(spec), steps=10)[1] for spec in (a, b)]
        steps[1].load_state_dict(steps[0].state_dict())


@pytest.mark.parametrize(
    "method", [steppe.Plain(), steppe.MESA(), steppe.SAM(), steppe.On(steppe.SAM(), steppe.MESA())]
)
@pytest.mark.parametrize(
    ("loss", "message"),
    [
        (lambda z, y: nn.functional.cross_entropy(z, y).item(), "the loss returned float; return a tensor"),
        (lambda z, y: nn.functional.cross_entropy(z, y).detach(), "the loss has no gradient"),
        (lambda z, y: nn.functional.cross_entropy(z, y, reduction="none"), r"the loss returned shape \(12,\)"),
    ],
)
def test_a_loss_without_a_graph_is_refused(method, loss, message):
    net = small_net()
    before = net[0].weight.detach().clone()
    with pytest.raises(steppe.InputError, match=message):
        method.bind(net, sgd(net), loss=loss)(*small_batch())
    assert torch.equal(net[0].weight, before)


class Centred(nn.Module):
    """A loss with a running mean, which it subtracts, and a count of the batches."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("mean", torch.zeros(5))
        self.register_buffer("batches", torch.zeros(()))

    def forward(self, z: Tensor, y: Tensor) -> Tensor:
        with torch.no_grad():
            self.mean.mul_(0.9).add_(z.mean(0), alpha=0.1)
            self.batches += 1
        return nn.functional.cross_entropy(z - self.mean, y)


@pytest.mark.parametrize("wrap", [lambda loss: loss, lambda loss: loss.forward, partial])
@pytest.mark.parametrize("name", ["sam", "mesa", "two-step", "esam"])
def test_the_state_of_a_loss_counts_each_batch_once(wrap, name):
    loss = Centred()
    net, step = bound(steppe.make(name), small_net(dropout=0.0), loss=wrap(loss))
    z = net(small_batch()[0]).detach()
    step(*small_batch())
    assert int(loss.batches) == 1
    assert torch.allclose(loss.mean, 0.1 * z.mean(0), atol=1e-6)
    step(torch.full((12, 2, 6, 6), float("nan")), small_batch()[1])
    assert int(loss.batches) == 1


def test_predicting_changes_no_state():
    net, step = bound(steppe.SAM())
    step(*small_batch())
    before = {k: v.clone() for k, v in net.state_dict().items()}
    x = small_batch(seed=5)[0]
    z = step.predict(x)
    assert net.training
    assert all(torch.equal(before[k], v) for k, v in net.state_dict().items())
    assert torch.equal(z, net.eval()(x))


@pytest.mark.parametrize("copied", [copy.deepcopy, copy.copy, pickle.dumps])
def test_a_step_is_not_copied(copied):
    with pytest.raises(steppe.InputError, match="a step cannot be copied or pickled; copy the model, bind"):
        copied(bound(steppe.SAM())[1])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"loss": 3}, "loss is 3; give a function"),
        ({"loss": None}, "loss is None; give a function"),
        ({"loss": nn.CrossEntropyLoss}, "loss is <class .*; give an instance of that class"),
        ({"weigh": 3}, "weigh is 3; give a function"),
        ({"microbatch": True}, "microbatch is True"),
        ({"microbatch": 2.5}, "microbatch is 2.5"),
        ({"steps": 0}, "steps is 0"),
        ({"epoch": 0.5}, "epoch is 0.5"),
        ({"clip": "a"}, "clip is 'a'; give a number above 0"),
        ({"clip": float("nan")}, "clip is nan"),
        ({"seed": "a"}, "seed is 'a'; give a whole number"),
        ({"scaler": 3, "precision": "fp16"}, "scaler is 3; give a torch.amp.GradScaler"),
        ({"transforms": [steppe.SAM()]}, r"transforms has SAM\(.*, which transforms no gradient"),
        ({"transforms": [steppe.On(steppe.SAM(), steppe.GC())]}, "whose step would be left out; use On"),
        ({"transforms": ["gc"]}, "transforms has 'gc', which transforms no gradient"),
        ({"transforms": steppe.GC()}, r"transforms is GC\(.*; give a list of methods"),
    ],
)
def test_wrong_options_of_bind_are_refused(options, message):
    with pytest.raises(steppe.InputError, match=message):
        bound(steppe.SAM(), **options)


def test_numbers_of_numpy_are_numbers():
    net, step = bound(
        steppe.SAM(rho=np.float64(0.05)), microbatch=np.int64(6), seed=np.int64(1), steps=np.int32(9)
    )
    step(*small_batch())
    assert steppe.SAM(rho=1) == steppe.SAM(rho=np.float32(1.0))
    assert repr(steppe.SAM(rho=1)) == repr(steppe.SAM(rho=1.0))
    assert repr(steppe.SAM(ascents=np.int64(2))) == repr(steppe.SAM(ascents=2))
    steppe.SAM(rho=0.05).bind(net, sgd(net)).load_state_dict(step.state_dict())


@pytest.mark.parametrize(
    ("loss", "message"),
    [
        (nn.CrossEntropyLoss(reduction="none"), r"the loss returned shape \(12,\); return the mean"),
        (lambda z, y: (nn.functional.cross_entropy(z, y), z), "the loss returned tuple; return a tensor"),
        (lambda z, y: nn.functional.cross_entropy(z, y).item(), "the loss returned float; return a tensor"),
        (lambda z, y: nn.functional.cross_entropy(z, y).detach(), "the loss has no gradient; compute it from the"),
        (lambda z, y: z.argmax(1).sum(), "the loss returned torch.int64; return a real"),
    ],
)
def test_a_loss_that_is_no_number_with_a_gradient_is_refused(loss, message):
    with pytest.raises(steppe.InputError, match=message):
        bound(steppe.SAM(), loss=loss)[1](*small_batch())


@pytest.mark.parametrize(
    ("x", "y", "message"),
    [
        (None, small_batch()[1], "x is None; give a tensor"),
        (torch.tensor(1.0), small_batch()[1], r"x is tensor\(1.\); give a tensor of one row per sample"),
        (small_batch()[0].numpy(), small_batch()[1], "x has a numpy array; give a tensor"),
        ({"x": small_batch()[0].numpy()}, small_batch()[1], "x has a numpy array; give a tensor"),
        (small_batch()[0], small_batch()[1].numpy(), "y has a numpy array; give a tensor"),
        (
            small_batch()[0],
            small_batch()[1].tolist(),
            r"the loss does not take y of type list \(.*; give tensors",
        ),
    ],
)
def test_inputs_and_targets_that_are_no_tensors_are_refused(x, y, message):
    with pytest.raises(steppe.InputError, match=message):
        bound(steppe.SAM())[1](x, y)


@pytest.mark.parametrize("content", [{}, None, {"method": "SAM()"}])
def test_what_is_no_state_of_a_step_is_refused(content):
    with pytest.raises(steppe.InputError, match="this state has no .*passes.*; give what state_dict returned"):
        bound(steppe.SAM())[1].load_state_dict(content)


def hooked(net: nn.Module) -> torch.optim.Optimizer:
    optimizer = sgd(net)
    net[0].weight.register_post_accumulate_grad_hook(lambda p: optimizer.step())
    return optimizer


@pytest.mark.parametrize(
    ("net", "optimizer", "message"),
    [
        (small_net(), lambda _: sgd(small_net()), "SGD has no parameter of the model; make it anew"),
        (small_net(), lambda net: torch.optim.LBFGS(net.parameters()), "LBFGS needs a closure"),
        (small_net(), hooked, "post_accumulate_grad_hook, which each pass would run; remove it"),
        (nn.Sequential(nn.LazyLinear(3)), sgd, r"lazy tensors without a shape; call model\(x\) once"),
        (nn.Sequential(nn.Linear(2, 3), nn.LazyBatchNorm1d(affine=False)), sgd, "lazy tensors without a shape"),
    ],
)
def test_an_optimizer_that_cannot_train_the_model_is_refused(net, optimizer, message):
    with pytest.raises(steppe.InputError, match=message):
        steppe.SAM().bind(net, optimizer(net))


def test_a_hook_that_is_added_after_the_method_is_bound_is_refused_too():
    net, step = bound(steppe.SAM())
    hooked(net)
    with pytest.raises(steppe.InputError, match="post_accumulate_grad_hook, which each pass would run"):
        step(*small_batch())


@pytest.mark.parametrize("options", [{"steps": 100.0}, {"steps": 97.7}, {"steps": 100, "epoch": 10.0}])
def test_a_number_of_steps_may_be_a_quotient(options):
    _, step = bound(steppe.SAM(rho=steppe.Linear(0.0, 0.1)), **options)
    assert not step(*small_batch()).skipped
    assert type(step.runtime.options.epoch) in (int, type(None))


def test_parameters_in_no_group_are_named_and_a_loss_may_have_its_own():
    net, loss = nn.Linear(4, 3), nn.Linear(3, 3)
    with pytest.warns(UserWarning, match="1 trainable parameters of the model are in no group of the optimizer"):
        steppe.SAM().bind(net, torch.optim.SGD([net.weight], 0.1))
    net.requires_grad_(False)
    steppe.SAM().bind(net, torch.optim.SGD(loss.parameters(), 0.1), loss=loss)


def test_sparse_gradients_are_refused_before_an_update():
    net = nn.Sequential(nn.EmbeddingBag(9, 4, sparse=True), nn.Linear(4, 3))
    with pytest.raises(steppe.InputError, match="EmbeddingBag has sparse gradients; make it with sparse=False"):
        steppe.Plain().bind(net, torch.optim.SGD(net.parameters(), 0.1))(
            torch.ones(4, 2).long(), torch.zeros(4).long()
        )


class WithoutLR(torch.optim.SGD):
    """Chooses its step size itself and has the learning rate None, as Adafactor."""

    def __init__(self, params):
        super().__init__(params, 0.1)
        self.param_groups[0]["lr"] = None

    def step(self, closure=None):
        with torch.no_grad():
            for p in self.param_groups[0]["params"]:
                p.sub_(p.grad, alpha=0.1)


def test_an_optimizer_without_a_learning_rate():
    nets = [small_net(), small_net()]
    for net, optimizer in zip(nets, (WithoutLR, lambda p: torch.optim.SGD(p, 0.1)), strict=True):
        torch.manual_seed(0)
        steppe.SAM().bind(net, optimizer(net.parameters()))(*small_batch())
    assert close(*nets, atol=1e-7)
    schedule = steppe.WithLR(0.1, 0.2)
    with pytest.raises(steppe.InputError, match="follows the learning rate, and the optimizer's is None"):
        steppe.SAM(rho=schedule).bind(net, WithoutLR(net.parameters()))(*small_batch())


@dataclass(frozen=True)
class Halved(steppe.Method):
    """Deploys the weights times one half, in place, and predicts with the logits' sign changed."""

    @contextmanager
    def deployed_weights(self, net: nn.Module, state: nn.Module):
        before = [p.detach().clone() for p in net.parameters()]
        with torch.no_grad():
            for p in net.parameters():
                p.mul_(0.5)
        try:
            yield
        finally:
            with torch.no_grad():
                for p, b in zip(net.parameters(), before, strict=True):
                    p.copy_(b)

    def predict(self, net: nn.Module, state: nn.Module, x: Tensor) -> Tensor:
        with self.deployed_weights(net, state):
            return -net(x)


@pytest.mark.parametrize("other", [steppe.GC(), steppe.MESA(), steppe.SAM()], ids=lambda m: type(m).__name__)
@pytest.mark.parametrize("first", [True, False])
def test_a_user_s_rule_that_deploys_and_predicts_swaps_its_weights_once(other, first):
    method = steppe.On(Halved(), other) if first else steppe.On(other, Halved())
    net, step = bound(method, small_net(dropout=0.0))
    step(*small_batch())
    net.eval()
    before, half = copy.deepcopy(net), copy.deepcopy(net)
    with torch.no_grad():
        for p in half.parameters():
            p.mul_(0.5)
    x, _ = small_batch(seed=4)
    assert torch.equal(step.predict(x), -half(x))
    assert torch.equal(method.outputs(net, step.state, x)["deployed"], -half(x))
    assert torch.equal(method.deployed_model(net, step.state, small_net).eval()(x), half(x))
    with step.deployed_weights():
        assert same(net, half)
    assert same(net, before)


E1, E2 = steppe.EMA(), steppe.EMA(decay=0.9)


@pytest.mark.parametrize(
    ("rule", "base", "message"),
    [
        (E1, steppe.PCL(), "EMA and PCL both define the deployed weights"),
        (steppe.SWA(), steppe.PCL(), "SWA and PCL both define the deployed weights"),
        (E1, E1, "EMA and EMA both"),
        (E1, E2, "EMA and EMA both"),
        (steppe.SAM(), steppe.On(steppe.SWA(), steppe.SAM()), "SAM and SAM both define the step"),
        (steppe.DML(), steppe.KDCL(), "DML and KDCL both define the objective"),
        (E1, Averaged(), "EMA and Averaged both define the deployed model"),
        (Averaged(), steppe.SWA(), "Averaged and SWA both define the deployed model"),
        (Averaged(), Averaged(), "Averaged and Averaged both define the deployed model"),
    ],
)
def test_a_pair_in_which_one_method_is_lost_is_refused(rule, base, message):
    with pytest.raises(steppe.InputError, match=message):
        steppe.On(rule, base)


def test_a_refused_combination_is_named_as_it_was_written():
    for spec in ("ema+pcl", "ema+swa+ema", "sam+swa+sam", "esam+dml", "dml+sadt-v1"):
        with pytest.raises(steppe.InputError, match=re.escape(f"method {spec!r}: ")):
            steppe.parse(spec)


@dataclass(frozen=True)
class Counter(steppe.Method):
    def init(self, net: nn.Module) -> nn.Module:
        state = nn.Module()
        state.register_buffer("count", torch.zeros(()))
        return state

    def after(self, batch: steppe.Batch, out: StepOutput, state: nn.Module, rt: Runtime) -> None:
        state.count += 1


def test_one_method_combined_with_itself_has_two_states():
    counter = Counter()
    _, step = bound(steppe.On(counter, counter))
    step(*small_batch())
    assert [int(step.state.get_submodule(role).count) for role in ("rule", "base")] == [1, 1]


@pytest.mark.parametrize("spec", ["dml+ema:decay=0.5", "ema:decay=0.5+dml"])
def test_a_combination_of_a_mean_and_several_networks_is_the_same_in_either_order(spec):
    method = steppe.parse(spec)
    net = method.build(small_net)
    step = method.bind(net, sgd(net))
    for k in range(3):
        step(*small_batch(seed=k))
    net.eval()
    x, _ = small_batch()
    with step.deployed_weights():
        expected = net(x).logits[0]
    assert torch.equal(step.predict(x), expected)
    assert not torch.equal(expected, net(x).logits[0])
    assert torch.equal(method.deployed_model(net, step.state, small_net).eval()(x), expected)


@pytest.mark.parametrize(
    "spec",
    ["swa", "sam+swa", "mesa:start=0.5", "sam:start=0.5", "sam:rho=linear(0,0.1)", "pcl", "swa:start=0.9+gc"],
)
def test_a_share_of_a_training_of_unknown_length_is_refused_by_bind(spec):
    method = steppe.parse(spec)
    net = method.build(small_net)
    with pytest.raises(steppe.InputError, match="a share of the training, and its length is unknown"):
        method.bind(net, sgd(net))
    method.bind(net, sgd(net), steps=10)
    method.bind(net, sgd(net), steps=lambda: 0.0)


class Growing(nn.Module):
    """Gets a parameter and a BatchNorm layer, and then another number of channels."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        layers = nn.Conv2d(2, 4, 3), nn.Flatten(), nn.Linear(64, 8), nn.BatchNorm1d(8)
        self.body, self.head = nn.Sequential(*layers), nn.Linear(8, 5)

    def forward(self, x: Tensor) -> Tensor:
        z: Tensor = self.head(self.body(x))
        return z

    def grow(self, optimizer: torch.optim.Optimizer) -> None:
        self.body.extend([nn.Linear(8, 6), nn.BatchNorm1d(6)])
        self.head = nn.Linear(6, 5)
        new = [*self.body[4:].parameters(), *self.head.parameters()]
        optimizer.add_param_group({"params": new})


@pytest.mark.parametrize("name", [*BARE, "swa"])
def test_parameters_that_are_added_or_exchanged_during_training_are_taken_up(name):
    net = Growing()
    optimizer = sgd(net)
    method = steppe.SWA(start=0) if name == "swa" else steppe.make(name)
    step = method.bind(net, optimizer)
    for k in range(2):
        step(*small_batch(seed=k))
    net.grow(optimizer)
    x, _ = small_batch()
    assert torch.isfinite(step.predict(x)).all()
    net.train()
    before = net.body[4].weight.detach().clone()
    for k in range(2, 5):
        assert not step(*small_batch(seed=k)).skipped
    assert not torch.equal(net.body[4].weight, before)
    net.eval()
    with step.deployed_weights():
        deployed = net(x)
    assert torch.equal(step.predict(x), deployed) and torch.isfinite(deployed).all()


@dataclass(frozen=True)
class Begins(steppe.Method):
    """Has a field that may be an amount of training, or anything else."""

    start: float = 0.5


@dataclass(frozen=True)
class BeginsLate(Begins):
    amounts: ClassVar = ("start",)


def test_a_field_is_a_share_of_the_training_if_the_method_says_so():
    bound(Begins())
    with pytest.raises(steppe.InputError, match="start is 0.5, a share of the training"):
        bound(BeginsLate())
    bound(BeginsLate(), steps=10)
    bound(BeginsLate(start=3))


@dataclass(frozen=True)
class Measures(steppe.GC):
    def before(self, batch, state, rt):
        raise AssertionError


def test_a_transform_whose_passes_would_be_left_out_is_refused():
    with pytest.raises(steppe.InputError, match="whose before would be left out; use On"):
        bound(steppe.SAM(), transforms=[Measures()])
    with pytest.raises(AssertionError):
        bound(steppe.On(steppe.SAM(), Measures()))[1](*small_batch())
    with pytest.raises(AssertionError):
        bound(steppe.When(Measures(), every=2))[1](*small_batch())


def test_public_names_are_looked_up_once():
    """A module's __getattr__ searches the package's folder, and a loop may name steppe.Batch in each step."""
    assert steppe.WithLR is vars(steppe)["WithLR"]


def test_a_complex_parameter_that_is_added_during_training_is_trained_in_pairs():
    net, step = bound(steppe.FriendlySAM())
    step(*small_batch())
    factor = nn.Parameter(torch.ones(5, dtype=torch.complex64))
    net.register_forward_hook(lambda _, args, z: (z * factor).abs())
    step.runtime.optimizer.add_param_group({"params": [factor]})
    for _ in range(2):
        step(*small_batch())
    assert step.runtime.params[-1].shape == (5, 2)
    assert (factor.detach() - 1).abs().min() > 0


@pytest.mark.parametrize(
    "spec",
    ["sam:start=300", "mesa:start=300", "swa:start=4", "sam+mesa:start=4", "saf:start=4"],
)
def test_a_method_that_starts_after_the_end_is_refused_by_bind(spec):
    method = steppe.parse(spec)
    for steps in (4, 3.5):
        net = small_net()
        with pytest.raises(steppe.InputError, match=r"start is \d+ and the training has .* never active; give"):
            method.bind(net, sgd(net), steps=steps, epoch=2)
    for steps in (None, 301, lambda: 0.0):  # the length is unknown, or enough
        method.bind(net, sgd(net), steps=steps, epoch=2)


@pytest.mark.parametrize("spec", ["sam:start=3", "sam:start=0.9", "swa:start=0.75", "mesa:start=300,lam=0", "swa"])
def test_a_start_within_the_training_or_of_a_plain_method_is_not_refused(spec):
    net = small_net()
    steppe.parse(spec).bind(net, sgd(net), steps=4, epoch=2)
