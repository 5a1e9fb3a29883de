"""Several optimizers at once, schedule-free optimizers, and how parameters divide among groups."""

import copy

import pytest
import torch
from support.small import same, sgd
from torch import nn
from torch.utils._pytree import tree_leaves

import steppe
from steppe import models
from steppe.core.optimizers.splits import grouped, layer_numbers, split_for_muon
from steppe.integrations.torch_optimizer import SAMOptimizer

X = torch.randn(8, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(3))
Y = torch.arange(8) % 3


def net() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(5, 6), nn.Tanh(), nn.Linear(6, 3)).double()


def two(model: nn.Sequential) -> list[torch.optim.Optimizer]:
    muon = torch.optim.Muon([model[0].weight], lr=0.02)
    rest = [p for p in model.parameters() if p is not model[0].weight]
    return [muon, torch.optim.AdamW(rest, lr=0.01)]


def gradient(model: nn.Module) -> list[torch.Tensor]:
    return list(torch.autograd.grad(nn.functional.cross_entropy(model(X), Y), list(model.parameters())))


def test_the_perturbation_is_over_all_parameters_and_each_optimizer_and_scheduler_works():
    model, reference = net(), net()
    optimizers, own = two(model), two(reference)
    step = steppe.SAM(rho=0.3).bind(model, optimizers)
    schedulers = [[torch.optim.lr_scheduler.StepLR(o, 2, 0.5) for o in pair] for pair in (optimizers, own)]
    for _ in range(5):
        step(X, Y)
        g = gradient(reference)
        length = torch.sqrt(sum(t.square().sum() for t in g))
        moved = copy.deepcopy(reference)
        for p, t in zip(moved.parameters(), g, strict=True):
            p.data += 0.3 * t / length
        for p, t in zip(reference.parameters(), gradient(moved), strict=True):
            p.grad = t
        for o in own:
            o.step()
        for s in schedulers[0] + schedulers[1]:
            s.step()
    assert optimizers[0].param_groups[0]["lr"] == 0.02 / 4
    for p, q in zip(model.parameters(), reference.parameters(), strict=True):
        assert torch.allclose(p, q, rtol=1e-9, atol=1e-12)


def test_a_skipped_step_and_a_reloaded_state_are_those_of_one_optimizer():
    model = net()
    step = steppe.RepeatStep().bind(model, two(model))
    step(X, Y)
    whole = step.runtime.optimizer
    before = copy.deepcopy((model.state_dict(), whole.state_dict()))
    calls = iter([False, True])

    def second_pass_fails(z, y):
        return nn.functional.cross_entropy(z, y) * (float("nan") if next(calls) else 1.0)

    failing = steppe.TwoStep().bind(model, whole.optimizers, loss=second_pass_fails)
    assert failing(X, Y).skipped
    torch.testing.assert_close((model.state_dict(), whole.state_dict()), before, rtol=0, atol=0)
    other = net()
    other.load_state_dict(before[0])
    again = steppe.RepeatStep().bind(other, two(other))
    again.runtime.optimizer.load_state_dict(before[1])
    for _ in range(2):
        step(X, Y)
        again(X, Y)
    assert same(model, other)


@pytest.mark.parametrize(
    ("optimizers", "message"),
    [
        (lambda m: [], "the list of optimizers is empty"),
        (lambda m: [sgd(m), torch.optim.Adam([m[0].weight])], "in two optimizers, SGD and Adam"),
        (
            lambda m: [sgd(m), torch.optim.Adam([nn.Parameter(torch.ones(2))])],
            "Adam has no parameter of the model",
        ),
        (lambda m: [sgd(m), 3], "optimizer is of type int"),
        (lambda m: [torch.optim.LBFGS(m.parameters())], "LBFGS needs a closure"),
        (
            lambda m: SAMOptimizer(m.parameters(), torch.optim.SGD, lr=0.1),
            "SAMOptimizer makes SAM steps itself; bind its base optimizer",
        ),
    ],
)
def test_impossible_lists_are_refused_at_bind(optimizers, message):
    model = net()
    with pytest.raises(steppe.InputError, match=message):
        steppe.SAM().bind(model, optimizers(model))


def test_a_parameter_that_no_optimizer_holds_is_named_and_a_frozen_one_is_not(recwarn):
    model = net()
    with pytest.warns(UserWarning, match=r"3 trainable parameters .*0.bias, 2.weight, 2.bias"):
        steppe.SAM().bind(model, torch.optim.Muon([model[0].weight]))
    for p in model.parameters():
        p.requires_grad_(p is model[0].weight)
    recwarn.clear()
    steppe.SAM().bind(model, torch.optim.Muon([model[0].weight]))
    assert not recwarn.list


class WithRho(torch.optim.SGD):
    """An optimizer with a setting rho that it keeps in its groups, not in its defaults."""

    def __init__(self, params, lr: float, rho: float = 0.9) -> None:
        super().__init__(params, lr)
        for group in self.param_groups:
            group["rho"] = rho


def test_keys_of_other_optimizers_are_not_radii():
    for make in (lambda p: torch.optim.Adadelta(p, rho=0.9), lambda p: WithRho(p, 0.1)):
        model = net()
        first = make([model[0].weight])
        second = torch.optim.SGD([{"params": list(model.parameters())[1:], "rho": 0.2}], 0.1)
        step = steppe.SAM(rho=0.05).bind(model, [first, second])
        assert step.runtime.setting("rho", 0.05) == [0.05, 0.2, 0.2, 0.2]


def test_schedule_free_weights_are_trained_at_y_and_evaluated_at_x():
    schedulefree = pytest.importorskip("schedulefree")
    model, lr, beta, rho = net(), 0.5, 0.9, 0.3
    optimizer = schedulefree.SGDScheduleFree(model.parameters(), lr=lr, momentum=beta)
    optimizer.train()
    step = steppe.SAM(rho=rho).bind(model, optimizer)
    y = [p.detach().clone() for p in model.parameters()]
    z, x, reference = [t.clone() for t in y], [t.clone() for t in y], net()
    for k in range(4):
        step(X, Y)
        point = [beta * b + (1 - beta) * a for a, b in zip(z, x, strict=True)]

        def at(weights):
            for p, t in zip(reference.parameters(), weights, strict=True):
                p.data.copy_(t)
            return gradient(reference)

        g = at(point)
        length = torch.sqrt(sum(t.square().sum() for t in g))
        g = at([p + rho * t / length for p, t in zip(point, g, strict=True)])
        z = [a - lr * t for a, t in zip(z, g, strict=True)]
        x = [b + (a - b) / (k + 1) for a, b in zip(z, x, strict=True)]
    at(x)
    trained = [p.detach().clone() for p in model.parameters()]
    assert torch.allclose(step.predict(X), reference(X), rtol=1e-9, atol=1e-12)
    with step.deployed_weights():
        assert torch.allclose(model[0].weight, x[0], rtol=1e-9, atol=1e-12)
        assert not optimizer.param_groups[0]["train_mode"]
    assert optimizer.param_groups[0]["train_mode"]
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), trained, strict=True))


@pytest.mark.parametrize("listed", [False, True])
def test_a_schedule_free_wrapper_has_its_mode_as_an_attribute(listed):
    schedulefree = pytest.importorskip("schedulefree")
    model, reference, lr, beta = net(), net(), 0.5, 0.9
    first = list(model.parameters())[:2] if listed else model.parameters()
    optimizer = schedulefree.ScheduleFreeWrapper(torch.optim.SGD(first, lr=lr), momentum=beta)
    optimizer.train()
    rest = [torch.optim.SGD(list(model.parameters())[2:], 0.0)] if listed else []
    step = steppe.Plain().bind(model, [optimizer, *rest])
    for _ in range(4):
        step(X, Y)
    trained = [p.detach().clone() for p in model.parameters()]
    for p, q in zip(reference.parameters(), model.parameters(), strict=True):
        z = optimizer.state[q]["z"] if q in optimizer.state else q
        p.data = (q.detach() - (1 - beta) * z) / beta  # y = beta x + (1 - beta) z
    assert torch.allclose(step.predict(X), reference(X), rtol=1e-9, atol=1e-12)
    assert not torch.allclose(model(X), reference(X), rtol=1e-3)
    with step.deployed_weights():
        assert torch.allclose(model[0].weight, reference[0].weight, rtol=1e-9, atol=1e-12)
        assert not optimizer.train_mode
    assert optimizer.train_mode
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), trained, strict=True))


class SlowCopies(torch.optim.Optimizer):
    """Lookahead around an optimizer whose groups it shares, with a state of its own, as packages have it."""

    def __init__(self, optimizer: torch.optim.Optimizer):
        super().__init__(optimizer.param_groups, {})
        self.optimizer, self.param_groups = optimizer, optimizer.param_groups

    @torch.no_grad()
    def step(self, closure=None):
        self.optimizer.step()
        for p in self.param_groups[0]["params"]:
            slow = self.state[p].setdefault("slow", p.clone())
            p.copy_(slow.lerp_(p, 0.5))


@pytest.mark.parametrize("on_device", [False, True])
@pytest.mark.parametrize("make", [lambda p: sgd(p), lambda p: torch.optim.Adam(p.parameters(), 0.1)])
def test_a_skipped_step_restores_the_state_of_an_optimizer_in_another(make, on_device):
    model, calls = net(), []

    def loss(z, y):
        calls.append(1)
        return nn.functional.cross_entropy(z, y) * (float("nan") if len(calls) == 6 else 1)

    inner = make(model)
    step = steppe.TwoStep().bind(model, SlowCopies(inner), loss=loss)
    step.runtime.on_device = on_device
    for _ in range(2):
        step(X, Y)
    before = copy.deepcopy([model.state_dict(), inner.state_dict(), step.runtime.optimizer.state_dict()])
    assert step(X, Y).skipped
    after = [model.state_dict(), inner.state_dict(), step.runtime.optimizer.state_dict()]
    pairs = list(zip(tree_leaves(before), tree_leaves(after), strict=True))
    assert len(pairs) > 12 and all(
        bool(torch.all(a == b)) if isinstance(a, torch.Tensor) else a == b for a, b in pairs
    )


class Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.attn, self.norm = nn.MultiheadAttention(4, 2), nn.LayerNorm(4)


class Transformer(nn.Module):
    def __init__(self, tied: bool = False) -> None:
        super().__init__()
        self.wte, self.pos_embed = nn.Embedding(7, 4), nn.Parameter(torch.zeros(5, 4))
        self.patch, self.blocks = nn.Conv1d(4, 4, 3), nn.ModuleList([Block(), Block()])
        self.mlp, self.norm, self.lm_head = nn.Linear(4, 4), nn.LayerNorm(4), nn.Linear(4, 7, bias=False)
        if tied:
            self.lm_head.weight = self.wte.weight


@pytest.mark.parametrize("tied", [False, True])
def test_muon_has_the_hidden_matrices(tied):
    model = Transformer(tied)
    names = {id(p): name for name, p in model.named_parameters()}
    hidden, rest = ([names[id(p)] for p in part] for part in split_for_muon(model))
    matrices = [f"blocks.{i}.attn.{name}" for i in (0, 1) for name in ("in_proj_weight", "out_proj.weight")]
    assert hidden == [*matrices, "mlp.weight"]
    assert len(hidden) + len(rest) == len(names) and "pos_embed" in rest and "patch.weight" in rest


@pytest.mark.parametrize("method", ["ffl", "one", "pcl"])
def test_heads_that_a_method_adds_are_no_hidden_matrices(method):
    net = steppe.make(method).build(lambda: models.build("simple-cnn", classes=3, channels=1, size=18))
    members = {id(p) for member in net.members for p in member.parameters()}
    added = [p for p in net.parameters() if id(p) not in members and p.ndim == 2]
    hidden = {id(p) for p in split_for_muon(net)[0]}
    assert any(p.shape[0] in (3, len(net.members)) for p in added)
    assert not any(id(p) in hidden for p in added if p.shape[0] in (3, len(net.members)))


def test_layers_are_counted_from_the_head_and_norms_have_no_decay():
    model = Transformer()
    above = {name: layer_numbers(model)[id(p)] for name, p in model.named_parameters()}
    assert {above[k] for k in ("wte.weight", "pos_embed", "patch.weight")} == {3}
    assert (above["blocks.0.norm.bias"], above["blocks.1.attn.in_proj_weight"], above["lm_head.weight"]) == (
        2,
        1,
        0,
    )
    plain = net()
    assert [layer_numbers(plain)[id(p)] for p in plain.parameters()] == [1, 1, 0, 0]
    branched = steppe.make("one").build(lambda: models.build("simple-cnn", classes=3, channels=1, size=18))
    numbers = layer_numbers(branched)
    members = {id(p) for p in branched.members.parameters()}
    assert {numbers[id(p)] for p in branched.members.parameters()} | {0} == set(
        range(max(numbers.values()) + 1)
    ) - {numbers[id(p)] for p in branched.parameters() if id(p) not in members}
    params = list(model.parameters())
    groups = grouped(model, params, decay_matrices_only=True, layer_decay=0.5)
    assert [g["lr_scale"] for g in groups] == [1, 1, 0.5, 0.5, 0.25, 0.25, 0.125, 0.125]
    for group in groups:
        assert all((p.ndim <= 1) == ("weight_decay" in group) for p in group["params"])
    assert sorted(id(p) for g in groups for p in g["params"]) == sorted(map(id, params))
    assert grouped(model, params, decay_matrices_only=False, layer_decay=1) == params


def test_a_momentum_of_sgd_continues_in_muon():
    """What the decision on one optimizer per run says of a hand-over by hand."""
    weights = [nn.Parameter(torch.ones(3, 4, dtype=torch.float64)) for _ in range(2)]
    first = torch.optim.SGD(weights[:1], 0.0, momentum=0.95)
    muons = [torch.optim.Muon([w], lr=0.1, momentum=0.95, weight_decay=0.0) for w in weights]
    for k in range(5):
        for w in weights:
            w.grad = torch.randn(3, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(k))
        first.step()
        muons[1].step()
    carried = 0.05 * first.state[weights[0]]["momentum_buffer"]
    assert torch.allclose(carried, muons[1].state[weights[1]]["momentum_buffer"], rtol=1e-9)
